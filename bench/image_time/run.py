"""The engine's time for an image in stages, tape on, beside the time of the engine's own program.

sd15, 128 px, 20 steps. The two of a pair run at the same time, each on a core of its own, and change cores
from pair to pair: one after the other, the same program differs by six percent on a shared machine, and side
by side what disturbs one disturbs both. Engine time is what each program measures around encode, sampling and
decode; loading is beside it. The bound is 1.02 for the median of the ratios.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any  # what JSON and keyword arguments carry

from table import write_page
from tidegate_engines import program

from engine_process import EngineProcess

HERE = Path(__file__).resolve().parent
TREE = HERE.parent.parent
PAIRS = 5
RATIO_MAX = 1.02
Measure = Callable[[dict[str, str], Path], tuple[float, float]]
REQUEST: dict[str, Any] = {
    "prompt": "a lighthouse at dusk",
    "width": 128,
    "height": 128,
    "steps": 20,
    "seed": 7,
    "sampler": "euler",
}

STAGED = """
import time
clock = time.monotonic
model = open_checkpoint()
wanted = request()
loading = engine = 0.0
def timed(call, *positional, **named):
    began = clock()
    result = call(*positional, **named)
    return result, clock() - began
for component in ("text_encoder", "diffusion", "vae"):
    loading += timed(model.load, component, "cpu")[1]
embeddings, seconds = timed(model.encode, wanted)
engine += seconds
latent, seconds = timed(model.denoise, wanted, embeddings, tape=arguments["tape"], progress=lambda *_: True)
engine += seconds
pixels, seconds = timed(model.decode, wanted, latent)
say(loading=loading, engine=engine + seconds, pixels=digest(pixels))
"""


def stock_times(files: dict[str, str], folder: Path) -> tuple[float, float]:
    """(loading, engine) in seconds, as sd-cli reports them."""
    command = [str(program("sd-cli")), "-M", "img_gen", "-o", str(folder / "stock.png"), "-t", "1", "-v"]
    command += ["--fa", "--diffusion-fa", "--vae-conv-direct", "--diffusion-conv-direct"]
    command += ["-p", REQUEST["prompt"], "-s", "7", "-W", "128", "-H", "128"]
    command += ["--steps", "20", "--cfg-scale", "7", "--sampling-method", "euler", "--model", files["model"]]
    said = subprocess.run(command, check=True, capture_output=True, text=True)
    text = said.stdout + said.stderr
    loading = re.search(r"loading tensors completed, taking ([0-9.]+)s", text)
    whole = re.search(r"generate_image completed in ([0-9.]+)s", text)
    if loading is None or whole is None:
        raise RuntimeError("sd-cli no longer reports its times in the words this benchmark knows")
    return float(loading[1]), float(whole[1])


def staged_times(files: dict[str, str], folder: Path) -> tuple[float, float]:
    """(loading, engine) in seconds of the stages."""
    with EngineProcess(STAGED, files=files, request=REQUEST, tape=str(folder / "tape")) as engine:
        said = engine.only()
    return said["loading"], said["engine"]


def on_core(core: int, measure: Measure, files: dict[str, str]) -> tuple[float, float]:
    """Measure with the calling thread, and with it the process that it starts, on one core."""
    os.sched_setaffinity(0, {core})
    with tempfile.TemporaryDirectory() as folder:
        return measure(files, Path(folder))


def main() -> int:
    command = [sys.executable, str(TREE / "scripts" / "demo_models.py"), "sd15"]
    folder = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    files = {"model": str(Path(folder) / "sd15.safetensors")}
    cores = sorted(os.sched_getaffinity(0))[:2]
    rows, ratios = [], []
    for pair in range(1, PAIRS + 1):
        with ThreadPoolExecutor(2) as threads:
            stock_run = threads.submit(on_core, cores[0], stock_times, files)
            staged_run = threads.submit(on_core, cores[-1], staged_times, files)
            (stock_loading, stock), (staged_loading, staged) = stock_run.result(), staged_run.result()
        cores.reverse()
        ratios.append(staged / stock)
        figures = (stock, staged, ratios[-1], stock_loading, staged_loading)
        rows.append([str(pair), *(f"{figure:.3f}" for figure in figures)])
        print(*rows[-1], flush=True)
    median = statistics.median(ratios)
    write_page(
        HERE / "table.md",
        "Image time in stages against the stock program",
        text=f"sd15, 128 px, 20 steps, one thread, tape and preview on; euler, f16. "
        f"Median ratio **{median:.3f}** (bound {RATIO_MAX}).",
        head=["pair", "stock s", "staged s", "ratio", "stock loading s", "staged loading s"],
        rows=rows,
    )
    return 0 if median <= RATIO_MAX else 1


if __name__ == "__main__":
    sys.exit(main())

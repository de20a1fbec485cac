"""Stages give the very pixels of the engine's own program: the same sources without any of our hooks."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any  # what JSON and keyword arguments carry

import numpy as np
import pytest
from PIL import Image
from tidegate_engines import program

from engine_process import SMALL, EngineProcess, tiny_files

STAGED = """
model = open_checkpoint()
wanted = request()
start = None
if "init" in arguments:
    from PIL import Image
    pixels = np.ascontiguousarray(np.asarray(Image.open(arguments["init"]).convert("RGB")))
    model.load("vae", "cpu", encoder=True)
    start = model.encode_image(wanted, pixels)
    model.release("vae")
model.load("text_encoder", "cpu")
embeddings = model.encode(wanted)
model.release("text_encoder")
model.load("diffusion", "cpu")
latent = model.denoise(wanted, embeddings, init_latent=start)
model.release("diffusion")
np.save(arguments["latent"], latent)
model.load("vae", "cpu")
say(pixels=digest(model.decode(wanted, latent)))
"""

DECODED_ELSEWHERE = """
model = open_checkpoint()
model.load("vae", "cpu")
say(pixels=digest(model.decode(request(), np.load(arguments["latent"]))))
"""


def stock_pixels(
    folder: Path, files: dict[str, str], wanted: dict[str, Any], init: Path | None
) -> np.ndarray:
    """The image as sd-cli makes it, with the options that correspond to ours."""
    image = folder / "stock.png"
    command = [str(program("sd-cli")), "-M", "img_gen", "-o", str(image), "-t", "1"]
    command += ["--fa", "--diffusion-fa", "--vae-conv-direct", "--diffusion-conv-direct"]
    command += ["-p", wanted["prompt"], "-n", wanted["negative"], "-s", str(wanted["seed"])]
    command += ["-W", str(wanted["width"]), "-H", str(wanted["height"]), "--steps", str(wanted["steps"])]
    command += ["--cfg-scale", "7", "--sampling-method", wanted["sampler"]]
    for kind, path in files.items():
        command += [f"--{kind}", path]
    if init is not None:
        command += ["-i", str(init), "--strength", str(wanted["strength"])]
    subprocess.run(command, check=True, capture_output=True)
    return np.asarray(Image.open(image).convert("RGB"))


def files_of(family: str, folder: Path) -> dict[str, str]:
    return tiny_files(folder) if family == "sd1-tiny" else {"model": str(folder / f"{family}.safetensors")}


def cases() -> list[Any]:
    tiny = [
        ("sd1-tiny", sampler, init) for sampler in ("euler", "euler_a", "dpm++2m") for init in (False, True)
    ]
    full = [("sd15", sampler, init) for sampler in ("euler", "heun", "dpm++2m") for init in (False, True)]
    large = [("sdxl", "euler_a", False), ("sd3", "euler", False)]
    quick = {*tiny[:3], tiny[-1], full[0]}
    marked = [
        pytest.param(*case, id="-".join(map(str, case)), marks=[] if case in quick else [pytest.mark.chaos])
        for case in (*tiny, *full, *large)
    ]
    assert len(marked) == 14
    return marked


@pytest.mark.parametrize(("family", "sampler", "from_image"), cases())
def test_staged_pixels_are_stock_pixels(
    tmp_path: Path, synthetic_models: Callable[[str], Path], family: str, sampler: str, from_image: bool
) -> None:
    files = files_of(family, synthetic_models(family))
    steps = SMALL["steps"] if family == "sd1-tiny" else 2
    wanted = {**SMALL, "sampler": sampler, "strength": 0.6, "steps": steps}
    arguments: dict[str, Any] = {"files": files, "request": wanted, "latent": str(tmp_path / "latent.npy")}
    init = None
    if from_image:
        init = tmp_path / "init.png"
        noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(init)
        arguments["init"] = str(init)

    stock = stock_pixels(tmp_path, files, wanted, init)
    assert stock.std() > 1, "a comparison of blank images proves nothing"
    with EngineProcess(STAGED, **arguments) as staged:
        assert staged.only()["pixels"] == hashlib.sha256(stock.tobytes()).hexdigest()
    with EngineProcess(DECODED_ELSEWHERE, **arguments) as elsewhere:
        assert elsewhere.only()["pixels"] == hashlib.sha256(stock.tobytes()).hexdigest()

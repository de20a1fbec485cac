"""Predicted bytes beside observed bytes, and predictions of large images from headers alone.

Observed is read from the virtual card's ledger by this process while another one computes; the difference
must be 0 for every plain placement and mode. Predictions of sizes too large for this machine need no weights:
the files are sparse. Ends with 1 if a difference is not 0.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any  # what JSON and keyword arguments carry

from language import HEAD, language_rows
from table import write_page

from engine_process import EngineProcess, tiny_files
from tidegate.core.quantity import GIB, MIB
from tidegate.runtime.cards.virtual import VirtualCard, VirtualSpec

HERE = Path(__file__).resolve().parent
TREE = HERE.parent.parent

OBSERVE = """
model = open_checkpoint()
side = arguments["request"]["width"]
wanted = request(steps=1)
latent = np.random.default_rng(1).standard_normal((1, *model.latent_shape(side, side)), dtype=np.float32)
model.load("text_encoder", "cpu")
embeddings = model.encode(wanted)
model.release("text_encoder")
for stage, component, placement, budget_bytes, tile in arguments["cases"]:
    predicted = model.predict(stage, wanted, placement, tile=tile, budget_bytes=budget_bytes)
    say(about_to="run")
    model.load(component, placement, budget_bytes=budget_bytes)
    match stage:
        case "encode": model.encode(wanted)
        case "denoise": model.denoise(wanted, embeddings)
        case "decode": model.decode(wanted, latent, tile=tile)
    say(case=[stage, placement, budget_bytes, tile], predicted=predicted.card_peak_bytes)
    model.release(component)
"""

FORESEE = """
import time
for name, options in (("plain", (False, False)), ("flash", (True, False)), ("flash + direct", (True, True))):
    model = open_checkpoint(flash_attention=options[0], direct_convolution=options[1])
    for side in arguments["sides"]:
        wanted = request(width=side, height=side, steps=1)
        began = time.monotonic()
        row = [model.predict("denoise", wanted).compute_bytes, model.predict("decode", wanted).compute_bytes]
        row += [model.predict("decode", wanted, tile=tile).compute_bytes for tile in (32, 64)]
        row += [model.predict("encode_image", wanted).compute_bytes]
        say(options=name, side=side, row=row, seconds=time.monotonic() - began)
"""

CASES = [
    (stage, component, placement, budget, tile)
    for placement, budget in (("card", 0), ("stream", 0), ("stream", 256 * MIB), ("stream", 64 * MIB))
    for stage, component, tile in (
        ("encode", "text_encoder", 0),
        ("denoise", "diffusion", 0),
        ("decode", "vae", 0),
        ("decode", "vae", 8),
    )
]


def models(kind: str) -> Path:
    command = [sys.executable, str(TREE / "scripts" / "demo_models.py"), kind]
    return Path(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip())


def observed_rows(name: str, files: dict[str, str], side: int) -> list[list[str]]:
    rows = []
    request: dict[str, Any] = {
        "prompt": "a lighthouse",
        "width": side,
        "height": side,
    }
    with tempfile.TemporaryDirectory() as folder:
        spec = VirtualSpec(capacity_bytes=20 * GIB)
        with (
            VirtualCard.create_in(Path(folder), spec) as card,
            EngineProcess(
                OBSERVE, ledger=str(card.path), files=files, request=request, cases=CASES
            ) as engine,
        ):
            for said in engine:
                if "about_to" in said:
                    card.reset_peaks()
                    continue
                row = card.read().row_of(engine.pid)
                observed = 0 if row is None else row.holdings[0].peak_bytes
                stage, placement, budget, tile = said["case"]
                how = (
                    placement
                    + (f" {budget // MIB} MiB" if budget else "")
                    + (f", tile {tile}" if tile else "")
                )
                difference = observed - said["predicted"]
                rows.append(
                    [name, str(side), stage, how, f"{said['predicted']:,}", f"{observed:,}", str(difference)]
                )
    return rows


def foreseen_rows(name: str, files: dict[str, str], sides: list[int]) -> list[list[str]]:
    with EngineProcess(FORESEE, files=files, request={"prompt": "a lighthouse"}, sides=sides) as engine:
        return [
            [name, str(said["side"]), said["options"]]
            + [f"{value / MIB:,.0f}" for value in said["row"]]
            + [f"{said['seconds']:.1f}"]
            for said in engine
        ]


def sparse(family: str, folder: Path) -> dict[str, str]:
    synth = "import sys; from tidegate.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", synth, "synth", family, str(folder), "--sparse"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return {"model": str(folder / f"{family}.safetensors")}


def main() -> int:
    rows = observed_rows("sd1-tiny, TAESD", tiny_files(models("sd1-tiny")), 64)
    rows += observed_rows("sd15", {"model": str(models("sd15") / "sd15.safetensors")}, 128)
    write_page(
        HERE / "observed.md",
        "Predicted and observed bytes on a virtual card",
        text="`exact` preset (granularity 1 byte). "
        "Observed: peak of the process's row in the ledger, read by another process.",
        head=["model", "px", "stage", "placement", "predicted", "observed", "difference"],
        rows=rows,
    )
    with tempfile.TemporaryDirectory() as folder:
        foreseen = foreseen_rows("sd15", sparse("sd15", Path(folder)), [512, 1024, 2048])
        foreseen += foreseen_rows("sdxl", sparse("sdxl", Path(folder)), [1024])
    write_page(
        HERE / "foreseen.md",
        "Compute buffers from headers alone, in MiB",
        text="Sparse files, nothing allocated, f16. Weights come on top; tiles are in latent pixels.",
        head=["model", "px", "options", "UNet", "decode", "tile 32", "tile 64", "encode image", "seconds"],
        rows=foreseen,
    )
    language = language_rows(models)
    write_page(
        HERE / "language.md",
        "Language models: predicted and observed bytes on a virtual card",
        text="Predicted on a hollow card, where nothing is charged. Observed: the row of the process that "
        "loads the model, computes batches and encodes the image, read from the ledger by another process. "
        "CUDA's card rounds up to 2 MiB, the others to nothing.",
        head=HEAD,
        rows=language,
    )
    return 0 if all(row[-1] == "0" for row in rows + language) else 1


if __name__ == "__main__":
    sys.exit(main())

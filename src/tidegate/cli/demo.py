"""`tidegate demo`: three images on a virtual card, and what happens to them, told as it happens.

Owns the three scenes and their narration. Nothing in them is staged but the size of the card and one kill:
the engine, the plans, the recovery and the pictures are those of `tidegate image`.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.padding import Padding

from tidegate.cli.show import Show
from tidegate.core.faults import Bug, ClientError
from tidegate.core.quantity import GIB, MIB, size_text, time_text
from tidegate.core.stage import Execution, Stage
from tidegate.runtime import model_choice, oneshot, png
from tidegate.runtime.cards.virtual import VirtualCard, VirtualSpec, ledger_folder
from tidegate.runtime.models.assembly import ImageFiles
from tidegate.runtime.order import ImageOrder
from tidegate.runtime.report import Report, StageRecord
from tidegate.runtime.site import site_on
from tidegate.wire.messages import ImageRequest

PROMPT: Final = "a lighthouse at dusk"
STEPS: Final = 3
LARGE_CARD_BYTES: Final = 2 * GIB
# Less than the weights of the diffusion model (617 MiB), and than 192 pixels decoded in one piece (34 MiB).
SMALL_CARD_BYTES: Final = 24 * MIB
INTRODUCTION: Final = (
    "Three images, made by the real engine in a process of its own, on a virtual card: its memory is "
    "counted to the byte and enforced as on a real one, and the CPU does the computing. The weights of the "
    "demo model are random, so do not look for a lighthouse."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One image of the demo: what is told first, how large the card and the picture are, and who dies."""

    title: str
    text: str
    card_bytes: int
    pixels: int
    killed_at: Stage | None = None


SCENES: Final = (
    Scene(
        title="1. An image that fits",
        text=f"The card has {size_text(LARGE_CARD_BYTES)}. Text encoder, diffusion model and VAE fit side by "
        "side, and stay there.",
        card_bytes=LARGE_CARD_BYTES,
        pixels=128,
    ),
    Scene(
        title="2. An image that must be tiled",
        text=f"Now the card has {size_text(SMALL_CARD_BYTES)}, less than the weights alone, and the image "
        "has twice the pixels. Elsewhere this is where one reads 'out of memory'.",
        card_bytes=SMALL_CARD_BYTES,
        pixels=192,
    ),
    Scene(
        title="3. An image whose worker is killed",
        text=f"{size_text(LARGE_CARD_BYTES)} again, and the same request as the first. When the sampling "
        "is done and the pixels are being made, the worker gets SIGKILL, as from the kernel when memory is "
        "short.",
        card_bytes=LARGE_CARD_BYTES,
        pixels=128,
        killed_at=Stage.DECODE,
    ),
)

Folder = Annotated[
    Path, typer.Option("-o", "--output", help="The folder for the three pictures.", file_okay=False)
]


def demo(output: Folder = Path("tidegate-demo")) -> None:
    """Make three images on a virtual card and tell what happens."""
    began = time.monotonic()
    files = demo_files()
    _make_folder(output)
    console = Console(stderr=True)
    _say(console, INTRODUCTION)
    hashes = []
    for number, scene in enumerate(SCENES, start=1):
        console.print(f"\n{scene.title}", style="bold", highlight=False)
        _say(console, scene.text)
        report = _played(scene, _order(files, scene, output / f"demo-{number}.png"), console)
        hashes.append(report.images[0].pixels_sha256)
        for line in _outcome(report):
            _say(console, line)
    if hashes[0] != hashes[2]:
        raise Bug("The third picture differs from the first, although both come from the same request.")
    _say(
        console, "\nIt is the first picture again, byte for byte: the sampling before the kill was not lost."
    )
    _say(console, f"Three images in {time_text(round((time.monotonic() - began) * 1000))}.")
    print(f"{output}/demo-1.png {output}/demo-2.png {output}/demo-3.png")


def demo_files() -> ImageFiles:
    """The demo model. Raises ClientError when it was never made."""
    folder = model_choice.demo_folder()
    if folder is None:
        raise ClientError(
            "The demo model is not there.", remedy="Make it with `make setup`.", code="no_demo_model"
        )
    return model_choice.chosen_files(str(folder / "sd1-tiny.safetensors"), {})


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise png.unwritable(path, error.strerror or str(error)) from error


def _order(files: ImageFiles, scene: Scene, output: Path) -> ImageOrder:
    return ImageOrder(
        files=files.files,
        fingerprints=model_choice.fingerprints(files),
        model_name=files.main.name,
        request=ImageRequest(prompt=PROMPT, width=scene.pixels, height=scene.pixels, steps=STEPS, seed=7),
        outputs=(output,),
    )


def _played(scene: Scene, order: ImageOrder, console: Console) -> Report:
    with VirtualCard.create_in(ledger_folder(), VirtualSpec(capacity_bytes=scene.card_bytes)) as card:
        try:
            with _Stage(console, strikes=_killer(scene, card)) as shown:
                return oneshot.make(order, shown, site=site_on(card))
        finally:
            card.remove()


def _killer(scene: Scene, card: VirtualCard) -> Callable[[Stage], None]:
    """Kills the process on the card when the scene says so, once."""
    struck: list[int] = []

    def strike(stage: Stage) -> None:
        if stage is scene.killed_at and not struck:
            struck.extend(row.pid for row in card.read().processes if row.alive)
            for pid in struck:
                os.kill(pid, signal.SIGKILL)

    return strike


class _Stage(Show):
    """Shows a run as `tidegate image` does, and strikes when a stage begins."""

    def __init__(self, console: Console, *, strikes: Callable[[Stage], None]) -> None:
        super().__init__(console)
        self._strikes = strikes

    def stage_began(self, stage: Stage, *, image: int, count: int, how: Execution) -> None:
        super().stage_began(stage, image=image, count=count, how=how)
        self._strikes(stage)


def _outcome(report: Report) -> list[str]:
    lines = [_record_text(record) for record in report.stages]
    if report.card is not None:
        peak, capacity = report.card["peak_bytes"], report.card["capacity_bytes"]
        lines.append(f"The most that was ever held of the card: {peak} of {capacity} bytes.")
    return lines


def _record_text(record: StageRecord) -> str:
    predicted, seen = record.predicted_bytes, record.observed_peak_bytes
    amount = f"{seen} bytes, as predicted" if seen == predicted else f"{seen} bytes, predicted {predicted}"
    tries = f", attempt {record.attempts}" if record.attempts > 1 else ""
    return f"{record.stage} {record.execution.text()}{tries}: {amount}, {time_text(record.ms)}"


def _say(console: Console, text: str) -> None:
    console.print(Padding(text, (0, 0, 0, 3)), highlight=False, markup=False)

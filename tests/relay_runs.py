"""Runs of the real thing for the end-to-end tests: orders, a listener that records, and virtual cards.

Owns no expectation. The engine is the real one in a real child; what is virtual is only the card.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from tidegate.core.quantity import MIB
from tidegate.core.stage import Execution, Stage
from tidegate.runtime import model_choice, oneshot, site
from tidegate.runtime.cards.virtual import VirtualCard, VirtualSpec
from tidegate.runtime.order import ImageOrder, InitImage
from tidegate.runtime.report import Report
from tidegate.runtime.worker import Patience
from tidegate.wire.messages import ImageRequest

# Small enough for two busy cores: an image of 64 pixels in two steps.
REQUEST = ImageRequest(prompt="a lighthouse at dusk", width=64, height=64, steps=2, seed=7)
THREADS = 2


@dataclass(slots=True)
class Recorder:
    """Listens to a run; `on_stage` and `on_step` may disturb it."""

    on_stage: Callable[[Stage], None] = lambda _stage: None
    on_step: Callable[[Stage, int], None] = lambda _stage, _step: None
    stages: list[tuple[Stage, int, Execution]] = field(default_factory=list)
    steps: list[tuple[Stage, int]] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    def stage_began(self, stage: Stage, *, image: int, count: int, how: Execution) -> None:
        self.stages.append((stage, image, how))
        self.on_stage(stage)

    def step_done(self, step: int, steps: int, *, card_bytes: int) -> None:
        stage = self.stages[-1][0]
        self.steps.append((stage, step))
        self.on_step(stage, step)

    def told(self, text: str) -> None:
        self.notices.append(text)


def order_for(
    model: Path,
    output: Path,
    *,
    count: int = 1,
    init: InitImage | None = None,
    request: ImageRequest = REQUEST,
) -> ImageOrder:
    """An order for the model file, on the CPU unless the caller brings a site."""
    files = model_choice.chosen_files(str(model), {})
    outputs = tuple(output.with_name(f"{output.stem}-{number}.png") for number in range(count))
    return ImageOrder(
        files=files.files,
        fingerprints=model_choice.fingerprints(files),
        model_name=files.main.name,
        request=request,
        outputs=outputs if count > 1 else (output,),
        device="cpu",
        init=init,
        threads=THREADS,
    )


def changed(order: ImageOrder, **request: object) -> ImageOrder:
    """The same order with another request."""
    return replace(order, request=msgspec.structs.replace(order.request, **request))


@contextlib.contextmanager
def card_of(capacity_bytes: int, folder: Path, **knobs: int) -> Iterator[VirtualCard]:
    """A virtual card in a ledger of its own."""
    card = VirtualCard.create_in(folder, VirtualSpec(capacity_bytes=capacity_bytes, knobs=knobs))
    try:
        yield card
    finally:
        card.remove()


def run_on(
    card: VirtualCard,
    order: ImageOrder,
    listener: Recorder | None = None,
    *,
    patience: Patience | None = None,
) -> Report:
    """Make the order's images on a card that the test can read and disturb."""
    return oneshot.make(order, listener or Recorder(), site=site.site_on(card), patience=patience)


def placements(report: Report) -> str:
    """How each stage ran, in short: 'card card tiled:16'."""
    told = []
    for record in report.stages:
        how = record.execution
        where = str(how.placement)
        if how.budget_bytes:
            where += f":{how.budget_bytes // MIB}MiB"
        told.append(where + (f"/{how.tile}" if how.tile else ""))
    return " ".join(told)


def worker_on(card: VirtualCard) -> int:
    """The pid of the one living process on the card."""
    (pid,) = (row.pid for row in card.read().processes if row.alive)
    return pid


def saved(state: Path) -> dict[str, str]:
    """Hashes of the artifacts that the one unfinished job has journalled, by file name."""
    (journal,) = state.glob("jobs/*/job.json")
    told = msgspec.json.decode(journal.read_bytes())
    return {name: entry["sha256"] for name, entry in told["saved"].items()}

"""Footprints: what each way to run a stage would need, asked of the worker and remembered.

Owns the questions to the worker's dry run and their answers, which outlive the worker. Which ways there are
is named by `tidegate.core.planner.candidates`; which one is taken, by the planner.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tidegate.core.planner import Footprint, StageFacts, StageOption, Work, candidates_for, option_of
from tidegate.core.stage import Execution, Placement, Stage
from tidegate.runtime.worker import CommandFailed, ImageWorker
from tidegate.wire import messages


@dataclass(slots=True)
class Footprints:
    """The options of each stage of one order. All images of a batch are of one size, so they share them."""

    request: messages.ImageRequest
    latent_factor: int
    is_card_slow: bool = False
    _known: dict[tuple[Stage, Execution], StageOption | None] = field(default_factory=dict)
    _weights: dict[Stage, int] = field(default_factory=dict)

    def executions(self, stage: Stage, worker: ImageWorker, *, room_bytes: int) -> tuple[Execution, ...]:
        """The ways to run a stage, best first; `room_bytes` is the most the card could give."""
        if stage not in self._weights:
            probe = Execution(Placement.CARD if room_bytes else Placement.CPU)
            option = self.option(stage, worker, execution=probe)
            self._weights[stage] = option.footprint.weights_bytes if option else 0
        facts = StageFacts(
            latent_height=self._height,
            latent_width=self._width,
            weights_bytes=self._weights[stage],
            room_bytes=room_bytes,
        )
        return candidates_for(stage, facts)

    def option(self, stage: Stage, worker: ImageWorker, *, execution: Execution) -> StageOption | None:
        """One way to run a stage with its bytes and its price; None when the engine cannot run it so."""
        key = (stage, execution)
        if key not in self._known:
            self._known[key] = self._predicted(stage, worker, execution=execution)
        return self._known[key]

    def _predicted(self, stage: Stage, worker: ImageWorker, *, execution: Execution) -> StageOption | None:
        try:
            found = worker.predict(stage, self.request, execution=execution)
        except CommandFailed as error:
            if error.fault in (messages.FaultKind.INVALID_MODEL, messages.FaultKind.INVALID_REQUEST):
                raise
            return None  # this way is closed, another may be open
        footprint = Footprint(found.card_peak_bytes, found.ram_peak_bytes, found.weights_bytes)
        work = Work(
            latent_height=self._height,
            latent_width=self._width,
            steps_count=max(1, self.request.steps),
        )
        return option_of(stage, execution, footprint=footprint, work=work, is_card_slow=self.is_card_slow)

    @property
    def _height(self) -> int:
        return max(1, self.request.height // self.latent_factor)

    @property
    def _width(self) -> int:
        return max(1, self.request.width // self.latent_factor)

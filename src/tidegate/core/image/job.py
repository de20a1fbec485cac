"""Image jobs: what a user asked for, and how far it has come.

    queued -> planning -> queued -> encode -> (encode_image) -> denoise -> decode -> done

Owns Job and its TRANSITIONS. A job stands in `queued` whenever it waits for its turn, also between stages and
after it yielded; its checkpoints are kept by the shell. Binding stages to workers is done in
`image/stages.py`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from tidegate.core.catalog import SizeKey
from tidegate.core.faults import InvalidTransition
from tidegate.core.image.failure import Attempt
from tidegate.core.planner.prices import Work
from tidegate.core.stage import Execution, Stage


class JobPhase(enum.StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    PLANNING = "planning"
    ENCODE = "encode"
    ENCODE_IMAGE = "encode_image"
    DENOISE = "denoise"
    DECODE = "decode"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


_ENDS = (JobPhase.FAILED, JobPhase.CANCELLED)
_STAGES = (JobPhase.ENCODE, JobPhase.ENCODE_IMAGE, JobPhase.DENOISE, JobPhase.DECODE)
TRANSITIONS: Mapping[JobPhase, tuple[JobPhase, ...]] = MappingProxyType(
    {
        JobPhase.QUEUED: (JobPhase.PLANNING, *_STAGES, *_ENDS),
        JobPhase.PLANNING: (JobPhase.QUEUED, *_ENDS),
        JobPhase.ENCODE: (JobPhase.QUEUED, *_ENDS),
        JobPhase.ENCODE_IMAGE: (JobPhase.QUEUED, *_ENDS),
        JobPhase.DENOISE: (JobPhase.QUEUED, *_ENDS),
        JobPhase.DECODE: (JobPhase.QUEUED, JobPhase.DONE, *_ENDS),
        JobPhase.DONE: (),
        JobPhase.FAILED: (),
        JobPhase.CANCELLED: (),
    }
)
PHASE_OF: Mapping[Stage, JobPhase] = MappingProxyType({stage: JobPhase(stage.value) for stage in Stage})
ENDED = (JobPhase.DONE, *_ENDS)


@dataclass(slots=True, kw_only=True)
class Run:
    """One attempt at a stage: bound to a worker, with its leases granted."""

    worker: str
    incarnation: int  # 0 until the worker is ready and RunStage went out.
    attempt: int
    execution: Execution
    part: str
    card_bytes: int
    ram_bytes: int
    quiet_ms: int  # Expected time between two signs of life: loading and one step, or the whole stage.
    step_ms: int = 0  # Expected time of a sampling step, or of the whole stage.
    begun_ms: int = 0
    step: int = -1  # The first step that was heard of in this run, and when; before it the tape is replayed.
    step_at_ms: int = 0
    heard_ms: int = 0  # When a step was last heard of.
    interval_ms: int = 0  # How far apart the last two were.
    ends_ms: int = -1  # When it will be done, by the steps that were seen.
    got_on: bool = False  # It did what no attempt before it had done, and what it did is kept.
    is_stopping: bool = False
    looked_ahead: bool = False  # The next stage was negotiated already.


@dataclass(slots=True, kw_only=True)
class Job:
    """One image."""

    name: str
    model: str
    latent_height: int
    latent_width: int
    steps_count: int
    stages: tuple[Stage, ...]  # Still to run; the first is the next one, or the one that runs.
    priority: int
    submitted_ms: int
    waiting_since_ms: int
    due_ms: int  # Place in the queue; see `queue.py`.
    phase: JobPhase = JobPhase.QUEUED
    run: Run | None = None
    tried: list[Attempt] = field(default_factory=list)  # Failed attempts at the current stage.
    attempts_count: int = 0
    losses_count: int = 0  # How often something that it had saved was gone.
    starts_count: int = 0  # How often the worker of this stage ended before it began.
    yields_count: int = 0  # How often it was stopped for somebody.
    steps_kept: int = 0  # How far its tape reaches.
    told_execution: Execution | None = None  # How the current stage was said to run.
    is_resumed: bool = False  # The current stage goes on from its tape: how long it ran is not what it takes.
    refused_since_ms: int = -1  # Since when not even an emptied machine would do.
    was_patient: bool = False  # It was told that this image lets somebody finish first.
    is_cancelled: bool = False

    def to(self, finish: JobPhase, story: tuple[str, ...] = ()) -> None:
        """Go on to the next phase; anything but a transition of the table is a bug."""
        if finish not in TRANSITIONS[self.phase]:
            raise InvalidTransition(f"job {self.name}", self.phase, finish, story=story)
        self.phase = finish

    @property
    def stage(self) -> Stage:
        """The stage that runs or comes next."""
        return self.stages[0]

    @property
    def work(self) -> Work:
        """How much there is to do, for pricing."""
        return Work(
            latent_height=self.latent_height, latent_width=self.latent_width, steps_count=self.steps_count
        )

    def size(self, stage: Stage) -> SizeKey:
        """Key of a stage of this job in the catalog."""
        return SizeKey(self.model, stage, self.latent_height, self.latent_width)

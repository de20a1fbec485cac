"""Workers: the processes that compute, as the core knows them.

    absent -> starting -> ready -> stopping -> killing -> absent, or resting after a failure

Owns Worker and its TRANSITIONS. To start, stop and escalate is done in `supervision.py`; bytes are the
ledger's.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tidegate.core.faults import InvalidTransition

FRONT = "front"
PREDICTOR = "predictor"


class WorkerKind(enum.StrEnum):
    """What a process is for."""

    IMAGE = "image"  # Staged image engine, one for each card (and one without a card).
    LLM = "llm"  # One loaded language model.
    FRONT = "front"  # Conversations of all language models; never a card.
    PREDICTOR = "predictor"  # Dry runs on the CPU; never a card.


class WorkerPhase(enum.StrEnum):
    """Where a worker stands."""

    ABSENT = "absent"
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    KILLING = "killing"
    RESTING = "resting"  # It failed; the next start waits for the back-off or the quarantine to end.


TRANSITIONS: Mapping[WorkerPhase, tuple[WorkerPhase, ...]] = MappingProxyType(
    {
        WorkerPhase.ABSENT: (WorkerPhase.STARTING,),
        WorkerPhase.STARTING: (
            WorkerPhase.READY,
            WorkerPhase.STOPPING,
            WorkerPhase.KILLING,
            WorkerPhase.RESTING,
            WorkerPhase.ABSENT,
        ),
        WorkerPhase.READY: (
            WorkerPhase.STOPPING,
            WorkerPhase.KILLING,
            WorkerPhase.RESTING,
            WorkerPhase.ABSENT,
        ),
        WorkerPhase.STOPPING: (WorkerPhase.KILLING, WorkerPhase.ABSENT, WorkerPhase.RESTING),
        WorkerPhase.KILLING: (WorkerPhase.ABSENT, WorkerPhase.RESTING),
        WorkerPhase.RESTING: (WorkerPhase.ABSENT,),
    }
)
ALIVE = (WorkerPhase.STARTING, WorkerPhase.READY, WorkerPhase.STOPPING, WorkerPhase.KILLING)


class DrainStep(enum.StrEnum):
    """How firmly bytes were asked back from a worker."""

    NONE = "none"
    ASKED = "asked"
    REINITIALISED = "reinitialised"


@dataclass(slots=True, kw_only=True)
class Worker:
    """One process, over all of its incarnations."""

    name: str
    kind: WorkerKind
    card: str = ""
    model: str = ""
    phase: WorkerPhase = WorkerPhase.ABSENT
    incarnation: int = 0
    failures_count: int = 0
    failed_ms: int = 0
    kills_count: int = 0  # In a row, by somebody else, since it was last of use.
    drain: DrainStep = DrainStep.NONE
    is_at_fault: bool = False  # It is being ended because it hung or did not obey.
    job: str = ""  # Image job whose stages this worker is computing, also between its stages.

    def to(self, finish: WorkerPhase, story: tuple[str, ...] = ()) -> None:
        """Go on to the next phase; anything but a transition of the table is a bug."""
        if finish not in TRANSITIONS[self.phase]:
            raise InvalidTransition(f"worker {self.name}", self.phase, finish, story=story)
        self.phase = finish

    @property
    def is_alive(self) -> bool:
        """Whether a process of it may exist."""
        return self.phase in ALIVE


def image_worker(card: str) -> str:
    """Name the image worker of a card, or of the CPU."""
    return f"image/{card or 'cpu'}"


def llm_worker(model: str) -> str:
    """Name the worker of a language model."""
    return f"llm/{model}"

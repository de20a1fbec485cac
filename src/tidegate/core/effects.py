"""Effects: imperatives that the core hands out and the shell performs, one by one, in order.

Owns the closed union Effect and ANSWERS, which names for every effect the events that may answer it. An
effect for a worker carries the incarnation it is meant for: the shell drops it when that process is gone,
because the WorkerExited on its way answers it too.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tidegate.core import events as ev
from tidegate.core.catalog import FootprintKey
from tidegate.core.llm.level import Level
from tidegate.core.notice import Notice
from tidegate.core.stage import Execution, Stage
from tidegate.core.worker import WorkerKind


@dataclass(frozen=True, slots=True, kw_only=True)
class WakeAt:
    """Report Woke at this time; replaces an earlier WakeAt."""

    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Observe:
    """Take a sample of this pool now."""

    pool: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StartWorker:
    """Bring up a process (a standby is taken where there is one); it must not touch a device yet."""

    worker: str
    incarnation: int
    kind: WorkerKind
    card: str
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseComponents:
    """Free these parts ("<model>/<component>", or of the front "state/<model>") and say so."""

    worker: str
    incarnation: int
    parts: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReinitialiseWorker:
    """Drop everything loaded and make the backend anew, in the same process."""

    worker: str
    incarnation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TerminateWorker:
    """Ask the process to end (SIGTERM)."""

    worker: str
    incarnation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KillWorker:
    """End the process (SIGKILL)."""

    worker: str
    incarnation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Predict:
    """Dry-run the executions of one stage at one size."""

    worker: str
    incarnation: int
    key: FootprintKey


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictLlm:
    """Ask the engine what a language model needs."""

    worker: str
    incarnation: int
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStage:
    """Load the component as the execution says, unless it is, run the stage and save its checkpoint.

    `card_bytes` and `ram_bytes` are what this attempt may hold for component and computing together.
    """

    job: str
    model: str
    stage: Stage
    worker: str
    incarnation: int
    attempt: int
    execution: Execution
    card_bytes: int
    ram_bytes: int
    deadline_ms: int


class StopReason(enum.StrEnum):
    """Why a stage is stopped."""

    YIELD = "yield"  # It goes on later from its tape.
    CANCEL = "cancel"  # Nobody wants it any more.


@dataclass(frozen=True, slots=True, kw_only=True)
class StopStage:
    """End a running stage at the next step."""

    job: str
    worker: str
    incarnation: int
    attempt: int
    reason: StopReason


class Outcome(enum.StrEnum):
    """How a job or a request ended."""

    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishJob:
    """Tell the user that the job ended; `code` and `message` say why when it failed."""

    job: str
    outcome: Outcome
    code: str = ""
    message: str = ""
    retry_after_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SetLevel:
    """Bring a language model's worker to HOT, PARTIAL or WARM.

    For WARM, requests are suspended first, and their state is saved to at most `ram_bytes` of the front; with
    0 it is dropped, and their histories are evaluated again.
    """

    model: str
    worker: str
    incarnation: int
    level: Level
    layers_count: int
    card_bytes: int
    ram_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeChat:
    """Begin a request, or go on with a suspended one, in this worker."""

    request: str
    model: str
    worker: str
    incarnation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DropChat:
    """Stop serving a request whose client went away."""

    request: str
    model: str
    worker: str
    incarnation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishChat:
    """A request ended; for DONE the tokens have already reached the client by the data path."""

    request: str
    outcome: Outcome
    sequence: int
    code: str = ""
    message: str = ""
    retry_after_ms: int = 0


class GuestState(enum.StrEnum):
    """What a guest is told about its lease."""

    GRANTED = "granted"
    WAITING = "waiting"
    DENIED = "denied"
    ENDED = "ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerGuest:
    """Tell a guest how its lease stands."""

    lease: str
    state: GuestState
    sequence: int
    amount_bytes: int = 0
    eta_ms: int = 0
    expires_ms: int = 0
    largest_now_bytes: int = 0
    alternatives: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AskGuest:
    """Ask a guest that agreed to yield to give its lease back."""

    lease: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tell:
    """Show a notice to the user."""

    notice: Notice
    sequence: int


Effect = (
    WakeAt
    | Observe
    | StartWorker
    | ReleaseComponents
    | ReinitialiseWorker
    | TerminateWorker
    | KillWorker
    | Predict
    | PredictLlm
    | RunStage
    | StopStage
    | FinishJob
    | SetLevel
    | ServeChat
    | DropChat
    | FinishChat
    | AnswerGuest
    | AskGuest
    | Tell
)

ANSWERS: Mapping[type[Effect], tuple[type[ev.Event], ...]] = MappingProxyType(
    {
        WakeAt: (ev.Woke,),
        Observe: (ev.PoolObserved,),
        StartWorker: (ev.WorkerReady, ev.WorkerExited),
        ReleaseComponents: (ev.ComponentsReleased, ev.WorkerExited),
        ReinitialiseWorker: (ev.Reinitialised, ev.WorkerExited),
        TerminateWorker: (ev.WorkerExited,),
        KillWorker: (ev.WorkerExited,),
        Predict: (ev.FootprintPredicted, ev.PredictionFailed, ev.WorkerExited),
        PredictLlm: (ev.LlmPredicted, ev.PredictionFailed, ev.WorkerExited),
        RunStage: (ev.StageFinished, ev.StageFailed, ev.StageStopped, ev.CheckpointLost, ev.WorkerExited),
        StopStage: (ev.StageStopped, ev.StageFinished, ev.StageFailed, ev.WorkerExited),
        FinishJob: (ev.JobClosed,),
        SetLevel: (ev.LevelReached, ev.LevelFailed, ev.WorkerExited),
        ServeChat: (ev.ChatFinished, ev.ChatFailed, ev.WorkerExited),
        DropChat: (ev.ChatFinished, ev.WorkerExited),
        FinishChat: (ev.Told,),
        AnswerGuest: (ev.Told,),
        AskGuest: (ev.GuestReleased, ev.Woke),
        Tell: (ev.Told,),
    }
)

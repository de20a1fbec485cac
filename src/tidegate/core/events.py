"""Events: facts in the past tense, each with its time. They are all that the core ever learns.

Owns the closed union Event. Whoever reports a fact about a worker names the worker's incarnation; facts of an
older incarnation are dropped by the arbiter in one place. The answers to each effect are listed in
`effects.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tidegate.core.catalog import FootprintKey
from tidegate.core.house import LlmFootprint
from tidegate.core.image.failure import Failure
from tidegate.core.llm.level import Level
from tidegate.core.planner.option import Footprint
from tidegate.core.stage import Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """What all events have: when it became known, on the clock of the shell."""

    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerFact(Fact):
    """A fact that one incarnation of one worker reported, or that was seen of it."""

    worker: str
    incarnation: int


# --- time and memory ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Woke(Fact):
    """The time that WakeAt asked for has come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Restarted(Fact):
    """The arbiter's process began anew from its journal; every worker of the old one is gone."""


@dataclass(frozen=True, slots=True)
class Holding:
    """Bytes of one of our processes in a sample; guests appear as holder "guest/<lease>"."""

    holder: str
    incarnation: int
    amount_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolObserved(Fact):
    """A sample of a card or of RAM was taken at `taken_ms`. `holders` is empty where sight is per card."""

    pool: str
    taken_ms: int
    used_bytes: int
    holders: tuple[Holding, ...] = ()


# --- workers ---


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReady(WorkerFact):
    """The process is up, imports done, no device touched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerExited(WorkerFact):
    """The process has ended and was reaped. `signal` is 0 for an exit; 9 and 15 mean killed from outside."""

    signal: int = 0
    status: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentsReleased(WorkerFact):
    """The worker says that it freed these parts (whether it did is seen in samples)."""

    parts: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reinitialised(WorkerFact):
    """The worker says that it dropped everything and made its backend anew."""


# --- predictions ---


@dataclass(frozen=True, slots=True, kw_only=True)
class FootprintPredicted(WorkerFact):
    """The predictor answered; `footprints` are in the order of the key's executions, None where
    impossible.
    """

    key: FootprintKey
    footprints: tuple[Footprint | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmPredicted(WorkerFact):
    """The predictor answered about a language model."""

    model: str
    footprint: LlmFootprint


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionFailed(WorkerFact):
    """The predictor cannot answer for this model; `reason` is one line for the user."""

    model: str
    reason: str


# --- image jobs ---


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSubmitted(Fact):
    """A user wants an image. `stages` are those still to run: cached embeddings or checkpoints shorten
    them.
    """

    job: str
    model: str
    latent_height: int
    latent_width: int
    steps_count: int
    stages: tuple[Stage, ...]
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class JobCancelled(Fact):
    """The user does not want the image any more."""

    job: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobClosed(Fact):
    """The end of a job was committed and told; the core may forget it."""

    job: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StageFact(WorkerFact):
    """A fact about one attempt at a stage."""

    job: str
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StageProgressed(StageFact):
    """A sampling step or a tile is done."""

    step: int
    steps_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StageFinished(StageFact):
    """The checkpoint of the stage is written and synced; the component is still loaded."""

    load_ms: int
    run_ms: int
    card_peak_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StageFailed(StageFact):
    """The attempt failed and the worker lives; it has released the stage's component."""

    failure: Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointLost(StageFact):
    """The attempt found no use: what these earlier stages had saved is gone or damaged. They are named in
    order; the component that was loaded for the attempt stays loaded.
    """

    stages: tuple[Stage, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelUnwanted(Fact):
    """The user wants back what a model holds; it goes as soon as nobody computes with it."""

    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStopped(StageFact):
    """The stage ended early as StopStage asked; tape and checkpoints are kept, the component is still
    loaded.
    """


# --- language models ---


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatSubmitted(Fact):
    """A client asked a language model something (chat, completion, enhancement, tagging)."""

    request: str
    model: str
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatCancelled(Fact):
    """The client went away."""

    request: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatProgressed(WorkerFact):
    """Tokens are flowing; sent now and then, not for every token."""

    request: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatFinished(WorkerFact):
    """The last token was handed over, or the request was dropped because its client went away."""

    request: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatFailed(WorkerFact):
    """The worker could not go on with this request, and lives."""

    request: str
    failure: Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelReached(WorkerFact):
    """A language model's worker says that it is at this level; for WARM, that requests are suspended and
    saved.
    """

    model: str
    level: Level
    took_ms: int
    state_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelFailed(WorkerFact):
    """The worker could not reach the level; the shell will see it end or it waits to be ended."""

    model: str
    failure: Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelWished(Fact):
    """Somebody wants a language model held at a level; None: the planner decides again.

    `layers_count` is for PARTIAL.
    """

    model: str
    level: Level | None
    layers_count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class IntentHeard(Fact):
    """Somebody begins to type, or to upload: a language model will probably be asked in a moment."""

    model: str


# --- guests and notices ---


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestAsked(Fact):
    """Another application asks for card memory."""

    lease: str
    card: str
    amount_bytes: int
    purpose: str
    hold_ms: int
    wait_ms: int = 0
    needed_in_ms: int = 0
    yields: bool = field(default=False)  # Whether it agreed to give the memory back when asked.


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestRenewed(Fact):
    """A guest wants to keep its lease for longer."""

    lease: str
    hold_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestReleased(Fact):
    """A guest gave its lease back."""

    lease: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Told(Fact):
    """Notices and guest answers up to this number reached the journal."""

    sequence: int


Event = (
    Woke
    | Restarted
    | PoolObserved
    | WorkerReady
    | WorkerExited
    | ComponentsReleased
    | Reinitialised
    | FootprintPredicted
    | LlmPredicted
    | PredictionFailed
    | JobSubmitted
    | JobCancelled
    | JobClosed
    | StageProgressed
    | StageFinished
    | StageFailed
    | StageStopped
    | CheckpointLost
    | ModelUnwanted
    | ChatSubmitted
    | ChatCancelled
    | ChatProgressed
    | ChatFinished
    | ChatFailed
    | LevelReached
    | LevelFailed
    | LevelWished
    | IntentHeard
    | GuestAsked
    | GuestRenewed
    | GuestReleased
    | Told
)

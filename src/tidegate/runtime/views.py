"""Views: what the running server shows of itself, and what is asked of it, as plain frozen data.

Owns the shapes that pass the gate. How they are filled is the neighbour `exhibits`' part, who may ask
is the API's. Bytes end in `_bytes`, times in `_ms`; a time called `..._at_ms` is Unix time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tidegate.core.effects import GuestState
from tidegate.core.image.job import JobPhase
from tidegate.core.stage import Component, Execution, Stage
from tidegate.runtime.asks import LanguageView
from tidegate.wire.messages import ImageRequest

# ---------------------------------------------------------------- what is asked


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A picture given by a client: `height` rows of `width` RGB pixels, three bytes each."""

    width: int
    height: int
    pixels: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOrder:
    """Images that somebody wants: `count` of them, with seed, seed + 1, ... of `request`.

    `model` is a name of the registry, "" the default. `init` starts from a picture of the request's size.
    Two orders with the same `idempotency_key` ("" = none) are the same job.
    """

    request: ImageRequest
    model: str = ""
    count: int = 1
    init: Picture | None = None
    priority: int = 0
    idempotency_key: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRequest:
    """Card memory that another application wants; `card` "" is the first card.

    With its `pid` what it holds is seen as its own; without, as somebody's beside the lease.
    """

    amount_bytes: int
    purpose: str
    card: str = ""
    needed_in_ms: int = 0
    hold_ms: int = 60_000
    wait_ms: int = 0
    yields: bool = False
    pid: int = 0


# ---------------------------------------------------------------- jobs


@dataclass(frozen=True, slots=True, kw_only=True)
class JobHandle:
    """A job was accepted; `created` is False when the idempotency key was known."""

    id: str
    created: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageState:
    """One image of a job. `image` is its id in the gallery once it is done; `executions` of finished
    stages.
    """

    index: int
    seed: int
    phase: JobPhase
    step: int = 0
    steps_count: int = 0
    image: str = ""
    code: str = ""
    message: str = ""
    retry_after_ms: int = 0
    executions: Mapping[Stage, Execution] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """A job as it stands. Its phase is that of its least advanced image; a failed image fails the job."""

    id: str
    model: str
    phase: JobPhase
    request: ImageRequest
    images: tuple[ImageState, ...]
    priority: int = 0
    submitted_at_ms: int = 0
    ended_at_ms: int = 0
    code: str = ""
    message: str = ""
    retry_after_ms: int = 0
    notices: tuple[str, ...] = ()
    from_image: bool = False

    @property
    def is_ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.phase in (JobPhase.DONE, JobPhase.FAILED, JobPhase.CANCELLED)


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedItem:
    """One thing that happened to a job, for whoever watches it.

    `kind` is stage (one begins), progress, notice, image (one image is done) or end (the
    last item). A preview is RGB, one pixel per latent cell, and empty where there is none.
    """

    kind: str
    job: str
    index: int = 0
    stage: Stage | None = None
    execution: Execution | None = None
    step: int = 0
    steps_count: int = 0
    text: str = ""
    image: str = ""
    preview_width: int = 0
    preview_height: int = 0
    preview: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventItem:
    """One event for clients. Ids rise by one; `data` is JSON. Kinds: progress, preview, notice, vram, job,
    level, chat, lost (the reader was too slow or came too late: `data` has the count).
    """

    id: int
    kind: str
    data: Mapping[str, object]


# ---------------------------------------------------------------- images


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageView:
    """A finished image in the gallery; `parameters` is the text that the PNG carries."""

    id: str
    job: str
    index: int
    model: str
    seed: int
    width: int
    height: int
    created_at_ms: int
    size_bytes: int
    pixels_sha256: str
    parameters: str
    recipe: Mapping[str, object] = field(default_factory=dict)


# ---------------------------------------------------------------- memory


@dataclass(frozen=True, slots=True, kw_only=True)
class PartView:
    """One lease: a component, `compute`, `context`, `weights`, `kv` or `process` of a tenant, by prediction.

    `observed_bytes` is what its engine says that it holds, -1 where it says nothing.
    """

    part: str
    phase: str
    predicted_bytes: int
    observed_bytes: int = -1
    execution: Execution | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantView:
    """Who holds memory of a pool: a worker, a guest (`guest/<lease>`) or `foreign`.

    `observed_bytes` is what was last seen of it, -1 where single tenants cannot be seen.
    """

    name: str
    predicted_bytes: int
    observed_bytes: int = -1
    pid: int = 0
    incarnation: int = 0
    level: str = ""
    parts: tuple[PartView, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolView:
    """A card, or RAM (named "ram")."""

    name: str
    description: str
    total_bytes: int
    used_bytes: int
    free_bytes: int
    reserved_bytes: int
    headroom_bytes: int
    foreign_bytes: int
    sight: str
    sampled_at_ms: int
    tenants: tuple[TenantView, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class VramView:
    """Every card and RAM."""

    pools: tuple[PoolView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedView:
    """A component that is loaded now."""

    worker: str
    component: Component
    execution: Execution | None
    card_bytes: int
    ram_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelView:
    """A model of the registry. `weights_bytes` by component as in the files; `files` by role, names only;
    `fingerprints` by role tell whether a file elsewhere is the same.
    """

    name: str
    kind: str
    family: str
    is_default: bool
    files: Mapping[str, str]
    weights_bytes: Mapping[Component, int]
    size_multiple: int = 8
    samplers: tuple[str, ...] = ()
    schedulers: tuple[str, ...] = ()
    default_sampler: str = ""
    loaded: tuple[LoadedView, ...] = ()
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    language: LanguageView | None = None
    refused: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidencyView:
    """What is warm here and how long the queue is, for an outer router."""

    models: Mapping[str, tuple[Component, ...]]
    queued_count: int
    running_count: int
    free_bytes: Mapping[str, int]


# ---------------------------------------------------------------- plans and leases


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlanView:
    """How one stage would run now. `rejected` are the other ways, each with its reason."""

    stage: Stage
    execution: Execution
    card_bytes: int
    ram_bytes: int
    cost_ms: int
    rejected: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanView:
    """What would be done with an order. `is_possible` is False when no way was found; then `explanation`
    says why.
    """

    model: str
    is_possible: bool
    stages: tuple[StagePlanView, ...] = ()
    explanation: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()
    cost_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseView:
    """A guest's lease. For `denied`, `largest_now_bytes` and `alternatives` say what is possible."""

    id: str
    state: GuestState
    amount_bytes: int
    eta_ms: int = 0
    expires_ms: int = 0
    largest_now_bytes: int = 0
    alternatives: tuple[str, ...] = ()
    asked_back: str = ""


# ---------------------------------------------------------------- health


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerView:
    """One worker; `kind` is image, llm, front or predictor; `memory_bytes` by pool and part."""

    name: str
    kind: str
    pid: int
    incarnation: int
    state: str
    card: str = ""
    job: str = ""
    memory_bytes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    last_error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthView:
    """The server's own state; `problems` are sentences, empty when all is well."""

    status: str
    version: str
    pid: int
    uptime_ms: int
    engine_build: str
    device: str
    queued_count: int
    workers: tuple[WorkerView, ...]
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsView:
    """Counters and gauges by name; labels are in `samples` as (name, labels, value)."""

    samples: tuple[tuple[str, Mapping[str, str], float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReloadView:
    """What a reload changed, in words; `restart_needed` names what only a restart can change."""

    changed: tuple[str, ...]
    restart_needed: tuple[str, ...] = ()

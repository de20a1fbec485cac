"""State: everything the arbiter knows between two events, as plain data.

Owns State, Binding and the alarms. There is no other state in the core: a snapshot of this is a snapshot of
the arbiter. Changes are made by the modules named after what they decide, only while an event is handled.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from tidegate.core.catalog import Catalog, FootprintKey
from tidegate.core.effects import Effect, Observe, Tell
from tidegate.core.guest import Guest
from tidegate.core.house import RAM, House
from tidegate.core.image.job import Job
from tidegate.core.lease import LeasePhase
from tidegate.core.ledger import Ledger
from tidegate.core.llm.level import Level
from tidegate.core.llm.model import Model
from tidegate.core.notice import Notice
from tidegate.core.planner.plan import Plan
from tidegate.core.policy import Policy
from tidegate.core.pool import Pool
from tidegate.core.story import Stories
from tidegate.core.worker import FRONT, PREDICTOR, Worker, WorkerKind, image_worker, llm_worker

PROCESS = "process"  # Part of a lease for the private memory of a process.


class Alarm(enum.StrEnum):
    """What a wake-up may be for; the subject is a worker, a binding's slot, a model, or a guest's lease."""

    START = "start"
    STOP = "stop"
    RELEASE = "release"
    REST = "rest"
    STAGE = "stage"
    LEVEL = "level"
    CHAT = "chat"
    PREDICTION = "prediction"
    BINDING = "binding"
    GUEST = "guest"
    TEND = "tend"


class BindingKind(enum.StrEnum):
    """Whom a binding is for."""

    STAGE = "stage"
    RISE = "rise"
    GUEST = "guest"


@dataclass(slots=True, kw_only=True)
class Binding:
    """A decision that waits for its bytes: leases are reserved, those who yield were asked.

    `slot` is the card it is for, or the worker where there is none; one binding waits per slot. A
    `look_ahead` binding never becomes a grant: it holds the bytes for a stage whose predecessor still runs.
    """

    kind: BindingKind
    slot: str
    subject: str  # A job, a model or a guest's lease.
    worker: str
    plan: Plan
    leases: tuple[int, ...]  # Numbers of the reserved leases.
    drops: tuple[int, ...] = ()  # Leases of the stage's own component, loaded otherwise, that go first.
    keeps: int = 0  # Number of the lease of the stage's component, when the plan builds on it staying loaded.
    level: Level | None = None
    layers_count: int = 0
    since_ms: int = 0
    look_ahead: bool = False


@dataclass(slots=True, kw_only=True)
class State:
    """The whole memory of the arbiter."""

    house: House
    policy: Policy
    ledger: Ledger
    stories: Stories
    catalog: Catalog = field(default_factory=Catalog)
    workers: dict[str, Worker] = field(default_factory=dict)
    models: dict[str, Model] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    queue: list[str] = field(default_factory=list)  # Waiting jobs by due time.
    guests: dict[str, Guest] = field(default_factory=dict)
    bindings: dict[str, Binding] = field(default_factory=dict)  # By slot.
    asked: dict[str, list[FootprintKey]] = field(default_factory=dict)  # Unanswered, by image model.
    asked_llms: list[str] = field(default_factory=list)
    prediction_failures: dict[str, int] = field(default_factory=dict)
    unwanted: list[str] = field(default_factory=list)  # Models whose memory the user wants back.
    alarms: dict[str, int] = field(default_factory=dict)  # "<alarm>:<subject>" to its time.
    wake_ms: int = -1  # What the shell was last asked to wake us at.
    now_ms: int = 0
    sequence: int = 0  # Of notices and answers.
    told_sequence: int = 0
    stale_count: int = 0  # Facts of older incarnations that were dropped.
    is_dirty: bool = False  # Something changed that a waiting demand may depend on.
    outbox: list[Effect] = field(default_factory=list)

    def emit(self, effect: Effect) -> None:
        """Hand out an effect."""
        self.outbox.append(effect)

    def tell(self, subject: str, line: str) -> None:
        """Add a line to a story."""
        self.stories.tell(subject, line, at_ms=self.now_ms)

    def notify(self, notice: Notice) -> None:
        """Show a notice, and keep it in the story of its subject."""
        self.sequence += 1
        self.tell(notice.subject, notice.text)
        self.emit(Tell(notice=notice, sequence=self.sequence))

    def observe(self, *pools: str) -> None:
        """Ask for samples of these pools, and of RAM while any of it is being asked back."""
        wanted = dict.fromkeys(pools)
        if any(lease.phase is LeasePhase.RELEASING and lease.ram_bytes for lease in self.ledger.leases()):
            wanted[RAM] = None
        for pool in wanted:
            if pool:
                self.emit(Observe(pool=pool))

    def set_alarm(self, alarm: Alarm, subject: str, *, in_ms: int) -> None:
        """Wake up for this subject after a while."""
        self.alarms[f"{alarm}:{subject}"] = self.now_ms + in_ms

    def clear_alarm(self, alarm: Alarm, subject: str) -> None:
        """Do not wake up for this any more."""
        self.alarms.pop(f"{alarm}:{subject}", None)


def fresh_state(house: House, policy: Policy) -> State:
    """Begin with an empty house: every worker absent, every model cold."""
    pools = {
        descriptor.name: Pool(descriptor=descriptor, headroom_bytes=descriptor.headroom_bytes)
        for descriptor in (house.ram, *house.cards)
    }
    state = State(
        house=house,
        policy=policy,
        ledger=Ledger(pools=pools),
        stories=Stories(lines_max=policy.story_lines_max),
        catalog=Catalog(is_card_slow=any(card.is_slow for card in house.cards)),
    )
    for card in [descriptor.name for descriptor in house.cards] or [""]:
        name = image_worker(card)
        state.workers[name] = Worker(name=name, kind=WorkerKind.IMAGE, card=card)
    for configured in house.language_models:
        name = llm_worker(configured.name)
        state.models[configured.name] = Model(
            name=configured.name,
            card=configured.card,
            slots_count=configured.slots_count,
            wish=configured.keep,
        )
        state.workers[name] = Worker(
            name=name, kind=WorkerKind.LLM, card=configured.card, model=configured.name
        )
    for name, kind in ((FRONT, WorkerKind.FRONT), (PREDICTOR, WorkerKind.PREDICTOR)):
        state.workers[name] = Worker(name=name, kind=kind)
        if kind is WorkerKind.FRONT and not house.language_models:
            continue  # Nobody ever needs it.
        lease = state.ledger.reserve(
            name,
            PROCESS,
            incarnation=0,
            card="",
            card_bytes=0,
            ram_bytes=policy.process_ram_bytes,
            at_ms=0,
        )
        lease.is_standing = True
        state.ledger.grant(lease, incarnation=0, at_ms=0)
    return state

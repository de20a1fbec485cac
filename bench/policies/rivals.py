"""Rivals: how memory is shared today, as policies that speak the arbiter's protocol.

Owns Rival, which serves requests in the order of their arrival. The four rules by which room is made are in
`rules.py`:

    unload first    language models are ended before an image; they come back for the next chat, when no image
                    is being made and, where both do not fit, after the image model has gone
    exclusive       whoever is served has the card alone; the process of the other ends
    LRU by count    at most two models are loaded, and nobody counts bytes
    greedy          bytes are counted; the largest models go until there is room

All of them load whole checkpoints and keep them, decode whole and after a refusal in tiles, and give a
language model the most layers that an empty card holds, as users set it up by hand. After a refusal that
tiles do not cure all others go and it is tried again, once; then the request has failed.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Protocol

from policies.costs import Costs
from policies.instances import Instance

from tidegate.core import effects as ef
from tidegate.core import events as ev
from tidegate.core.effects import Effect
from tidegate.core.llm.level import Level
from tidegate.core.quantity import GIB, MIB
from tidegate.core.stage import DecodeMode, Execution, Placement, Stage
from tidegate.core.worker import WorkerKind, image_worker, llm_worker

CARD = "gpu0"
SLOTS = 4
WHOLE = Execution(Placement.CARD)
TILED = Execution(Placement.CARD, DecodeMode.TILED, 32)
DEADLINE_MS = 1 << 40


class Stand(enum.Enum):
    """Where a tenant stands."""

    OUT = "out"
    COMING = "coming"
    IN = "in"
    GOING = "going"


@dataclass(slots=True, kw_only=True)
class Tenant:
    """An image model or a language model."""

    name: str
    worker: str
    is_image: bool
    size_bytes: int  # On the card, with whatever it needs to compute at least.
    layers: int = 0
    stand: Stand = Stand.OUT
    serving: set[str] = field(default_factory=set)
    used_ms: int = 0
    tried_again: bool = False  # After a refusal somebody else went, and it was tried once more.


@dataclass(slots=True, kw_only=True)
class Wish:
    """A request that waits or is served."""

    name: str
    tenant: Tenant
    stages: list[Stage] = field(default_factory=list)
    execution: Execution = WHOLE
    tried_again: bool = False


class Rule(Protocol):
    """By which room is made for a tenant that is out."""

    ends_processes: bool  # Whether an image model goes with its process.

    def to_go(self, rival: Rival, wanted: Tenant) -> list[Tenant]:
        """Who must have gone before it is loaded, busy or not."""

    def before_image(self, rival: Rival, wanted: Tenant) -> list[Tenant]:
        """Who must have gone before a loaded image model makes the next image."""


class Rival:
    """Serves requests in the order of their arrival by a rule."""

    def __init__(self, instance: Instance, costs: Costs, *, rule: Rule) -> None:
        self.rule = rule
        self.costs = costs
        self.card_bytes = instance.card_gib * GIB
        self.now_ms = 0
        self.tenants = {name: self._image_tenant(name) for name in instance.images}
        self.tenants |= {name: self._llm_tenant(name) for name in instance.llms}
        self._waiting: list[Wish] = []
        self._served: dict[str, Wish] = {}
        self._incarnations: dict[str, int] = {}
        self._alive: set[str] = set()  # Workers that are up.
        self._starting: set[str] = set()
        self._attempt = 0
        self._out: list[Effect] = []

    def _image_tenant(self, name: str) -> Tenant:
        known = self.costs.images[name]
        tiled = self.costs.footprint(name, Stage.DECODE, TILED)
        compute_bytes = max(known.compute_bytes[Stage.DENOISE], tiled.card_bytes - tiled.weights_bytes)
        size_bytes = known.all_bytes + compute_bytes + self.costs.context_bytes
        return Tenant(name=name, worker=image_worker(CARD), is_image=True, size_bytes=size_bytes)

    def _llm_tenant(self, name: str) -> Tenant:
        known = self.costs.llms[name]
        # The image worker's process is there, too, with nothing loaded.
        room_bytes = self.card_bytes - 2 * self.costs.context_bytes
        room_bytes -= int(self.costs.machine["headroom_mib"]) * MIB
        total = known.footprint.layers_count
        layers = max(n for n in range(total + 1) if known.on_card_bytes(n) <= room_bytes)
        size_bytes = known.on_card_bytes(layers) + self.costs.context_bytes
        return Tenant(
            name=name, worker=llm_worker(name), is_image=False, size_bytes=size_bytes, layers=layers
        )

    # --- events ---

    def handle(self, event: ev.Event) -> tuple[Effect, ...]:
        """Take in a fact and answer with what shall be done."""
        self.now_ms = event.at_ms
        match event:
            case ev.JobSubmitted():
                wish = Wish(name=event.job, tenant=self.tenants[event.model], stages=list(event.stages))
                self._waiting.append(wish)
            case ev.ChatSubmitted():
                self._waiting.append(Wish(name=event.request, tenant=self.tenants[event.model]))
            case ev.WorkerReady():
                self._ready(event.worker)
            case ev.WorkerExited():
                self._gone(event.worker)
            case ev.ComponentsReleased():
                self._out_of(self.tenants[event.parts[0].partition("/")[0]])
            case ev.LevelReached():
                self._in(self.tenants[event.model])
            case ev.LevelFailed():
                self._level_refused(self.tenants[event.model])
            case ev.StageFinished():
                self._stage_done(self._served[event.job])
            case ev.StageFailed():
                self._stage_refused(self._served[event.job])
            case ev.ChatFinished():
                wish = self._served.pop(event.request)
                self._leave(wish)
                self._emit(ef.FinishChat(request=wish.name, outcome=ef.Outcome.DONE, sequence=0))
            case _:
                pass  # Samples and progress tell a rival nothing.
        self._go()
        out, self._out = tuple(self._out), []
        return out

    def _emit(self, effect: Effect) -> None:
        self._out.append(effect)

    def _ready(self, worker: str) -> None:
        self._starting.discard(worker)
        self._alive.add(worker)
        for tenant in self.tenants.values():
            if tenant.worker == worker and tenant.stand is Stand.COMING:
                self._load(tenant)

    def _gone(self, worker: str) -> None:
        self._alive.discard(worker)
        for tenant in self.tenants.values():
            if tenant.worker == worker and tenant.stand is not Stand.COMING:
                self._out_of(tenant)

    def _out_of(self, tenant: Tenant) -> None:
        tenant.stand = Stand.OUT

    def _in(self, tenant: Tenant) -> None:
        tenant.stand = Stand.IN
        tenant.tried_again = False
        tenant.used_ms = self.now_ms

    # --- who is served ---

    def _go(self) -> None:
        """Serve in the order of arrival; whoever waits for room lets nobody load who came later."""
        held: set[str] = set()  # Tenants that are to go for somebody who came first.
        for wish in tuple(self._waiting):
            tenant = wish.tenant
            if tenant.stand is Stand.IN and tenant.name not in held and self._has_slot(tenant):
                blockers = self.rule.before_image(self, tenant) if tenant.is_image else []
                if self._cleared(blockers):
                    self._begin(wish)
                held.update(blocker.name for blocker in blockers)
            elif tenant.stand is Stand.OUT and not self._is_stopping(tenant):
                all_others = tenant.tried_again
                blockers = self.present(tenant) if all_others else self.rule.to_go(self, tenant)
                if self._cleared(blockers):
                    self._come(tenant)
                    if self._is_in(tenant) and self._has_slot(tenant):
                        self._begin(wish)
                held.update(blocker.name for blocker in blockers)
                if blockers:
                    return
            elif tenant.stand is Stand.GOING:
                return

    def _is_in(self, tenant: Tenant) -> bool:
        return tenant.stand is Stand.IN

    def _is_stopping(self, tenant: Tenant) -> bool:
        same = [other for other in self.tenants.values() if other.worker == tenant.worker]
        return any(other.stand is Stand.GOING for other in same)

    def _has_slot(self, tenant: Tenant) -> bool:
        if not tenant.is_image:
            return len(tenant.serving) < SLOTS
        return not self._is_busy(tenant)

    def _cleared(self, blockers: list[Tenant]) -> bool:
        """Send away who is idle; answers whether all are gone already."""
        for tenant in blockers:
            if tenant.stand is Stand.IN and not self._is_busy(tenant):
                self._send_away(tenant)
        return all(tenant.stand is Stand.OUT for tenant in blockers)

    def _is_busy(self, tenant: Tenant) -> bool:
        """Whether its process computes; while it does, it releases nothing."""
        return any(other.serving for other in self.tenants.values() if other.worker == tenant.worker)

    def _send_away(self, tenant: Tenant) -> None:
        tenant.stand = Stand.GOING
        incarnation = self._incarnations[tenant.worker]
        if tenant.is_image and not self.rule.ends_processes:
            parts = tuple(f"{tenant.name}/{part}" for part in self.costs.images[tenant.name].weights_bytes)
            self._emit(ef.ReleaseComponents(worker=tenant.worker, incarnation=incarnation, parts=parts))
        else:
            self._alive.discard(tenant.worker)
            self._emit(ef.TerminateWorker(worker=tenant.worker, incarnation=incarnation))

    def _come(self, tenant: Tenant) -> None:
        tenant.stand = Stand.COMING
        if tenant.worker in self._alive:
            self._load(tenant)
        elif tenant.worker not in self._starting:
            self._starting.add(tenant.worker)
            incarnation = self._incarnations[tenant.worker] = self._incarnations.get(tenant.worker, 0) + 1
            kind = WorkerKind.IMAGE if tenant.is_image else WorkerKind.LLM
            self._emit(
                ef.StartWorker(
                    worker=tenant.worker,
                    incarnation=incarnation,
                    kind=kind,
                    card=CARD,
                    model="" if tenant.is_image else tenant.name,
                )
            )

    def _load(self, tenant: Tenant) -> None:
        if tenant.is_image:
            self._in(tenant)  # Its components are loaded by the stages of the first image.
            return
        level = Level.HOT if tenant.layers == self._layers(tenant) else Level.PARTIAL
        self._emit(
            ef.SetLevel(
                model=tenant.name,
                worker=tenant.worker,
                incarnation=self._incarnations[tenant.worker],
                level=level,
                layers_count=tenant.layers,
                card_bytes=tenant.size_bytes,
                ram_bytes=0,
            )
        )

    def _layers(self, tenant: Tenant) -> int:
        return self.costs.llms[tenant.name].footprint.layers_count

    def _begin(self, wish: Wish) -> None:
        self._waiting.remove(wish)
        self._served[wish.name] = wish
        wish.tenant.serving.add(wish.name)
        wish.tenant.used_ms = self.now_ms
        if wish.tenant.is_image:
            self._run(wish)
            return
        self._emit(
            ef.ServeChat(
                request=wish.name,
                model=wish.tenant.name,
                worker=wish.tenant.worker,
                incarnation=self._incarnations[wish.tenant.worker],
            )
        )

    def _leave(self, wish: Wish) -> None:
        wish.tenant.serving.discard(wish.name)
        wish.tenant.used_ms = self.now_ms

    # --- images ---

    def _run(self, wish: Wish) -> None:
        self._attempt += 1
        self._emit(
            ef.RunStage(
                job=wish.name,
                model=wish.tenant.name,
                stage=wish.stages[0],
                worker=wish.tenant.worker,
                incarnation=self._incarnations[wish.tenant.worker],
                attempt=self._attempt,
                execution=wish.execution,
                card_bytes=0,
                ram_bytes=0,
                deadline_ms=DEADLINE_MS,
            )
        )

    def _stage_done(self, wish: Wish) -> None:
        wish.stages.pop(0)
        wish.execution = WHOLE
        if wish.stages:
            self._run(wish)
            return
        del self._served[wish.name]
        self._leave(wish)
        self._emit(ef.FinishJob(job=wish.name, outcome=ef.Outcome.DONE))

    def _stage_refused(self, wish: Wish) -> None:
        """In tiles, where that helps; else after somebody else went, once; else it has failed."""
        if wish.stages[0] is Stage.DECODE and wish.execution == WHOLE:
            wish.execution = TILED
            self._run(wish)
            return
        if self.present(wish.tenant) and not wish.tried_again:
            wish.tried_again = wish.tenant.tried_again = True
            del self._served[wish.name]
            wish.tenant.serving.discard(wish.name)
            self._waiting.insert(0, wish)
            wish.tenant.stand = Stand.OUT  # What is loaded of it stays; it goes on when the others have gone.
            return
        del self._served[wish.name]
        self._leave(wish)
        self._emit(ef.FinishJob(job=wish.name, outcome=ef.Outcome.FAILED, message="out of memory"))

    def _level_refused(self, tenant: Tenant) -> None:
        self._send_away(tenant)
        if self.present(tenant) and not tenant.tried_again:
            tenant.tried_again = True
            return
        tenant.tried_again = False
        for wish in [wish for wish in self._waiting if wish.tenant is tenant]:
            self._waiting.remove(wish)
            outcome = ef.Outcome.FAILED
            self._emit(ef.FinishChat(request=wish.name, outcome=outcome, sequence=0, message="out of memory"))

    # --- for the rules ---

    def present(self, wanted: Tenant) -> list[Tenant]:
        """All other tenants that are not out, least recently used first."""
        there = [other for other in self.tenants.values() if other.stand is not Stand.OUT]
        others = [other for other in there if other is not wanted]
        return sorted(others, key=lambda other: (other.used_ms, other.name))

    def fits(self, wanted: Tenant, *, beside: list[Tenant]) -> bool:
        """Whether the bytes of all of these fit the card together."""
        together = (wanted, *beside)
        idle_bytes = 0 if any(tenant.is_image for tenant in together) else self.costs.context_bytes
        return idle_bytes + sum(tenant.size_bytes for tenant in together) <= self.card_bytes

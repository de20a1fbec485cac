"""Yielding: who could give up bytes for somebody else, at what price, and asking those whom a plan names.

Owns the concessions that are put before the planner and their execution. The planner chooses among them
(`planner/choose.py`); the steps after asking are `supervision.py` and `llm/tide.py`.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tidegate.core.effects import AskGuest
from tidegate.core.guest import GuestPhase
from tidegate.core.house import RAM, Sight
from tidegate.core.lease import Lease, LeasePhase
from tidegate.core.llm.level import SERVING, Level, Tide
from tidegate.core.llm.model import Model
from tidegate.core.llm.tide import KV, running, saved_state, sink, worker_of, yield_state
from tidegate.core.llm.wish import is_pinned
from tidegate.core.planner.question import Concession, YieldClass
from tidegate.core.quantity import MIB
from tidegate.core.stage import Component
from tidegate.core.state import State
from tidegate.core.supervision import release, terminate
from tidegate.core.worker import Worker, WorkerKind, WorkerPhase

# Within this time a return counts as caused by the eviction.
SOON_MS = 60_000
# An idle component's chance of being wanted falls with its idle time, by halves at this.
HALF_IDLE_MS = 60_000
FREE_MS = 20  # Prior for freeing a buffer and seeing it.


class Taking(enum.StrEnum):
    """From whom bytes may be taken."""

    IDLE = "idle"  # Only from those who are idle.
    ALLOWED = "allowed"  # Also from language models that answer, when they have had their quantum.
    LATER = "later"  # From all who will have yielded, answered or moved in a while: a question, not a plan.


@dataclass(frozen=True, slots=True, kw_only=True)
class Taker:
    """Who needs the bytes: a worker on a card for a job (with its own component), a model, or a guest."""

    card: str
    worker: str = ""
    model: str = ""
    own_part: str = ""
    taking: Taking = Taking.ALLOWED
    spares_pinned: bool = False  # Take nothing from those whom their owner wants held.


def concessions_for(state: State, taker: Taker) -> tuple[Concession, ...]:
    """Name everything that could yield to this taker."""
    found: list[Concession] = []
    for worker in state.workers.values():
        if worker.kind is WorkerKind.IMAGE:
            found.extend(_from_image_worker(state, worker, taker))
    for model in state.models.values():
        if model.name != taker.model or worker_of(state, model).name != taker.worker:
            found.extend(_from_model(state, model, taker))
    found.extend(_from_guests(state, taker))
    return tuple(found)


def ask(state: State, releases: Iterable[Concession]) -> None:
    """Ask everybody whom a plan names to yield."""
    parts: dict[str, list[Lease]] = {}
    for concession in releases:
        kind, _, rest = concession.tenant.partition(":")
        match kind:
            case "lease":
                worker, _, part = rest.partition("#")
                lease = state.ledger.find(worker, part)
                if lease is not None:
                    parts.setdefault(worker, []).append(lease)
            case "worker":
                terminate(state, state.workers[rest])
            case "kv":
                _lower(state, state.models[rest], Level.WARM)
            case "weights":
                _lower(state, state.models[rest], Level.COLD)
            case "state":
                yield_state(state, state.models[rest])
            case "guest":
                guest = state.guests[rest]
                guest.was_asked = True
                state.emit(AskGuest(lease=rest, reason="somebody needs the memory"))
            case _:
                raise AssertionError(f"nobody is called {concession.tenant}")
    for name, leases in parts.items():
        release(state, state.workers[name], leases=leases)


def _lower(state: State, model: Model, aim: Level) -> None:
    model.was_pushed = True
    if model.tide is Tide.EBBING:
        model.aim = aim  # Its KV cache was asked for a moment ago, by the same plan.
    else:
        sink(state, model, aim)


def is_idle(state: State, worker: Worker) -> bool:
    """Whether an image worker is up and computes nothing."""
    if worker.phase is not WorkerPhase.READY or state.ledger.is_releasing(worker.name):
        return False
    job = state.jobs.get(worker.job)
    return job is None or job.run is None


def _from_image_worker(state: State, worker: Worker, taker: Taker) -> Iterator[Concession]:
    if not is_idle(state, worker):
        return
    leases = [lease for lease in state.ledger.of(worker.name) if lease.phase is LeasePhase.HELD]
    own = worker.name == taker.worker
    if not own and worker.card and state.ledger.pools[worker.card].sight is Sight.OWN_LEDGER:
        if worker.card == taker.card and not worker.job:
            yield _whole_worker(worker, leases)
        return
    parts = _parts_of(state, taker.model) if own else frozenset()
    for lease in leases:
        if "/" not in lease.part or (own and lease.part == taker.own_part):
            continue
        model, _, component = lease.part.partition("/")
        mine = lease.part in parts
        card_bytes = lease.card_bytes if lease.card == taker.card else 0
        if not card_bytes and not lease.ram_bytes:
            continue
        idle_ms = state.now_ms - lease.used_ms
        yield Concession(
            tenant=f"lease:{worker.name}#{lease.part}",
            name=f"the {component.replace('_', ' ')} of {model}",
            yields=YieldClass.OWN_FINISHED if mine else YieldClass.IDLE_IMAGE,
            card_bytes=card_bytes,
            ram_bytes=lease.ram_bytes,
            free_ms=FREE_MS,
            return_ms=_load_ms(state, lease),
            needed_permille=1000
            if worker.job and not mine
            else 900 * HALF_IDLE_MS // (HALF_IDLE_MS + idle_ms),
            idle_ms=idle_ms,
        )


def _parts_of(state: State, model: str) -> frozenset[str]:
    """The leases of an image model's components, shared ones too; none for a language model."""
    known = next((known for known in state.house.image_models if known.name == model), None)
    return frozenset(known.part(component) for component in Component) if known else frozenset()


def _whole_worker(worker: Worker, leases: list[Lease]) -> Concession:
    return Concession(
        tenant=f"worker:{worker.name}",
        name=f"the process of {worker.name}",
        yields=YieldClass.IDLE_IMAGE,
        card_bytes=sum(lease.card_bytes for lease in leases),
        ram_bytes=sum(lease.ram_bytes for lease in leases),
        free_ms=250,
        return_ms=1_000,
        needed_permille=500,
    )


def _load_ms(state: State, lease: Lease) -> int:
    pool = state.ledger.pools[lease.card or RAM]
    return (lease.card_bytes + lease.ram_bytes) * 1_000 // (max(1, pool.descriptor.link_mib_per_s) * MIB)


def _from_model(state: State, model: Model, taker: Taker) -> Iterator[Concession]:
    worker = worker_of(state, model)
    busy = running(model) > 0
    if model.tide not in (*SERVING, Tide.WARM) or worker.phase is not WorkerPhase.READY:
        yield from _from_saved_state(state, model)
        yield from _from_moving_model(state, model, taker)
        return
    if state.ledger.is_releasing(worker.name):
        yield from _from_moving_model(state, model, taker)
        return
    fresh = model.was_contended and state.now_ms - model.serving_since_ms < state.policy.quantum_ms
    pinned = is_pinned(model)
    spared = taker.taking is Taking.IDLE or (fresh and taker.taking is Taking.ALLOWED)
    if (busy and spared) or (pinned and taker.spares_pinned):
        return
    leases = state.ledger.of(worker.name)
    on_card = {lease.part: lease.card_bytes for lease in leases if lease.card == taker.card}
    kv_bytes = on_card.get(KV, 0)
    rest_bytes = sum(on_card.values()) - kv_bytes
    ram_bytes = sum(lease.ram_bytes for lease in leases)
    idle_ms = 0 if busy else state.now_ms - model.used_ms
    needed = 1000 if busy else model.rhythm.needed_permille(state.now_ms, within_ms=SOON_MS)
    after = ""
    if model.tide in SERVING and kv_bytes and _may_ebb(state, model, taker):
        after = f"kv:{model.name}"
        yield Concession(
            tenant=after,
            name=f"the KV cache of {model.name}",
            yields=YieldClass.PINNED if pinned else YieldClass.LLM_KV,
            card_bytes=kv_bytes,
            ram_bytes=-_saved_bytes(state, model),
            free_ms=state.catalog.level_cost_ms(model.name, "ebbing"),
            return_ms=state.catalog.level_cost_ms(model.name, "returning"),
            needed_permille=needed,
            idle_ms=idle_ms,
        )
        kv_bytes = 0
    if rest_bytes or ram_bytes:
        yield Concession(
            tenant=f"weights:{model.name}",
            name=f"the model {model.name}",
            yields=YieldClass.PINNED if pinned else YieldClass.LLM_WEIGHTS,
            card_bytes=rest_bytes + kv_bytes,
            ram_bytes=ram_bytes,
            free_ms=state.catalog.level_cost_ms(model.name, "sinking"),
            return_ms=state.catalog.level_cost_ms(model.name, "rising"),
            needed_permille=needed,
            idle_ms=idle_ms,
            after=after,
        )


def _may_ebb(state: State, model: Model, taker: Taker) -> bool:
    """Whether it can give up its KV cache alone: what it freed is seen, and its state has a place to go."""
    descriptor = state.ledger.pools[taker.card].descriptor if taker.card else None
    if descriptor is None or descriptor.sight is Sight.OWN_LEDGER or descriptor.unified:
        return False
    # Without RAM to save its state in, a model can only go altogether; its histories are evaluated again.
    return state.ledger.room("", card_bytes=0, ram_bytes=_saved_bytes(state, model))


def _from_moving_model(state: State, model: Model, taker: Taker) -> Iterator[Concession]:
    """Who moves yields nothing now; whoever may wait can count on it."""
    leases = state.ledger.of(worker_of(state, model).name)
    charged = [lease for lease in leases if lease.is_charged]
    card_bytes = sum(lease.card_bytes for lease in charged if lease.card == taker.card)
    ram_bytes = sum(lease.ram_bytes for lease in charged)
    if taker.taking is Taking.LATER and (card_bytes or ram_bytes) and not is_pinned(model):
        yield Concession(
            tenant=f"weights:{model.name}",
            name=f"the model {model.name}",
            yields=YieldClass.LLM_WEIGHTS,
            card_bytes=card_bytes,
            ram_bytes=ram_bytes,
            free_ms=state.catalog.level_cost_ms(model.name, "sinking"),
            return_ms=state.catalog.level_cost_ms(model.name, "rising"),
            needed_permille=1000,
        )


def _saved_bytes(state: State, model: Model) -> int:
    if saved_state(state, model) is not None:
        return 0
    return state.catalog.llms[model.name].state_bytes


def _from_saved_state(state: State, model: Model) -> Iterator[Concession]:
    kept = saved_state(state, model)
    if kept is None or kept.phase is not LeasePhase.HELD or model.tide not in (Tide.COLD, Tide.WARM):
        return
    yield Concession(
        tenant=f"state:{model.name}",
        name=f"the saved conversation state of {model.name}",
        yields=YieldClass.LLM_WEIGHTS,
        card_bytes=0,
        ram_bytes=kept.ram_bytes,
        free_ms=FREE_MS,
        return_ms=state.catalog.level_cost_ms(model.name, "rising"),
        needed_permille=model.rhythm.needed_permille(state.now_ms, within_ms=SOON_MS),
        idle_ms=state.now_ms - model.used_ms,
    )


def _from_guests(state: State, taker: Taker) -> Iterator[Concession]:
    for guest in state.guests.values():
        agreed = guest.yields and guest.phase is GuestPhase.GRANTED and not guest.was_asked
        if agreed and guest.card == taker.card:
            yield Concession(
                tenant=f"guest:{guest.lease}",
                name=f"the guest {guest.purpose}",
                yields=YieldClass.GUEST,
                card_bytes=guest.amount_bytes,
                free_ms=1_000,
            )

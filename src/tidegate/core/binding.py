"""Bindings: from a plan to bytes. Reserve, ask those who yield, wait until the bytes are seen, grant.

Owns the life of a Binding and the rooms that the planner is told. What is planned comes from
`image/stages.py`, `llm/demand.py` and `negotiation.py`; what happens after the grant goes back to them.
"""

from __future__ import annotations

from collections.abc import Iterable

from tidegate.core.house import RAM
from tidegate.core.lease import Lease, LeasePhase
from tidegate.core.ledger import ARENA
from tidegate.core.notice import NoticeKind, notices_of
from tidegate.core.planner.plan import Plan
from tidegate.core.planner.question import Room
from tidegate.core.pool import Pool
from tidegate.core.stage import Execution
from tidegate.core.state import Alarm, Binding, BindingKind, State
from tidegate.core.supervision import release
from tidegate.core.worker import Worker
from tidegate.core.yielding import ask


def slot_of(card: str, holder: str) -> str:
    """Name the slot of a binding: one waits per card, and per worker or guest where there is no card."""
    return card or holder


def room_now(state: State, pool: Pool, *, holder: str, extra_bytes: int) -> Room:
    """What is free now, with what the holder may use again itself; `extra_bytes` must stay free besides."""
    arena = state.ledger.find(holder, ARENA)
    again_bytes = arena.card_bytes if arena and arena.card == pool.name else 0
    return Room(
        name=pool.name if pool.name != RAM else "RAM",
        total_bytes=pool.descriptor.total_bytes,
        free_bytes=pool.free_bytes + again_bytes,
        headroom_bytes=pool.headroom_bytes + extra_bytes,
        allocation_max_bytes=pool.descriptor.allocation_max_bytes,
    )


def rooms_now(
    state: State, card: str, *, holder: str, card_extra_bytes: int = 0, ram_extra_bytes: int = 0
) -> tuple[Room | None, Room]:
    """A card, or None where there is none, and RAM, as they are put before the planner."""
    pools = state.ledger.pools
    room = room_now(state, pools[card], holder=holder, extra_bytes=card_extra_bytes) if card else None
    return room, room_now(state, pools[RAM], holder=holder, extra_bytes=ram_extra_bytes)


def reserved(
    state: State,
    worker: Worker,
    wanted: Iterable[tuple[str, int, int]],
    *,
    execution: Execution | None = None,
) -> list[Lease]:
    """Reserve parts with their bytes of card and RAM; what needs none is left out. A component, which has a
    slash in its name, is loaded as `execution` says.
    """
    return [
        state.ledger.reserve(
            worker.name,
            part,
            incarnation=worker.incarnation,
            card=worker.card,
            card_bytes=card_bytes,
            ram_bytes=ram_bytes,
            at_ms=state.now_ms,
            execution=execution if "/" in part else None,
        )
        for part, card_bytes, ram_bytes in wanted
        if card_bytes or ram_bytes
    ]


def room_emptied(pool: Pool, *, extra_bytes: int) -> Room:
    """What would be free if everything of ours were gone and foreign use stayed."""
    return Room(
        name=pool.name if pool.name != RAM else "RAM",
        total_bytes=pool.descriptor.total_bytes,
        free_bytes=pool.emptied_bytes,
        headroom_bytes=extra_bytes,
    )


def room_ever(pool: Pool, *, extra_bytes: int) -> Room:
    """What could be free at the very best: nobody else on the pool."""
    return Room(
        name=pool.name if pool.name != RAM else "RAM",
        total_bytes=pool.descriptor.total_bytes,
        free_bytes=pool.descriptor.total_bytes,
        headroom_bytes=pool.descriptor.headroom_bytes + extra_bytes,
    )


def bind(state: State, binding: Binding) -> None:
    """Put a binding on the books: its leases are reserved already, those who yield are asked now."""
    assert binding.slot not in state.bindings, "one binding waits per slot"
    state.bindings[binding.slot] = binding
    state.set_alarm(Alarm.BINDING, binding.slot, in_ms=state.policy.binding_wait_max_ms)
    worker = state.workers.get(binding.worker)
    if worker is not None and binding.drops:
        drops = [lease for lease in state.ledger.of(worker.name) if lease.number in binding.drops]
        release(state, worker, leases=drops)
    ask(state, binding.plan.releases)
    is_known = _is_known(state, binding)
    for notice in notices_of(binding.plan):
        if notice.kind is NoticeKind.OFFLOADED or not is_known:
            state.notify(notice)


def _is_known(state: State, binding: Binding) -> bool:
    """Whether how a stage runs was told before, or will be told when it does; planned anew, it runs the same
    way more often than not.
    """
    if binding.kind is not BindingKind.STAGE or binding.look_ahead:
        return binding.look_ahead
    job = state.jobs[binding.subject]
    was_told = job.told_execution == binding.plan.execution
    job.told_execution = binding.plan.execution
    return was_told


def unbind(state: State, binding: Binding) -> None:
    """Take a binding off the books; what was asked to yield comes back by itself."""
    for lease in leases_of(state, binding):
        state.ledger.end(lease)
    del state.bindings[binding.slot]
    state.clear_alarm(Alarm.BINDING, binding.slot)


def leases_of(state: State, binding: Binding) -> list[Lease]:
    """The reserved leases of a binding."""
    return [
        lease
        for lease in state.ledger.of(binding.worker)
        if lease.phase is LeasePhase.RESERVED and lease.number in binding.leases
    ]


def is_void(state: State, binding: Binding) -> bool:
    """Whether the plan built on a loaded component that was released meanwhile, as re-initialising does."""
    if not binding.keeps:
        return False
    held = [lease for lease in state.ledger.of(binding.worker) if lease.number == binding.keeps]
    return not held or held[0].phase is not LeasePhase.HELD


def is_grantable(state: State, binding: Binding) -> bool:
    """Whether the bytes of a binding are really there, seen by the sight that each pool has.

    Nothing is granted to a holder of which bytes are still being asked back: what a sample shows of it would
    be ambiguous.
    """
    if binding.look_ahead or state.ledger.is_releasing(binding.worker):
        return False
    wanted = leases_of(state, binding)
    card_bytes = sum(lease.card_bytes for lease in wanted)
    ram_bytes = sum(lease.ram_bytes for lease in wanted)
    ram = state.ledger.pools[RAM]
    if ram_bytes and (ram.is_stale or ram.unclaimed_bytes - ram.headroom_bytes < ram_bytes):
        return False
    card = next((lease.card for lease in wanted if lease.card), "")
    if not card:
        return True
    pool = state.ledger.pools[card]
    arena = state.ledger.find(binding.worker, ARENA)
    again_bytes = arena.card_bytes if arena else 0
    return not pool.is_stale and pool.unclaimed_bytes + again_bytes - pool.headroom_bytes >= card_bytes


def is_overdrawn(state: State, worker: Worker) -> bool:
    """Whether somebody foreign took, since the grant, what a worker was about to allocate."""
    pools = [state.ledger.pools[name] for name in (worker.card, RAM) if name]
    return any(pool.unclaimed_bytes < 0 for pool in pools)


def take(state: State, binding: Binding, *, incarnation: int) -> list[Lease]:
    """Turn the reservations of a grantable binding into charges and take it off the waiting list."""
    granted = leases_of(state, binding)
    state.ledger.take_from_arena(binding.worker, sum(lease.card_bytes for lease in granted))
    for lease in granted:
        state.ledger.grant(lease, incarnation=incarnation, at_ms=state.now_ms)
    del state.bindings[binding.slot]
    state.clear_alarm(Alarm.BINDING, binding.slot)
    return granted


def describe(plan: Plan) -> str:
    """One line for a story."""
    return f"{plan.execution.text()}, expected {plan.score.text()}"

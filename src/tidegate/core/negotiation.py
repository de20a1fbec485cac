"""Negotiation: guests ask for card memory; they get it, wait with an ETA, or hear what could be had.

Owns grants, waiting, renewal and expiry of guests' leases. What a guest may take is decided by the same
planner as for everybody; it takes only from those who are idle.
"""

from __future__ import annotations

from tidegate.core import effects as ef
from tidegate.core import events as ev
from tidegate.core.binding import bind, rooms_now, slot_of, take, unbind
from tidegate.core.guest import Guest, GuestPhase
from tidegate.core.house import RAM
from tidegate.core.planner.choose import choose
from tidegate.core.planner.option import Footprint, Provenance, StageOption
from tidegate.core.planner.plan import Plan, Refusal
from tidegate.core.planner.question import StageQuestion
from tidegate.core.pool import Pool
from tidegate.core.quantity import size_text, time_text
from tidegate.core.stage import Errand, Execution, Placement
from tidegate.core.state import Alarm, Binding, BindingKind, State
from tidegate.core.yielding import Taker, Taking, concessions_for

PART = "guest"


def asked(state: State, event: ev.GuestAsked) -> None:
    """Take in a guest's wish; it is answered at once, and again when it waits and gets its turn."""
    if event.lease in state.guests:
        return
    pool = state.ledger.pools.get(event.card)
    if pool is None or event.card == RAM:
        names = ", ".join(card.name for card in state.house.cards) or "none"
        _refuse(state, event.lease, f"there is no card {event.card!r}; there are: {names}")
        return
    if event.amount_bytes <= 0:
        _refuse(state, event.lease, "ask for one byte or more")
        return
    if event.amount_bytes > pool.descriptor.total_bytes:
        card = f"{event.card} has {size_text(pool.descriptor.total_bytes)} in all"
        largest, advice = _within_reach(state, pool)
        _refuse(
            state, event.lease, f"this is larger than the card: {card}", *advice, largest_now_bytes=largest
        )
        return
    if len(state.guests) >= state.policy.guests_max:
        count = f"{len(state.guests)} other programs hold card memory or wait for it, and no more are taken"
        _refuse(state, event.lease, f"{count}; ask again when one of them has left")
        return
    wait_ms = min(event.wait_ms, state.policy.guest_wait_max_ms)
    guest = Guest(
        lease=event.lease,
        card=event.card,
        amount_bytes=event.amount_bytes,
        purpose=event.purpose,
        hold_ms=min(event.hold_ms, state.policy.guest_hold_max_ms),
        since_ms=state.now_ms,
        gives_up_ms=state.now_ms + wait_ms,
        yields=event.yields,
    )
    state.guests[event.lease] = guest
    answer = plan_for(state, guest)
    free = isinstance(answer, Plan) and not answer.releases and guest.card not in state.bindings
    if free and isinstance(answer, Plan):
        bind_guest(state, guest, answer)
        grant_guest(state, state.bindings[slot_of(guest.card, guest.holder)])
    elif not wait_ms:
        deny(state, guest)
    else:
        state.set_alarm(Alarm.GUEST, guest.lease, in_ms=wait_ms)
        eta_ms = answer.score.free_ms if isinstance(answer, Plan) else wait_ms
        _answer(state, guest.lease, ef.GuestState.WAITING, eta_ms=eta_ms, expires_ms=guest.gives_up_ms)


def plan_for(state: State, guest: Guest) -> Plan | Refusal:
    """Ask the planner about a guest's wish."""
    option = StageOption(
        Execution(Placement.CARD), Footprint(guest.amount_bytes, 0, provenance=Provenance.DECLARED), run_ms=0
    )
    card, ram = rooms_now(state, guest.card, holder=guest.holder)
    return choose(
        StageQuestion(
            stage=Errand.GUEST,
            subject=guest.purpose,
            card=card,
            ram=ram,
            options=(option,),
            concessions=concessions_for(
                state, Taker(card=guest.card, taking=Taking.IDLE, spares_pinned=True)
            ),
            yield_order=state.policy.yield_order,
            candidates_max=state.policy.candidates_max,
        )
    )


def bind_guest(state: State, guest: Guest, plan: Plan) -> None:
    """Reserve a guest's bytes and ask those who yield."""
    lease = state.ledger.reserve(
        guest.holder,
        PART,
        incarnation=0,
        card=guest.card,
        card_bytes=guest.amount_bytes,
        ram_bytes=0,
        at_ms=state.now_ms,
    )
    bind(
        state,
        Binding(
            kind=BindingKind.GUEST,
            slot=slot_of(guest.card, guest.holder),
            subject=guest.lease,
            worker=guest.holder,
            plan=plan,
            leases=(lease.number,),
            since_ms=state.now_ms,
        ),
    )


def grant_guest(state: State, binding: Binding) -> None:
    """The bytes are there: the guest may allocate."""
    guest = state.guests[binding.subject]
    take(state, binding, incarnation=0)
    guest.to(GuestPhase.GRANTED, state.stories.of(guest.holder))
    guest.expires_ms = state.now_ms + guest.hold_ms
    state.set_alarm(Alarm.GUEST, guest.lease, in_ms=guest.hold_ms)
    state.tell(guest.holder, f"granted {size_text(guest.amount_bytes)} for {time_text(guest.hold_ms)}")
    _tell_granted(state, guest)


def _tell_granted(state: State, guest: Guest) -> None:
    _answer(
        state,
        guest.lease,
        ef.GuestState.GRANTED,
        amount_bytes=guest.amount_bytes,
        expires_ms=guest.expires_ms,
    )


def deny(state: State, guest: Guest) -> None:
    """Tell a guest that it gets nothing, with the largest amount there is and what else it could do."""
    largest, advice = _within_reach(state, state.ledger.pools[guest.card])
    guest.to(GuestPhase.DENIED, state.stories.of(guest.holder))
    _forget(state, guest)
    _refuse(state, guest.lease, *advice, largest_now_bytes=largest)


def _within_reach(state: State, pool: Pool) -> tuple[int, tuple[str, ...]]:
    """The largest amount there is now, and in words how to get that or more."""
    largest = max(0, min(pool.free_bytes, pool.unclaimed_bytes) - pool.headroom_bytes)
    concessions = concessions_for(state, Taker(card=pool.name, taking=Taking.IDLE, spares_pinned=True))
    after_yield = largest + sum(concession.card_bytes for concession in concessions)
    advice = [f"ask for at most {size_text(largest)} now"] if largest else []
    if after_yield > largest:
        advice.append(f"ask for up to {size_text(after_yield)} with wait_ms, so that idle models can yield")
    return largest, tuple(advice)


def renewed(state: State, event: ev.GuestRenewed) -> None:
    """A guest wants to keep its lease; it may, unless it was asked to yield."""
    guest = state.guests.get(event.lease)
    if guest is None or guest.phase is not GuestPhase.GRANTED or guest.was_asked:
        return
    hold_ms = min(event.hold_ms, state.policy.guest_hold_max_ms)
    guest.expires_ms = state.now_ms + hold_ms
    state.set_alarm(Alarm.GUEST, guest.lease, in_ms=hold_ms)
    _tell_granted(state, guest)


def released(state: State, lease: str) -> None:
    """A guest gave its lease back, or it expired; a waiting one gave up."""
    guest = state.guests.get(lease)
    if guest is None:
        return
    guest.to(GuestPhase.ENDED, state.stories.of(guest.holder))
    _forget(state, guest)
    _answer(state, lease, ef.GuestState.ENDED)
    state.observe(guest.card)


def alarm_rang(state: State, lease: str) -> None:
    """A guest waited or held for as long as it may."""
    guest = state.guests.get(lease)
    if guest is None:
        return
    if guest.phase is GuestPhase.WAITING:
        deny(state, guest)
    else:
        released(state, lease)


def _refuse(state: State, lease: str, *alternatives: str, largest_now_bytes: int = 0) -> None:
    _answer(
        state,
        lease,
        ef.GuestState.DENIED,
        largest_now_bytes=largest_now_bytes,
        alternatives=alternatives,
    )


def _forget(state: State, guest: Guest) -> None:
    for binding in tuple(state.bindings.values()):
        if binding.kind is BindingKind.GUEST and binding.subject == guest.lease:
            unbind(state, binding)
    state.ledger.forget(guest.holder)
    state.clear_alarm(Alarm.GUEST, guest.lease)
    del state.guests[guest.lease]


def _answer(
    state: State,
    lease: str,
    answer: ef.GuestState,
    *,
    amount_bytes: int = 0,
    eta_ms: int = 0,
    expires_ms: int = 0,
    largest_now_bytes: int = 0,
    alternatives: tuple[str, ...] = (),
) -> None:
    state.sequence += 1
    state.emit(
        ef.AnswerGuest(
            lease=lease,
            state=answer,
            sequence=state.sequence,
            amount_bytes=amount_bytes,
            eta_ms=eta_ms,
            expires_ms=expires_ms,
            largest_now_bytes=largest_now_bytes,
            alternatives=alternatives,
        )
    )

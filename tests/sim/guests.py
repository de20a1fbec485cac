"""Guests of a world: other applications that ask, take what they were granted or less, and leave late.

Owns the physical side of AnswerGuest and AskGuest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.sim.truth import GuestTruth

from tidegate.core import effects as ef
from tidegate.core import events as ev

if TYPE_CHECKING:
    from tests.sim.world import World


class Guests:
    """Guests of one world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._granted: set[str] = set()

    def ask(self, lease: str, card: str, *, amount_bytes: int, hold_ms: int, wait_ms: int) -> None:
        """Another application asks for memory."""
        self._world.truth.guests[lease] = GuestTruth(card)
        self._world.deliver(
            ev.GuestAsked(
                at_ms=self._world.now_ms,
                lease=lease,
                card=card,
                amount_bytes=amount_bytes,
                purpose="a game",
                hold_ms=hold_ms,
                wait_ms=wait_ms,
                yields=amount_bytes % 2 == 0,
            )
        )

    def granted(self, lease: str) -> bool:
        """Whether a guest ever got what it asked for."""
        return lease in self._granted

    def answered(self, effect: ef.AnswerGuest) -> None:
        """The arbiter told a guest how its lease stands."""
        self._world.judge.guest_answered(effect)
        if effect.state is ef.GuestState.GRANTED:
            self._granted.add(effect.lease)
        guest = self._world.truth.guests[effect.lease]
        match effect.state:
            case ef.GuestState.GRANTED:
                guest.promised = effect.amount_bytes
                self._world.judge.bytes_granted(f"granting {effect.lease}", **{guest.card: guest.promised})
                taken = effect.amount_bytes * self._world.chance.number("guest takes", 0, 100) // 100
                room = self._world.truth.pools[guest.card].total_bytes - self._world.truth.actual(guest.card)
                guest.actual = max(guest.actual, min(taken, room))
                guest.expires_ms = effect.expires_ms
                self._world.later(
                    effect.expires_ms - self._world.now_ms + 10, lambda: self._must_have_left(effect.lease)
                )
                self._world.telemetry.soon(guest.card)
            case ef.GuestState.DENIED | ef.GuestState.ENDED:
                guest.promised = 0
                self._world.later(
                    self._world.chance.number("guest leaves", 0, 800),
                    lambda: self._guest_leaves(effect.lease),
                )
            case ef.GuestState.WAITING:
                pass

    def _must_have_left(self, lease: str) -> None:
        late = (
            self._world.truth.guests[lease].promised
            and self._world.truth.guests[lease].expires_ms + 10 <= self._world.now_ms
        )
        self._world.judge.must(not late, f"{lease} has expired and nobody noticed")

    def give_back(self, lease: str) -> None:
        """A guest gives its lease back."""
        self._world.deliver(ev.GuestReleased(at_ms=self._world.now_ms, lease=lease))

    def _guest_leaves(self, lease: str) -> None:
        guest = self._world.truth.guests.get(lease)
        if guest is not None and guest.actual:
            guest.actual = 0
            self._world.telemetry.soon(guest.card)

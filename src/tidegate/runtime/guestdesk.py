"""The guest desk: card memory that other applications ask for, hold and give back.

Owns the half of the `gate` that is about leases of guests, and which process each of them named as its own.
Who gets what is the core's decision; how a lease stands is kept by `newsroom`.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from dataclasses import dataclass, field
from typing import Final

from tidegate.core import effects as ef
from tidegate.core import events as ev
from tidegate.core.faults import ClientError
from tidegate.runtime.clock import Clock
from tidegate.runtime.newsroom import Newsroom
from tidegate.runtime.shell import Shell
from tidegate.runtime.views import LeaseRequest, LeaseView

WAIT_MAX_MS: Final = 120_000


@dataclass(slots=True, kw_only=True)
class GuestDesk:
    """Guests of one server. `pids` are processes by lease, for whoever looks at the card; `told` is how each
    lease stood when its guest last heard of it, so that none waits for what has come meanwhile.
    """

    shell: Shell
    clock: Clock
    news: Newsroom
    pids: dict[str, int]
    told: dict[str, LeaseView] = field(default_factory=dict)

    async def negotiate(self, wish: LeaseRequest) -> LeaseView:
        """Ask for card memory."""
        cards = self.shell.arbiter.state.house.cards
        card = wish.card or (cards[0].name if cards else "")
        if card not in {known.name for known in cards}:
            raise ClientError(
                f"There is no card {wish.card!r}." if wish.card else "This machine has no card.",
                remedy=f"There are: {', '.join(known.name for known in cards) or 'none'}.",
                code="unknown_card",
            )
        if wish.amount_bytes <= 0:
            raise ClientError("A lease is for one byte or more.", code="bad_size")
        lease = secrets.token_hex(8)
        if wish.pid:
            self.pids[lease] = wish.pid
        await self.shell.tell(
            ev.GuestAsked(
                at_ms=self.clock.now_ms(),
                lease=lease,
                card=card,
                amount_bytes=wish.amount_bytes,
                purpose=wish.purpose,
                hold_ms=wish.hold_ms,
                wait_ms=wish.wait_ms,
                needed_in_ms=wish.needed_in_ms,
                yields=wish.yields,
            )
        )
        return self._say(lease)

    async def lease(self, lease: str, *, wait_ms: int = 0) -> LeaseView:
        """A lease as it stands, or as soon as it stands otherwise than its guest has heard."""
        if not wait_ms:
            return self._lease(lease)
        before = self.told.get(lease, self._lease(lease))
        ends_ms = self.clock.now_ms() + min(wait_ms, WAIT_MAX_MS)
        while self._lease(lease) == before and (left_ms := ends_ms - self.clock.now_ms()) > 0:
            # At the end of the time that the caller wanted to wait nothing has changed.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_ms / 1000):
                    await self.news.any_lease_change()
        return self._say(lease)

    async def renew(self, lease: str, *, hold_ms: int) -> LeaseView:
        """Keep a lease for longer."""
        self._lease(lease)
        event = ev.GuestRenewed(at_ms=self.clock.now_ms(), lease=lease, hold_ms=hold_ms)
        await self.shell.tell(event)
        return self._say(lease)

    async def release(self, lease: str) -> None:
        """Give a lease back."""
        known = self._lease(lease)
        if known.state in (ef.GuestState.GRANTED, ef.GuestState.WAITING):
            await self.shell.tell(ev.GuestReleased(at_ms=self.clock.now_ms(), lease=lease))
        self.pids.pop(lease, None)

    def _say(self, lease: str) -> LeaseView:
        view = self.told[lease] = self._lease(lease)
        for forgotten in self.told.keys() - self.news.leases.keys():
            del self.told[forgotten]
        return view

    def _lease(self, lease: str) -> LeaseView:
        try:
            return self.news.leases[lease]
        except KeyError:
            raise ClientError(
                f"There is no lease {lease}.", remedy="Negotiate a new one.", code="unknown_lease"
            ) from None

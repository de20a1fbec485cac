"""Guests: other applications that asked for card memory, and what they were told.

    waiting -> granted -> ended, or denied at once

Owns Guest and its TRANSITIONS. Negotiation is done in `negotiation.py`; the bytes are a lease of the holder
"guest/<lease>" in the ledger.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tidegate.core.faults import InvalidTransition


class GuestPhase(enum.StrEnum):
    """Where a guest stands."""

    WAITING = "waiting"
    GRANTED = "granted"
    DENIED = "denied"
    ENDED = "ended"


TRANSITIONS: Mapping[GuestPhase, tuple[GuestPhase, ...]] = MappingProxyType(
    {
        GuestPhase.WAITING: (GuestPhase.GRANTED, GuestPhase.DENIED, GuestPhase.ENDED),
        GuestPhase.GRANTED: (GuestPhase.ENDED,),
        GuestPhase.DENIED: (),
        GuestPhase.ENDED: (),
    }
)


@dataclass(slots=True, kw_only=True)
class Guest:
    """One guest's wish."""

    lease: str
    card: str
    amount_bytes: int
    purpose: str
    hold_ms: int
    since_ms: int
    gives_up_ms: int
    yields: bool
    phase: GuestPhase = GuestPhase.WAITING
    expires_ms: int = 0
    was_asked: bool = False

    def to(self, finish: GuestPhase, story: tuple[str, ...] = ()) -> None:
        """Go on to the next phase; anything but a transition of the table is a bug."""
        if finish not in TRANSITIONS[self.phase]:
            raise InvalidTransition(f"guest {self.lease}", self.phase, finish, story=story)
        self.phase = finish

    @property
    def holder(self) -> str:
        """Its name in the ledger."""
        return f"guest/{self.lease}"

"""Leases: permissions for one part of one worker to hold bytes on a card and in RAM.

    reserved -> granted -> held -> releasing -> ended

Owns Lease and its TRANSITIONS. Bytes are charged from `granted` until they were seen to be free; sums over
leases and samples are the ledger's (`ledger.py`). A lease is fenced by the incarnation of its holder.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tidegate.core.faults import InvalidTransition
from tidegate.core.stage import Execution


class LeasePhase(enum.StrEnum):
    """Where a lease stands."""

    RESERVED = "reserved"  # Promised, not yet there: nobody else may be promised the same bytes.
    GRANTED = "granted"  # May be allocated at any time.
    HELD = "held"  # Was said to be allocated.
    RELEASING = "releasing"  # Asked or said to be freed, and not yet seen to be.
    ENDED = "ended"


TRANSITIONS: Mapping[LeasePhase, tuple[LeasePhase, ...]] = MappingProxyType(
    {
        LeasePhase.RESERVED: (LeasePhase.GRANTED, LeasePhase.ENDED),
        LeasePhase.GRANTED: (LeasePhase.HELD, LeasePhase.RELEASING, LeasePhase.ENDED),
        LeasePhase.HELD: (LeasePhase.RELEASING, LeasePhase.ENDED),
        LeasePhase.RELEASING: (LeasePhase.ENDED,),
        LeasePhase.ENDED: (),
    }
)
CHARGED = (LeasePhase.GRANTED, LeasePhase.HELD, LeasePhase.RELEASING)


@dataclass(slots=True, kw_only=True)
class Lease:
    """Bytes of one part ("sd15/vae", "compute", "context", "kv" …) of one holder (a worker or a guest)."""

    number: int
    holder: str
    incarnation: int
    part: str
    card: str
    card_bytes: int
    ram_bytes: int
    phase: LeasePhase = LeasePhase.RESERVED
    execution: Execution | None = None
    is_standing: bool = False  # Charged whether its process lives or not, so that it can always start.
    granted_ms: int = -1
    used_ms: int = 0
    held_since_ms: int = -1  # When it was said to be allocated.
    claimed_ms: int = -1  # When it was said to be freed.

    def to(self, finish: LeasePhase) -> None:
        """Go on to the next phase; anything but a transition of the table is a bug."""
        if finish not in TRANSITIONS[self.phase]:
            raise InvalidTransition(f"lease {self.holder}/{self.part}", self.phase, finish)
        self.phase = finish

    @property
    def is_charged(self) -> bool:
        """Whether its bytes count as used."""
        return self.phase in CHARGED

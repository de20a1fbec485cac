"""Truth: who physically holds which bytes, and which bytes were promised to whom.

Owns the physical processes and pools of a world. `actual` is what a process holds whatever it should;
`promised` is what the arbiter's effects allow it to hold and that it has not physically given back. A checker
that used the core's own sums would share its mistakes, so nothing of the core's ledger is used here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tidegate.core.house import RAM, House, Sight
from tidegate.core.stage import Execution


@dataclass(slots=True)
class Part:
    """Bytes of one part of a process on its card and in RAM."""

    card_actual: int = 0
    card_promised: int = 0
    ram_actual: int = 0
    ram_promised: int = 0
    execution: Execution | None = None


@dataclass(slots=True)
class Process:
    """A physical process. `worker` and `incarnation` are what the arbiter calls it."""

    worker: str
    incarnation: int
    card: str
    model: str
    is_ready: bool = False
    is_dead: bool = False
    is_deaf: bool = False  # Hangs: answers nothing any more.
    busy_with: str = ""  # "<job>#<attempt>" while a stage runs.
    deadline_ms: int = 0  # Until when the running stage may be silent.
    level: str = "cold"
    is_unseen: bool = False  # Its card shows nothing: what it frees stays its own until it ends.
    high_bytes: int = 0  # The most that it was ever promised on such a card.
    parts: dict[str, Part] = field(default_factory=dict)

    def actual(self, pool: str) -> int:
        """Bytes that it really holds on a pool."""
        if pool == RAM:
            return sum(part.ram_actual for part in self.parts.values())
        return sum(part.card_actual for part in self.parts.values()) if self.card == pool else 0

    def promised(self, pool: str) -> int:
        """Bytes that it may hold on a pool."""
        if pool == RAM:
            return sum(part.ram_promised for part in self.parts.values())
        if self.card != pool:
            return 0
        promised = sum(part.card_promised for part in self.parts.values())
        if self.is_unseen:
            promised = self.high_bytes = max(self.high_bytes, promised)
        return promised


@dataclass(slots=True)
class GuestTruth:
    """A guest's promise, and what it holds of it."""

    card: str
    promised: int = 0
    actual: int = 0
    expires_ms: int = 0


@dataclass(slots=True)
class PoolTruth:
    """A card or RAM as it physically is, and what of it the arbiter has been shown."""

    name: str
    total_bytes: int
    sight: Sight
    foreign: int = 0
    foreign_reported: int = 0
    over_reported: dict[str, int] = field(default_factory=dict)
    peak_bytes: int = 0


@dataclass(slots=True)
class Truth:
    """All pools, processes and guests of a world."""

    pools: dict[str, PoolTruth]
    processes: dict[str, Process] = field(default_factory=dict)  # The living ones, by worker.
    guests: dict[str, GuestTruth] = field(default_factory=dict)

    def actual(self, pool: str) -> int:
        """Bytes really used on a pool by anybody."""
        used = self.pools[pool].foreign
        used += sum(process.actual(pool) for process in self.processes.values())
        return used + sum(guest.actual for guest in self.guests.values() if guest.card == pool)

    def entitled(self, pool: str) -> int:
        """Bytes that may be used on a pool as far as the arbiter can know: promises and what it was shown."""
        known = self.pools[pool]
        used = known.foreign_reported
        for name, process in self.processes.items():
            used += process.promised(pool) + known.over_reported.get(name, 0)
        return used + sum(guest.promised for guest in self.guests.values() if guest.card == pool)


def truth_of(house: House) -> Truth:
    """Begin with an empty machine."""
    return Truth(
        {card.name: PoolTruth(card.name, card.total_bytes, card.sight) for card in (house.ram, *house.cards)}
    )

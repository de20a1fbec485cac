"""Pools: what is known about the bytes of one card, or of RAM.

Owns Pool: the sums of leases on it, the last sample, what is foreign, what processes hold beyond their
leases, and the headroom that drift has raised. It is all integers. Which lease belongs to whom is the
ledger's knowledge.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tidegate.core.house import CardDescriptor, Sight


@dataclass(slots=True, kw_only=True)
class Pool:
    """One card or RAM."""

    descriptor: CardDescriptor
    charged_bytes: int = 0
    reserved_bytes: int = 0
    headroom_bytes: int = 0
    taken_ms: int = -1  # When the last sample was taken.
    foreign_bytes: int = 0
    foreign_quiet_bytes: int = (
        0  # Foreign use when it was last sure, with nothing of ours in between (per card).
    )
    over: dict[str, int] = field(default_factory=dict)  # Bytes of a holder beyond its leases.
    seen: dict[str, int] = field(default_factory=dict)  # Bytes of a holder in the last sample.
    is_stale: bool = False  # A process ended since the last sample and only a new one tells what is foreign.

    @property
    def name(self) -> str:
        """The card's name, or "ram"."""
        return self.descriptor.name

    @property
    def sight(self) -> Sight:
        """How finely it is seen."""
        return self.descriptor.sight

    @property
    def unclaimed_bytes(self) -> int:
        """Free beyond leases, foreign use and what processes took without asking; reservations not
        subtracted.
        """
        used = self.charged_bytes + self.foreign_bytes + sum(self.over.values())
        return self.descriptor.total_bytes - used

    @property
    def free_bytes(self) -> int:
        """What may still be promised to somebody, before headroom."""
        return self.unclaimed_bytes - self.reserved_bytes

    @property
    def emptied_bytes(self) -> int:
        """What would be free if everything of ours were gone: total without foreign use and headroom."""
        return self.descriptor.total_bytes - self.foreign_bytes - self.headroom_bytes

    def raise_headroom(self, drift_bytes: int) -> None:
        """Widen the headroom after a drift, up to a quarter of the pool above the configured one."""
        ceiling = self.descriptor.headroom_bytes + self.descriptor.total_bytes // 4
        self.headroom_bytes = min(
            ceiling, max(self.headroom_bytes, self.descriptor.headroom_bytes + drift_bytes)
        )

    def relax_headroom(self) -> None:
        """Narrow the headroom by an eighth of what drift added, after a stage that kept its word."""
        extra = self.headroom_bytes - self.descriptor.headroom_bytes
        self.headroom_bytes -= min(extra, -(-extra // 8))

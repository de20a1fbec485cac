"""The card descriptor: what a card is, as far as memory planning cares.

Owns the description only. Readers that fill it: `nvml`, `drm`, `virtual`; how full a card is changes and is
theirs too.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Sight(Enum):
    """The finest way to see that bytes were freed."""

    PER_PROCESS = "per_process"
    PER_CARD = "per_card"
    OWN_LEDGER = "own_ledger"


@dataclass(frozen=True, kw_only=True)
class CardDescriptor:
    """One card. The largest allocation and the link speed are 0 where nothing is known or no limit holds."""

    device: str
    name: str
    total_bytes: int
    granularity_bytes: int
    largest_allocation_bytes: int
    context_bytes: int  # of a process, from its first use of the card to its end
    pool_bytes: int  # scratch of each loaded component, from its first computation to its release
    link_bytes_per_second: int
    unified: bool
    sight: Sight

    def rounded_bytes(self, amount_bytes: int) -> int:
        """What an allocation of this size costs on the card."""
        return -(-amount_bytes // self.granularity_bytes) * self.granularity_bytes


@dataclass(frozen=True, kw_only=True)
class CardUse:
    """How full a card is at one moment; `process_bytes` is empty where single processes cannot be seen."""

    total_bytes: int
    free_bytes: int
    process_bytes: dict[int, int]

    @property
    def used_bytes(self) -> int:
        return self.total_bytes - self.free_bytes

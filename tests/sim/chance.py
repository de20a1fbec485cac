"""Chance: everything random in a world, as a pure function of the seed and the name of what is decided.

Owns the mixing. Because each decision has a name, leaving out one act of a workload does not change the
others, which is what lets the shrinker work.
"""

from __future__ import annotations

from zlib import crc32


class Chance:
    """Named dice of one seed; the same name asked again gives the next roll of that name."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._counts: dict[str, int] = {}

    def number(self, name: str, low: int, high: int) -> int:
        """A number from low to high, both included."""
        count = self._counts[name] = self._counts.get(name, 0) + 1
        mixed = crc32(f"{self._seed}|{name}|{count}".encode())
        mixed = (mixed * 2654435761 + 0x9E3779B9) & 0xFFFFFFFF
        return low + (mixed ^ (mixed >> 15)) % (high - low + 1)

    def happens(self, name: str, permille: int) -> bool:
        """Whether something with this chance happens now."""
        return permille > 0 and self.number(name, 0, 999) < permille

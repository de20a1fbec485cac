"""Rhythm: when a language model was wanted, and when it will probably be wanted again.

Owns the observed gaps between requests as integer moving averages, and the last sign that somebody is about
to ask. What is done with the forecast, and how
far it may be trusted, is decided in `foresight.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

# Fewer gaps are no rhythm; a mean deviation of more than a quarter of the mean gap is none either.
GAPS_MIN = 4
DEVIATION_PARTS = 4
# Who begins to type or to upload asks within about this time, or not at all.
INTENT_MS = 15_000


@dataclass(slots=True)
class Rhythm:
    """Moving averages of the gaps between uses."""

    gaps_count: int = 0
    gap_ms: int = 0
    deviation_ms: int = 0
    last_ms: int = -1
    intent_ms: int = -1  # When somebody was last seen to begin.

    def heard(self, at_ms: int) -> None:
        """Take in one use."""
        if self.last_ms >= 0:
            gap_ms = at_ms - self.last_ms
            if self.gaps_count == 0:
                self.gap_ms = gap_ms
            off_ms = abs(gap_ms - self.gap_ms)
            self.deviation_ms = (3 * self.deviation_ms + off_ms) // 4
            self.gap_ms = (3 * self.gap_ms + gap_ms) // 4
            self.gaps_count += 1
        self.last_ms = at_ms

    def is_intended(self, at_ms: int) -> bool:
        """Whether somebody was seen to begin a moment ago, and has not asked yet."""
        return self.intent_ms > self.last_ms and at_ms - self.intent_ms <= INTENT_MS

    @property
    def next_ms(self) -> int | None:
        """When the next use is expected, or None where there is no rhythm."""
        if self.gaps_count < GAPS_MIN or self.deviation_ms * DEVIATION_PARTS > self.gap_ms:
            return None
        return self.last_ms + self.gap_ms

    def needed_permille(self, at_ms: int, *, within_ms: int) -> int:
        """Chance in thousandths of a use within this time: one half at the mean gap, or by how long it is
        idle.
        """
        if self.is_intended(at_ms):
            return 900
        if self.last_ms < 0:
            return 50
        expected_ms = self.next_ms
        if expected_ms is not None:
            return 900 if at_ms <= expected_ms <= at_ms + within_ms else 150
        idle_ms = max(1, at_ms - self.last_ms)
        return max(20, min(900, 1000 * within_ms // (within_ms + idle_ms)))

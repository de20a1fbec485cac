"""The clock of the shell: milliseconds since 1970 that never go back while the server runs.

Owns the one place where the shell asks what time it is. The core is told the time in its events.
"""

from __future__ import annotations

import time


class Clock:
    """Wall time at its making, monotonic from then on: a corrected system clock moves no deadline."""

    def __init__(self) -> None:
        self._base_ms = time.time_ns() // 1_000_000 - time.monotonic_ns() // 1_000_000

    def now_ms(self) -> int:
        """The time now."""
        return self._base_ms + time.monotonic_ns() // 1_000_000

    def wait_for_tick(self) -> None:
        """Wait until it is a millisecond later than now, which is less than one. Blocks."""
        time.sleep((1_000_000 - time.monotonic_ns() % 1_000_000) / 1e9)

"""Telemetry: how full card and RAM are, and who of ours holds how much, sampled on a thread of its own.

Owns when to look and which process is which worker. Looking is done by `premises` and `cards.memory`; what a
sample means is decided in the core's ledger. A sample that shows nothing new is only told now and then.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

from tidegate.core.events import Holding, PoolObserved
from tidegate.core.house import RAM
from tidegate.runtime.cards.memory import read_host_memory
from tidegate.runtime.clock import Clock
from tidegate.runtime.premises import Premises

# Often enough to notice a game that starts, seldom enough to cost nothing.
INTERVAL_S: Final = 0.5
# While somebody waits for bytes to be seen, and for so many looks after.
HURRIED_S: Final = 0.02
HURRIED_COUNT: Final = 50
# An unchanged pool is told this often, so that the core knows that we still look.
QUIET_MS: Final = 5_000
# Changes of RAM smaller than this are the noise of a living machine.
RAM_NOISE_BYTES: Final = 32 << 20

# Holder, incarnation and process id of every live worker and guest; a guest may have several processes.
Holders = Callable[[], Iterable[tuple[str, int, int]]]
# Name and process id of every process of ours that holds no lease: the server itself, and who waits aside.
Household = Callable[[], Iterable[tuple[str, int]]]


class Telemetry:
    """The sampling thread."""

    def __init__(
        self,
        premises: Premises,
        *,
        ram_total_bytes: int,
        clock: Clock,
        holders: Holders,
        household: Household,
        report: Callable[[PoolObserved], None],
    ) -> None:
        """`holders`, `household` and `report` are called on the thread."""
        self._premises = premises
        self._ram_total_bytes = ram_total_bytes
        self._clock = clock
        self._holders = holders
        self._household = household
        self.household_bytes: Mapping[str, int] = {}
        self._report = report
        self._condition = threading.Condition()
        self._wanted: dict[str, int] = {}
        self._hurried_count = 0
        self._is_closed = False
        self._last: dict[str, PoolObserved] = {}
        self._looked_ms: dict[str, int] = {}
        self._thread = threading.Thread(target=self._look, name="tidegate-telemetry")

    def begin(self) -> None:
        """Start looking."""
        self._thread.start()

    def observe(self, pool: str) -> None:
        """Take a sample of this pool at once, and tell it even if it shows nothing new."""
        with self._condition:
            self._wanted[pool] = self._clock.now_ms()
            self._hurried_count = HURRIED_COUNT
            self._condition.notify()

    def close(self) -> None:
        """Stop looking. Blocks for as long as one look takes."""
        with self._condition:
            self._is_closed = True
            self._condition.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def _look(self) -> None:
        while (wanted := self._next_look()) is not None:
            for pool in self._due(wanted):
                asked_ms = wanted.get(pool, -1)
                taken_ms = self._clock.now_ms()
                if asked_ms >= taken_ms:
                    # A sample counts only when it is younger than the question.
                    self._clock.wait_for_tick()
                    taken_ms = self._clock.now_ms()
                self._looked_ms[pool] = taken_ms
                sample = self._ram(taken_ms) if pool == RAM else self._card(pool, taken_ms)
                if asked_ms >= 0 or self._is_news(sample):
                    self._last[pool] = sample
                    self._report(sample)

    def _next_look(self) -> dict[str, int] | None:
        with self._condition:
            if not self._wanted and not self._is_closed:
                self._condition.wait(HURRIED_S if self._hurried_count else INTERVAL_S)
            if self._is_closed:
                return None
            self._hurried_count = max(0, self._hurried_count - 1)
            wanted, self._wanted = self._wanted, {}
            return wanted

    def _due(self, wanted: Mapping[str, int]) -> list[str]:
        """The pools to look at now: whoever asks about the card is not made to wait for a look at RAM."""
        if not wanted:
            return self._pools()
        late_ms = self._clock.now_ms() - round(INTERVAL_S * 1_000)
        return [name for name in self._pools() if name in wanted or self._looked_ms.get(name, 0) <= late_ms]

    def _pools(self) -> list[str]:
        return [self._premises.card.name, RAM] if self._premises.card else [RAM]

    def _is_news(self, sample: PoolObserved) -> bool:
        last = self._last.get(sample.pool)
        if last is None or sample.taken_ms - last.taken_ms >= QUIET_MS:
            return True
        if sample.pool == RAM:
            return abs(sample.used_bytes - last.used_bytes) >= RAM_NOISE_BYTES
        return (sample.used_bytes, sample.holders) != (last.used_bytes, last.holders)

    def _card(self, pool: str, taken_ms: int) -> PoolObserved:
        use = self._premises.see()
        holders = _summed(
            (name, incarnation, use.process_bytes[pid])
            for name, incarnation, pid in self._holders()
            if pid in use.process_bytes
        )
        return PoolObserved(
            at_ms=taken_ms, pool=pool, taken_ms=taken_ms, used_bytes=use.used_bytes, holders=holders
        )

    def _ram(self, taken_ms: int) -> PoolObserved:
        memory = read_host_memory()
        # A virtual card computes in RAM, and what it plays is counted on the card.
        played = self._premises.see().process_bytes if self._premises.is_virtual else {}
        holders = _summed(
            (name, incarnation, max(0, _private_bytes(pid) - played.get(pid, 0)))
            for name, incarnation, pid in self._holders()
        )
        household: dict[str, int] = {}
        for name, pid in self._household():
            household[name] = household.get(name, 0) + _private_bytes(pid)
        self.household_bytes = household
        # A limit set by the user is meant for what we use; what the machine lacks beside it is foreign use.
        # The core counts the household as foreign too: nobody can ask it to yield.
        ours_bytes = sum(holding.amount_bytes for holding in holders) + sum(household.values())
        used_bytes = max(ours_bytes, self._ram_total_bytes - memory.available_bytes)
        return PoolObserved(
            at_ms=taken_ms, pool=RAM, taken_ms=taken_ms, used_bytes=used_bytes, holders=holders
        )


def _summed(held: Iterable[tuple[str, int, int]]) -> tuple[Holding, ...]:
    """What each holder has with all of its processes."""
    sums: dict[tuple[str, int], int] = {}
    for name, incarnation, amount_bytes in held:
        sums[name, incarnation] = sums.get((name, incarnation), 0) + amount_bytes
    return tuple(
        Holding(name, incarnation, amount_bytes) for (name, incarnation), amount_bytes in sums.items()
    )


def _private_bytes(pid: int) -> int:
    """Memory of a process that goes with it; pages of files do not count, the kernel drops them by itself."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        # It ended a moment ago.
        return 0
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return sum(int(fields.get(name, "0").split()[0]) * 1024 for name in ("RssAnon", "RssShmem"))

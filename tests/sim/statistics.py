"""Statistics over many schedules: how long and how hard they were.

Owns the counting. A schedule without a fault or without an eviction proves little and is not counted as one.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tests.sim.schedule import Result


@dataclass(slots=True)
class Statistics:
    """Results gathered."""

    results: list[Result] = field(default_factory=list)
    seconds: float = 0.0
    core_seconds: float = 0.0
    processes: int = 1

    def add(self, results: list[Result], core_seconds: float) -> None:
        """Take in results."""
        self.core_seconds += core_seconds
        self.results.extend(results)

    @property
    def failed(self) -> list[Result]:
        """Those that broke a rule."""
        return [result for result in self.results if result.error]

    @property
    def counted(self) -> list[Result]:
        """Those with a fault and an eviction."""
        return [result for result in self.results if result.counts.faults and result.counts.evictions]

    @property
    def events_per_second(self) -> float:
        """Events per second and core, with all checks on."""
        events = sum(result.counts.events for result in self.results)
        return events / max(1e-9, self.core_seconds)

    def text(self) -> str:
        """Say it for a terminal."""
        lines = [
            f"{len(self.results)} schedules, {len(self.counted)} of them with a fault and an eviction, "
            f"{len(self.failed)} failed, {self.seconds:.1f} s on {self.processes} core(s), "
            f"{self.events_per_second:.0f} events per second and core"
        ]
        for name in ("events", "workers", "faults", "evictions", "jobs"):
            values = sorted(self._value(result, name) for result in self.counted)
            if values:
                median, high = values[len(values) // 2], values[len(values) * 95 // 100]
                lines.append(f"  {name:10} median {median:4}   p95 {high:4}")
        kinds = Counter(kind for result in self.results for kind in result.counts.kinds)
        lines.append(
            "  faults in schedules: " + ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))
        )
        return "\n".join(lines)

    def _value(self, result: Result, name: str) -> int:
        value: int = result.jobs if name == "jobs" else getattr(result.counts, name)
        return value

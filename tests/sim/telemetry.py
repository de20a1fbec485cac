"""Telemetry: samples of the pools, as finely as each can be seen, and as late as samples are.

Owns what the arbiter is shown of the truth. A change is shown within a second, as periodic telemetry does,
without making schedules long by samples that show nothing new.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.core import events as ev
from tidegate.core.house import Sight

if TYPE_CHECKING:
    from tests.sim.world import World


class Telemetry:
    """Samples of one world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._pending: set[str] = set()

    def soon(self, pool: str) -> None:
        """Periodic telemetry will show a change within a second."""
        if pool not in self._pending:
            self._pending.add(pool)
            self._world.later(self._world.chance.number("telemetry", 100, 900), lambda: self.take(pool))

    def take(self, pool: str) -> None:
        """Take a sample now; it arrives a little later."""
        self._pending.discard(pool)
        truth = self._world.truth.pools[pool]
        if truth.sight is Sight.OWN_LEDGER:
            return
        taken_ms, foreign = self._world.now_ms, truth.foreign
        overs = {
            name: max(0, process.actual(pool) - process.promised(pool))
            for name, process in self._world.truth.processes.items()
        }
        holders: tuple[ev.Holding, ...] = ()
        if truth.sight is Sight.PER_PROCESS:
            holders = tuple(
                ev.Holding(name, process.incarnation, process.actual(pool))
                for name, process in self._world.truth.processes.items()
                if process.actual(pool)
            ) + tuple(
                ev.Holding(f"guest/{lease}", 0, guest.actual)
                for lease, guest in self._world.truth.guests.items()
                if guest.card == pool and guest.actual
            )
        used = self._world.truth.actual(pool)

        def arrive() -> None:
            truth.foreign_reported = foreign
            truth.over_reported = {
                name: over for name, over in overs.items() if name in self._world.truth.processes
            }
            self._world.deliver(
                ev.PoolObserved(
                    at_ms=self._world.now_ms, pool=pool, taken_ms=taken_ms, used_bytes=used, holders=holders
                )
            )

        self._world.later(self._world.chance.number("sample", 1, 8), arrive)

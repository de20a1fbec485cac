"""Strikes: each kind of fault carried out on the server and its processes.

Owns how, not when. A strike that met nobody (no worker was alive just then) says so and is not counted.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from typing import assert_never

from tests.chaos.place import Place
from tests.chaos.script import Kind, Strike

PAUSE_MAX_S = 2.0
GUEST_HOLDS_MS = 4_000
CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGTERM)
# A stage makes a handful of allocations; later ones would be counted for ever and never be met.
REFUSED_MAX = 12


class Striker:
    """Strikes one place. `again` is called after every restart of the server."""

    def __init__(self, place: Place, *, again: Callable[[], None]) -> None:
        self._place = place
        self._again = again
        self._leases: list[str] = []

    def strike(self, strike: Strike) -> bool:
        """Carry it out; whether it met somebody."""
        place = self._place
        match strike.kind:
            case Kind.WORKER:
                return _signalled(place.worker("image"), signal.SIGKILL)
            case Kind.TALKER:
                return _signalled(place.worker("llm"), signal.SIGKILL)
            case Kind.FRONT:
                return _signalled(place.worker("front"), signal.SIGKILL)
            case Kind.PREDICTOR:
                return _signalled(place.worker("predictor"), signal.SIGKILL)
            case Kind.STANDBY:
                return _signalled(place.standby(), signal.SIGKILL)
            case Kind.CRASH:
                return _signalled(place.worker("image"), CRASHES[int(strike.amount * len(CRASHES))])
            case Kind.FAINT:
                return _signalled(place.worker("llm"), CRASHES[int(strike.amount * len(CRASHES))])
            case Kind.PAUSE:
                return self._paused(strike.amount)
            case Kind.GUEST:
                return self._visited(strike.amount)
            case Kind.SERVER:
                place.kill()
                place.start(strike.house)
                self._again()
                return True
            case Kind.REFUSAL:
                with contextlib.closing(place.card()) as card:
                    card.plant_fault(1 + int(strike.amount * REFUSED_MAX))
                return True
            case Kind.FOREIGN:
                with contextlib.closing(place.card()) as card:
                    card.set_foreign(int(place.house.card_bytes * (0.3 + 0.7 * strike.amount)))
                return True
            case Kind.RAM:
                place.limit_ram(strike.house.ram_bytes)
                return True
            case _:
                assert_never(strike.kind)

    def calm(self) -> None:
        """Take back what would go on by itself."""
        with contextlib.closing(self._place.card()) as card:
            card.set_foreign(0)
            card.clear_faults()
        while self._leases:
            self._place.ask("DELETE", f"/internal/leases/{self._leases.pop()}")

    def _visited(self, amount: float) -> bool:
        wish = {
            "bytes": max(1, int(self._place.house.card_bytes * amount)),
            "purpose": "a guest of the storm",
            "hold_ms": GUEST_HOLDS_MS,
            "wait_ms": GUEST_HOLDS_MS,
        }
        status, answer = self._place.ask("POST", "/internal/negotiate_vram", wish)
        if status == 200:
            self._leases.append(answer["lease"])
        return bool(status == 200)

    def _paused(self, amount: float) -> bool:
        pid = self._place.worker("image" if int(amount * 100) % 2 else "llm")
        if not _signalled(pid, signal.SIGSTOP):
            return False
        threading.Event().wait(amount * PAUSE_MAX_S)
        _signalled(pid, signal.SIGCONT)
        return True


def _signalled(pid: int, number: int) -> bool:
    if not pid:
        return False
    try:
        os.kill(pid, number)
    except ProcessLookupError:  # it ended between the question and the signal
        return False
    return True

"""The fence: facts of older incarnations are dropped by number, here and nowhere else.

Owns that one comparison. A worker that was replaced may still have spoken; what it said is about a process
that is gone, and its leases ended with it.
"""

from __future__ import annotations

from tidegate.core import events as ev
from tidegate.core.state import State


def is_stale(state: State, event: ev.Event) -> bool:
    """Whether the fact is about another incarnation than the one that is alive."""
    if not isinstance(event, ev.WorkerFact):
        return False
    worker = state.workers.get(event.worker)
    return worker is None or not worker.is_alive or worker.incarnation != event.incarnation

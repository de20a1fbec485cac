"""Replay: the journal's events into a fresh core, to see what it decided and that it decides the same again.

Owns reading the journal of a server, running or not, without touching it, and the comparison with the
snapshots that the server took on its way. How the events are shown is `tidegate.cli.replay`'s.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tidegate.core.arbiter import Arbiter
from tidegate.core.effects import Effect
from tidegate.core.events import Event
from tidegate.core.faults import ClientError
from tidegate.runtime.journal import codec
from tidegate.runtime.journal.journal import FILE


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One event and what the core wanted done. `agrees` is None where there is no snapshot to
    compare with.
    """

    number: int
    at_ms: int
    event: Event
    effects: tuple[Effect, ...]
    agrees: bool | None


def replayed(state: Path) -> Iterator[Step]:
    """Feed all events that are kept to a fresh core, from the oldest snapshot on. Raises ClientError."""
    with contextlib.closing(_opened(state / FILE)) as journal:
        try:
            yield from _steps(journal)
        except sqlite3.Error as error:
            raise _unreadable(state, str(error)) from error
        except codec.Misread as error:
            raise _unreadable(state, f"it is of another version: {error}") from error


def _steps(journal: sqlite3.Connection) -> Iterator[Step]:
    """Where numbers are missing, after a reload or a full disk, the next snapshot is where it goes on."""
    snapshots = dict(journal.execute("SELECT number, data FROM snapshots ORDER BY number"))
    events = journal.execute("SELECT number, at_ms, kind, data FROM events ORDER BY number")
    waiting = iter(sorted(snapshots))
    due = next(waiting, None)
    arbiter: Arbiter | None = None
    reached = 0
    for number, at_ms, kind, data in events:
        while due is not None and due < number:
            # One that was reached by its events has been compared; any other begins a core.
            if arbiter is None or due != reached:
                arbiter, reached = codec.arbiter_of(snapshots[due]), due
            due = next(waiting, None)
        if arbiter is None or number != reached + 1:
            arbiter = None
            continue
        event = codec.event_of(kind, data)
        reached = number
        yield Step(
            number=number,
            at_ms=at_ms,
            event=event,
            effects=arbiter.handle(event),
            agrees=_agrees(arbiter, snapshots[number]) if number in snapshots else None,
        )


def _agrees(arbiter: Arbiter, snapshot: bytes) -> bool:
    # Compared as the core reads it back, so that the order of writing does not matter.
    return codec.arbiter_of(snapshot).snapshot() == codec.arbiter_of(codec.snapshot_bytes(arbiter)).snapshot()


def _opened(path: Path) -> sqlite3.Connection:
    if not path.is_file():
        raise ClientError(
            f"There is no journal in {path.parent}.",
            remedy="Name the state folder of a server with --state.",
            code="no_journal",
        )
    try:
        return sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)
    except sqlite3.Error as error:
        raise _unreadable(path.parent, str(error)) from error


def _unreadable(state: Path, why: str) -> ClientError:
    return ClientError(
        f"The journal in {state} cannot be read: {why}.",
        remedy="Use the version of tidegate that wrote it.",
        code="journal_unreadable",
    )

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
    snapshots = dict(journal.execute("SELECT number, data FROM snapshots ORDER BY number"))
    started = _start(journal, list(snapshots))
    if started is None:
        return
    arbiter = codec.arbiter_of(snapshots[started])
    for number, at_ms, kind, data in journal.execute(
        "SELECT number, at_ms, kind, data FROM events WHERE number > ? ORDER BY number", (started,)
    ):
        event = codec.event_of(kind, data)
        effects = arbiter.handle(event)
        yield Step(
            number=number,
            at_ms=at_ms,
            event=event,
            effects=effects,
            agrees=_agrees(arbiter, snapshots[number]) if number in snapshots else None,
        )


def _start(journal: sqlite3.Connection, numbers: list[int]) -> int | None:
    """The oldest snapshot after which no event is missing."""
    for number in numbers:
        first, last, count = journal.execute(
            "SELECT min(number), max(number), count(*) FROM events WHERE number > ?", (number,)
        ).fetchone()
        if count == 0 or (first == number + 1 and last - first + 1 == count):
            return number
    return None


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

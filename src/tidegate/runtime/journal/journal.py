"""The journal's writer: one thread, one connection, events and records in the order in which they happened.

    append(event, records)    NORMAL: batched, the caller goes on at once
    commit(event, records)    FULL:   on the disk before the future is done

A replica of the core on the same thread takes in what was written. Snapshots are made of the replica, so that
the event loop never waits for one, and whatever made core and replica differ would be found by the tests. A
write that fails (a full disk, say) is told as a problem and costs nothing but durability: records wait in
memory until the disk takes them, and a fresh snapshot closes the hole in the events.

Owns the thread and what is kept for how long. Tables are the neighbour `schema`, rows are `records`.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tidegate.core import events as ev
from tidegate.core.arbiter import Arbiter
from tidegate.runtime.journal import codec, schema
from tidegate.runtime.journal.records import Record
from tidegate.runtime.journal.recovery import Recovered, recovered

FILE: Final = "journal.sqlite"
# A restart replays at most so many events, some 0.2 ms each.
SNAPSHOT_EVENTS: Final = 2_000
# Events are kept from a snapshot on, so that a core can be replayed from the first one.
EVENTS_COUNT_MAX: Final = 100_000
NOTICES_MAX: Final = 10_000
BATCH_MAX: Final = 256
# What nobody waits for gathers this long, so that the writer computes between requests and not during them.
GATHER_S: Final = 0.05
# The replica catches up while nothing is to be written, so that nobody who waits for the disk waits for it
# too. So many events behind, some 0.1 s of work, it keeps pace.
LAG_MAX: Final = 500
# Records that wait for a disk that takes nothing. Each is a few hundred bytes.
BACKLOG_MAX: Final = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """One event with its records; `written` is told when it is on the disk, or will not be."""

    event: ev.Event | None
    records: Sequence[Record]
    written: Callable[[], None] | None = None
    replica: Arbiter | None = None
    is_last: bool = False


class Journal:
    """The journal of one state folder."""

    def __init__(
        self, state: Path, *, on_problem: Callable[[str], None], events_count_max: int = EVENTS_COUNT_MAX
    ) -> None:
        """`on_problem` is called on the writer's thread, with "" when all is well again."""
        # A snapshot comes with the batch in which it is due. Two are the least: from one to the other the
        # events can be replayed.
        self._snapshot_events = min(SNAPSHOT_EVENTS, max(1, events_count_max // 2 - BATCH_MAX))
        self._snapshots_max = max(2, events_count_max // (self._snapshot_events + BATCH_MAX))
        self._path = state / FILE
        self._on_problem = on_problem
        self._connection: sqlite3.Connection | None = None
        self._entries: queue.SimpleQueue[_Entry] = queue.SimpleQueue()
        self._hurry = threading.Event()
        self._thread = threading.Thread(target=self._write, name="tidegate-journal")
        self._replica: Arbiter | None = None
        self._unseen: deque[ev.Event] = deque()
        self._backlog: list[Record] = []
        self._number = 0
        self._snapshot_number = 0
        self._is_holed = False
        self._trouble = ""

    # --- on the caller's side

    def open(self) -> Recovered:
        """Open the file and read it back; a damaged one is put aside. Blocks. Raises `schema.TooNew`."""
        problems: list[str] = []
        try:
            self._connection = schema.opened(self._path)
            found = recovered(self._connection)
        except (sqlite3.DatabaseError, UnicodeDecodeError, OSError) as error:
            # UnicodeDecodeError: SQLite quotes a damaged name in its message. OSError: no file can be made.
            problems.append(self._put_aside(error))
            found = Recovered()
        found.problems += problems
        self._number, self._snapshot_number = found.last_number, found.snapshot_number
        return found

    def begin(self, replica: Arbiter, *, is_fresh: bool) -> None:
        """Start the writer. A fresh core gets its first snapshot at once."""
        self._thread.start()
        self._replica = replica
        if is_fresh:
            self.rebase(replica)

    def rebase(self, replica: Arbiter) -> None:
        """From here on the events belong to this new core."""
        self._entries.put(_Entry(event=None, records=(), replica=replica))

    def append(self, event: ev.Event | None, records: Sequence[Record] = ()) -> None:
        """Write soon."""
        self._entries.put(_Entry(event=event, records=records))

    async def commit(self, event: ev.Event | None, records: Sequence[Record] = ()) -> None:
        """Write, and return when it is on the disk, or when it is known that the disk takes nothing."""
        loop = asyncio.get_running_loop()
        done = asyncio.Event()

        def written() -> None:
            loop.call_soon_threadsafe(done.set)

        self._entries.put(_Entry(event=event, records=records, written=written))
        self._hurry.set()
        await done.wait()

    def close(self) -> None:
        """Write what is left and a last snapshot, and close the file. Blocks."""
        if self._thread.ident is not None:
            self._entries.put(_Entry(event=None, records=(), is_last=True))
            self._hurry.set()
            self._thread.join()
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # --- on the writer's thread

    def _write(self) -> None:
        is_last = False
        while not is_last:
            batch = [self._next()]
            if self._entries.qsize() < BATCH_MAX:
                self._hurry.wait(GATHER_S)
            # Cleared before the rest is taken: whoever is in a hurry after that finds it set again.
            self._hurry.clear()
            while len(batch) < BATCH_MAX and not self._entries.empty():
                batch.append(self._entries.get())
            if not self._entries.empty():
                self._hurry.set()
            is_last = any(entry.is_last for entry in batch)
            self._commit(batch, is_last=is_last)
            for entry in batch:
                if entry.written is not None:
                    entry.written()

    def _next(self) -> _Entry:
        """What is to be written next; while there is nothing, the replica catches up."""
        if 0 < len(self._unseen) < LAG_MAX:
            with contextlib.suppress(queue.Empty):
                return self._entries.get(timeout=GATHER_S)
        while self._unseen and (self._entries.empty() or len(self._unseen) >= LAG_MAX):
            self._see()
        return self._entries.get()

    def _commit(self, batch: list[_Entry], *, is_last: bool) -> None:
        rows, records = self._taken_in(batch)
        self._backlog += records
        snapshot: bytes | None = None
        if self._is_holed or is_last or self._is_snapshot_due():
            self._catch_up()
            snapshot = codec.snapshot_bytes(self._replica) if self._replica is not None else None
        is_full = any(entry.written is not None for entry in batch) or is_last
        try:
            self._transact(rows, snapshot, is_full=is_full)
        except sqlite3.Error as error:
            self._fail(error)
            return
        self._backlog.clear()
        self._is_holed = False
        if snapshot is not None:
            self._snapshot_number = self._number
        if self._trouble:
            self._trouble = ""
            self._on_problem("")

    def _is_snapshot_due(self) -> bool:
        """A little before it must be there is well, where the replica has caught up but for this batch."""
        count = self._number - self._snapshot_number
        is_easy = len(self._unseen) <= BATCH_MAX
        return count >= self._snapshot_events - (self._snapshot_events // 4 if is_easy else 0)

    def _taken_in(self, batch: list[_Entry]) -> tuple[list[tuple[int, int, str, bytes]], list[Record]]:
        rows: list[tuple[int, int, str, bytes]] = []
        records: list[Record] = []
        for entry in batch:
            records += entry.records
            if entry.replica is not None:
                # A number is left out, so that nobody feeds the new core's events to the old one.
                self._number += 1
                self._replica, self._is_holed = entry.replica, True
                self._unseen.clear()
            if entry.event is None:
                continue
            self._number += 1
            event = entry.event
            rows.append((self._number, event.at_ms, type(event).__name__, codec.event_bytes(event)))
            self._unseen.append(event)
        return rows, records

    def _catch_up(self) -> None:
        """Let the replica take in what was written."""
        while self._unseen:
            self._see()

    def _see(self) -> None:
        event = self._unseen.popleft()
        if self._replica is not None:
            self._replica.handle(event)
        time.sleep(0)  # Between two events the loop may compute.

    def _transact(
        self, rows: list[tuple[int, int, str, bytes]], snapshot: bytes | None, *, is_full: bool
    ) -> None:
        connection = self._connection
        assert connection is not None, "the writer begins after the file was opened"
        connection.execute(f"PRAGMA synchronous = {'FULL' if is_full else 'NORMAL'}")
        connection.execute("BEGIN IMMEDIATE")
        try:
            connection.executemany("INSERT INTO events (number, at_ms, kind, data) VALUES (?, ?, ?, ?)", rows)
            for record in self._backlog:
                connection.execute(record.sql, record.values)
            if snapshot is not None:
                self._keep(connection, snapshot)
            connection.execute("COMMIT")
        except sqlite3.Error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _keep(self, connection: sqlite3.Connection, snapshot: bytes) -> None:
        at_ms = time.time_ns() // 1_000_000
        connection.execute(
            "INSERT OR REPLACE INTO snapshots (number, at_ms, data) VALUES (?, ?, ?)",
            (self._number, at_ms, snapshot),
        )
        connection.execute(
            "DELETE FROM snapshots WHERE number NOT IN"
            " (SELECT number FROM snapshots ORDER BY number DESC LIMIT ?)",
            (self._snapshots_max,),
        )
        connection.execute("DELETE FROM events WHERE number <= (SELECT min(number) FROM snapshots)")
        connection.execute(
            "DELETE FROM notices WHERE number <= (SELECT max(number) FROM notices) - ?", (NOTICES_MAX,)
        )

    def _fail(self, error: sqlite3.Error) -> None:
        self._is_holed = True
        self._backlog = [record for record in self._backlog if not record.is_heavy]
        del self._backlog[: max(0, len(self._backlog) - BACKLOG_MAX)]
        trouble = str(error)
        if trouble != self._trouble:
            self._trouble = trouble
            self._on_problem(
                f"The journal cannot be written: {trouble}. Work goes on, but a crash of the server "
                "would lose what has happened since."
            )

    def _put_aside(self, error: Exception) -> str:
        """Make room for a new file; without a place for one, keep the journal in memory."""
        aside = self._path.with_name(f"{self._path.name}.damaged-{time.time_ns() // 1_000_000}")
        if self._connection is not None:
            self._connection.close()
        try:
            for ending in ("", "-wal", "-shm"):
                part = self._path.with_name(self._path.name + ending)
                if part.exists():
                    part.replace(aside.with_name(aside.name + ending))
            self._connection = schema.opened(self._path)
        except (OSError, sqlite3.Error) as worse:
            # A full or read-only disk: images can be made all the same.
            self._connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
            for script in schema.MIGRATIONS:
                self._connection.executescript(script)
            return (
                f"No journal can be kept in {self._path.parent}: {worse}. A crash would lose unfinished jobs."
            )
        return (
            f"The journal was damaged ({error}) and was put aside as {aside.name}. "
            "Finished images are there; jobs that had not ended must be sent again."
        )

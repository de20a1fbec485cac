"""Recovery: everything that a journal holds, read back at the start of a server.

Owns the reading. What is done with a job that had not ended, and whether the core's snapshot can be used, is
decided by `tidegate.runtime.restart`.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from tidegate.core import events as ev
from tidegate.core.image.job import JobPhase
from tidegate.core.planner.option import Footprint
from tidegate.core.stage import Execution, Stage
from tidegate.runtime.journal import codec
from tidegate.runtime.journal.records import Checkpoint, Embedding, Picture, Ticket
from tidegate.runtime.views import ImageView

Row = TypeVar("Row")


@dataclass(slots=True, kw_only=True)
class SavedImage:
    """One image of a job. `outcome` is empty while it has not ended."""

    name: str
    outcome: str
    code: str
    message: str
    checkpoints: dict[Stage, Checkpoint] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class SavedJob:
    """One job with its images in order."""

    id: str
    key: str
    submitted_at_ms: int
    ended_at_ms: int
    ticket: Ticket
    images: list[SavedImage] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class Recovered:
    """The contents of a journal. `snapshot` and `events` are the core's, the rest stands for itself."""

    jobs: dict[str, SavedJob] = field(default_factory=dict)
    embeddings: dict[str, Embedding] = field(default_factory=dict)
    footprints: dict[str, Footprint | None] = field(default_factory=dict)
    pictures: dict[str, Picture] = field(default_factory=dict)
    snapshot: bytes = b""
    snapshot_number: int = 0
    events: list[ev.Event] = field(default_factory=list)
    last_number: int = 0
    problems: list[str] = field(default_factory=list)


def recovered(connection: sqlite3.Connection) -> Recovered:
    """Read the whole journal; a row that cannot be read is left out and told. Raises sqlite3.Error."""
    found = Recovered()
    connection.text_factory = _text_or_bytes
    rows = _Rows(connection)
    _read_jobs(rows, found)
    for key, sha256, size_bytes, used_at_ms, execution in rows.read(
        "SELECT key, sha256, size_bytes, used_at_ms, execution FROM embeddings ORDER BY used_at_ms",
        tuple[str, str, int, int, bytes],
    ):
        with rows.judged():
            found.embeddings[key] = Embedding(
                sha256=sha256,
                size_bytes=size_bytes,
                used_at_ms=used_at_ms,
                execution=msgspec.msgpack.decode(execution, type=Execution),
            )
    for key, data in rows.read("SELECT key, data FROM footprints", tuple[str, bytes]):
        with rows.judged():
            found.footprints[key] = msgspec.msgpack.decode(data, type=Footprint | None)
    for image, view, png in rows.read(
        "SELECT image, view, png FROM pictures ORDER BY rowid", tuple[str, bytes, bytes]
    ):
        with rows.judged():
            found.pictures[image] = Picture(view=msgspec.json.decode(view, type=ImageView), png=png)
    if rows.damaged_count:
        found.problems.append(
            f"{rows.damaged_count} rows of the journal are damaged and were left out. What they said about "
            "finished stages is made again; a job among them must be sent again."
        )
    _read_core(connection, found)
    return found


def _text_or_bytes(data: bytes) -> str | bytes:
    """A text; damaged beyond that it is no text, and its row is judged as what it is."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


class _Rows:
    """Rows of the tables, each checked for its shape; those that are not as they were written are counted."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.damaged_count = 0

    def read(self, query: str, shape: type[Row]) -> Iterator[Row]:
        """The rows that have this shape."""
        for row in self._connection.execute(query):
            whole: Row | None = None
            with self.judged():
                # SQLite keeps whatever type a damaged record claims.
                whole = msgspec.convert(row, type=shape)
            if whole is not None:
                yield whole

    @contextlib.contextmanager
    def judged(self) -> Iterator[None]:
        """Leave out what cannot be read inside this block."""
        try:
            yield
        except (msgspec.MsgspecError, ValueError, AssertionError):
            # AssertionError: executions and footprints check their own rules when they are built.
            self.damaged_count += 1


def _read_jobs(rows: _Rows, found: Recovered) -> None:
    for name, key, submitted_at_ms, ended_at_ms, ticket in rows.read(
        "SELECT id, idempotency_key, submitted_at_ms, ended_at_ms, ticket FROM jobs ORDER BY submitted_at_ms",
        tuple[str, str, int, int, bytes],
    ):
        with rows.judged():
            found.jobs[name] = SavedJob(
                id=name,
                key=key,
                submitted_at_ms=submitted_at_ms,
                ended_at_ms=ended_at_ms,
                ticket=msgspec.msgpack.decode(ticket, type=Ticket),
            )
    images: dict[str, SavedImage] = {}
    for name, job, outcome, code, message in rows.read(
        "SELECT name, job, outcome, code, message FROM images ORDER BY rowid", tuple[str, str, str, str, str]
    ):
        if job in found.jobs:
            images[name] = SavedImage(name=name, outcome=_outcome(outcome), code=code, message=message)
            found.jobs[job].images.append(images[name])
    _drop_incomplete(rows, found)
    for image, stage, sha256, engine_build, execution in rows.read(
        "SELECT image, stage, sha256, engine_build, execution FROM checkpoints",
        tuple[str, str, str, str, bytes],
    ):
        if image not in images:
            continue
        with rows.judged():
            images[image].checkpoints[Stage(stage)] = Checkpoint(
                stage=Stage(stage),
                sha256=sha256,
                engine_build=engine_build,
                execution=msgspec.msgpack.decode(execution, type=Execution),
            )
    by_image = {image.name: job for job in found.jobs.values() for image in job.images}
    for subject, text in rows.read("SELECT subject, text FROM notices ORDER BY number", tuple[str, str]):
        if subject in by_image:
            by_image[subject].notices.append(text)


def _outcome(text: str) -> str:
    """How an image ended; a word that does not exist means that it is made again, which harms nobody."""
    return text if text in set(JobPhase) else ""


def _drop_incomplete(rows: _Rows, found: Recovered) -> None:
    """A job whose images are not all there cannot be gone on with."""
    for name, job in tuple(found.jobs.items()):
        if len(job.images) < job.ticket.count:
            del found.jobs[name]
            rows.damaged_count += 1


def _read_core(connection: sqlite3.Connection, found: Recovered) -> None:
    row = connection.execute("SELECT number, data FROM snapshots ORDER BY number DESC LIMIT 1").fetchone()
    if row is not None:
        found.snapshot_number, found.snapshot = row
    found.last_number = found.snapshot_number
    for number, kind, data in connection.execute(
        "SELECT number, kind, data FROM events WHERE number > ? ORDER BY number", (found.snapshot_number,)
    ):
        if number != found.last_number + 1:
            found.snapshot = b""
            found.problems.append("The journal has a gap; jobs are taken up from its tables.")
        found.last_number = number
        try:
            found.events.append(codec.event_of(kind, data))
        except codec.Misread as error:
            found.snapshot = b""
            found.problems.append(f"The journal's events are of another version: {error}.")
            break
    (last,) = connection.execute("SELECT coalesce(max(number), 0) FROM events").fetchone()
    found.last_number = max(found.last_number, last)

"""Recovery: everything that a journal holds, read back at the start of a server.

Owns the reading. What is done with a job that had not ended, and whether the core's snapshot can be used, is
decided by `tidegate.runtime.restart`.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field

import msgspec

from tidegate.core import events as ev
from tidegate.core.planner.option import Footprint
from tidegate.core.stage import Execution, Stage
from tidegate.runtime.journal import codec
from tidegate.runtime.journal.records import Checkpoint, Embedding, Ticket


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
    snapshot: bytes = b""
    snapshot_number: int = 0
    events: list[ev.Event] = field(default_factory=list)
    last_number: int = 0
    problems: list[str] = field(default_factory=list)


def recovered(connection: sqlite3.Connection) -> Recovered:
    """Read the whole journal. Raises sqlite3.Error."""
    found = Recovered()
    _read_jobs(connection, found)
    for key, sha256, size_bytes, used_at_ms, execution in connection.execute(
        "SELECT key, sha256, size_bytes, used_at_ms, execution FROM embeddings ORDER BY used_at_ms"
    ):
        found.embeddings[key] = Embedding(
            sha256=sha256,
            size_bytes=size_bytes,
            used_at_ms=used_at_ms,
            execution=msgspec.msgpack.decode(execution, type=Execution),
        )
    for key, data in connection.execute("SELECT key, data FROM footprints"):
        found.footprints[key] = msgspec.msgpack.decode(data, type=Footprint | None)
    _read_core(connection, found)
    return found


def _read_jobs(connection: sqlite3.Connection, found: Recovered) -> None:
    for name, key, submitted_at_ms, ended_at_ms, ticket in connection.execute(
        "SELECT id, idempotency_key, submitted_at_ms, ended_at_ms, ticket FROM jobs ORDER BY submitted_at_ms"
    ):
        found.jobs[name] = SavedJob(
            id=name,
            key=key,
            submitted_at_ms=submitted_at_ms,
            ended_at_ms=ended_at_ms,
            ticket=msgspec.msgpack.decode(ticket, type=Ticket),
        )
    images: dict[str, SavedImage] = {}
    for name, job, outcome, code, message in connection.execute(
        "SELECT name, job, outcome, code, message FROM images ORDER BY rowid"
    ):
        if job in found.jobs:
            images[name] = SavedImage(name=name, outcome=outcome, code=code, message=message)
            found.jobs[job].images.append(images[name])
    for image, stage, sha256, engine_build, execution in connection.execute(
        "SELECT image, stage, sha256, engine_build, execution FROM checkpoints"
    ):
        if image in images:
            images[image].checkpoints[Stage(stage)] = Checkpoint(
                stage=Stage(stage),
                sha256=sha256,
                engine_build=engine_build,
                execution=msgspec.msgpack.decode(execution, type=Execution),
            )
    by_image = {image.name: job for job in found.jobs.values() for image in job.images}
    for subject, text in connection.execute("SELECT subject, text FROM notices ORDER BY number"):
        if subject in by_image:
            by_image[subject].notices.append(text)


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

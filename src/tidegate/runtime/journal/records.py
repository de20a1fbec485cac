"""Records: the rows that are committed together with an event.

Owns the statements and the small structures that stand in their blobs. When they are committed is the
journal's part; who makes them, the shell's.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from tidegate.core.notice import Notice
from tidegate.core.planner.option import Footprint
from tidegate.core.stage import Execution, Stage
from tidegate.runtime.views import ImageView
from tidegate.wire.messages import ImageRequest


@dataclass(frozen=True, slots=True)
class Record:
    """One statement with its values. A heavy one is not kept in memory for a disk that takes nothing."""

    sql: str
    values: tuple[str | int | bytes, ...] = ()
    is_heavy: bool = False


class Ticket(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a job is, for good. `init_sha256` names the given picture's RGB rows in the store."""

    request: ImageRequest
    model: str
    count: int = 1
    priority: int = 0
    init_sha256: str = ""


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a finished stage: an object of the store (none for decode) and how it was made."""

    stage: Stage
    sha256: str
    engine_build: str
    execution: Execution


class Embedding(msgspec.Struct, frozen=True, kw_only=True):
    """Remembered embeddings: an object of the store, how they were computed, and when they were used last."""

    sha256: str
    size_bytes: int
    used_at_ms: int
    execution: Execution


class Picture(msgspec.Struct, frozen=True, kw_only=True):
    """A finished picture with everything that is known about it, until it has files of its own."""

    view: ImageView
    png: bytes


def job_accepted(job: str, ticket: Ticket, *, key: str, at_ms: int, images: tuple[str, ...]) -> list[Record]:
    """A job and its images."""
    rows = [
        Record(
            "INSERT OR REPLACE INTO jobs (id, idempotency_key, submitted_at_ms, ticket) VALUES (?, ?, ?, ?)",
            (job, key, at_ms, msgspec.msgpack.encode(ticket)),
        )
    ]
    rows += [
        Record("INSERT OR REPLACE INTO images (name, job) VALUES (?, ?)", (name, job)) for name in images
    ]
    return rows


def stage_kept(image: str, checkpoint: Checkpoint) -> Record:
    """The result of a stage counts from now on."""
    return Record(
        "INSERT OR REPLACE INTO checkpoints (image, stage, sha256, engine_build, execution)"
        " VALUES (?, ?, ?, ?, ?)",
        (
            image,
            checkpoint.stage.value,
            checkpoint.sha256,
            checkpoint.engine_build,
            msgspec.msgpack.encode(checkpoint.execution),
        ),
    )


def stages_forgotten(image: str) -> Record:
    """The results of an image's stages do not count any more."""
    return Record("DELETE FROM checkpoints WHERE image = ? AND stage != ?", (image, Stage.DECODE.value))


def stage_forgotten(image: str, stage: Stage) -> Record:
    """The result of one stage of an image does not count any more."""
    return Record("DELETE FROM checkpoints WHERE image = ? AND stage = ?", (image, stage.value))


def image_ended(image: str, *, outcome: str, code: str, message: str) -> Record:
    """An image is done, failed or cancelled."""
    return Record(
        "UPDATE images SET outcome = ?, code = ?, message = ? WHERE name = ?",
        (outcome, code, message, image),
    )


def job_ended(job: str, *, at_ms: int) -> Record:
    """All images of a job have ended."""
    return Record("UPDATE jobs SET ended_at_ms = ? WHERE id = ?", (at_ms, job))


def job_forgotten(job: str) -> list[Record]:
    """A job that ended long ago."""
    return [
        Record("DELETE FROM checkpoints WHERE image IN (SELECT name FROM images WHERE job = ?)", (job,)),
        Record("DELETE FROM images WHERE job = ?", (job,)),
        Record("DELETE FROM jobs WHERE id = ?", (job,)),
    ]


def picture_made(view: ImageView, png: bytes) -> Record:
    """A picture is safe before it has files."""
    return Record(
        "INSERT OR REPLACE INTO pictures (image, view, png) VALUES (?, ?, ?)",
        (view.id, msgspec.json.encode(view), png),
        is_heavy=True,
    )


def picture_filed(image: str) -> Record:
    """A picture has files, or nobody wants it any more."""
    return Record("DELETE FROM pictures WHERE image = ?", (image,))


def embedding_kept(key: str, embedding: Embedding) -> Record:
    """Embeddings may be used again."""
    return Record(
        "INSERT OR REPLACE INTO embeddings (key, sha256, size_bytes, used_at_ms, execution)"
        " VALUES (?, ?, ?, ?, ?)",
        (
            key,
            embedding.sha256,
            embedding.size_bytes,
            embedding.used_at_ms,
            msgspec.msgpack.encode(embedding.execution),
        ),
    )


def embedding_forgotten(key: str) -> Record:
    """Embeddings went to make room."""
    return Record("DELETE FROM embeddings WHERE key = ?", (key,))


def footprint_kept(key: str, footprint: Footprint | None) -> Record:
    """A prediction holds for ever."""
    return Record(
        "INSERT OR REPLACE INTO footprints (key, data) VALUES (?, ?)",
        (key, msgspec.msgpack.encode(footprint)),
    )


def told(notice: Notice, *, at_ms: int) -> Record:
    """A notice was shown."""
    return Record(
        "INSERT INTO notices (at_ms, kind, subject, text) VALUES (?, ?, ?, ?)",
        (at_ms, notice.kind.value, notice.subject, notice.text),
    )

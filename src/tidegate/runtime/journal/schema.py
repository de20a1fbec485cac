"""The tables of the journal, version by version.

Owns opening a database file and bringing an older one up to date. A file of a newer version is refused, not
guessed at. Version n is reached by the n-th script; a script that was released is never changed.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

from tidegate.core.faults import Fault

# Events and snapshots belong to the core and are read by it; the other tables stand for themselves, so that
# a server of another configuration, or of a newer core, finds its jobs without them.
MIGRATIONS: Final[tuple[str, ...]] = (
    """
    CREATE TABLE events (
        number INTEGER PRIMARY KEY, at_ms INTEGER NOT NULL, kind TEXT NOT NULL, data BLOB NOT NULL
    );
    CREATE TABLE snapshots (number INTEGER PRIMARY KEY, at_ms INTEGER NOT NULL, data BLOB NOT NULL);
    CREATE TABLE jobs (
        id TEXT PRIMARY KEY, idempotency_key TEXT NOT NULL, submitted_at_ms INTEGER NOT NULL,
        ended_at_ms INTEGER NOT NULL DEFAULT 0, ticket BLOB NOT NULL
    );
    CREATE TABLE images (
        name TEXT PRIMARY KEY, job TEXT NOT NULL, outcome TEXT NOT NULL DEFAULT '',
        code TEXT NOT NULL DEFAULT '', message TEXT NOT NULL DEFAULT ''
    );
    CREATE TABLE checkpoints (
        image TEXT NOT NULL, stage TEXT NOT NULL, sha256 TEXT NOT NULL, engine_build TEXT NOT NULL,
        execution BLOB NOT NULL, PRIMARY KEY (image, stage)
    );
    CREATE TABLE embeddings (
        key TEXT PRIMARY KEY, sha256 TEXT NOT NULL, size_bytes INTEGER NOT NULL, used_at_ms INTEGER NOT NULL,
        execution BLOB NOT NULL
    );
    CREATE TABLE footprints (key TEXT PRIMARY KEY, data BLOB NOT NULL);
    CREATE TABLE notices (
        number INTEGER PRIMARY KEY, at_ms INTEGER NOT NULL, kind TEXT NOT NULL, subject TEXT NOT NULL,
        text TEXT NOT NULL
    );
    CREATE INDEX images_of_job ON images (job);
    """,
    """
    CREATE TABLE pictures (image TEXT PRIMARY KEY, view BLOB NOT NULL, png BLOB NOT NULL);
    """,
)
VERSION: Final = len(MIGRATIONS)
# How long a reader in another process (`tidegate replay`) may hold up a commit before it counts as failed.
_BUSY_S: Final = 5.0


class TooNew(Fault):
    """The file was written by a later version of tidegate."""

    code = "journal_too_new"


def opened(path: Path) -> sqlite3.Connection:
    """Open or make the database and bring it to VERSION. Raises sqlite3.Error and `TooNew`."""
    # Made closed to others before SQLite writes into it: prompts are nobody's business.
    path.touch(mode=0o600, exist_ok=True)
    connection = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        found = connection.execute("PRAGMA quick_check(1)").fetchone()
        if found is None or found[0] != "ok":
            raise sqlite3.DatabaseError(f"damaged: {found and found[0]}")
        _migrate(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _migrate(connection: sqlite3.Connection) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > VERSION:
        raise TooNew(
            f"The journal has version {version}; this tidegate knows versions up to {VERSION}.",
            remedy="Use the newer tidegate again, or another --state folder.",
        )
    for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
        connection.executescript(f"BEGIN;{script};PRAGMA user_version = {number};COMMIT;")

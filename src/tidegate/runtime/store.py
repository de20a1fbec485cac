"""The store: files under the hash of their content, for everything that a job must not lose.

    <state>/objects/ab/abcdef...   embeddings, latents, given pictures, finished PNG files
    <state>/work/                  what a worker is writing, and the tapes of images that are being sampled

Owns these two folders. An object is there whole or not at all, and its name says what it must contain. Which
object belongs to what is the journal's knowledge. All methods block and are called on the `files` thread.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Collection
from pathlib import Path

from tidegate.wire import artifacts

FOLDER_MODE = 0o700


class Store:
    """The objects of one state folder."""

    def __init__(self, state: Path) -> None:
        self._objects = state / "objects"
        self._work = state / "work"

    def prepare(self) -> None:
        """Make the folders, closed to others. Raises OSError."""
        for folder in (self._objects, self._work):
            folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
            folder.chmod(FOLDER_MODE)

    def path(self, sha256: str) -> Path:
        """Where the object is, if it is there."""
        return self._objects / sha256[:2] / sha256

    def work(self, name: str) -> Path:
        """Where a worker writes something, or keeps a tape."""
        return self._work / name

    def adopt(self, path: Path, sha256: str) -> None:
        """Take in a synced file whose hash is known. Raises OSError."""
        place = self._place(sha256)
        path.replace(place)
        _sync(place.parent)

    def put(self, data: bytes) -> str:
        """Take in bytes and return their hash. Raises OSError."""
        sha256 = hashlib.sha256(data).hexdigest()
        place = self._place(sha256)
        if not place.is_file():
            artifacts.write_atomically(place, data)
        return sha256

    def is_sound(self, sha256: str) -> bool:
        """Whether the object is there and is what its name says."""
        try:
            return artifacts.sha256_of(self.path(sha256)) == sha256
        except artifacts.UnreadableArtifact:
            return False

    def discard(self, name: str) -> None:
        """Remove something from the work folder; it may be absent."""
        with contextlib.suppress(OSError):  # on a read-only disk it stays, unused
            self.work(name).unlink(missing_ok=True)

    def sweep(self, keep: Collection[str], *, tapes: Collection[str]) -> int:
        """Remove objects that nothing refers to and work that nobody will go on with; return how many."""
        removed = 0
        unwanted = [path for path in self._work.iterdir() if path.name not in tapes]
        unwanted += [path for path in self._objects.glob("??/*") if path.name not in keep]
        for path in unwanted:
            with contextlib.suppress(OSError):  # what cannot be removed is tried again at the next start
                path.unlink()
                removed += 1
        return removed

    def size_bytes(self, sha256: str) -> int:
        """Bytes of an object; 0 when it is not there."""
        try:
            return self.path(sha256).stat().st_size
        except OSError:
            # Absent counts as empty: the caller only adds sizes up.
            return 0

    def remove(self, sha256: str) -> None:
        """Remove an object; it may be absent."""
        with contextlib.suppress(OSError):  # as above
            self.path(sha256).unlink(missing_ok=True)

    def _place(self, sha256: str) -> Path:
        place = self.path(sha256)
        place.parent.mkdir(mode=FOLDER_MODE, exist_ok=True)
        return place


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

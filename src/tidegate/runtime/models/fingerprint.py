"""Fingerprints: which file this is, cheaply; and its content hash, when it has to be sure.

Owns the two ways to name a file's content. `fingerprint_of` reads at most a few hundred kilobytes besides the
header: it tells files apart by size, time of last change, header, first and last bytes. A file that was
rewritten in its middle with the same size *and* the same time is not noticed; `content_sha256` notices, and
reads everything.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tidegate.runtime.models import refusals
from tidegate.runtime.models.model_file import ModelFile

EDGE_BYTES = 64 * 2**10
CHUNK_BYTES = 4 * 2**20


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Names one state of one file. Predictions depend on `header_sha256` and `size_bytes` alone."""

    size_bytes: int
    mtime_ns: int
    header_sha256: str
    edges_sha256: str

    @property
    def text(self) -> str:
        """All of it in one short text, for keys and saved work."""
        joined = f"{self.size_bytes}:{self.mtime_ns}:{self.header_sha256}:{self.edges_sha256}"
        return hashlib.sha256(joined.encode()).hexdigest()[:32]

    @property
    def shape_text(self) -> str:
        """Only what decides how many bytes the model takes: equal for two files with equal headers and
        sizes.
        """
        return hashlib.sha256(f"{self.size_bytes}:{self.header_sha256}".encode()).hexdigest()[:32]


def fingerprint_of(file: ModelFile) -> Fingerprint:
    """The fingerprint of the file as it is now; raises `ClientError` when it cannot be read any more."""
    try:
        with file.path.open("rb") as raw:
            status = os.fstat(raw.fileno())
            header = hashlib.sha256(raw.read(file.header_bytes))
            edges = hashlib.sha256(raw.read(EDGE_BYTES))
            raw.seek(max(0, status.st_size - EDGE_BYTES))
            edges.update(raw.read(EDGE_BYTES))
    except OSError as error:
        # The file went away or the disk failed since its header was read.
        raise refusals.unreadable(file.path, error.strerror or type(error).__name__) from error
    return Fingerprint(status.st_size, status.st_mtime_ns, header.hexdigest(), edges.hexdigest())


def content_sha256(path: Path, *, progress: Callable[[int, int], None] | None = None) -> str:
    """SHA-256 of the whole file, as model sites print it; `progress(read_bytes, size_bytes)` is called per
    chunk.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as raw:
            size_bytes = os.fstat(raw.fileno()).st_size
            read_bytes = 0
            while chunk := raw.read(CHUNK_BYTES):
                digest.update(chunk)
                read_bytes += len(chunk)
                if progress is not None:
                    progress(read_bytes, size_bytes)
    except OSError as error:
        # A missing file or a failing disk; the user can do something about either.
        raise refusals.unreadable(path, error.strerror or type(error).__name__) from error
    return digest.hexdigest()

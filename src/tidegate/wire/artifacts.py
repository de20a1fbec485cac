"""Artifacts: the files in which one process leaves a stage's result for another.

Owns how such a file is written (whole or not at all, surviving a power cut), how its hash is taken and how
the fingerprint in its header is read back. Arrays are put in and taken out by `tidegate.workers.arrays`, the
only side that has them; which files a job has is known to `tidegate.runtime.checkpoints`.

Embeddings and latents are safetensors files whose metadata is the fingerprint. Pixels are raw RGB rows.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import Final

# Out of room: the disk, the quota, or the limit on one file's size.
NO_ROOM_ERRORS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
HEADER_BYTES_MAX: Final = 1 << 20
TAPE_MAGIC: Final = b"tidegate tape 2\n"
_READ_BYTES: Final = 1 << 20
_FINGERPRINT: Final = "tidegate"


class UnreadableArtifact(Exception):
    """The file is missing, cut off or not an artifact; the stage that wrote it has to run again."""


def write_atomically(path: Path, data: bytes) -> str:
    """Write `data` so that `path` is either the old file or the whole new one, and return its SHA-256.

    The bytes are on the disk before the name is, and the name is on the disk before this returns. Raises
    OSError; the half-written file is removed first, so that a full disk is not made fuller.
    """
    # A name of its own: with ours inside, a name as long as is allowed would be too long.
    half = path.with_name(f".{os.getpid()}-{secrets.token_hex(4)}.half")
    try:
        with half.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        half.replace(path)
    except OSError:
        with contextlib.suppress(OSError):  # the first error is the one worth telling
            half.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)
    return hashlib.sha256(data).hexdigest()


def owner_of(fingerprint: dict[str, str]) -> bytes:
    """32 bytes that name what a tape belongs to, from the fingerprint of the stage that records it."""
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).digest()


def tape_belongs(path: Path, fingerprint: dict[str, str]) -> bool:
    """Whether there is a tape of this stage with a record begun; its form is sdstage's (stage/tape.hpp)."""
    wanted = TAPE_MAGIC + owner_of(fingerprint)
    try:
        with path.open("rb") as file:
            return file.read(len(wanted)) == wanted and bool(file.read(1))
    except OSError:
        return False  # no tape, or none that can be read: sampling starts anew


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Hash a file. Raises `UnreadableArtifact` when it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_READ_BYTES):
                digest.update(block)
    except OSError as error:
        raise UnreadableArtifact(f"{path.name}: {error.strerror}") from error
    return digest.hexdigest()


def metadata_of(fingerprint: dict[str, str]) -> dict[str, str]:
    """The fingerprint as safetensors metadata: one entry, because that library shuffles several."""
    return {_FINGERPRINT: json.dumps(fingerprint, sort_keys=True)}


def fingerprint_of(path: Path) -> dict[str, str]:
    """Read the metadata of a safetensors file without touching its arrays."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= HEADER_BYTES_MAX:
                raise UnreadableArtifact(f"{path.name}: its header claims {length} bytes")
            header = json.loads(file.read(length))
    except OSError as error:
        raise UnreadableArtifact(f"{path.name}: {error.strerror}") from error
    except ValueError as error:
        raise UnreadableArtifact(f"{path.name}: its header is not JSON") from error
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or not isinstance(metadata.get(_FINGERPRINT), str):
        raise UnreadableArtifact(f"{path.name}: it carries no fingerprint")
    try:
        found = json.loads(metadata[_FINGERPRINT])
    except ValueError as error:
        raise UnreadableArtifact(f"{path.name}: its fingerprint is not JSON") from error
    if not isinstance(found, dict):
        raise UnreadableArtifact(f"{path.name}: its fingerprint is no table")
    return {str(key): str(value) for key, value in found.items()}

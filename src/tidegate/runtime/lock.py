"""Locks: one authority per card, and one server per state folder.

Owns the lock files. A lock is held by the kernel for a process and is gone with it, however it ends; the file
names the process for whoever comes second.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path
from typing import Self

from tidegate.core.faults import ClientError


class Lock:
    """A lock that is held until `release`."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def take(cls, path: Path, *, what: str) -> Self:
        """Take the lock at `path`; ClientError `taken` names the process that has it. Raises OSError."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(descriptor)
            raise ClientError(
                f"{what} is in use by process {holder}.",
                remedy="Use that server, stop it, or name another device and --state folder.",
                code="taken",
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode("ascii"), 0)
        return cls(descriptor)

    def release(self) -> None:
        """Let go of it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def card_lock(engine_name: str) -> Lock:
    """The lock of a card in the machine, for all programs of this user."""
    base = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    folder = Path(base) / f"tidegate-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return Lock.take(folder / f"{engine_name}.lock", what=f"The card {engine_name}")

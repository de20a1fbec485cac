"""Locks: one authority per card, and one server per state folder.

Owns the lock files. A lock is held by the kernel for a process and is gone with it, however it ends; the file
names the process, and the state folder of a server, for whoever comes second.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from tidegate.core.faults import ClientError

# A number and a path.
TEXT_BYTES_MAX: Final = 8_192


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """The process that has a lock; `state` is the folder of the server that it is, None when it is none."""

    pid: int
    state: Path | None


class Lock:
    """A lock that is held until `release`."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def take(cls, path: Path, *, what: str, state: Path | None = None) -> Self:
        """Take the lock at `path`; ClientError `taken` names the process that has it. Raises OSError."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _said(descriptor)
            os.close(descriptor)
            raise ClientError(
                f"{what} is in use by process {holder.pid or 'unknown'}.",
                remedy="Use that server, stop it, or name another device and --state folder.",
                code="taken",
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n{state or ''}\n".encode(errors="surrogateescape"), 0)
        return cls(descriptor)

    def release(self) -> None:
        """Let go of it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def holder_of(path: Path) -> Holder | None:
    """Who has the lock at `path`; None when it is free."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # nobody ever took it
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _said(descriptor)
    finally:
        os.close(descriptor)
    return None


def _said(descriptor: int) -> Holder:
    lines = os.pread(descriptor, TEXT_BYTES_MAX, 0).decode(errors="surrogateescape").splitlines()
    pid = int(lines[0]) if lines and lines[0].isdecimal() else 0
    return Holder(pid=pid, state=Path(lines[1]) if len(lines) > 1 and lines[1] else None)


def card_lock(engine_name: str, *, state: Path | None = None) -> Lock:
    """Take the lock of a card in the machine, for all programs of this user. Raises ClientError, OSError."""
    folder = _cards_folder()
    folder.mkdir(mode=0o700, exist_ok=True)
    return Lock.take(folder / f"{engine_name}.lock", what=f"The card {engine_name}", state=state)


def card_holders() -> Iterator[tuple[str, Holder]]:
    """Every card of the machine that a process has, by the engine's name of the card."""
    for path in sorted(_cards_folder().glob("*.lock")):
        holder = holder_of(path)
        if holder is not None:
            yield path.stem, holder


def _cards_folder() -> Path:
    base = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    return Path(base) / f"tidegate-{os.getuid()}"

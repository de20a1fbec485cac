"""Memories: states of idle conversations, kept for when one goes on.

Owns what is kept: in memory files up to a bound of RAM, and beyond that, and when the front ends, in files up
to a bound of disk. The one used least recently goes first. A state is found by its history: whoever begins in
the same way may have it, and its engine checks that the bytes are those that were saved.

A file holds a header (MessagePack, its length before it) and the state as it was in memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from tidegate.wire import llm_front, llm_link
from tidegate.wire.llm_link import StateNote
from tidegate.workers.front.request import Request, Vectors
from tidegate.workers.llm.streams import common_count

_SUFFIX: Final = ".state"
_LENGTH_BYTES: Final = 8
_HEADER_BYTES_MAX: Final = 16 << 20
# Each one in RAM is an open file.
MEMORIES_MAX: Final = 128
# A state that shares fewer items with a history is not worth its restoring.
WORTH_ITEMS: Final = 32


class _Header(msgspec.Struct, frozen=True, kw_only=True):
    """What a file says of itself before the state."""

    version: int = 1
    model: str
    history: bytes
    state: StateNote


@dataclass(slots=True, kw_only=True)
class Memory:
    """A saved state, in a memory file or in a file on disk, and the history that it is of."""

    model: str
    history: list[int]
    note: StateNote
    descriptor: int = -1
    path: Path | None = None

    def close(self) -> None:
        """Give the memory file back."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class Memories:
    """All that is kept; the last in the list was used most recently."""

    def __init__(self, *, ram_bytes: int = 0, disk_bytes: int = 0, folder: str = "") -> None:
        self._ram_bytes, self._disk_bytes = ram_bytes, disk_bytes
        self._folder = Path(folder) if folder and disk_bytes else None
        self._kept: list[Memory] = []
        if self._folder is not None:
            with contextlib.suppress(OSError):  # without a folder nothing outlives this process
                self._folder.mkdir(parents=True, exist_ok=True)
                self._kept = list(self._found())
            self._bound()

    def __len__(self) -> int:
        return len(self._kept)

    def bytes_of(self, model: str) -> tuple[int, int]:
        """Bytes of a model's idle conversations in RAM and on disk."""
        ram = sum(kept.note.state_bytes for kept in self._kept if kept.model == model and not kept.path)
        disk = sum(kept.note.state_bytes for kept in self._kept if kept.model == model and kept.path)
        return ram, disk

    def add(self, memory: Memory) -> None:
        """Keep a state; it replaces those whose whole history it continues."""
        for kept in tuple(self._kept):
            if kept.model == memory.model and _continues(memory, kept):
                self._drop(kept)
            elif kept.model == memory.model and _continues(kept, memory):
                memory.close()
                self._touch(kept)
                return
        self._kept.append(memory)
        self._bound()

    def find(self, model: str, history: Sequence[int]) -> tuple[Memory, int] | None:
        """The state that shares most with a history, in a memory file, and how many items it shares."""
        best, shared = None, WORTH_ITEMS - 1
        for kept in self._kept:
            if kept.model == model and (common := common_count(kept.history, history)) > shared:
                best, shared = kept, common
        if best is None or not self._is_loaded(best):
            return None
        self._touch(best)
        return best, shared

    def forget(self, model: str) -> None:
        """Forget a model's conversations in RAM; those on disk may be wanted by the next who opens it."""
        for kept in [kept for kept in self._kept if kept.model == model and kept.path is None]:
            self._drop(kept)

    def released(
        self, command: llm_front.FreeStates, requests: Iterable[Request | Vectors]
    ) -> llm_front.StatesFreed:
        """Give back the RAM of a model's states: idle ones go to disk where they may, the others are lost."""
        for kept in [kept for kept in self._kept if kept.model == command.model and kept.path is None]:
            if self._folder is None or not self._store(kept):
                self._drop(kept)
        self._bound()
        for request in requests:
            if isinstance(request, Request) and request.model == command.model:
                request.keep(None)
        return llm_front.StatesFreed(serial=command.serial, model=command.model)

    def close(self) -> None:
        """Put on disk what fits there, the most recent first, and give everything back."""
        room = self._disk_bytes
        for kept in reversed(self._kept):
            if self._folder is not None and kept.note.state_bytes <= room:
                room -= kept.note.state_bytes
                self._store(kept)
            kept.close()
        self._kept.clear()

    # ------------------------------------------------------------ within bounds

    def _bound(self) -> None:
        loaded = [kept for kept in self._kept if kept.path is None]
        ram = sum(kept.note.state_bytes for kept in loaded)
        for number, kept in enumerate(loaded):
            if ram <= self._ram_bytes and len(loaded) - number <= MEMORIES_MAX:
                break
            ram -= kept.note.state_bytes
            if self._folder is None or not self._store(kept):
                self._drop(kept)
        disk = sum(kept.note.state_bytes for kept in self._kept if kept.path is not None)
        for kept in tuple(self._kept):
            if disk <= self._disk_bytes:
                break
            if kept.path is not None:
                disk -= kept.note.state_bytes
                self._drop(kept)

    def _touch(self, memory: Memory) -> None:
        self._kept.remove(memory)
        self._kept.append(memory)

    def _drop(self, memory: Memory) -> None:
        self._kept.remove(memory)
        memory.close()
        if memory.path is not None:
            with contextlib.suppress(OSError):  # somebody tidied up before us
                memory.path.unlink(missing_ok=True)

    # ------------------------------------------------------------ on disk

    def _store(self, memory: Memory) -> bool:
        """Write a state to its file; False when the disk does not take it."""
        if memory.path is not None:
            return True
        assert self._folder is not None, "only called where there is a folder"
        header = msgspec.msgpack.encode(
            _Header(model=memory.model, history=llm_link.to_bytes(memory.history), state=memory.note)
        )
        name = hashlib.blake2b(header, digest_size=16).hexdigest()
        path, half = self._folder / f"{name}{_SUFFIX}", self._folder / f".{name}.half"
        try:
            with half.open("wb") as file:
                file.write(len(header).to_bytes(_LENGTH_BYTES, "little") + header)
                file.flush()
                _copy(memory.descriptor, 0, file.fileno(), memory.note.state_bytes)
                os.fsync(file.fileno())
            half.replace(path)
        except OSError:
            with contextlib.suppress(OSError):  # the state is then forgotten, which costs time and no text
                half.unlink(missing_ok=True)
            return False
        memory.close()
        memory.path = path
        return True

    def _is_loaded(self, memory: Memory) -> bool:
        """Bring a state back from its file; False, and forgotten, when it cannot be read whole."""
        if memory.path is None:
            return True
        try:
            with memory.path.open("rb") as file:
                length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
                memory.descriptor = os.memfd_create("tidegate-state", os.MFD_CLOEXEC)
                begin = _LENGTH_BYTES + length
                _copy(file.fileno(), begin, memory.descriptor, memory.note.state_bytes)
        except OSError:
            self._drop(memory)
            return False
        with contextlib.suppress(OSError):  # it is in RAM now, and written again when it has to go
            memory.path.unlink()
        memory.path = None
        return True

    def _found(self) -> Iterator[Memory]:
        assert self._folder is not None, "only called where there is a folder"
        paths = sorted(self._folder.glob(f"*{_SUFFIX}"), key=lambda path: path.stat().st_mtime)
        for path in paths:
            header = _header_of(path)
            if header is None:
                path.unlink(missing_ok=True)
                continue
            history = llm_link.to_tokens(header.history)
            yield Memory(model=header.model, history=history, note=header.state, path=path)


def _continues(one: Memory, other: Memory) -> bool:
    """Whether the first holds everything that the second does, for the same engine."""
    if one.note.fingerprint != other.note.fingerprint or len(one.history) < len(other.history):
        return False
    return one.history[: len(other.history)] == other.history


def _header_of(path: Path) -> _Header | None:
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            if length > _HEADER_BYTES_MAX:
                return None
            header = msgspec.msgpack.decode(file.read(length), type=_Header)
    except (OSError, msgspec.MsgspecError):
        return None
    whole = _LENGTH_BYTES + length + header.state.state_bytes
    return header if path.stat().st_size == whole else None


def _copy(source: int, begin: int, target: int, count: int) -> None:
    """Copy bytes from this place of one open file to where the other one stands, in the kernel."""
    done = 0
    while done < count:
        step = os.sendfile(target, source, begin + done, count - done)
        if not step:
            raise OSError(f"the file ended after {done} of {count} bytes")
        done += step

"""States: what llama.cpp wrote for one sequence, in sealed memory files that travel between processes.

Owns writing, sealing, digests and mapping. A sealed file cannot change any more, whoever holds it; the digest
is for what came back from a disk or from a process that was not ours. What a state is of, and whether it fits
a context, is told by its note (`tidegate.wire.llm_link.StateNote`).
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
from collections.abc import Callable
from typing import Final

import numpy as np

_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
_BLOCK_BYTES: Final = 4096
# States up to this size are written from memory that stays: to write pages of a file that is mapped anew each
# time was seen to take twice as long.
_KEPT_BYTES_MAX: Final = 64 << 20

Bytes = np.ndarray[tuple[int], np.dtype[np.uint8]]
# Fills the memory and returns how many bytes it wrote.
Fill = Callable[[Bytes], int]


class BrokenState(Exception):
    """The bytes are not those that were saved; the history has to be evaluated again."""


class Desk:
    """Where states are written: one piece of memory for all that are small, used again and again."""

    def __init__(self) -> None:
        self._sheet: Bytes = np.empty(0, dtype=np.uint8)

    def write(self, room_bytes: int, fill: Fill) -> tuple[int, int, str]:
        """Have `fill` write a state of at most this size: the sealed memory file, its bytes, their digest."""
        descriptor = os.memfd_create("tidegate-state", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            write = self._copied if room_bytes <= _KEPT_BYTES_MAX else _mapped
            written_bytes, digest = write(descriptor, room_bytes, fill)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor, written_bytes, digest

    def _copied(self, descriptor: int, room_bytes: int, fill: Fill) -> tuple[int, str]:
        if len(self._sheet) < room_bytes:
            self._sheet = np.empty(room_bytes, dtype=np.uint8)
        written_bytes = fill(self._sheet[:room_bytes])
        state = self._sheet[:written_bytes]
        if os.write(descriptor, state.data) != written_bytes:
            raise OSError("a memory file took less than was written to it")
        return written_bytes, digest_of(state)


def _mapped(descriptor: int, room_bytes: int, fill: Fill) -> tuple[int, str]:
    os.ftruncate(descriptor, room_bytes)
    with mmap.mmap(descriptor, room_bytes, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE) as memory:
        view: Bytes = np.frombuffer(memory, dtype=np.uint8)
        written_bytes = fill(view)
        digest = digest_of(view[:written_bytes])
        del view  # a map with a view of it cannot be closed, and one that is open cannot be sealed
    os.ftruncate(descriptor, written_bytes)
    return written_bytes, digest


def mapped(descriptor: int) -> Bytes:
    """The bytes of a memory file, read only; the map goes with the last reference to it."""
    found_bytes = os.fstat(descriptor).st_size
    if not found_bytes:
        raise BrokenState("a state of no bytes")
    memory = mmap.mmap(descriptor, found_bytes, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
    found: Bytes = np.frombuffer(memory, dtype=np.uint8)
    return found


def digest_of(data: Bytes) -> str:
    """A digest at the speed of memory: the sum of each block of 4 KiB as 64-bit words, hashed.

    SHA-256 takes three times as long as the restoring itself. This finds any block that was lost, exchanged
    or damaged; it is no defence against somebody who means harm.
    """
    whole_bytes = len(data) // _BLOCK_BYTES * _BLOCK_BYTES
    digest = hashlib.blake2b(digest_size=16)
    words = data[:whole_bytes].view(np.uint64).reshape(-1, _BLOCK_BYTES // 8)
    digest.update(words.sum(axis=1, dtype=np.uint64).tobytes())
    digest.update(data[whole_bytes:].tobytes())
    digest.update(len(data).to_bytes(8, "little"))
    return digest.hexdigest()


def check(data: Bytes, *, state_bytes: int, digest: str) -> None:
    """Raise `BrokenState` unless these are the bytes that were noted."""
    if len(data) != state_bytes or digest_of(data) != digest:
        raise BrokenState(f"{len(data)} bytes are not the state of {state_bytes} bytes that was saved")

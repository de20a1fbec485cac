"""The ledger file of a virtual card: its layout, its locks, and consistent reading and writing.

Owns the bytes of the file, and nothing of their meaning; that is `virtual`. The native twin is
`native/vcard/layout.hpp`: both sides name the same offsets, and `LAYOUT_VERSION` grows on both when one
moves. Rules of the file, as that side keeps them (`native/vcard/ledger.hpp`): writers hold the ledger's
byte-range lock and make `edition` odd meanwhile; a row counts while the lock of its own byte is held, which
the kernel drops when its process is gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import re
import struct
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, Self

from tidegate.core.faults import ClientError

LAYOUT_MAGIC: Final = int.from_bytes(b"TGEVCARD", "little")
LAYOUT_VERSION: Final = 1
CARDS_MAX: Final = 8
ROWS_MAX: Final = 64

FLAG_STRICT: Final = 1
FLAG_POISON: Final = 2

CARD_NAME_MAX: Final = 31
LABEL_MAX: Final = 47

_HEADER_BYTES: Final = 4096
_CARD_BYTES: Final = 512
_ROW_HEAD_BYTES: Final = 128
_HOLDING_BYTES: Final = 128
_ROW_BYTES: Final = _ROW_HEAD_BYTES + CARDS_MAX * _HOLDING_BYTES
_ROWS_AT: Final = _HEADER_BYTES + CARDS_MAX * _CARD_BYTES
FILE_BYTES: Final = _ROWS_AT + ROWS_MAX * _ROW_BYTES

_LEDGER_LOCK: Final = 1 << 20
_ROW_LOCKS: Final = _LEDGER_LOCK + 1
_EDITION_AT: Final = 24

# The name of a ledger that a run made for itself, or of its draft, with the process id of its creator.
_OWN_NAME: Final = re.compile(r"tidegate-(\d{1,10})-\d+\.vcard(?:\..*\.draft)?")
# Reads without a lock are repeated this often before one waits for it; a writer is inside for microseconds.
_LOCKLESS_READS_MAX: Final = 64


def _offsets(start: int, names: str) -> Mapping[str, int]:
    return MappingProxyType({name: start + 8 * index for index, name in enumerate(names.split())})


HEADER_WORDS: Final = _offsets(
    _EDITION_AT, "edition allocation_count fail_at fail_count fired_count claim_count flags"
)
CARD_WORDS: Final = _offsets(
    32,
    "capacity_bytes foreign_bytes granularity_bytes alignment_bytes padding_elements context_bytes "
    "pool_bytes pool_aborts largest_allocation_bytes link_bytes_per_second peak_bytes tenants_peak_bytes "
    "alloc_count refused_count",
)
ROW_WORDS: Final = _offsets(0, "pid claim ended")
HOLDING_WORDS: Final = _offsets(
    0,
    "used_bytes peak_bytes buffers_bytes buffers_peak_bytes context_bytes pool_bytes pinned_bytes "
    "alloc_count refused_count",
)


def card_at(card: int, word: str) -> int:
    """Where a word of a card's section lies in the file."""
    return _HEADER_BYTES + card * _CARD_BYTES + CARD_WORDS[word]


def row_at(row: int) -> int:
    """Where a row begins in the file."""
    return _ROWS_AT + row * _ROW_BYTES


def holding_at(row: int, card: int, word: str) -> int:
    """Where a word of what one row holds on one card lies in the file."""
    return row_at(row) + _ROW_HEAD_BYTES + card * _HOLDING_BYTES + HOLDING_WORDS[word]


@dataclass(frozen=True)
class Snapshot:
    """All bytes of the file at one moment, and which rows' processes were alive then."""

    data: bytes
    held_rows: frozenset[int]

    def word(self, at: int) -> int:
        """The unsigned word at an offset."""
        value: int = struct.unpack_from("<Q", self.data, at)[0]
        return value

    def text(self, at: int, length_max: int) -> str:
        """The zero-ended text at an offset; a name cut within a character keeps its readable part."""
        return self.data[at : at + length_max].split(b"\0", 1)[0].decode("utf-8", "replace")

    @property
    def card_count(self) -> int:
        count: int = struct.unpack_from("<I", self.data, 12)[0]
        return count


class LedgerFile:
    """An open ledger: snapshots without stopping anybody, changes under its lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = _open_checked(path)
        self._map = mmap.mmap(self._descriptor, FILE_BYTES)
        self._words = memoryview(self._map).cast("Q")
        # Threads of one process share the file description, so a byte-range lock does not part them.
        self._threads = threading.Lock()

    def close(self) -> None:
        """Let go of the mapping; the file stays."""
        if self._descriptor >= 0:
            self._words.release()
            self._map.close()
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def hold(self) -> None:
        """Show others that whoever made the file lives: see `remove_unheld`. Ends with `close` or with us."""
        # flock, which Linux keeps apart from the byte-range locks of rows and changes.
        with contextlib.suppress(OSError):  # a file system without it: our process id has to do
            fcntl.flock(self._descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def snapshot(self) -> Snapshot:
        """Read everything at one moment: by looking twice, or under the lock when writers are too busy."""
        for _ in range(_LOCKLESS_READS_MAX):
            before = self._words[_EDITION_AT // 8]
            taken = self._take()
            if before % 2 == 0 and before == self._words[_EDITION_AT // 8]:
                return taken
        with self._locked():
            return self._take()

    def change(self, words: Mapping[int, int]) -> None:
        """Store words at offsets; readers see all of them or none."""
        with self.changing() as store:
            for at, value in words.items():
                store(at, value)

    def take_inside(self) -> Snapshot:
        """Read everything while `changing` holds the lock; elsewhere it is `snapshot` one wants."""
        return self._take()

    @contextlib.contextmanager
    def changing(self) -> Iterator[_Store]:
        """Hold the lock for a change that depends on what is read; gives the function that stores a word."""
        with self._locked():
            edition = self._words[_EDITION_AT // 8]
            # A writer that was killed inside left it odd; it must stay odd, yet differ.
            inside = edition + (1 if edition % 2 == 0 else 2)
            self._words[_EDITION_AT // 8] = inside
            try:
                yield _Store(self._words)
            finally:
                self._words[_EDITION_AT // 8] = inside + 1

    def _take(self) -> Snapshot:
        data = self._map[:]
        heads = (struct.unpack_from("<QQQ", data, row_at(row)) for row in range(ROWS_MAX))
        asked = (row for row, (_, claim, ended) in enumerate(heads) if claim and not ended)
        return Snapshot(data, frozenset(row for row in asked if self._is_held(row)))

    def _is_held(self, row: int) -> bool:
        asked = _lock_request(fcntl.F_WRLCK, _ROW_LOCKS + row)
        answer = fcntl.fcntl(self._descriptor, fcntl.F_OFD_GETLK, asked)
        return bool(struct.unpack_from("@h", answer)[0] != fcntl.F_UNLCK)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with self._threads:
            fcntl.fcntl(self._descriptor, fcntl.F_OFD_SETLKW, _lock_request(fcntl.F_WRLCK, _LEDGER_LOCK))
            try:
                yield
            finally:
                fcntl.fcntl(self._descriptor, fcntl.F_OFD_SETLK, _lock_request(fcntl.F_UNLCK, _LEDGER_LOCK))


class _Store:
    """Stores single words of the mapping, each by one machine store."""

    def __init__(self, words: memoryview[int]) -> None:
        self._words = words

    def __call__(self, at: int, value: int) -> None:
        self._words[at // 8] = value


def _lock_request(kind: int, start: int) -> bytes:
    # struct flock of Linux with 64-bit offsets: type, whence, start, length, pid (0 for this kind of lock).
    return struct.pack("@hhqqi4x", kind, os.SEEK_SET, start, 1, 0)


def _open_checked(path: Path) -> int:
    if sys.byteorder != "little":
        raise ClientError("The virtual card needs a little-endian machine.", code="unsupported_machine")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise ClientError(
            f"The virtual card's ledger {path} cannot be opened: {error.strerror}.",
            remedy="Create it by naming a virtual card, such as --device virtual:3GiB.",
            code="ledger_missing",
        ) from error
    try:
        _check_shape(path, os.fstat(descriptor).st_size, os.pread(descriptor, 24, 0))
    except ClientError:
        os.close(descriptor)
        raise
    return descriptor


def _check_shape(path: Path, size_bytes: int, head: bytes) -> None:
    remedy = "Remove it and create the virtual card anew."
    if size_bytes != FILE_BYTES:
        raise ClientError(
            f"{path} is {size_bytes} bytes long, a virtual card's ledger has {FILE_BYTES}: "
            "it was cut off or is something else.",
            remedy=remedy,
            code="ledger_damaged",
        )
    magic, version, card_count, row_count, _ = struct.unpack("<QIIII", head)
    if magic != LAYOUT_MAGIC:
        raise ClientError(
            f"{path} is not a virtual card's ledger, or was never finished.",
            remedy=remedy,
            code="ledger_damaged",
        )
    if version != LAYOUT_VERSION:
        raise ClientError(
            f"{path} is a ledger of version {version}, this tidegate reads version {LAYOUT_VERSION}.",
            remedy=remedy,
            code="ledger_version",
        )
    if not 1 <= card_count <= CARDS_MAX or row_count != ROWS_MAX:
        raise ClientError(
            f"{path} names {card_count} cards and {row_count} rows, which no ledger has.",
            remedy=remedy,
            code="ledger_damaged",
        )


def write_new(
    path: Path, *, header: Mapping[str, int], cards: Sequence[tuple[str, Mapping[str, int]]]
) -> None:
    """Create a ledger in one step: nobody ever opens a half-written one. An existing file is an error."""
    data = bytearray(FILE_BYTES)
    struct.pack_into("<QIIII", data, 0, LAYOUT_MAGIC, LAYOUT_VERSION, len(cards), ROWS_MAX, 0)
    for word, value in header.items():
        struct.pack_into("<Q", data, HEADER_WORDS[word], value)
    for card, (name, words) in enumerate(cards):
        struct.pack_into(f"{CARD_NAME_MAX + 1}s", data, _HEADER_BYTES + card * _CARD_BYTES, name.encode())
        for word, value in words.items():
            struct.pack_into("<Q", data, card_at(card, word), value)
    draft = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.draft")
    try:
        draft.write_bytes(data)
        draft.chmod(0o600)
        os.link(draft, path)
    except FileExistsError as error:
        raise ClientError(
            f"A virtual card's ledger exists already at {path}.",
            remedy="Open it, or remove it first.",
            code="ledger_exists",
        ) from error
    except OSError as error:
        raise ClientError(
            f"The virtual card's ledger {path} cannot be created: {error.strerror}.",
            remedy="Name a folder that exists and may be written.",
            code="ledger_unwritable",
        ) from error
    finally:
        draft.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove the ledgers of this user whose creators are gone without having removed them."""
    for path in folder.glob("tidegate-*-*.vcard*"):
        named = _OWN_NAME.fullmatch(path.name)
        if named is None or Path(f"/proc/{named[1]}").exists():
            continue
        with contextlib.suppress(OSError):  # it is gone already, or is not ours to judge
            remove_unheld(path)


def remove_unheld(path: Path) -> None:
    """Remove a ledger of this user that nobody holds. Raises OSError when it is held or not to be had."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if os.fstat(descriptor).st_uid == os.geteuid():
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    finally:
        os.close(descriptor)

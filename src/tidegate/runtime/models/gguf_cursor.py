"""A cursor over a GGUF header: typed reads with bounds, from front to back.

Owns the walk: no read goes past the file or past `GGUF_HEADER_MAX_BYTES`, and no list makes more than
`GGUF_LIST_ENTRIES_MAX` steps in one header. What the values mean is the neighbour `gguf_header`'s matter.
"""

from __future__ import annotations

import struct
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

from tidegate.runtime.models import refusals
from tidegate.runtime.models.model_file import (
    GGUF_HEADER_MAX_BYTES,
    GGUF_LIST_ENTRIES_MAX,
    MetadataList,
    MetadataValue,
)

# Numbers of the value types in a GGUF file; texts and lists are handled by hand.
SCALARS = MappingProxyType(
    {
        0: ("u8", "<B"),
        1: ("i8", "<b"),
        2: ("u16", "<H"),
        3: ("i16", "<h"),
        4: ("u32", "<I"),
        5: ("i32", "<i"),
        6: ("f32", "<f"),
        7: ("bool", "<?"),
        10: ("u64", "<Q"),
        11: ("i64", "<q"),
        12: ("f64", "<d"),
    }
)
TEXT_TYPE = 8
LIST_TYPE = 9
# Chat templates reach 20 kB; a longer text is no configuration.
TEXT_MAX_BYTES = 2**20
LENGTH_BYTES = 8
WINDOW_BYTES = 256 * 2**10


class GgufCursor:
    """Reads from the file's current position onwards and counts what it reads."""

    def __init__(self, file: BinaryIO, path: Path, size_bytes: int) -> None:
        self._file = file
        self._path = path
        self._limit_bytes = min(size_bytes, GGUF_HEADER_MAX_BYTES)
        self._size_bytes = size_bytes
        self._list_entries_left = GGUF_LIST_ENTRIES_MAX
        self.position_bytes = 0

    def take(self, wanted_bytes: int) -> bytes:
        """The next bytes, all of them or a refusal."""
        self._advance(wanted_bytes)
        raw = self._file.read(wanted_bytes)
        if len(raw) < wanted_bytes:
            raise refusals.truncated_header(self._path)
        return raw

    def number(self, layout: str) -> int:
        """The next whole number in the given `struct` layout."""
        (value,) = struct.unpack(layout, self.take(struct.calcsize(layout)))
        return int(value)

    def count(self, what: str, value_max: int) -> int:
        """The next u64 as a count, refused above its limit."""
        value = self.number("<Q")
        if value > value_max:
            raise refusals.beyond_limit(self._path, what=what, value=value, value_max=value_max)
        return value

    def text(self, what: str, length_max: int) -> str:
        """The next text: u64 length, then UTF-8."""
        raw = self.take(self.count(f"the length of {what}", length_max))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise refusals.corrupt(self._path, f"{what} is not UTF-8") from None

    def value(self, type_number: int) -> MetadataValue:
        """The next metadata value of a type; of a list only its type and length."""
        if type_number == TEXT_TYPE:
            raw = self.take(self.count("the length of a text", TEXT_MAX_BYTES))
            return raw.decode("utf-8", "replace")
        if type_number == LIST_TYPE:
            return self._list()
        if type_number not in SCALARS:
            raise refusals.corrupt(self._path, f"its metadata holds the unknown type {type_number}")
        layout = SCALARS[type_number][1]
        (value,) = struct.unpack(layout, self.take(struct.calcsize(layout)))
        if isinstance(value, bool | float):
            return value
        return int(value)

    def _list(self) -> MetadataList:
        element_type = self.number("<I")
        count = self.count("the length of a list", GGUF_LIST_ENTRIES_MAX)
        if element_type == TEXT_TYPE:
            self._list_entries_left -= count
            if self._list_entries_left < 0:
                raise refusals.corrupt(self._path, "its lists are too long")
            self._skip_texts(count)
            return MetadataList("text", count)
        if element_type not in SCALARS:
            raise refusals.corrupt(
                self._path, f"its metadata holds a list of the unknown type {element_type}"
            )
        name, layout = SCALARS[element_type]
        self._skip(count * struct.calcsize(layout))
        return MetadataList(name, count)

    def _skip_texts(self, count: int) -> None:
        """Walk over texts by their lengths, through a window: a vocabulary is half a million small reads
        else.
        """
        window, start_bytes = b"", self.position_bytes
        for _ in range(count):
            at = self.position_bytes - start_bytes
            if at + LENGTH_BYTES > len(window):
                self._file.seek(self.position_bytes)
                window, start_bytes, at = self._file.read(WINDOW_BYTES), self.position_bytes, 0
                if len(window) < LENGTH_BYTES:
                    raise refusals.truncated_header(self._path)
            (length_bytes,) = struct.unpack_from("<Q", window, at)
            self._advance(LENGTH_BYTES + length_bytes)
        self._file.seek(self.position_bytes)

    def _skip(self, skipped_bytes: int) -> None:
        self._advance(skipped_bytes)
        self._file.seek(self.position_bytes)

    def _advance(self, step_bytes: int) -> None:
        position_bytes = self.position_bytes + step_bytes
        if position_bytes > self._limit_bytes:
            if position_bytes > self._size_bytes:
                raise refusals.truncated_header(self._path)
            raise refusals.beyond_limit(
                self._path, what="the header length", value=position_bytes, value_max=GGUF_HEADER_MAX_BYTES
            )
        self.position_bytes = position_bytes

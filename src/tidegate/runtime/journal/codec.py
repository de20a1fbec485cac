"""Events as bytes and back, by their names, and snapshots of the core.

Owns this encoding only: a checksum, because a database notices a torn page but no flipped bit, and then
MessagePack. What an event means is `tidegate.core.events`; an event or a snapshot that is damaged, or that
this version cannot read, is a `Misread`, and the journal's tables are then used without it.
"""

from __future__ import annotations

import typing
import zlib
from typing import Final

import msgspec

from tidegate.core import events as ev
from tidegate.core.arbiter import Arbiter

_CLASSES: Final[dict[str, type[ev.Event]]] = {kind.__name__: kind for kind in typing.get_args(ev.Event)}
_CHECKSUM_BYTES: Final = 4


class Misread(Exception):
    """These bytes are not what this version of the core writes."""


def event_bytes(event: ev.Event) -> bytes:
    """An event without its kind, which `type(event).__name__` names."""
    return _sealed(msgspec.msgpack.encode(event))


def event_of(kind: str, data: bytes) -> ev.Event:
    """The event again. Raises `Misread`."""
    try:
        return msgspec.msgpack.decode(_unsealed(data), type=_CLASSES[kind])
    except (KeyError, TypeError, msgspec.MsgspecError, AssertionError) as error:
        # TypeError: SQLite keeps whatever type a damaged record claims. AssertionError: footprints and
        # executions check their own rules when they are built.
        raise Misread(f"{kind}: {error}") from error


def snapshot_bytes(arbiter: Arbiter) -> bytes:
    """Everything that the core knows."""
    return _sealed(msgspec.msgpack.encode(arbiter.snapshot()))


def arbiter_of(data: bytes) -> Arbiter:
    """A core that goes on from a snapshot. Raises `Misread`."""
    try:
        return Arbiter.restored(msgspec.msgpack.decode(_unsealed(data)))
    except (msgspec.MsgspecError, KeyError, TypeError, ValueError, AttributeError, AssertionError) as error:
        # A snapshot of another version of the core: its classes or their fields have other names.
        raise Misread(f"snapshot: {error}") from error


def _sealed(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(_CHECKSUM_BYTES, "little") + data


def _unsealed(sealed: bytes) -> memoryview:
    data = memoryview(sealed)[_CHECKSUM_BYTES:]
    if zlib.crc32(data).to_bytes(_CHECKSUM_BYTES, "little") != sealed[:_CHECKSUM_BYTES]:
        raise Misread("its checksum is another one")
    return data

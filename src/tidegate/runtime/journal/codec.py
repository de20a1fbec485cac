"""Events as bytes and back, by their names, and snapshots of the core.

Owns this encoding only. What an event means is `tidegate.core.events`; an event or a snapshot that this
version cannot read is a `Misread`, and the journal's tables are then used without it.
"""

from __future__ import annotations

import typing
from typing import Final

import msgspec

from tidegate.core import events as ev
from tidegate.core.arbiter import Arbiter

_CLASSES: Final[dict[str, type[ev.Event]]] = {kind.__name__: kind for kind in typing.get_args(ev.Event)}


class Misread(Exception):
    """These bytes are not what this version of the core writes."""


def event_bytes(event: ev.Event) -> bytes:
    """An event without its kind, which `type(event).__name__` names."""
    return msgspec.msgpack.encode(event)


def event_of(kind: str, data: bytes) -> ev.Event:
    """The event again. Raises `Misread`."""
    try:
        return msgspec.msgpack.decode(data, type=_CLASSES[kind])
    except (KeyError, msgspec.MsgspecError, AssertionError) as error:
        # AssertionError: footprints and executions check their own rules when they are built.
        raise Misread(f"{kind}: {error}") from error


def snapshot_bytes(arbiter: Arbiter) -> bytes:
    """Everything that the core knows."""
    return msgspec.msgpack.encode(arbiter.snapshot())


def arbiter_of(data: bytes) -> Arbiter:
    """A core that goes on from a snapshot. Raises `Misread`."""
    try:
        return Arbiter.restored(msgspec.msgpack.decode(data))
    except (msgspec.MsgspecError, KeyError, TypeError, ValueError, AttributeError, AssertionError) as error:
        # A snapshot of another version of the core: its classes or their fields have other names.
        raise Misread(f"snapshot: {error}") from error

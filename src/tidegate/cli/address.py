"""The address of the running server, left in its state folder for the other commands.

Owns this one small file. It is a hint: a server that was killed leaves it behind, and then nobody answers
there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from tidegate.wire.artifacts import write_atomically

NAME: Final = "address.json"


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """Where a server is. `device` is what its settings say, `engine_name` the device that it computes on."""

    url: str
    pid: int
    device: str = ""
    engine_name: str = ""


@contextlib.contextmanager
def left(state: Path, address: Address) -> Iterator[None]:
    """Leave the address for as long as the server runs."""
    path = state / NAME
    with contextlib.suppress(OSError):  # a full disk: whoever looks for the server must be told where it is
        write_atomically(path, msgspec.json.encode(address))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def found(state: Path) -> Address | None:
    """Where the server of this state folder was last, if there was one."""
    try:
        return msgspec.json.decode((state / NAME).read_bytes(), type=Address)
    except (OSError, msgspec.MsgspecError):  # none was started, or it was cut off while writing
        return None

"""The address of the running server, left in its state folder for the other commands.

Owns this one small file. It is a hint: a server that was killed leaves it behind, and then nobody answers
there.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tidegate.wire.artifacts import write_atomically

NAME: Final = "address.json"


@contextlib.contextmanager
def left(state: Path, url: str) -> Iterator[None]:
    """Leave the address for as long as the server runs."""
    path = state / NAME
    write_atomically(path, json.dumps({"url": url, "pid": os.getpid()}).encode())
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def found(state: Path) -> str:
    """Where the server of this state folder was last, or nothing."""
    try:
        said = json.loads((state / NAME).read_bytes())
    except (OSError, ValueError):  # none was started, or it was cut off while writing
        return ""
    url = said.get("url") if isinstance(said, dict) else None
    return url if isinstance(url, str) else ""

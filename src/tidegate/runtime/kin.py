"""Kin: a process and all that it started.

Owns the walk through /proc. A guest names one process; what holds the card is often a child of it, behind a
shell or a launcher.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

# More are not looked for: whoever starts thousands is looked at every half second.
COUNT_MAX: Final = 256
_PROC: Final = Path("/proc")


def kin(pid: int) -> tuple[int, ...]:
    """The process and its descendants, itself first; itself alone where the kernel does not tell."""
    found = [pid]
    for one in found:
        if len(found) >= COUNT_MAX:
            break
        found += _children(one)
    return tuple(found[:COUNT_MAX])


def _children(pid: int) -> list[int]:
    children: list[int] = []
    for path in (_PROC / str(pid)).glob("task/*/children"):
        try:
            children += [int(word) for word in path.read_text(encoding="ascii").split()]
        except OSError:  # it ended between the listing and this look
            continue
    return children

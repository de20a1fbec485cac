"""RAM: how many bytes of the machine's memory may be used now.

Owns reading the kernel's figures: MemAvailable, and the limits of every control group above us. What is done
with the number is the planner's business.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tidegate.core.planner import Room
from tidegate.core.quantity import MIB

_MEMINFO: Final = Path("/proc/meminfo")
_OWN_GROUP: Final = Path("/proc/self/cgroup")
_GROUPS: Final = Path("/sys/fs/cgroup")
# Left for the parent, the page cache of the model file that is being read, and everybody else. A machine
# that swaps makes an image later than one that tiles.
HEADROOM_BYTES: Final = 256 * MIB


def room(limit_bytes: int = 0, used_bytes: int = 0) -> Room:
    """The planner's view of RAM, within the user's own bound (0: none), of which `used_bytes` are held."""
    total, free = _machine()
    for group_total, group_free in _groups():
        total, free = min(total, group_total), min(free, group_free)
    if not limit_bytes:
        return Room(name="RAM", total_bytes=total, free_bytes=free, headroom_bytes=HEADROOM_BYTES)
    # A bound that the user sets is meant exactly; the headroom guards the machine's own limit.
    left = min(limit_bytes - used_bytes, free - HEADROOM_BYTES)
    return Room(name="RAM", total_bytes=limit_bytes, free_bytes=max(0, left))


def _machine() -> tuple[int, int]:
    figures = {}
    for line in _MEMINFO.read_text(encoding="ascii").splitlines():
        name, _, rest = line.partition(":")
        figures[name] = int(rest.split()[0]) * 1024
    return figures["MemTotal"], figures["MemAvailable"]


def _groups() -> list[tuple[int, int]]:
    """Limit and free bytes of our control group and those around it; empty without version 2 of them."""
    try:
        lines = _OWN_GROUP.read_text(encoding="utf-8").splitlines()
    except OSError:  # a kernel or container without control groups has no limits to obey
        return []
    paths = [line[3:] for line in lines if line.startswith("0::")]
    if not paths:
        return []
    group, found = _GROUPS / paths[0].lstrip("/"), []
    while group.is_relative_to(_GROUPS):
        if figures := _group(group):
            found.append(figures)
        if group == _GROUPS:
            break
        group = group.parent
    return found


def _group(group: Path) -> tuple[int, int] | None:
    try:
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        used_bytes = int((group / "memory.current").read_text(encoding="ascii"))
        figures = (group / "memory.stat").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):  # the root group, or a controller that is not enabled, has no limit
        return None
    if limit == "max":
        return None
    # Page cache that nobody uses counts as used here, although the kernel gives it up when asked.
    caches = {"inactive_file", "active_file"}
    cache_bytes = sum(
        int(value) for name, _, value in (line.partition(" ") for line in figures) if name in caches
    )
    return int(limit), max(0, int(limit) - used_bytes + cache_bytes)

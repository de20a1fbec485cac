"""Host RAM: how much this process may still use.

Owns reading /proc/meminfo and the limits of control groups (both versions); the smaller of machine and
groups wins. It does not reserve anything; the ledger of RAM is the core's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tidegate.core.faults import CapacityError

# Version 1 writes "no limit" as the largest multiple of the page size below 2^63.
_NO_LIMIT: Final = 1 << 62
_DEPTH_MAX: Final = 64


@dataclass(frozen=True, kw_only=True)
class HostMemory:
    """RAM at one moment; `limited_by` is "machine" or the control group whose limit leaves the least."""

    total_bytes: int
    available_bytes: int
    limited_by: str


def read_host_memory(root: Path = Path("/")) -> HostMemory:
    """Read what is available without swapping; `root` is where /proc and /sys are looked for."""
    total_bytes, available_bytes = _machine(root / "proc/meminfo")
    best = HostMemory(total_bytes=total_bytes, available_bytes=available_bytes, limited_by="machine")
    for group in _group_folders(root):
        limit_bytes, left_bytes = _room(group)
        if limit_bytes is None:
            continue
        best = HostMemory(
            total_bytes=min(best.total_bytes, limit_bytes),
            available_bytes=min(best.available_bytes, left_bytes),
            limited_by=f"/{group.relative_to(root)}"
            if left_bytes < best.available_bytes
            else best.limited_by,
        )
    return best


def _machine(meminfo: Path) -> tuple[int, int]:
    words = {}
    for line in meminfo.read_text(encoding="ascii").splitlines():
        name, _, amount = line.partition(":")
        words[name] = int(amount.split()[0]) * 1024
    if "MemAvailable" not in words:
        raise CapacityError(
            "This kernel does not tell how much RAM is available.", remedy="Linux 3.14 or later does."
        )
    return words["MemTotal"], words["MemAvailable"]


def _group_folders(root: Path) -> list[Path]:
    """The groups this process is in and all above them, of both versions, as far as they are mounted."""
    folders = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, controllers, name = line.split(":", 2)
        if number == "0" and not controllers:
            top = root / "sys/fs/cgroup"
        elif "memory" in controllers.split(","):
            top = root / "sys/fs/cgroup/memory"
        else:
            continue
        # A container in a namespace of its own sees "/" or names from outside; what is not there is skipped.
        folder = top / name.lstrip("/")
        for _ in range(_DEPTH_MAX):
            if folder.is_dir():
                folders.append(folder)
            if folder == top or top not in folder.parents:
                break
            folder = folder.parent
    return folders


def _room(group: Path) -> tuple[int | None, int]:
    """The limit of a group and what is left of it; page cache counts as left, for the kernel gives it up when
    asked, also that of a model file which was read twice.
    """
    limit, used = _number(group / "memory.max"), _number(group / "memory.current")
    if limit is None:
        limit, used = _number(group / "memory.limit_in_bytes"), _number(group / "memory.usage_in_bytes")
    if limit is None or used is None or limit >= _NO_LIMIT:
        return None, 0
    fields = dict(line.split(maxsplit=1) for line in _text(group / "memory.stat").splitlines() if " " in line)
    droppable = sum(
        int(fields.get(f"total_{name}", fields.get(name, "0"))) for name in ("inactive_file", "active_file")
    )
    return limit, max(0, limit - max(0, used - droppable))


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdecimal() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:  # a group without this controller has no such file
        return ""

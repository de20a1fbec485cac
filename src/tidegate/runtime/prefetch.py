"""Prefetch: a component's bytes brought into the page cache before they are needed, on a thread of its own.

Owns the advice to the kernel and nothing else: no byte is held by us, and the kernel drops what it needs.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Final

from tidegate.core import effects as ef
from tidegate.core.stage import COMPONENT_OF, Stage
from tidegate.runtime.cards.memory import read_host_memory
from tidegate.runtime.models.extents import Extent
from tidegate.runtime.registry import Registry
from tidegate.runtime.threads import Threads

# Told to the kernel in pieces, so that other readers of the disk get their turn.
PIECE_BYTES: Final = 64 << 20
# What must stay free beside the files; a page cache that pushes out working memory helps nobody.
SPARE_BYTES: Final = 1 << 30
_NEXT: Final = {
    Stage.ENCODE: Stage.DENOISE,
    Stage.ENCODE_IMAGE: Stage.DENOISE,
    Stage.DENOISE: Stage.DECODE,
}


class Prefetch:
    """Reading ahead for one server."""

    def __init__(self, threads: Threads, models: Registry) -> None:
        self._threads = threads
        self._last = ""
        self.models = models

    def after(self, task: ef.RunStage) -> None:
        """While this stage runs, have the next one's component read."""
        entry = self.models.entries.get(task.model)
        following = _NEXT.get(task.stage)
        if entry is None or following is None:
            return
        component = COMPONENT_OF[following]
        name = entry.part(component)
        if name != self._last:  # The same component again is in the page cache already.
            self._last = name
            self._threads.prefetch.submit(advised, entry.extents.get(component, ()))

    def whole(self, files: Iterable[Path]) -> Future[int]:
        """Have all files of a model read; the future holds the bytes that were asked for."""
        return self._threads.prefetch.submit(_advised_whole, tuple(files))


def _advised_whole(paths: Iterable[Path]) -> int:
    extents = []
    for path in paths:
        with contextlib.suppress(OSError):  # the loading that follows says so, with its reason
            extents.append(Extent(path, 0, path.stat().st_size))
    return advised(extents)


def advised(extents: Sequence[Extent]) -> int:
    """Ask the kernel to read these bytes, as far as there is room; return how many were asked for."""
    asked_bytes = 0
    for extent in extents:
        if read_host_memory().available_bytes < extent.size_bytes + SPARE_BYTES:
            continue
        try:
            descriptor = os.open(extent.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            # The loading that follows says so, with its reason.
            continue
        try:
            end_bytes = extent.offset_bytes + extent.size_bytes
            for offset in range(extent.offset_bytes, end_bytes, PIECE_BYTES):
                length = min(PIECE_BYTES, end_bytes - offset)
                os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_WILLNEED)
            asked_bytes += extent.size_bytes
        finally:
            os.close(descriptor)
    return asked_bytes

"""Prefetch: a model's files brought into the page cache before they are asked for, on a thread of its own.

Owns the advice to the kernel and nothing else: no byte is held by us, and the kernel drops what it needs.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Final

from tidegate.core import effects as ef
from tidegate.core.stage import COMPONENT_OF, Component, Stage
from tidegate.runtime.cards.memory import read_host_memory
from tidegate.runtime.registry import Entry, Registry
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
        files = _files_of(entry, COMPONENT_OF[following])
        name = f"{entry.name}/{following}"
        if name != self._last:  # The same component again is in the page cache already.
            self._last = name
            self._threads.prefetch.submit(_advise, files)

    def whole(self, files: Iterable[Path]) -> Future[int]:
        """Have all files of a model read; the future holds the bytes that were asked for."""
        return self._threads.prefetch.submit(_advise, tuple(files))


def _files_of(entry: Entry, component: Component) -> tuple[Path, ...]:
    """The files that may hold a component."""
    names = {
        Component.TEXT_ENCODER: ("clip_l", "clip_g", "t5xxl", "llm", "model"),
        Component.DIFFUSION: ("diffusion_model", "model"),
        Component.VAE: ("taesd", "vae", "model"),
    }[component]
    found = [entry.files[role] for role in names if role in entry.files]
    return tuple(found if component is Component.TEXT_ENCODER else found[:1])


def _advise(paths: Iterable[Path]) -> int:
    asked_bytes = 0
    for path in paths:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            # The loading that follows says so, with its reason.
            continue
        try:
            size_bytes = os.fstat(descriptor).st_size
            if read_host_memory().available_bytes < size_bytes + SPARE_BYTES:
                continue
            for offset in range(0, size_bytes, PIECE_BYTES):
                os.posix_fadvise(descriptor, offset, PIECE_BYTES, os.POSIX_FADV_WILLNEED)
            asked_bytes += size_bytes
        finally:
            os.close(descriptor)
    return asked_bytes

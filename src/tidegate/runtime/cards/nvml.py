"""NVIDIA cards through NVML: what they are and who holds how much of them.

Owns the one use of nvidia-ml-py, which is optional and imported when asked for. WRITTEN BY READING: no real
card has run this yet. NVML opens no compute context, so asking costs no video memory. Other cards: `drm`.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final, Self

from tidegate.core.quantity import MIB
from tidegate.runtime.cards.descriptor import CardDescriptor, CardUse, Sight

# The driver maps device memory in pieces of this size (CUDA virtual memory management, all current cards).
GRANULARITY_BYTES: Final = 2 * MIB

# Bytes per second and lane by PCI Express generation, after line coding.
_LANE_RATES: Final = {1: 250_000_000, 2: 500_000_000, 3: 984_600_000, 4: 1_969_000_000, 5: 3_938_000_000}
_LANE_RATE_LATER: Final = 7_563_000_000


@dataclass(frozen=True)
class NoNvml:
    """There is nothing to ask, and why: a notice for the user, not an error."""

    reason: str


class Nvml:
    """A session with the driver; close it to end it."""

    def __init__(self, library: ModuleType) -> None:
        """Take the imported and initialised library; `open_nvml` is the way here."""
        # The library carries no types: every value of it is checked or converted below.
        self._library: Any = library
        self._sees_processes = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._library.nvmlShutdown()

    def card_count(self) -> int:
        return int(self._library.nvmlDeviceGetCount())

    def descriptor(self, card: int) -> CardDescriptor:
        """What a card is. Its context bytes are unknown (0) until they were measured."""
        handle = self._library.nvmlDeviceGetHandleByIndex(card)
        use = self.use(card)
        return CardDescriptor(
            device=f"cuda:{card}",
            name=_text(self._library.nvmlDeviceGetName(handle)),
            total_bytes=use.total_bytes,
            granularity_bytes=GRANULARITY_BYTES,
            largest_allocation_bytes=0,
            context_bytes=0,
            pool_bytes=0,
            link_bytes_per_second=self._link(handle),
            unified=False,
            sight=Sight.PER_PROCESS if self._sees_processes else Sight.PER_CARD,
        )

    def use(self, card: int) -> CardUse:
        """How full a card is. Free excludes what the driver keeps for itself."""
        handle = self._library.nvmlDeviceGetHandleByIndex(card)
        memory = self._library.nvmlDeviceGetMemoryInfo(handle)
        return CardUse(
            total_bytes=int(memory.total), free_bytes=int(memory.free), process_bytes=self._processes(handle)
        )

    def _processes(self, handle: object) -> dict[int, int]:
        held: dict[int, int] = {}
        try:
            rows = [
                *self._library.nvmlDeviceGetComputeRunningProcesses(handle),
                *self._library.nvmlDeviceGetGraphicsRunningProcesses(handle),
            ]
        except self._library.NVMLError_NotSupported:  # some virtual cards show only their sum
            rows = []
            self._sees_processes = False
        for row in rows:
            # Inside some containers a process is shown without its bytes; then only the sum can be trusted.
            if row.usedGpuMemory is None:
                self._sees_processes = False
                continue
            # A process that computes and draws stands in both lists with the same figure.
            held[int(row.pid)] = max(held.get(int(row.pid), 0), int(row.usedGpuMemory))
        return held if self._sees_processes else {}

    def _link(self, handle: object) -> int:
        try:
            generation = int(self._library.nvmlDeviceGetMaxPcieLinkGeneration(handle))
            lanes = int(self._library.nvmlDeviceGetMaxPcieLinkWidth(handle))
        except self._library.NVMLError:  # cards without PCI Express have no such figure
            return 0
        return lanes * _LANE_RATES.get(generation, _LANE_RATE_LATER)


def open_nvml() -> Nvml | NoNvml:
    """Begin a session, or say why there is none."""
    try:
        library = importlib.import_module("pynvml")
    except ImportError:
        return NoNvml("nvidia-ml-py is not installed")
    try:
        library.nvmlInit()
    except library.NVMLError as error:  # no driver, no card, or no permission
        return NoNvml(f"no NVIDIA driver answers: {error}")
    return Nvml(library)


def _text(value: object) -> str:
    # Older releases of the library return bytes.
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)

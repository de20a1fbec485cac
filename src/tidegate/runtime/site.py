"""Sites: the device that a run computes on, and how full it is.

Owns finding or making the device that the user named, and the two ways to see a card: a virtual one by its
ledger, which this process reads by itself and which knows nothing of what the worker says; a real one through
the worker. A site without a card counts the same buffers in RAM. Names of devices are parsed by
`cards.device`; who may have the bytes is the planner's business.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, assert_never

from tidegate.core.faults import ClientError
from tidegate.core.planner import Room
from tidegate.core.quantity import MIB
from tidegate.runtime.cards.device import AutoDevice, CpuDevice, Device, RealDevice, VirtualDevice
from tidegate.runtime.cards.virtual import Holding, VirtualCard, ledger_folder, preset_notice
from tidegate.runtime.lock import Lock, card_lock
from tidegate.wire import messages

# A driver's pool and workspace grow outside of what the engine asks for. Not measured on a real card yet:
# the figure is what users of these engines leave free on small cards.
REAL_HEADROOM_BYTES: Final = 512 * MIB
BUILD_FOR_CARD: Final = "CMAKE_ARGS=-DSD_CUDA=ON make setup"
NO_CARD: Final = (
    "There is no card that the engine can use, so everything runs on the CPU, which takes longer. "
    f"For a card, build the engines for it, such as: {BUILD_FOR_CARD}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What a worker says of itself and of its device; `bytes` words are 0 where it was not asked."""

    pid: int
    card_bytes: int = 0
    card_peak_bytes: int = 0
    free_bytes: int = 0
    total_bytes: int = 0


class CardSight(Protocol):
    """How a card's memory is seen."""

    def room(self, said: Said) -> Room:
        """What is free now, and how much of it must stay free."""

    def begin_stage(self) -> None:
        """Start new high-water marks."""

    def held_bytes(self, said: Said) -> int:
        """What the worker holds now."""

    def peak_bytes(self, said: Said) -> int:
        """The most that the worker held since `begin_stage`."""

    def used_bytes(self, said: Said) -> int:
        """What is in use on the card, by whomever, for showing."""

    def data(self) -> dict[str, object]:
        """The card for the report."""

    def close(self) -> None:
        """Let go of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where a run computes. `ledger_path` is what each new worker must attach; `card` is None without one.

    A card in the machine has one authority: while a run computes on it, `lock` keeps servers away.
    """

    engine_name: str
    card: CardSight | None = None
    ledger_path: str = ""
    notice: str = ""
    lock: Lock | None = None

    def close(self) -> None:
        """Let go of the card."""
        if self.card is not None:
            self.card.close()
        if self.lock is not None:
            self.lock.release()


class LedgerSight:
    """A virtual card, read in its ledger."""

    def __init__(self, card: VirtualCard, *, is_ours: bool) -> None:
        self._card = card
        self._is_ours = is_ours
        self._peak_bytes = 0

    def room(self, said: Said) -> Room:
        reading, descriptor = self._card.read().cards[0], self._card.descriptor()
        holding = self._holding(said.pid)
        # Both are charged by the driver and foreseen by no dry run: the context at a process's first stream,
        # a pool when a component computes for the first time. A pool that is refused aborts the worker.
        has_context = holding is not None and holding.context_bytes > 0
        headroom_bytes = descriptor.pool_bytes + (0 if has_context else descriptor.context_bytes)
        return Room(
            name=reading.name,
            total_bytes=reading.capacity_bytes,
            free_bytes=reading.free_bytes,
            headroom_bytes=headroom_bytes,
            allocation_max_bytes=descriptor.largest_allocation_bytes,
        )

    def begin_stage(self) -> None:
        self._peak_bytes = max(self._peak_bytes, self._card.read().cards[0].peak_bytes)
        self._card.reset_peaks()

    def held_bytes(self, said: Said) -> int:
        holding = self._holding(said.pid)
        return holding.buffers_bytes if holding else 0

    def peak_bytes(self, said: Said) -> int:
        holding = self._holding(said.pid)
        return holding.buffers_peak_bytes if holding else 0

    def used_bytes(self, said: Said) -> int:
        return max(said.card_bytes, self._card.read().cards[0].used_bytes)

    def data(self) -> dict[str, object]:
        card = self._card.read().cards[0]
        peak_bytes = max(self._peak_bytes, card.peak_bytes)
        return {"name": card.name, "capacity_bytes": card.capacity_bytes, "peak_bytes": peak_bytes}

    def close(self) -> None:
        if self._is_ours:
            self._card.remove()

    def _holding(self, pid: int) -> Holding | None:
        row = self._card.read().row_of(pid)
        return row.holdings[0] if row else None


class WorkerSight:
    """A card in the machine, seen through the worker."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._total_bytes = 0
        self._peak_bytes = 0

    def room(self, said: Said) -> Room:
        self._total_bytes = said.total_bytes
        return Room(
            name=self._name,
            total_bytes=said.total_bytes,
            free_bytes=said.free_bytes,
            headroom_bytes=REAL_HEADROOM_BYTES,
        )

    def begin_stage(self) -> None:
        """The worker's own marks are started by the command that measures."""

    def held_bytes(self, said: Said) -> int:
        return said.card_bytes

    def peak_bytes(self, said: Said) -> int:
        self._peak_bytes = max(self._peak_bytes, said.card_peak_bytes)
        return said.card_peak_bytes

    def used_bytes(self, said: Said) -> int:
        return said.card_bytes

    def data(self) -> dict[str, object]:
        return {"name": self._name, "capacity_bytes": self._total_bytes, "peak_bytes": self._peak_bytes}

    def close(self) -> None:
        """The driver looks after it."""


Survey = Callable[[str], messages.Surveyed]


def site_for(device: Device, survey: Survey) -> Site:
    """Find or make the device that the user named; `survey` asks the engine, given a ledger to attach or "".

    Raises ClientError when the engine does not see the device, or another process has it.
    """
    match device:
        case CpuDevice():
            return Site(engine_name=device.engine_name)
        case VirtualDevice():
            return _virtual(device, survey)
        case RealDevice():
            names = _cards(survey(""))
            if device.engine_name not in names:
                raise unseen_card(device, names)
            return _real(device.engine_name)
        case AutoDevice():
            names = _cards(survey(""))
            if not names:
                return Site(engine_name=CpuDevice.engine_name, notice=NO_CARD)
            return _real(names[0])
        case _:
            assert_never(device)


def _real(engine_name: str) -> Site:
    lock = None
    with contextlib.suppress(OSError):  # where no lock can be kept, nobody else can have one either
        lock = card_lock(engine_name)
    return Site(engine_name=engine_name, card=WorkerSight(engine_name), lock=lock)


def site_on(card: VirtualCard, *, is_ours: bool = False, notice: str = "") -> Site:
    """A site on a virtual card that exists already."""
    return Site(
        engine_name=VirtualDevice.engine_name,
        card=LedgerSight(card, is_ours=is_ours),
        ledger_path=str(card.path),
        notice=notice,
    )


def _virtual(device: VirtualDevice, survey: Survey) -> Site:
    card = VirtualCard.create_in(ledger_folder(), device.spec)
    try:
        names = _cards(survey(str(card.path)))
        if device.engine_name not in names:
            raise unseen_card(device, names)
    except BaseException:
        card.remove()
        raise
    told = preset_notice(device.spec.preset)
    return site_on(card, is_ours=True, notice=f"{told[:1].upper()}{told[1:]}." if told else "")


def _cards(surveyed: messages.Surveyed) -> list[str]:
    return [device.name for device in surveyed.devices if device.type == "gpu"]


def unseen_card(device: Device, names: Sequence[str]) -> ClientError:
    """The engine does not list this card: it was built for others, or there is none."""
    known = f"It sees {', '.join(names)}." if names else "It sees no card at all."
    return ClientError(
        f"The engine does not see {device}.",
        remedy=f"{known} Use --device cpu, or build the engines for this card, such as: {BUILD_FOR_CARD}",
        code="no_such_device",
    )

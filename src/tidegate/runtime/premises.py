"""The premises: the card that a server computes on, or none, and how to see how full it is.

Owns finding or making the device that the settings name, its lock, and the words in which the core is told
about it. A virtual card's ledger lies in the state folder, so that a server that was killed finds its card
again. Reading cards is the business of `cards`, when to read that of `telemetry`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from tidegate.core import house
from tidegate.core.faults import ClientError
from tidegate.core.quantity import MIB
from tidegate.core.stage import Component
from tidegate.runtime.cards import drm, nvml
from tidegate.runtime.cards.descriptor import CardDescriptor, CardUse, Sight
from tidegate.runtime.cards.device import CardApi, CpuDevice, Device, RealDevice, VirtualDevice, parse_device
from tidegate.runtime.cards.memory import read_host_memory
from tidegate.runtime.cards.virtual import VirtualCard, VirtualSpec, preset_notice
from tidegate.runtime.lock import Holder, Lock, card_lock, holder_of
from tidegate.runtime.settings import CardSettings, RamSettings
from tidegate.runtime.site import NO_CARD, REAL_HEADROOM_BYTES, unseen_card
from tidegate.wire.messages import DeviceFacts

SeeCard = Callable[[], CardUse]
STATE_LOCK: Final = "server.lock"
# A GPU of which nothing is known gets as much as drivers were seen to keep for a process.
LINK_MIB_PER_S: Final = 4_000


def _unseen() -> CardUse:
    return CardUse(total_bytes=0, free_bytes=0, process_bytes={})


@dataclass(slots=True, kw_only=True)
class Premises:
    """Where the server computes. `card` is None without one; `device_class` names what predictions hold
    for.
    """

    engine_name: str
    device_class: str
    description: str
    ledger_path: str = ""
    card: house.CardDescriptor | None = None
    see: SeeCard = _unseen
    notice: str = ""
    is_virtual: bool = False
    closing: contextlib.ExitStack

    def close(self) -> None:
        """Let go of the card and its lock."""
        self.closing.close()


def ledger_for(device: Device, state: Path) -> VirtualCard | None:
    """The virtual card that the settings name: the one of this state folder, made when it is not there."""
    if not isinstance(device, VirtualDevice):
        return None
    path = state / f"card-{device.spec.text()}.vcard"
    with contextlib.suppress(ClientError, OSError):  # a ledger that cannot be read is made anew
        if path.exists():
            return VirtualCard(path)
    path.unlink(missing_ok=True)
    return VirtualCard.create(path, device.spec)


def premises_for(
    settings: CardSettings, *, virtual: VirtualCard | None, seen: Sequence[DeviceFacts], state: Path
) -> Premises:
    """Settle on a device; `seen` is what the engine lists. Raises ClientError. Blocks."""
    device = parse_device(settings.device)
    gpus = {facts.name: facts for facts in seen if facts.type == "gpu"}
    closing = contextlib.ExitStack()
    if virtual is not None and isinstance(device, VirtualDevice):
        closing.callback(virtual.close)
        return _virtual(virtual, device.spec, settings, closing)
    if isinstance(device, RealDevice) and device.engine_name not in gpus:
        raise unseen_card(device, list(gpus))
    if isinstance(device, CpuDevice) or not gpus:
        told = "" if isinstance(device, CpuDevice) else NO_CARD
        cpu = CpuDevice.engine_name
        return Premises(
            engine_name=cpu, device_class=cpu, description="no card", notice=told, closing=closing
        )
    name = device.engine_name if isinstance(device, RealDevice) else next(iter(gpus))
    lock = card_lock(name, state=state)
    closing.callback(lock.release)
    return _real(gpus[name], settings, closing)


def _virtual(
    card: VirtualCard, spec: VirtualSpec, settings: CardSettings, closing: contextlib.ExitStack
) -> Premises:
    told = preset_notice(spec.preset)
    found = card.descriptor()
    return Premises(
        engine_name=found.device,
        device_class=f"virtual/{spec.preset.value}/{found.granularity_bytes}",
        description=found.name,
        ledger_path=str(card.path),
        card=replace(_as_core(found, headroom_bytes=settings.headroom_bytes or 0), is_slow=True),
        see=card.use,
        notice=f"{told[:1].upper()}{told[1:]}." if told else "",
        is_virtual=True,
        closing=closing,
    )


def _real(facts: DeviceFacts, settings: CardSettings, closing: contextlib.ExitStack) -> Premises:
    headroom_bytes = REAL_HEADROOM_BYTES if settings.headroom_bytes is None else settings.headroom_bytes
    for found, see in _readers(facts, closing):
        return Premises(
            engine_name=facts.name,
            device_class=f"{facts.name}/{facts.description}",
            description=found.name,
            card=_as_core(found, headroom_bytes=headroom_bytes),
            see=see,
            closing=closing,
        )
    blind = house.CardDescriptor(
        name=facts.name,
        total_bytes=facts.total_bytes,
        sight=house.Sight.OWN_LEDGER,
        headroom_bytes=headroom_bytes,
    )
    return Premises(
        engine_name=facts.name,
        device_class=f"{facts.name}/{facts.description}",
        description=facts.description,
        card=blind,
        see=lambda: CardUse(total_bytes=facts.total_bytes, free_bytes=facts.total_bytes, process_bytes={}),
        notice=f"Nothing tells how full {facts.name} is, so only our own use is known.",
        closing=closing,
    )


def _readers(facts: DeviceFacts, closing: contextlib.ExitStack) -> Iterator[tuple[CardDescriptor, SeeCard]]:
    """Ways to see this card, best first. WRITTEN BY READING: no real card has run this yet."""
    index = int("".join(letter for letter in facts.name if letter.isdigit()) or "0")
    opened = nvml.open_nvml()
    if isinstance(opened, nvml.Nvml):
        closing.callback(opened.close)
        if facts.name.startswith(CardApi.CUDA.value) and index < opened.card_count():
            opened.use(index)  # The first look tells whether single processes are seen.
            yield replace(opened.descriptor(index), device=facts.name), lambda: opened.use(index)
    cards = drm.find_cards()
    if index < len(cards) and not facts.name.startswith(CardApi.CUDA.value):
        card = cards[index]
        yield drm.describe(card, device=facts.name), lambda: drm.read_use(card)


_SIGHTS: Final = {
    Sight.PER_PROCESS: house.Sight.PER_PROCESS,
    Sight.PER_CARD: house.Sight.PER_CARD,
    Sight.OWN_LEDGER: house.Sight.OWN_LEDGER,
}


def _as_core(found: CardDescriptor, *, headroom_bytes: int) -> house.CardDescriptor:
    return house.CardDescriptor(
        name=found.device,
        total_bytes=found.total_bytes,
        sight=_SIGHTS[found.sight],
        context_bytes=found.context_bytes,
        # A driver charges a pool to every component that computes, and nobody's dry run foresees it.
        headroom_bytes=headroom_bytes + len(Component) * found.pool_bytes,
        allocation_max_bytes=found.largest_allocation_bytes,
        link_mib_per_s=found.link_bytes_per_second // MIB or LINK_MIB_PER_S,
        unified=found.unified,
    )


def ram_for(settings: RamSettings) -> house.CardDescriptor:
    """Host memory as the core knows it."""
    total_bytes = read_host_memory().total_bytes
    if settings.limit_bytes:
        total_bytes = min(total_bytes, settings.limit_bytes)
    return house.CardDescriptor(
        name=house.RAM, total_bytes=total_bytes, headroom_bytes=settings.headroom_bytes
    )


def state_lock(state: Path) -> Lock:
    """The lock of a state folder. Raises ClientError and OSError."""
    return Lock.take(state / STATE_LOCK, what=f"The state folder {state}", state=state)


def server_of(state: Path) -> Holder | None:
    """The server that runs on a state folder, if one does."""
    return holder_of(state / STATE_LOCK)

"""AMD and Intel cards through the kernel's files: sysfs for sizes, fdinfo for processes.

Owns reading /sys/class/drm and /proc/*/fdinfo. WRITTEN BY READING the kernel's documentation: no real card
has run this yet. amdgpu tells total and used; xe tells the size of each tile, and use only as the sum over
processes one may look at; i915 tells neither in a stable place and is passed over. NVIDIA cards: `nvml`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tidegate.runtime.cards.descriptor import CardDescriptor, CardUse, Sight

# Both drivers map video memory by pages; larger ones are an optimisation that does not change the sum.
GRANULARITY_BYTES: Final = 4096

_AMD: Final = "0x1002"
_INTEL: Final = "0x8086"
_CARD: Final = re.compile(r"card\d+")
# amdgpu: drm-memory-vram (older) and drm-resident-vram; xe: drm-resident-vram0 and on for each tile.
_HELD: Final = re.compile(r"drm-(?:memory|resident)-vram(\d*)")
_UNITS: Final = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


@dataclass(frozen=True, kw_only=True)
class DrmCard:
    """A card the kernel shows. `used_known` says whether it tells the use of the whole card."""

    folder: Path
    pci_address: str
    vendor: str
    total_bytes: int
    used_known: bool


def find_cards(root: Path = Path("/")) -> list[DrmCard]:
    """The AMD and Intel cards with video memory of their own, in the kernel's order."""
    folder = root / "sys/class/drm"
    if not folder.is_dir():
        return []
    names = sorted((path for path in folder.iterdir() if _CARD.fullmatch(path.name)), key=_card_number)
    return [card for card in (_card(path / "device") for path in names) if card is not None]


def describe(card: DrmCard, *, device: str) -> CardDescriptor:
    """What a card is; its context bytes and link speed are unknown (0) until they were measured."""
    return CardDescriptor(
        device=device,
        name=f"{'AMD' if card.vendor == _AMD else 'Intel'} card at {card.pci_address}",
        total_bytes=card.total_bytes,
        granularity_bytes=GRANULARITY_BYTES,
        largest_allocation_bytes=0,
        context_bytes=0,
        pool_bytes=0,
        link_bytes_per_second=0,
        unified=False,
        sight=Sight.PER_CARD if card.used_known else Sight.OWN_LEDGER,
    )


def read_use(card: DrmCard, *, root: Path = Path("/")) -> CardUse:
    """How full a card is; where the driver tells no sum, what visible processes hold is taken for it."""
    held = _held_by_processes(card.pci_address, root / "proc")
    used_bytes = _number(card.folder / "mem_info_vram_used") if card.used_known else sum(held.values())
    return CardUse(
        total_bytes=card.total_bytes,
        free_bytes=max(0, card.total_bytes - (used_bytes or 0)),
        process_bytes=held,
    )


def _card(device: Path) -> DrmCard | None:
    vendor = _text(device / "vendor").strip()
    if vendor == _AMD:
        total_bytes = _number(device / "mem_info_vram_total") or 0
    elif vendor == _INTEL:
        total_bytes = sum(_number(path) or 0 for path in device.glob("tile*/physical_vram_size_bytes"))
    else:
        return None
    if not total_bytes:
        return None
    return DrmCard(
        folder=device,
        pci_address=device.resolve().name,
        vendor=vendor,
        total_bytes=total_bytes,
        used_known=_number(device / "mem_info_vram_used") is not None,
    )


def _held_by_processes(pci_address: str, proc: Path) -> dict[int, int]:
    held: dict[int, int] = {}
    for process in proc.iterdir():
        if not process.name.isdecimal():
            continue
        # One client may be open under several descriptors, and is counted once.
        clients: dict[str, int] = {}
        for path in _entries(process / "fdinfo"):
            fields = _fields(_text(path))
            if fields.get("drm-pdev") == pci_address:
                clients[fields.get("drm-client-id", path.name)] = _client_bytes(fields)
        if clients:
            held[int(process.name)] = sum(clients.values())
    return held


def _client_bytes(fields: dict[str, str]) -> int:
    regions: dict[str, int] = {}
    for name, value in fields.items():
        region = _HELD.fullmatch(name)
        if region is not None:
            number, _, unit = value.partition(" ")
            regions[region[1]] = max(regions.get(region[1], 0), int(number) * _UNITS[unit.strip()])
    return sum(regions.values())


def _fields(text: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in text.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:  # processes end while one looks, and those of others may not be looked at
        return []


def _card_number(path: Path) -> int:
    return int(path.name.removeprefix("card"))


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdecimal() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:  # other drivers have no such file, and a process may be gone
        return ""

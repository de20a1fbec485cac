"""Devices as users name them: auto, cpu, cuda:0, vulkan:0, rocm:0, virtual:3GiB.

Owns the names and their typed form. Whether such a device exists is asked of the engine, later and elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from tidegate.core.faults import ClientError
from tidegate.runtime.cards.virtual import VirtualSpec, parse_virtual

INDEX_MAX: Final = 63
_FORMS: Final = "Write auto, cpu, cuda:0, vulkan:0, rocm:0 or virtual:3GiB."


class CardApi(Enum):
    """How a real card is driven; the value is the engine's prefix of its device names."""

    CUDA = "CUDA"
    VULKAN = "Vulkan"
    ROCM = "ROCm"


@dataclass(frozen=True)
class AutoDevice:
    """The first real card, else the CPU; never a virtual card."""

    def __str__(self) -> str:
        return "auto"


@dataclass(frozen=True)
class CpuDevice:
    """No card: everything in RAM."""

    engine_name = "CPU"

    def __str__(self) -> str:
        return "cpu"


@dataclass(frozen=True)
class RealDevice:
    """A card in the machine."""

    api: CardApi
    index: int

    @property
    def engine_name(self) -> str:
        """The name the engine gives it: CUDA0, Vulkan1."""
        return f"{self.api.value}{self.index}"

    def __str__(self) -> str:
        return f"{self.api.name.lower()}:{self.index}"


@dataclass(frozen=True)
class VirtualDevice:
    """A virtual card; its ledger is made when it is used, and the engine calls its first card VCARD0."""

    spec: VirtualSpec
    engine_name = "VCARD0"

    def __str__(self) -> str:
        return f"virtual:{self.spec.text()}"


Device = AutoDevice | CpuDevice | RealDevice | VirtualDevice


def parse_device(text: str) -> Device:
    """Read a device name; anything else is a ClientError that names the forms there are."""
    kind, colon, rest = text.strip().partition(":")
    match kind.lower():
        case "auto" if not colon:
            return AutoDevice()
        case "cpu" if not colon:
            return CpuDevice()
        case "virtual":
            if not rest:
                raise ClientError(
                    "A virtual card needs a size.",
                    remedy="Write for example virtual:3GiB.",
                    code="bad_device",
                )
            return VirtualDevice(parse_virtual(rest))
        case "cuda" | "vulkan" | "rocm":
            return RealDevice(CardApi[kind.upper()], _index(text, rest if colon else "0"))
        case _:
            raise ClientError(f"There is no device {text!r}.", remedy=_FORMS, code="bad_device")


def _index(text: str, digits: str) -> int:
    if not (digits.isascii() and digits.isdecimal()) or int(digits) > INDEX_MAX:
        raise ClientError(
            f"The device {text!r} names no card by its number.",
            remedy=f"Numbers go from 0 to {INDEX_MAX}, as in cuda:0.",
            code="bad_device",
        )
    return int(digits)

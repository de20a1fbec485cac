"""Sizes as people type them: "3GiB", "512m", "1.5 GB" and back, exactly.

Owns parsing and the exact literal. Rounded wording for people is `tidegate.core.quantity`.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Final

from tidegate.core.faults import ClientError

# A bare k, m, g or t means the binary unit, as cards are sold and measured; "GB" is the decimal one.
UNITS: Final = {
    "": 1,
    "b": 1,
    **{letter: 1 << (10 * power) for power, letter in enumerate("kmgt", start=1)},
    **{f"{letter}ib": 1 << (10 * power) for power, letter in enumerate("kmgt", start=1)},
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgt", start=1)},
}
SIZE_MAX: Final = 1 << 50
_SHAPE: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*")


def parse_size(text: str, *, what: str = "size") -> int:
    """Read a positive amount such as "3GiB", "512m" or "1.5 GB"; it must be a whole number of bytes."""
    shape = _SHAPE.fullmatch(text)
    if shape is None or shape[2].lower() not in UNITS:
        raise ClientError(
            f"{text!r} is no {what}.",
            remedy="Write a number and a unit, such as 3GiB or 512MiB.",
            code="bad_size",
        )
    amount = Fraction(shape[1]) * UNITS[shape[2].lower()]
    if amount.denominator != 1 or not 0 < amount <= SIZE_MAX:
        raise ClientError(
            f"The {what} {text!r} is not a whole number of bytes between 1 B and 1 PiB.",
            remedy="Write a number and a unit, such as 3GiB or 512MiB.",
            code="bad_size",
        )
    return int(amount)


def size_literal(amount_bytes: int) -> str:
    """Write an amount so that `parse_size` reads the same bytes: "3GiB", "1536MiB", "1000B"."""
    for unit, factor in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if amount_bytes and amount_bytes % factor == 0:
            return f"{amount_bytes // factor}{unit}"
    return f"{amount_bytes}B"

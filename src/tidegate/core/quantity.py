"""Quantities: bytes and milliseconds as integers in the core, and as words for people.

Owns the units and their wording. It keeps no amounts; those live in the ledger.
"""

from __future__ import annotations

from typing import Final

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30


def size_text(amount_bytes: int) -> str:
    """Word an amount: '512 B', '38 MiB', '1.60 GiB'. Rounded for reading; the data keeps every byte."""
    if amount_bytes < 0:
        return f"-{size_text(-amount_bytes)}"
    if amount_bytes >= GIB:
        return f"{amount_bytes / GIB:.2f} GiB"
    if amount_bytes >= MIB:
        return f"{amount_bytes / MIB:.0f} MiB"
    if amount_bytes >= KIB:
        return f"{amount_bytes / KIB:.0f} KiB"
    return f"{amount_bytes} B"


def time_text(duration_ms: int) -> str:
    """Word a duration: '40 ms', '2.5 s', '3 min 20 s'."""
    if duration_ms < 1_000:
        return f"{duration_ms} ms"
    if duration_ms < 60_000:
        return f"{duration_ms / 1000:.1f} s"
    minutes, rest_ms = divmod(duration_ms, 60_000)
    return f"{minutes} min {rest_ms // 1000} s"

"""Writes a benchmark's result as a Markdown page beside it: what, where, when, then the table.

Owns the page's form. Does not own what is measured: that is each folder's run.py.
"""

from __future__ import annotations

import datetime
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path

# One pass is about 50 ms on a desktop of 2024; the number is only ever compared with itself.
CALIBRATION_ROUNDS = 1_000_000


def calibration_ms() -> float:
    """Milliseconds of a fixed loop: printed beside every table, to compare machines."""
    began = time.perf_counter()
    total = 0
    for number in range(CALIBRATION_ROUNDS):
        total += number & 7
    assert total > 0
    return (time.perf_counter() - began) * 1000


def machine() -> str:
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    cores = os.cpu_count()
    return (
        f"{platform.machine()}, {cores} cores, Python {platform.python_version()}, load {load}, no GPU used"
    )


def written_on() -> str:
    """The day, for the head of a page."""
    return datetime.datetime.now(tz=datetime.UTC).date().isoformat()


def write_page(
    path: Path, title: str, *, text: str, head: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    """Replaces the page at `path`; `text` says in words what the rows show."""
    lines = [
        f"# {title}",
        "",
        f"{written_on()}; {machine()}; calibration loop {calibration_ms():.0f} ms",
        "",
        text,
        "",
    ]
    lines += [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines), file=sys.stdout, flush=True)

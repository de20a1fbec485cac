"""Doubles: image workers that misbehave on order, and what they have left to do.

Owns how a test employs one, and the counter file by which all incarnations of it share a number of misdeeds:
when it is used up, the worker is the real one and nothing else. The misdeeds themselves are in `spoiling` and
`nonsense`, which a process of an image worker takes up at its start (`luck/sitecustomize`).
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

TREE = Path(__file__).resolve().parent.parent.parent
# What to do and how often: a file that holds `WORD COUNT`.
ORDERS_VARIABLE = "TIDEGATE_TEST_ORDERS"
# A file that the server must leave where it is, whatever it is told about it.
BAIT_VARIABLE = "TIDEGATE_TEST_BAIT"
DOUBLE_VARIABLE = "TIDEGATE_TEST_DOUBLE"


def take_one(*beginnings: str) -> str:
    """The word of the orders if one is left and begins in one of these ways, and one less from now on."""
    with Path(os.environ[ORDERS_VARIABLE]).open("r+", encoding="utf-8") as orders:
        fcntl.flock(orders, fcntl.LOCK_EX)
        word, count = orders.read().split()
        if not int(count) or not word.startswith(beginnings):
            return ""
        orders.seek(0)
        orders.truncate()
        orders.write(f"{word} {int(count) - 1}")
        return word


def left() -> int:
    """How many misdeeds are left."""
    return int(Path(os.environ[ORDERS_VARIABLE]).read_text(encoding="utf-8").split()[1])


def employ(module: str, folder: Path, patch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
    """Let servers of this process have this worker; the function returned gives it orders."""
    path = folder / "orders"
    patch.setenv(DOUBLE_VARIABLE, module)
    patch.setenv(ORDERS_VARIABLE, str(path))
    patch.setenv(BAIT_VARIABLE, str(folder / "bait"))
    (folder / "bait").write_text("not yours", encoding="utf-8")
    found = [str(TREE / "tests" / "chaos" / "luck"), str(TREE), os.environ.get("PYTHONPATH", "")]
    patch.setenv("PYTHONPATH", os.pathsep.join(part for part in found if part))

    def order(word: str, count: int) -> None:
        path.write_text(f"{word} {count}", encoding="utf-8")

    order("nothing", 0)
    return order

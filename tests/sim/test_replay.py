"""Saved event logs go through a fresh arbiter without a broken invariant, and twice with the same effects."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.sim.record import LOGS, load

from tidegate.core.arbiter import Arbiter
from tidegate.core.effects import Effect
from tidegate.core.invariants import check


def _replayed(path: Path) -> list[Effect]:
    house, events = load(path)
    arbiter = Arbiter(house)
    effects: list[Effect] = []
    for event in events:
        effects += arbiter.handle(event)
        check(arbiter.state)
    return effects


@pytest.mark.parametrize("path", sorted(LOGS.glob("*.json")), ids=lambda path: path.stem)
def test_a_saved_log_replays(path: Path) -> None:
    effects = _replayed(path)
    assert effects
    assert _replayed(path) == effects

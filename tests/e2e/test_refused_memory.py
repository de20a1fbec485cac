"""Every single allocation may be refused, and an image comes out every time."""

from __future__ import annotations

from pathlib import Path

import pytest

from relay_runs import Recorder, card_of, placements, run_on
from tidegate.core.quantity import GIB
from tidegate.runtime.order import ImageOrder


def allocations_of(order: ImageOrder, folder: Path) -> tuple[int, str]:
    """How many allocations an undisturbed image takes, and the image."""
    with card_of(2 * GIB, folder) as card:
        report = run_on(card, order)
        return card.read().allocation_count, report.images[0].pixels_sha256


def check_refusal(index: int, order: ImageOrder, folder: Path) -> tuple[int, str]:
    """Refuse one allocation; returns how many were refused, and the image."""
    with card_of(2 * GIB, folder) as card:
        card.plant_fault(index)
        listener = Recorder()
        report = run_on(card, order, listener)
        reading = card.read()
    print(f"allocation {index:3d} refused: {placements(report)}")
    assert reading.cards[0].used_bytes == 0, "every byte came back"
    assert any("tried again" in text for text in listener.notices)
    return reading.fired_count, report.images[0].pixels_sha256


@pytest.mark.slow
def test_the_first_the_middle_and_the_last_allocation_are_refused(order: ImageOrder, tmp_path: Path) -> None:
    count, pixels = allocations_of(order, tmp_path)
    found = [check_refusal(index, order, tmp_path) for index in (1, (count + 1) // 2, count)]
    assert found == [(1, pixels)] * 3


@pytest.mark.chaos
def test_every_allocation_is_refused_once(order: ImageOrder, tmp_path: Path) -> None:
    count, pixels = allocations_of(order, tmp_path)
    found = [check_refusal(index, order, tmp_path) for index in range(1, count + 1)]
    print(f"allocations found {count}, faults fired {sum(fired for fired, _ in found)}")
    assert found == [(1, pixels)] * count

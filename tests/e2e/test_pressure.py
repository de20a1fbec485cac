"""A smaller card makes a slower image, never another one and never none.

Capacities from far too small for the diffusion weights up to where everything fits. The card's ledger is read
by this process, the engine runs in another: what is compared is not what the worker says of itself.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from relay_runs import card_of, placements, run_on
from tidegate.core.quantity import MIB
from tidegate.core.stage import Placement
from tidegate.runtime.order import ImageOrder

# The weights: text encoder 235 MiB, diffusion 618 MiB, TAESD 2.4 MiB.
CAPACITIES = tuple(
    size * MIB for size in (1, 4, 64, 128, 192, 240, 288, 320, 384, 448, 512, 576, 640, 768, 860, 960)
)
SAMPLE = tuple(CAPACITIES[index] for index in (0, 4, 10, 13))


def check_ladder(order: ImageOrder, folder: Path, capacities: tuple[int, ...]) -> set[str]:
    """Make the image on a card of each capacity; returns the placements that occurred."""
    seen, hashes = set(), set()
    for capacity_bytes in capacities:
        with card_of(capacity_bytes, folder) as card:
            report = run_on(card, order)
            reading = card.read()
        print(f"{capacity_bytes // MIB:5d} MiB  peak {reading.cards[0].peak_bytes:10d}  {placements(report)}")
        assert report.card is not None and report.card["peak_bytes"] <= capacity_bytes
        assert reading.cards[0].peak_bytes <= capacity_bytes
        assert reading.cards[0].refused_count == 0, "no plan ever asked for more than there was"
        assert reading.cards[0].used_bytes == 0, "every byte came back"
        for record in report.stages:
            seen.add(f"{record.stage}:{record.execution.placement}")
            if record.execution.placement is Placement.STREAM:
                assert record.observed_peak_bytes <= record.predicted_bytes, record
            else:
                assert record.observed_peak_bytes == record.predicted_bytes, record
        hashes.add(report.images[0].pixels_sha256)
        with Image.open(order.outputs[0]) as picture:
            assert picture.size == (64, 64)
    assert len(hashes) == 1, "the placement changes no pixel here, because all of them compute on the CPU"
    return seen


@pytest.mark.slow
def test_an_image_on_cards_of_four_sizes(order: ImageOrder, tmp_path: Path) -> None:
    seen = check_ladder(order, tmp_path, SAMPLE)
    assert {"denoise:cpu", "denoise:stream", "denoise:card"} <= seen


@pytest.mark.chaos
def test_an_image_on_cards_of_sixteen_sizes(order: ImageOrder, tmp_path: Path) -> None:
    seen = check_ladder(order, tmp_path, CAPACITIES)
    rungs = "encode:cpu encode:card denoise:cpu denoise:stream denoise:card decode:cpu decode:card"
    assert seen == set(rungs.split())

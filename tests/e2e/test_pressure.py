"""A smaller card makes a slower image, never another one and never none.

Capacities from far too small for the diffusion weights up to where everything fits. The card's ledger is read
by this process, the engine runs in another: what is compared is not what the worker says of itself.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from relay_runs import card_of, order_for, placements, run_on
from tidegate.core.quantity import MIB
from tidegate.core.stage import Placement
from tidegate.runtime.order import ImageOrder
from tidegate.wire.messages import ImageRequest

# The weights: text encoder 235 MiB, diffusion 618 MiB, TAESD 2.4 MiB.
CAPACITIES = tuple(
    size * MIB for size in (1, 4, 64, 128, 192, 240, 288, 320, 384, 448, 512, 576, 640, 768, 860, 960)
)
SAMPLE = tuple(CAPACITIES[index] for index in (0, 4, 10, 13))


# SD 1.5 with its full VAE at 256 pixels: diffusion 1640 MiB, decode 94 MiB and 176 more in one piece.
FULL_CAPACITIES = tuple(
    size * MIB for size in (1, 64, 130, 144, 170, 200, 230, 260, 300, 400, 512, 768, 1024, 1400, 1700, 2048)
)


def check_ladder(order: ImageOrder, folder: Path, capacities: tuple[int, ...]) -> set[str]:
    """Make the image on a card of each capacity; returns the rungs that occurred."""
    seen: set[str] = set()
    hashes: dict[int, set[str]] = {}
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
            tile = record.execution.tile
            seen.add(f"{record.stage}:{record.execution.placement}" + (f"/{tile}" if tile else ""))
            if record.execution.placement is Placement.STREAM:
                assert record.observed_peak_bytes <= record.predicted_bytes, record
            else:
                assert record.observed_peak_bytes == record.predicted_bytes, record
        with Image.open(order.outputs[0]) as picture:
            assert picture.size == (order.request.width, order.request.height)
        # All placements compute on the CPU here, so only tiles, with their seams, change pixels.
        hashes.setdefault(report.stages[-1].execution.tile, set()).add(report.images[0].pixels_sha256)
    assert all(len(found) == 1 for found in hashes.values()), "equal recipe, equal pixels"
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


@pytest.mark.chaos
def test_an_image_with_the_full_vae_on_cards_of_sixteen_sizes(
    synthetic_models: Callable[[str], Path], tmp_path: Path
) -> None:
    model = synthetic_models("sd15") / "sd15.safetensors"
    request = ImageRequest(prompt="a lighthouse at dusk", width=256, height=256, steps=1, seed=7)
    seen = check_ladder(order_for(model, tmp_path / "out.png", request=request), tmp_path, FULL_CAPACITIES)
    rungs = "denoise:cpu denoise:stream denoise:card decode:cpu decode:card/16 decode:card/24 decode:card"
    assert set(rungs.split()) <= seen

"""Long queues of mixed jobs: on a card that holds no two models, and where RAM is short."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any  # Any: JSON as the server sends it

import psutil
import pytest
from tests.chaos.images import ended, recipe
from tests.chaos.place import Place
from tests.chaos.script import House

from tidegate.core.quantity import GIB, MIB

# Weights of one model: text encoder 235 MiB, diffusion 618 MiB, decoder 3 MiB. Two do not fit.
CARD_BYTES = 900 * MIB
# One model on the CPU is some 900 MiB; idle processes are charged with 256 MiB each.
RAM_BYTES = 2 * GIB
SAMPLE_MS = 50


def queue(place: Place, count: int) -> None:
    """Send so many jobs of mixed sizes and models at once; all of them finish."""
    chance = random.Random(count)
    wishes: list[dict[str, Any]] = []  # Any: JSON, as above
    for number in range(count):
        wish = recipe(chance.randrange(64))
        wish["model"] = ("tiny", "plain", "twin")[number % 3]
        # It is about taking turns, not about sampling.
        wish["steps"], wish["cfg"] = 1, 1.0
        if number % 10 == 9:
            wish["width"], wish["height"] = 256, 192
        wishes.append(wish)
    jobs = [place.call("POST", "/api/jobs", wish)["id"] for wish in wishes]
    phases = [ended(place, job, wait_max_s=1_800)["phase"] for job in jobs]
    assert phases == ["done"] * count


def check_card(folder: Path, model: Path, *, count: int) -> None:
    with Place(folder, model, house=House(card_bytes=CARD_BYTES)).open() as place:
        queue(place, count)
        with contextlib.closing(place.card()) as card:
            reading = card.read().cards[0]
    print(f"{count} jobs, peak {reading.peak_bytes} of {reading.capacity_bytes}")
    assert 618 * MIB < reading.peak_bytes <= reading.capacity_bytes
    assert reading.refused_count == 0, "nothing was ever asked of the card that it did not have"


class Gauge:
    """Private memory of a server and all its processes, looked at all the time; the most there was."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._ends = threading.Event()
        self.peak_bytes = 0

    @contextlib.contextmanager
    def watching(self) -> Iterator[Gauge]:
        thread = threading.Thread(target=self._watch)
        thread.start()
        try:
            yield self
        finally:
            self._ends.set()
            thread.join()

    def _watch(self) -> None:
        while not self._ends.wait(SAMPLE_MS / 1000):
            used_bytes = 0
            for process in self._place.family():
                with contextlib.suppress(psutil.Error):  # it ended meanwhile
                    memory = process.memory_info()
                    used_bytes += memory.rss - memory.shared
            self.peak_bytes = max(self.peak_bytes, used_bytes)


def check_ram(folder: Path, model: Path, *, count: int) -> None:
    """On the CPU everything is RAM; what server and workers hold stays within what the user allows."""
    place = Place(folder, model, house=House(card_bytes=0, ram_bytes=RAM_BYTES))
    with place.open(), Gauge(place).watching() as gauge:
        queue(place, count)
    print(f"{count} jobs, peak {gauge.peak_bytes >> 20} MiB of {RAM_BYTES >> 20}")
    assert 700 * MIB < gauge.peak_bytes <= RAM_BYTES


@pytest.mark.slow
def test_four_jobs_take_turns_on_a_card_that_holds_no_two_models(tmp_path: Path, sd1_tiny: Path) -> None:
    check_card(tmp_path, sd1_tiny, count=4)


@pytest.mark.slow
def test_three_jobs_keep_to_the_limit_of_ram(tmp_path: Path, sd1_tiny: Path) -> None:
    check_ram(tmp_path, sd1_tiny, count=3)


@pytest.mark.chaos
def test_a_hundred_jobs_take_turns_on_a_card_that_holds_no_two_models(tmp_path: Path, sd1_tiny: Path) -> None:
    check_card(tmp_path, sd1_tiny, count=100)


@pytest.mark.chaos
def test_a_hundred_jobs_keep_to_the_limit_of_ram(tmp_path: Path, sd1_tiny: Path) -> None:
    check_ram(tmp_path, sd1_tiny, count=100)

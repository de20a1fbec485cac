"""A full disk under a whole image, and a journal that was damaged while no server ran."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import signal
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import psutil
import pytest
from tests.chaos.watching import step_of, worker_of

from serving_runs import made, order_of, pixels, settings_for
from tidegate.core.image.job import JobPhase
from tidegate.core.stage import Stage
from tidegate.runtime.frontdesk import FrontDesk
from tidegate.runtime.journal.journal import FILE
from tidegate.runtime.server import serving
from tidegate.runtime.views import EventItem

# Pixels of 64 by 64 travel through a memory file of 12 KiB, which the same limit would stop. Embeddings, the
# journal and pictures are larger.
FULL_BYTES = 12_288


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """No file of this process and of its children grows any more: what a full disk looks like to them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit_family((FULL_BYTES, hard))
    try:
        yield
    finally:
        limit_family((soft, hard))


def limit_family(limits: tuple[int, int]) -> None:
    """For this process and all that came from it; those to come inherit it."""
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, limits)


@pytest.mark.slow
def test_images_are_made_on_a_full_disk_and_saved_when_there_is_room(tmp_path: Path, sd1_tiny: Path) -> None:
    async def scene() -> list[str]:
        async with serving(settings_for(tmp_path, sd1_tiny)) as gate:
            wanted = await pixels(gate, (await made(gate, order_of(prompt="calm"))).id)
            with full_disk():
                job = await made(gate, order_of(prompt="calm", seed=8))
                fresh = await made(gate, order_of(prompt="a full disk"))
                assert [job.phase, fresh.phase] == [JobPhase.DONE] * 2, gate.story(fresh.id)
                health = gate.health()
                assert health.status == "degraded", health
                assert any("cannot be" in problem for problem in health.problems), health.problems
                assert await gate.image_png(gate.result(fresh.id)[0])
            again = await made(gate, order_of(prompt="calm"))
            assert await pixels(gate, again.id) == wanted
            assert gate.health().status == "ok", gate.health().problems
            return [image.id for image in await gate.images()]

    images = asyncio.run(scene())
    assert len(images) == 4
    assert asyncio.run(found_again(tmp_path, sd1_tiny)) == set(images)


@pytest.mark.chaos
def test_work_that_only_a_worker_had_is_made_again_when_that_is_killed(
    tmp_path: Path, sd1_tiny: Path
) -> None:
    async def scene() -> None:
        async with serving(settings_for(tmp_path, sd1_tiny)) as gate:
            wanted = await pixels(gate, (await made(gate, order_of())).id)
            with full_disk():
                # The text encoder's result is larger than what the disk takes, so it is nowhere else.
                order = order_of(prompt="a lighthouse at dawn", steps=4)
                handle = await gate.submit(order)
                await step_of(gate, handle.id, Stage.DENOISE)
                os.kill(worker_of(gate), signal.SIGKILL)
                job = await gate.ended(handle.id)
                assert job.phase is JobPhase.DONE, gate.story(job.id)
            calm = await made(gate, order)
            assert await pixels(gate, calm.id) == await pixels(gate, job.id) != wanted

    asyncio.run(scene())


async def found_again(state: Path, model: Path) -> set[str]:
    """Images that a new server has, each with its file."""
    async with serving(settings_for(state, model)) as gate:
        found = await gate.images()
        for image in found:
            assert await gate.image_png(image.id)
        return {image.id for image in found}


@pytest.mark.chaos
def test_a_server_starts_on_a_full_disk(tmp_path: Path, sd1_tiny: Path) -> None:
    asyncio.run(found_again(tmp_path, sd1_tiny))

    async def scene() -> None:
        with full_disk():
            async with serving(settings_for(tmp_path, sd1_tiny)) as gate:
                assert (await made(gate, order_of(steps=1))).phase is JobPhase.DONE

    asyncio.run(scene())


def cut(path: Path, chance: random.Random) -> None:
    os.truncate(path, chance.randrange(path.stat().st_size))


def tables(path: Path, chance: random.Random) -> None:
    """A program that meant well wrote into each table."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for table, column in (
            ("jobs", "ticket"), ("checkpoints", "execution"), ("embeddings", "size_bytes"),
            ("footprints", "data"), ("images", "outcome"), ("events", "data"), ("snapshots", "data"),
        ):  # fmt: skip
            connection.execute(f"UPDATE {table} SET {column} = ?", (chance.randbytes(9),))


async def made_one(state: Path, model: Path) -> FrontDesk:
    """A finished image, and one that is not."""
    async with serving(settings_for(state, model)) as gate:
        assert (await made(gate, order_of())).phase is JobPhase.DONE
        await gate.submit(order_of(steps=900, key="unfinished"))
        return gate


@pytest.mark.parametrize(
    "damage", [pytest.param(cut, marks=pytest.mark.chaos), pytest.param(tables, marks=pytest.mark.slow)]
)
def test_a_server_over_a_damaged_journal_says_so_and_has_every_finished_image(
    damage: Callable[[Path, random.Random], None], tmp_path: Path, sd1_tiny: Path
) -> None:
    asyncio.run(made_one(tmp_path, sd1_tiny))
    damage(tmp_path / FILE, random.Random(7))

    async def scene() -> None:
        async with serving(settings_for(tmp_path, sd1_tiny)) as gate:
            assert len(await gate.images()) == 1
            told = [item.data["text"] async for item in _kept(gate)]
            assert any("damaged" in str(text) for text in told), told
            assert (await made(gate, order_of(seed=8))).phase is JobPhase.DONE

    asyncio.run(scene())


async def _kept(gate: FrontDesk) -> AsyncIterator[EventItem]:
    """Notices that were told before anybody listened."""
    events = gate.events(after=0)
    with contextlib.suppress(TimeoutError):
        while True:
            async with asyncio.timeout(1):
                item = await anext(events)
            if item.kind == "notice":
                yield item

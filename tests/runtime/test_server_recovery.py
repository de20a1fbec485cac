"""Kill -9 of the worker and of the server in mid-sampling: the image is finished, and is the same image."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving_process import ServerProcess, has_ended
from serving_runs import made, order_of, pixels, settings_for
from tidegate.core.image.job import JobPhase
from tidegate.core.stage import Stage
from tidegate.runtime.cards.virtual import VirtualCard
from tidegate.runtime.frontdesk import FrontDesk
from tidegate.runtime.server import serving

STEPS = 3


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, sd1_tiny: Path) -> Iterator[str]:
    """The hash of the picture that nobody disturbed."""

    async def scene() -> str:
        async with serving(settings_for(tmp_path_factory.mktemp("quiet"), sd1_tiny)) as gate:
            job = await made(gate, order_of(steps=STEPS))
            return (await pixels(gate, job.id))[0]

    yield asyncio.run(scene())


async def _first_step(gate: FrontDesk, job: str) -> None:
    async for item in gate.feed(job):
        if item.kind == "progress" and item.stage is Stage.DENOISE and item.step:
            return


def test_a_worker_killed_in_mid_sampling_costs_nothing_but_time(
    tmp_path: Path, sd1_tiny: Path, undisturbed: str
) -> None:
    async def scene() -> None:
        async with serving(settings_for(tmp_path, sd1_tiny)) as gate:
            handle = await gate.submit(order_of(steps=STEPS))
            await _first_step(gate, handle.id)
            worker = next(worker for worker in gate.health().workers if worker.kind == "image")
            os.kill(worker.pid, signal.SIGKILL)
            job = await gate.ended(handle.id)
            assert job.phase is JobPhase.DONE, (job.message, gate.story(job.id))
            assert await pixels(gate, job.id) == [undisturbed]
            assert any("killed from outside" in line for line in gate.story(job.id))

    asyncio.run(scene())


def test_a_killed_server_goes_on_where_it_was(tmp_path: Path, sd1_tiny: Path, undisturbed: str) -> None:
    server = ServerProcess(tmp_path, sd1_tiny)
    job = server.ask("submit", "the-key", str(STEPS))["id"]
    server.ask("watch", str(job), "denoise")
    workers = server.ask("workers")
    server.kill()
    for pid in workers.values():
        assert has_ended(int(str(pid))), "no process outlives its server"
    again = ServerProcess(tmp_path, sd1_tiny)
    assert again.ask("submit", "the-key", str(STEPS)) == {"id": job, "created": False}
    ended = again.ask("wait", str(job))
    assert (ended["phase"], ended["pixels"]) == ("done", [undisturbed]), ended
    again.close()
    with VirtualCard(tmp_path / "card-3GiB.vcard") as card:
        assert card.use().used_bytes == 0
    assert not list((tmp_path / "work").iterdir())

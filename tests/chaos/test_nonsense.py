"""Workers that talk nonsense, fall silent, do not obey or are stopped: server and image survive."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from tests.chaos import doubles
from tests.chaos.habits import HABITS
from tests.chaos.watching import stage_of, step_of, worker_of

from serving_process import has_ended
from serving_runs import WAIT_S, made, order_of, pixels, settings_for
from tidegate.core.image.job import JobPhase
from tidegate.core.stage import Stage
from tidegate.runtime.cards.virtual import VirtualCard
from tidegate.runtime.frontdesk import FrontDesk
from tidegate.runtime.server import serving
from tidegate.runtime.views import JobView

Order = Callable[[str, int], None]
# A hash that is a path, a frame that does not end, amounts that cannot be, bytes that are no frame.
SAMPLE = ("Loaded/slow-load", "StageFinished/elsewhere", "StageFinished/half", "Progress/huge", "Opened/text")
ANSWERS = ("Hello", "Surveyed", "Opened", "Loaded", "Measured", "Progress", "StageFinished")
FUZZ_COUNT = 100
# Longer than any stage takes here, on a busy machine too, or healthy workers would be taken for stuck.
IMPATIENT_MS = 12_000


@pytest.fixture
def order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Order:
    return doubles.employ("nonsense", tmp_path, monkeypatch)


@asynccontextmanager
async def forgiving(folder: Path, model: Path, *, silence_max_ms: int = 60_000) -> AsyncIterator[FrontDesk]:
    """A server that lets a worker that failed again and again start anew at once."""
    settings = settings_for(folder / "state", model)
    policy = replace(
        settings.policy,
        stage_wait_min_ms=silence_max_ms,
        stage_patience=2,
        start_wait_max_ms=max(20_000, silence_max_ms),
        terminate_wait_max_ms=500,
        release_wait_max_ms=1_000,
        backoff_ms=20,
        backoff_max_ms=50,
        quarantine_ms=50,
    )
    async with serving(settings.model_copy(update={"policy": policy})) as gate:
        yield gate


async def check_words(gate: FrontDesk, order: Order, words: tuple[str, ...]) -> None:
    """After each word the image is finished, and is the same."""
    calm = await made(gate, order_of())
    wanted = await pixels(gate, calm.id)
    for number, word in enumerate(words):
        order(word, 1)
        # One that has everything open and loaded would not be asked for most words.
        kill(gate)
        # Another prompt each time, so that the encoder runs too; the seed's picture is compared elsewhere.
        job = await made(gate, order_of(prompt=f"a lighthouse {number}", key=word))
        assert job.phase is JobPhase.DONE, (word, job.message, gate.story(job.id))
        assert gate.health().status == "ok", (word, gate.health().problems)
        print(f"{word}: {'said' if not doubles.left() else 'never asked for'}")
    order("nothing", 0)
    again = await made(gate, order_of())
    assert await pixels(gate, again.id) == wanted


@pytest.mark.slow
def test_nonsense_of_a_worker_never_hurts_the_server(tmp_path: Path, sd1_tiny: Path, order: Order) -> None:
    async def scene() -> None:
        async with forgiving(tmp_path, sd1_tiny) as gate:
            await check_words(gate, order, SAMPLE)

    asyncio.run(scene())
    assert (tmp_path / "bait").is_file(), "a file that a worker named was taken away"


@pytest.mark.chaos
def test_every_nonsense_in_the_place_of_every_answer(tmp_path: Path, sd1_tiny: Path, order: Order) -> None:
    habits = (*HABITS, "half", "exit")
    words = tuple(f"{answer}/{habit}" for answer in ANSWERS for habit in habits)

    async def scene() -> None:
        async with forgiving(tmp_path, sd1_tiny, silence_max_ms=IMPATIENT_MS) as gate:
            await check_words(gate, order, words)

    asyncio.run(scene())


@pytest.mark.chaos
def test_answers_with_some_bytes_changed(tmp_path: Path, sd1_tiny: Path, order: Order) -> None:
    words = tuple(f"{ANSWERS[number % len(ANSWERS)]}/fuzz-{number}" for number in range(FUZZ_COUNT))

    async def scene() -> None:
        async with forgiving(tmp_path, sd1_tiny, silence_max_ms=IMPATIENT_MS) as gate:
            await check_words(gate, order, words)

    asyncio.run(scene())


@pytest.mark.chaos
def test_who_does_not_hear_term_is_killed_and_a_stopped_worker_is_replaced(
    tmp_path: Path, sd1_tiny: Path, order: Order
) -> None:
    async def scene() -> None:
        async with forgiving(tmp_path, sd1_tiny, silence_max_ms=IMPATIENT_MS) as gate:
            wanted = await pixels(gate, (await made(gate, order_of())).id)
            order("StageFinished/silence", 1)
            job = await made(gate, order_of())
            check_hang(gate, job)
            assert await pixels(gate, job.id) == wanted
            handle = await gate.submit(order_of(steps=4))
            await step_of(gate, handle.id, Stage.DENOISE)
            os.kill(worker_of(gate), signal.SIGSTOP)
            async with asyncio.timeout(WAIT_S):
                check_hang(gate, await gate.ended(handle.id))

    asyncio.run(scene())
    with VirtualCard(tmp_path / "state" / "card-3GiB.vcard") as card:
        assert card.use().used_bytes == 0


def check_hang(gate: FrontDesk, job: JobView) -> None:
    story = "\n".join(gate.story(job.id))
    assert job.phase is JobPhase.DONE, story
    assert "made no progress past its deadline" in story


def test_who_cancels_in_the_middle_of_a_decode_waits_a_second_and_nothing_is_left(
    tmp_path: Path, sd1_tiny: Path
) -> None:
    """The engine hears nothing inside encode and decode; here it cannot, because its process is stopped."""

    async def scene() -> None:
        async with serving(settings_for(tmp_path, sd1_tiny)) as gate:
            handle = await gate.submit(order_of(steps=1))
            await stage_of(gate, handle.id, Stage.DECODE)
            pid = worker_of(gate)
            os.kill(pid, signal.SIGSTOP)
            await gate.cancel(handle.id)
            async with asyncio.timeout(WAIT_S):
                job = await gate.ended(handle.id)
            assert job.phase is JobPhase.CANCELLED, gate.story(handle.id)
            assert has_ended(pid)
            assert not gate.result(handle.id)
            assert (await made(gate, order_of(steps=1))).phase is JobPhase.DONE

    asyncio.run(scene())
    with VirtualCard(tmp_path / "card-3GiB.vcard") as card:
        assert card.use().used_bytes == 0
    assert not list((tmp_path / "work").iterdir())


def kill(gate: FrontDesk) -> None:
    for worker in gate.health().workers:
        if worker.kind == "image" and worker.pid:
            with contextlib.suppress(ProcessLookupError):  # it had lost its mind and is gone already
                os.kill(worker.pid, signal.SIGKILL)

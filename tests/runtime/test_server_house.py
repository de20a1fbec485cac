"""Several models on a card too small for two, cancelling, a reload: what a house lives through in a day."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from serving_runs import WAIT_S, made, order_of, pixels, settings_for
from tidegate.core.image.job import JobPhase
from tidegate.core.stage import Stage
from tidegate.runtime.cards.virtual import VirtualCard
from tidegate.runtime.server import serving

pytestmark = pytest.mark.slow


def test_models_share_what_they_can_and_take_turns_on_a_small_card(tmp_path: Path, sd1_tiny: Path) -> None:
    settings = settings_for(
        tmp_path, sd1_tiny, device="virtual:1GiB", names=("tiny", "twin"), plain=("plain",)
    )

    async def scene() -> None:
        async with serving(settings) as gate:
            orders = [order_of(steps=1, model=name) for name in ("tiny", "twin", "plain", "tiny")]
            async with asyncio.timeout(WAIT_S):
                handles = [await gate.submit(order) for order in orders]
                jobs = [await gate.ended(handle.id) for handle in handles]
            assert [job.phase for job in jobs] == [JobPhase.DONE] * 4, [job.message for job in jobs]
            prints = [(await pixels(gate, job.id))[0] for job in jobs]
            assert prints[0] == prints[1] == prints[3], "the twin is the same model"

    asyncio.run(scene())
    with VirtualCard(tmp_path / "card-1GiB.vcard") as card:
        reading = card.read().cards[0]
    assert reading.refused_count == 0, "nothing was ever asked of the card that it did not have"
    assert 0 < reading.peak_bytes <= reading.capacity_bytes


def test_a_cancelled_job_ends_at_the_next_step_and_a_reload_keeps_the_others(
    tmp_path: Path, sd1_tiny: Path
) -> None:
    before = settings_for(tmp_path, sd1_tiny)
    after = settings_for(tmp_path, sd1_tiny, names=("tiny", "twin"))

    async def scene() -> None:
        async with serving(before, reread=lambda: after) as gate:
            unwanted = await gate.submit(order_of(steps=500))
            wanted = await gate.submit(order_of(steps=2))
            await _step(gate.feed(unwanted.id))
            await gate.cancel(unwanted.id)
            async with asyncio.timeout(WAIT_S):
                assert (await gate.ended(unwanted.id)).phase is JobPhase.CANCELLED
            await _step(gate.feed(wanted.id))
            assert (await gate.reload()).changed == ("model twin added",)
            assert not (await gate.reload()).changed
            async with asyncio.timeout(WAIT_S):
                job = await gate.ended(wanted.id)
                assert job.phase is JobPhase.DONE, (job.message, gate.story(job.id))
                twin = await made(gate, order_of(steps=2, model="twin"))
            assert await pixels(gate, twin.id) == await pixels(gate, job.id)

    asyncio.run(scene())


async def _step(feed: object) -> None:
    async for item in feed:  # type: ignore[attr-defined]  # an iterator of feed items
        if item.kind == "progress" and item.stage is Stage.DENOISE and item.step:
            return

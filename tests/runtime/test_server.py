"""A server in this process: images made by real workers on a virtual card."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from serving_runs import made, order_of, pixels, settings_for
from tidegate.core.faults import ClientError
from tidegate.core.image.job import JobPhase
from tidegate.core.stage import Stage
from tidegate.runtime.cards.virtual import VirtualCard
from tidegate.runtime.server import serving


def test_a_job_is_finished_by_real_workers_and_nothing_stays_charged(tmp_path: Path, sd1_tiny: Path) -> None:
    async def scene() -> None:
        async with serving(settings_for(tmp_path / "state", sd1_tiny)) as gate:
            first = await made(gate, order_of(count=2, key="once"))
            assert first.phase is JobPhase.DONE, (first.message, gate.story(first.id))
            assert set(first.images[0].executions) == {Stage.ENCODE, Stage.DENOISE, Stage.DECODE}
            again = await gate.submit(order_of(count=2, key="once"))
            assert (again.id, again.created) == (first.id, False)
            prints = await pixels(gate, first.id)
            assert len(set(prints)) == 2, "two seeds are two pictures"
            # The same prompt needs no text encoder, and gives the same picture.
            same = await made(gate, order_of())
            assert await pixels(gate, same.id) == prints[:1]
            assert "accepted, 2 stages to run" in gate.story(same.id)[0]
            with pytest.raises(ClientError, match="no image model"):
                await gate.submit(order_of(model="nothing"))

    asyncio.run(scene())
    with VirtualCard(tmp_path / "state" / "card-3GiB.vcard") as card:
        assert card.use().used_bytes == 0
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    assert not list((tmp_path / "state" / "work").iterdir())

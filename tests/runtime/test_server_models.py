"""What a server holds of its models: once for all who share it, until it is unloaded; and saved work that is
gone.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from serving_runs import WAIT_S, made, order_of, pixels, settings_for
from tidegate.core.image.job import JobPhase
from tidegate.core.stage import Component, Stage
from tidegate.runtime.frontdesk import FrontDesk
from tidegate.runtime.server import serving
from tidegate.runtime.warmup import WarmUp

pytestmark = pytest.mark.slow


def held_bytes(gate: FrontDesk) -> dict[str, int]:
    """Card bytes of every component that is held, by prediction."""
    (card,) = [pool for pool in gate.vram().pools if pool.name != "ram"]
    return {
        part.part: part.predicted_bytes
        for tenant in card.tenants
        for part in tenant.parts
        if "/" in part.part and part.predicted_bytes
    }


def test_a_shared_model_is_held_once_and_given_back_when_nobody_wants_it(
    tmp_path: Path, sd1_tiny: Path
) -> None:
    settings = settings_for(tmp_path, sd1_tiny, names=("tiny", "twin"))

    async def scene() -> None:
        async with serving(settings) as gate:
            first = await made(gate, order_of(steps=1))
            once = held_bytes(gate)
            assert {part.rpartition("/")[2] for part in once} == set(Component)
            second = await made(gate, order_of(steps=1, model="twin"))
            assert held_bytes(gate) == once, "the same files are loaded and charged once"
            tiny, twin = (model for model in gate.models() if not model.refused)
            assert tiny.loaded == twin.loaded and len(tiny.loaded) == len(Component)
            await gate.unload("tiny")
            assert held_bytes(gate) == once, "the twin has not been given up"
            assert not (await gate.unload("twin")).loaded
            assert held_bytes(gate) == {}
            # Wanted again it comes back, and the picture is the same.
            third = await made(gate, order_of(steps=1, prompt="a lighthouse at dusk"))
            assert held_bytes(gate), "a model that is wanted stays"
            prints = [await pixels(gate, job.id) for job in (first, second, third)]
            assert prints[0] == prints[1] == prints[2]

    asyncio.run(scene())


def test_saved_work_that_is_gone_is_made_again(tmp_path: Path, sd1_tiny: Path) -> None:
    async def scene() -> None:
        async with serving(settings_for(tmp_path, sd1_tiny)) as gate:
            first = await made(gate, order_of(steps=1))
            saved = [path for path in (tmp_path / "objects").glob("??/*") if _is_embeddings(path)]
            assert saved, "the embeddings are remembered"
            for path in saved:
                path.write_bytes(b"\0" * path.stat().st_size)
            # The same prompt would go on from the embeddings, which are nonsense now.
            again = await made(gate, order_of(steps=1))
            assert again.phase is JobPhase.DONE, gate.story(again.id)
            assert await pixels(gate, again.id) == await pixels(gate, first.id)
            assert Stage.ENCODE in again.images[0].executions
            assert any("is gone or damaged and is made again" in text for text in again.notices)
            third = await made(gate, order_of(steps=1))
            assert not third.notices, "the embeddings are sound again"

    asyncio.run(scene())


def _is_embeddings(path: Path) -> bool:
    return b"cond.c_crossattn" in path.read_bytes()[:65_536]


def test_common_sizes_are_foreseen_while_nobody_waits(
    tmp_path: Path, sd1_tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WarmUp.__init__, "__kwdefaults__", {"calm_s": 0.01})
    small = {"defaults": {"width": 64, "height": 64}, "listen": {"pixels_max": 4_096}}
    settings = settings_for(tmp_path, sd1_tiny)
    settings = settings.model_validate({**settings.model_dump(), **small})

    async def warmed() -> int:
        async with serving(settings) as gate:
            async with asyncio.timeout(WAIT_S):
                async for event in gate.events(after=0):
                    if event.kind == "warmed":
                        assert isinstance(event.data["count"], int)
                        return event.data["count"]
        raise AssertionError("it never warmed up")

    assert asyncio.run(warmed()) > len(Stage) - 1, "every way to run each stage was asked about"
    assert asyncio.run(warmed()) == 0, "the answers outlive the server"

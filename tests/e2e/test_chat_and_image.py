"""Both engines on one card that holds one of them, and never both: the chat steps aside and goes on.

The pictures are the very same as on an empty card, the text is the one that nobody disturbed, and what
happened is told in words.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from chat_runs import (
    ROOMY_CARD,
    SMALL_CARD,
    TALKER,
    WAIT_S,
    Heard,
    begun,
    order_of,
    settings_for,
    told,
    whole,
)
from serving_process import has_ended
from serving_runs import made, pixels
from serving_runs import order_of as image_of
from tidegate.core.image.job import JobPhase
from tidegate.runtime.cards.virtual import VirtualCard
from tidegate.runtime.server import serving

pytestmark = pytest.mark.slow
TOKENS = 1_500


@pytest.fixture(scope="module")
def llama(synthetic_models: Callable[[str], Path]) -> Path:
    """A language model of 6 MB, whose KV cache is what fills the card."""
    return synthetic_models("llama-tiny") / "llama-tiny.gguf"


def test_a_chat_steps_aside_for_an_image_and_comes_back_by_itself(
    tmp_path: Path, llama: Path, sd1_tiny: Path
) -> None:
    async def alone() -> tuple[str, list[str]]:
        roomy = settings_for(tmp_path / "roomy", llama, checkpoint=sd1_tiny, device=ROOMY_CARD)
        async with serving(roomy) as gate:
            text = (await whole(gate, order_of(tokens=TOKENS))).text
            return text, await pixels(gate, (await made(gate, image_of())).id)

    async def together() -> tuple[Heard, list[str], list[str]]:
        settings = settings_for(tmp_path / "small", llama, checkpoint=sd1_tiny, device=SMALL_CARD)
        # As when an answer has taken so long already that nobody waits for its end.
        small = settings.model_copy(update={"policy": replace(settings.policy, answer_wait_max_ms=0)})
        notices: list[str] = []
        async with serving(small) as gate:
            # The prompt is known from here on, so that the second image begins with what is large: sampling.
            await made(gate, image_of(seed=8))
            heard, chat = await begun(gate, order_of(tokens=TOKENS))
            job = await made(gate, image_of())
            assert job.phase is JobPhase.DONE, (job.message, gate.story(job.id))
            async with asyncio.timeout(WAIT_S):
                await chat
            await told(gate, "level", lambda data: data["level"] == "hot")
            async for event in gate.events(after=0):
                if event.kind == "notice":
                    notices.append(str(event.data["text"]))
                if event.kind == "chat" and event.data["phase"] == "ended":
                    break
            return heard, await pixels(gate, job.id), notices

    text, picture = asyncio.run(alone())
    heard, same_picture, notices = asyncio.run(together())
    assert same_picture == picture
    assert heard.text == text
    assert any(f"The KV cache of {TALKER} gives up" in pause for pause in heard.pauses), heard.pauses
    assert heard.resumed_count >= 1
    assert any("pause to make room" in notice for notice in notices), notices
    assert any(f"{TALKER} is back at HOT" in notice for notice in notices), notices
    with VirtualCard(tmp_path / "small" / "card-700MiB.vcard") as card:
        reading = card.read().cards[0]
    assert reading.refused_count == 0, "nothing was ever asked of the card that it did not have"
    assert reading.peak_bytes <= reading.capacity_bytes


def test_a_killed_server_leaves_nobody_and_its_card_serves_the_next_one(tmp_path: Path, llama: Path) -> None:
    async def scene() -> list[int]:
        command = [str(Path(__file__).parents[1] / "chat_process.py"), str(tmp_path), str(llama)]
        process = await asyncio.create_subprocess_exec(
            sys.executable, *command, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        async with asyncio.timeout(WAIT_S):
            pids = [int(word) for word in (await process.stdout.readline()).split()]
        process.kill()
        await process.wait()
        return pids

    pids = asyncio.run(scene())
    assert len(pids) >= 3, "front, child and predictor"
    for pid in pids:
        assert has_ended(pid), "no process outlives its server"

    async def again() -> None:
        async with serving(settings_for(tmp_path, llama)) as gate:
            heard = await whole(gate, order_of(tokens=30))
            assert heard.ended is not None
            assert heard.ended.completion_count == 30

    asyncio.run(again())
    with VirtualCard(tmp_path / "card-3GiB.vcard") as card:
        assert card.use().used_bytes == 0

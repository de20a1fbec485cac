"""Chats on a real server: words, levels, killed processes, clients that go, are slow or come too many."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from chat_runs import TALKER, WAIT_S, Heard, begun, order_of, settings_for, told, whole
from tidegate.core.faults import CapacityError, ClientError
from tidegate.core.llm.level import Level
from tidegate.runtime import front
from tidegate.runtime.asks import DetokenWish, IntentKind, LanguageView, LevelWish, TokenWish
from tidegate.runtime.cards.virtual import VirtualCard
from tidegate.runtime.frontdesk import FrontDesk
from tidegate.runtime.server import serving
from tidegate.wire.asks import Finish


@pytest.fixture(scope="module")
def llama(synthetic_models: Callable[[str], Path]) -> Path:
    """A language model of 6 MB."""
    return synthetic_models("llama-tiny") / "llama-tiny.gguf"


def shown(gate: FrontDesk) -> LanguageView:
    """The language model as it stands."""
    view = next(model.language for model in gate.models() if model.name == TALKER)
    assert view is not None
    return view


async def stands_at(gate: FrontDesk, level: Level) -> None:
    """Wait until the model stands at this level."""
    events = gate.events()
    async with asyncio.timeout(WAIT_S):
        while shown(gate).tide != level.value:
            await anext(events)


def predicted_is_observed(gate: FrontDesk) -> int:
    """What the child holds on the card, after comparing it with its leases; 0 when it is not there."""
    tenants = [tenant for tenant in gate.vram().pools[1].tenants if tenant.name == f"llm/{TALKER}"]
    held = [part for tenant in tenants for part in tenant.parts if part.phase == "held"]
    for part in held:
        assert part.predicted_bytes == part.observed_bytes, part
    return sum(part.predicted_bytes for part in held)


def test_a_chat_is_answered_and_a_second_one_knows_the_first(tmp_path: Path, llama: Path) -> None:
    async def scene() -> None:
        async with serving(settings_for(tmp_path, llama)) as gate:
            heard = await whole(gate, order_of(tokens=60))
            assert heard.ended is not None
            assert (heard.ended.finish, heard.ended.completion_count) == (Finish.LENGTH, 60)
            assert len(heard.text) > 100
            again = await whole(gate, order_of(tokens=60))
            assert again.text == heard.text
            assert again.ended is not None
            assert shown(gate).level is Level.HOT
            assert predicted_is_observed(gate) > 0
            other = await whole(gate, order_of(tokens=60, seed=2))
            assert other.text != heard.text
            metrics = {
                (name, labels.get("finish", "")): value for name, labels, value in gate.metrics().samples
            }
            assert metrics["tidegate_chats_ended_total", "length"] == 3
            assert metrics["tidegate_chat_tokens_total", ""] == 180

    asyncio.run(scene())
    with VirtualCard(tmp_path / "card-3GiB.vcard") as card:
        assert card.use().used_bytes == 0


def test_what_is_wrong_with_an_ask_is_said_and_disturbs_nobody(tmp_path: Path, llama: Path) -> None:
    async def scene() -> None:
        async with serving(settings_for(tmp_path, llama, context=512)) as gate:
            with pytest.raises(ClientError) as refused:
                await gate.ask(order_of("word " * 2_000))
            assert refused.value.code == "context_length_exceeded"
            with pytest.raises(ClientError) as unknown:
                await gate.tokenize(TokenWish(text="a", model="nobody"))
            assert unknown.value.code == "unknown_model"
            tokens = await gate.tokenize(TokenWish(text="Hello there"))
            assert b"".join(tokens.pieces) == b"Hello there"
            assert await gate.detokenize(DetokenWish(ids=tokens.ids)) == "Hello there"
            with pytest.raises(ClientError) as too_long:
                await gate.tokenize(TokenWish(text="ü" * 2_000_000))
            assert too_long.value.code == "text_too_long"
            longest = await gate.tokenize(TokenWish(text="\x07" * 200_000))
            assert len(longest.ids) > 10_000
            assert await gate.detokenize(DetokenWish(ids=longest.ids)) == "\x07" * 200_000
            assert shown(gate).tide == "cold", "nothing of this needs a card"
            with pytest.raises(ClientError, match="no ask"):
                await anext(gate.hear("nothing"))
            await gate.cancel_ask("nothing")

    asyncio.run(scene())


@pytest.mark.slow
def test_a_chat_goes_on_whatever_level_its_model_is_brought_to(tmp_path: Path, llama: Path) -> None:
    async def scene() -> None:
        async with serving(settings_for(tmp_path, llama)) as gate:
            undisturbed = await whole(gate, order_of(tokens=700))
            heard, task = await begun(gate, order_of(tokens=700))
            held: dict[str, int] = {}
            for level, layers in ((Level.WARM, 0), (Level.PARTIAL, 2), (Level.COLD, 0), (Level.HOT, 0)):
                await gate.set_level(TALKER, LevelWish(level=level, layers_count=layers))
                await stands_at(gate, level)
                held[level.value] = predicted_is_observed(gate)
            assert 0 == held["cold"] < held["partial"] < held["hot"]
            assert held["warm"] < held["hot"]
            view = await gate.set_level(TALKER, LevelWish(level=None))
            assert view.language is not None
            assert view.language.wish == ""
            await task
            assert heard.text == undisturbed.text
            assert any("held at WARM" in pause for pause in heard.pauses), heard.pauses
            assert heard.resumed_count == len({"warm to partial", "partial to hot"})

    asyncio.run(scene())


@pytest.mark.slow
@pytest.mark.parametrize("victim", [f"llm/{TALKER}", "front"])
def test_a_killed_process_costs_a_chat_a_pause(tmp_path: Path, llama: Path, victim: str) -> None:
    async def scene() -> None:
        async with serving(settings_for(tmp_path, llama)) as gate:
            undisturbed = await whole(gate, order_of(tokens=500))
            heard, task = await begun(gate, order_of(tokens=500))
            os.kill(next(w.pid for w in gate.health().workers if w.name == victim), signal.SIGKILL)
            await task
            assert heard.ended is not None
            assert heard.ended.finish is Finish.LENGTH
            assert heard.text == undisturbed.text
            assert any("is started again" in pause for pause in heard.pauses), heard.pauses
            worker = next(worker for worker in gate.health().workers if worker.name == victim)
            assert (worker.state, worker.incarnation) == ("ready", 2)

    asyncio.run(scene())


def test_a_client_that_goes_frees_its_place_and_a_slow_one_misses_nothing(
    tmp_path: Path, llama: Path
) -> None:
    async def scene() -> None:
        async with serving(settings_for(tmp_path, llama, slots=1)) as gate:
            undisturbed = await whole(gate, order_of(tokens=300))
            _, gone = await begun(gate, order_of(tokens=7_000, seed=3))
            slow = await gate.ask(order_of(tokens=300))
            items = gate.hear(slow.id)
            paused = await anext(items)
            assert "next in turn" in getattr(paused, "reason", "")
            gone.cancel()
            with pytest.raises(asyncio.CancelledError):
                await gone
            # Nothing is read until it has ended; the deltas that came meanwhile are joined.
            ends = {"request": slow.id, "model": TALKER, "phase": "ended"}
            await told(gate, "chat", lambda data: data == ends)
            rest = [item async for item in items]
            text = "".join(getattr(item, "text", "") for item in rest)
            assert text == undisturbed.text
            assert len(rest) <= 70

    asyncio.run(scene())


def test_who_begins_to_type_finds_the_model_there(tmp_path: Path, llama: Path) -> None:
    async def scene() -> None:
        async with serving(settings_for(tmp_path, llama)) as gate:
            await gate.intent(IntentKind.TYPING)
            await told(gate, "level", lambda data: data["level"] == "hot")
            assert shown(gate).level is Level.HOT
            heard = await whole(gate, order_of(tokens=10))
            assert heard.ended is not None
            await gate.unload(TALKER)
            await stands_at(gate, Level.COLD)

    asyncio.run(scene())


def test_a_server_that_ends_says_so_to_its_chats_and_leaves_nobody(tmp_path: Path, llama: Path) -> None:
    async def scene() -> None:
        async with serving(settings_for(tmp_path, llama)) as gate:
            heard, task = await begun(gate, order_of(tokens=7_000))
        await task
        assert heard.ended is not None
        assert (heard.ended.finish, heard.ended.code) == (Finish.FAILED, "server_ending")

    asyncio.run(scene())
    with VirtualCard(tmp_path / "card-3GiB.vcard") as card:
        assert card.use().used_bytes == 0


def test_a_bad_model_is_refused_in_words_and_the_others_serve(tmp_path: Path, llama: Path) -> None:
    broken = tmp_path / "broken.gguf"
    whole_bytes = bytearray(llama.read_bytes())
    # The header stays sound: a count of heads that does not fit the shapes is for the engine to find.
    place = whole_bytes.find(b"llama.attention.head_count") + len(b"llama.attention.head_count") + 4
    whole_bytes[place : place + 4] = (7).to_bytes(4, "little")
    broken.write_bytes(bytes(whole_bytes))

    async def scene() -> None:
        settings = settings_for(tmp_path / "state", llama)
        both = (*settings.llms, settings.llms[0].model_copy(update={"name": "broken", "file": str(broken)}))
        async with serving(settings.model_copy(update={"llms": both})) as gate:
            order = order_of(tokens=5)
            with pytest.raises((ClientError, CapacityError)):
                heard = await whole(gate, type(order)(body=order.body, model="broken"))
                assert heard.ended is not None
                assert heard.ended.finish is Finish.FAILED
                raise ClientError(heard.ended.message, code=heard.ended.code)
            fine = await whole(gate, order)
            assert fine.ended is not None
            assert fine.ended.finish is Finish.LENGTH

    asyncio.run(scene())


@pytest.mark.slow
def test_a_front_that_hangs_is_ended_and_its_chats_go_on(
    tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Half a minute of patience is for prompts of megabytes; here there are none.
    monkeypatch.setattr(front, "SILENCE_MAX_S", 1.0)
    monkeypatch.setattr(front, "HEARTBEAT_S", 0.1)

    async def scene() -> None:
        async with serving(settings_for(tmp_path, llama)) as gate:
            undisturbed = await whole(gate, order_of(tokens=300))
            heard, task = await begun(gate, order_of(tokens=300))
            os.kill(next(w.pid for w in gate.health().workers if w.name == "front"), signal.SIGSTOP)
            await task
            assert heard.text == undisturbed.text

    asyncio.run(scene())


def test_a_conversation_outlives_the_server(tmp_path: Path, llama: Path) -> None:
    async def scene() -> Heard:
        async with serving(settings_for(tmp_path, llama, evaluation="throughput")) as gate:
            return await whole(gate, order_of(tokens=100))

    first, second = asyncio.run(scene()), asyncio.run(scene())
    assert first.ended is not None
    assert second.ended is not None
    assert first.ended.cached_count == 0
    assert second.ended.cached_count > 0, "what was evaluated yesterday need not be evaluated again"
    assert second.text == first.text
    kept = list((tmp_path / "conversations").iterdir())
    assert kept
    assert tmp_path.stat().st_mode & 0o077 == 0

"""What becomes of a wish for a level, of somebody who begins to type, and of figures that are not even."""

from __future__ import annotations

from dataclasses import replace

from tests.core.test_arbiter import LLM, Recorder, chat, house, job

from tidegate.core import effects as ef
from tidegate.core import events as ev
from tidegate.core.house import LlmFootprint, Split
from tidegate.core.llm.level import Level, Tide
from tidegate.core.notice import NoticeKind
from tidegate.core.quantity import GIB, MIB
from tidegate.core.stage import Placement


def wish(seen: Recorder, level: Level | None, *, layers: int = 0) -> None:
    """Somebody wants the model at a level."""
    event = ev.LevelWished(at_ms=seen.world.now_ms, model="llm0", level=level, layers_count=layers)
    seen.world.deliver(event)


def outcomes(seen: Recorder) -> list[ef.Outcome]:
    """How requests and jobs ended."""
    return [effect.outcome for effect in seen.effects if isinstance(effect, ef.FinishChat | ef.FinishJob)]


def test_a_model_rises_because_it_is_wished_and_stays() -> None:
    seen = Recorder(house(8 * GIB))
    wish(seen, Level.HOT)
    seen.until(30_000)
    assert seen.tide is Tide.HOT
    seen.until(4_000_000)
    assert seen.tide is Tide.HOT, "it is not released for being idle"
    assert NoticeKind.WISHED in seen.notices()


def test_requests_of_a_model_that_is_held_down_wait_until_it_is_given_back() -> None:
    seen = Recorder(house(8 * GIB), chat(0, "a", length_ms=20_000)).until(5_000)
    assert seen.tide is Tide.HOT
    for level, tide in ((Level.WARM, Tide.WARM), (Level.COLD, Tide.COLD)):
        wish(seen, level)
        while seen.tide is not tide:  # No longer: with nothing to do, time goes on in large steps.
            assert seen.world.step()
        assert not outcomes(seen)
    wish(seen, None)
    seen.until(seen.world.now_ms + 200_000)
    assert outcomes(seen) == [ef.Outcome.DONE]


def test_requests_do_not_wait_for_ever() -> None:
    seen = Recorder(house(8 * GIB))
    wish(seen, Level.COLD)
    seen.world.talk.asked("a", "llm0", priority=0, length_ms=100)
    seen.world.judge.requests["a"].failed_attempts = 99  # The world's judge allows this failure.
    seen.until(2_000_000)
    ended = next(effect for effect in seen.effects if isinstance(effect, ef.FinishChat))
    assert (ended.outcome, ended.code) == (ef.Outcome.FAILED, "held")


def test_a_wish_for_some_layers_is_kept_to_the_layer() -> None:
    seen = Recorder(house(8 * GIB), chat(0, "a")).until(10_000)
    wish(seen, Level.PARTIAL, layers=6)
    seen.until(60_000)
    model = seen.world.arbiter.state.models["llm0"]
    assert (model.tide, model.layers_count) == (Tide.PARTIAL, 6)


def test_a_pinned_model_yields_only_when_an_image_could_not_be_made_otherwise() -> None:
    roomy, pinned = (Recorder(house(6 * GIB), chat(0, "a"), job(20_000)) for _ in range(2))
    wish(pinned, Level.HOT)
    roomy.until(120_000)
    pinned.until(120_000)
    assert Level.WARM in roomy.levels()
    assert Level.WARM not in pinned.levels()
    assert {placement for _, placement, _ in pinned.stages()} != {Placement.CARD}
    assert pinned.tide is Tide.HOT
    assert outcomes(pinned) == [ef.Outcome.DONE] * 2


def test_who_begins_to_type_finds_the_model_warmed() -> None:
    seen = Recorder(house(8 * GIB), chat(0, "a")).until(3_000_000)
    assert seen.tide is Tide.COLD
    seen.world.deliver(ev.IntentHeard(at_ms=seen.world.now_ms, model="llm0"))
    seen.until(seen.world.now_ms + 10_000)
    assert seen.tide is Tide.HOT
    assert seen.notices()[-1] is NoticeKind.PREWARMED


def test_typing_takes_nothing_from_an_image() -> None:
    seen = Recorder(house(4 * GIB), job(0, steps=40)).until(2_000)
    for at_ms in range(2_000, 6_000, 500):
        seen.until(at_ms)
        seen.world.deliver(ev.IntentHeard(at_ms=seen.world.now_ms, model="llm0"))
    assert seen.levels() == []
    seen.until(120_000)
    assert outcomes(seen) == [ef.Outcome.DONE]
    assert {placement for _, placement, _ in seen.stages()} == {Placement.CARD}


def test_the_most_layers_are_found_where_figures_do_not_grow_evenly() -> None:
    # With its output on the card a model computes in smaller buffers than with only its blocks there.
    splits = tuple(
        Split(
            card_weights_bytes=count * 100 * MIB,
            card_context_bytes=0 if not count else 900 * MIB if count < 32 else 200 * MIB,
            ram_bytes=(32 - count) * 110 * MIB + 30 * MIB,
        )
        for count in range(33)
    )
    uneven = LlmFootprint(
        layers_count=32,
        weights_bytes=LLM.weights_bytes,
        kv_bytes=LLM.kv_bytes,
        compute_bytes=LLM.compute_bytes,
        state_bytes=LLM.state_bytes,
        splits=splits,
    )
    assert uneven.on_card(32) == (3_200 * MIB, 200 * MIB)
    assert uneven.in_ram(32) == 30 * MIB
    seen = Recorder(house(3_700 * MIB), chat(0, "a"))
    seen.world.workload.llms["llm0"] = uneven
    seen.until(20_000)
    assert seen.levels() == [Level.HOT]
    less = Recorder(house(3_500 * MIB), chat(0, "a"))
    less.world.workload.llms["llm0"] = uneven
    less.until(20_000)
    assert less.world.arbiter.state.models["llm0"].layers_count == 24


def test_saved_state_is_charged_with_what_it_takes_not_with_what_was_foreseen() -> None:
    seen = Recorder(house(8 * GIB), chat(0, "a", length_ms=20_000)).until(5_000)
    seen.world.workload.llms["llm0"] = replace(LLM, state_bytes=3 * MIB)  # What is really handed over.
    wish(seen, Level.WARM)
    seen.until(seen.world.now_ms + 5_000)
    kept = seen.world.arbiter.state.ledger.find("front", "state/llm0")
    assert kept is not None
    assert kept.ram_bytes == 3 * MIB
    wish(seen, Level.HOT)
    seen.until(seen.world.now_ms + 5_000)
    assert seen.tide is Tide.HOT
    assert seen.world.arbiter.state.ledger.find("front", "state/llm0") is None


def test_a_model_whose_memory_is_wanted_back_goes_down_and_stays_there() -> None:
    seen = Recorder(house(8 * GIB))
    seen.world.deliver(ev.IntentHeard(at_ms=seen.world.now_ms, model="llm0"))
    while seen.tide is not Tide.RISING:
        assert seen.world.step()
    for _ in range(2):  # On its way up, and when it is down already.
        seen.world.deliver(ev.ModelUnwanted(at_ms=seen.world.now_ms, model="llm0"))
        seen.until(seen.world.now_ms + 60_000)
        assert seen.tide is Tide.COLD
    assert not seen.world.arbiter.state.unwanted
    seen.world.talk.asked("a", "llm0", priority=0, length_ms=100)
    seen.until(seen.world.now_ms + 30_000)
    assert outcomes(seen) == [ef.Outcome.DONE]

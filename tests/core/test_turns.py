"""Whose turn it is between an image and a chat: who waits for whom, how long, and what stops whom."""

from __future__ import annotations

from dataclasses import replace

from core.test_arbiter import Recorder, chat, house, job
from tidegate.core import effects as ef
from tidegate.core import events as ev
from tidegate.core.house import CardDescriptor
from tidegate.core.llm.level import Level, Tide
from tidegate.core.patience import TURN_MS
from tidegate.core.quantity import GIB, MIB
from tidegate.core.stage import Placement, Stage


def _first(seen: Recorder, kind: type[ef.Effect], **wanted: object) -> int:
    """Place among the effects of the first one that is so."""
    for index, effect in enumerate(seen.effects):
        if isinstance(effect, kind) and all(getattr(effect, name) == value for name, value in wanted.items()):
            return index
    raise AssertionError(f"no {kind.__name__} with {wanted}")


def test_sampling_waits_for_an_answer_that_is_nearly_given() -> None:
    seen = Recorder(house(5 * GIB), chat(0, "a", length_ms=6_000), job(3_000)).until(90_000)
    assert _first(seen, ef.FinishChat, request="a") < _first(seen, ef.RunStage, stage=Stage.DENOISE)
    assert len([effect for effect in seen.effects if isinstance(effect, ef.ServeChat)]) == 1, (
        "it never paused"
    )
    said = [effect.notice.text for effect in seen.effects if isinstance(effect, ef.Tell)]
    assert (
        said.count("Encode lets llm0 finish first: that costs less than to stop it or to compute beside it.")
        == 1
    ), said


def test_sampling_does_not_wait_for_an_answer_without_end() -> None:
    seen = Recorder(house(5 * GIB), chat(0, "a", length_ms=60_000), job(3_000)).until(200_000)
    sampled = _first(seen, ef.RunStage, stage=Stage.DENOISE)
    assert sampled < _first(seen, ef.FinishChat, request="a")
    waited_ms = seen.at_ms(sampled) - 3_000
    policy = seen.world.arbiter.state.policy
    assert waited_ms <= 2 * policy.answer_wait_max_ms + policy.quantum_ms


def test_an_image_waits_for_the_card_rather_for_the_card_than_go_to_the_cpu() -> None:
    acts = (chat(0, "a", length_ms=9_000), job(2_000), chat(2_100, "b", length_ms=4_000))
    seen = Recorder(house(4 * GIB + 600 * MIB), *acts).until(200_000)
    placements = {placement for stage, placement, _ in seen.stages() if stage is not Stage.ENCODE}
    assert placements == {Placement.CARD}, "only the text encoder is as good as anywhere on the CPU"


def test_a_chat_goes_before_images_that_wait() -> None:
    jobs = [job(index, f"job{index}", steps=20) for index in range(6)]
    seen = Recorder(house(4 * GIB + 600 * MIB), *jobs, chat(1_500, "a")).until(200_000)
    answered = _first(seen, ef.FinishChat, request="a")
    assert answered < _first(seen, ef.FinishJob, job="job1")


def test_a_chat_stops_sampling_only_where_that_pays() -> None:
    """A second before the end nobody is stopped; in the first of many seconds, after its quantum, it is."""
    seen = Recorder(house(4 * GIB + 600 * MIB), job(0), chat(2_600, "a")).until(90_000)
    stops = [effect for effect in seen.effects if isinstance(effect, ef.StopStage)]
    assert not stops
    assert _first(seen, ef.FinishChat, request="a")


def test_an_image_that_went_before_an_answer_has_a_turn() -> None:
    """Else it takes the card from the answer for a millisecond, and the answer takes it back."""
    seen = Recorder(house(3 * GIB), chat(0, "a", length_ms=8_000), job(3_000, side=96, steps=30))
    state = seen.world.arbiter.state
    state.policy = replace(state.policy, answer_wait_max_ms=0)
    seen.until(200_000)
    begun = _first(seen, ef.RunStage, stage=Stage.DENOISE)
    stopped = _first(seen, ef.StopStage)
    assert stopped > begun
    assert seen.at_ms(stopped) - seen.at_ms(begun) >= TURN_MS
    assert _first(seen, ef.FinishJob, job="job0", outcome=ef.Outcome.DONE)


def test_two_models_do_not_take_the_card_from_each_other_with_every_token() -> None:
    built = house(4 * GIB + 600 * MIB, llms=2)
    acts = (chat(0, "a", length_ms=20_000), chat(1_000, "b", length_ms=20_000, model="llm1"))
    seen = Recorder(built, *acts).until(200_000)
    levels = [effect for effect in seen.effects if isinstance(effect, ef.SetLevel)]
    assert len([effect for effect in levels if effect.level is not Level.WARM]) <= 8, (
        "each turn is seconds long"
    )
    assert {effect.request for effect in seen.effects if isinstance(effect, ef.FinishChat)} == {"a", "b"}


def test_without_a_card_they_take_turns_as_well() -> None:
    built = replace(house(4 * GIB), ram=CardDescriptor(name="ram", total_bytes=7 * GIB), cards=())
    built = replace(built, language_models=tuple(replace(one, card="") for one in built.language_models))
    seen = Recorder(built, chat(0, "a", length_ms=6_000), job(3_000)).until(200_000)
    assert len([effect for effect in seen.effects if isinstance(effect, ef.ServeChat)]) == 1, (
        "it never paused"
    )
    assert _first(seen, ef.FinishChat, request="a") < _first(seen, ef.RunStage, stage=Stage.DENOISE)
    assert _first(seen, ef.FinishJob, job="job0", outcome=ef.Outcome.DONE)


def test_without_a_card_a_model_that_was_held_warm_goes_on() -> None:
    built = replace(house(4 * GIB), cards=())
    built = replace(built, language_models=tuple(replace(one, card="") for one in built.language_models))
    seen = Recorder(built, chat(0, "a", length_ms=6_000))
    while "a" not in [effect.request for effect in seen.effects if isinstance(effect, ef.ServeChat)]:
        seen.world.step()
    seen.world.deliver(ev.LevelWished(at_ms=seen.world.now_ms, model="llm0", level=Level.WARM))
    while seen.tide is not Tide.WARM:
        seen.world.step()
    seen.world.deliver(ev.LevelWished(at_ms=seen.world.now_ms, model="llm0", level=None))
    seen.until(60_000)
    ended = [effect.outcome for effect in seen.effects if isinstance(effect, ef.FinishChat)]
    assert ended == [ef.Outcome.DONE]


def test_of_images_that_wait_a_loaded_model_goes_first_only_if_it_is_not_slower() -> None:
    acts = [
        job(0, "long0", side=128, steps=30),
        job(10, "short", side=32),
        job(20, "long1", side=128, steps=30),
    ]
    models = ("image0", "image1", "image0")
    acts = [replace(act, text=model) for act, model in zip(acts, models, strict=True)]
    built = house(16 * GIB, llms=0)
    built = replace(
        built, image_models=tuple(replace(built.image_models[0], name=name) for name in models[:2])
    )
    seen = Recorder(built, *acts).until(200_000)
    ends = [effect.job for effect in seen.effects if isinstance(effect, ef.FinishJob)]
    assert ends == ["long0", "short", "long1"]


def test_what_is_left_of_a_tape_does_not_teach_how_long_sampling_takes() -> None:
    seen = Recorder(house(16 * GIB, llms=0), job(0), job(20_000, "job1")).until(1)
    state = seen.world.arbiter.state
    while not (run := _running(seen, "job0", Stage.DENOISE)):
        seen.world.step()
    process = seen.world.process_of(run.worker, run.incarnation)
    assert process is not None
    seen.world.die(process, signal=9)
    seen.until(19_000)
    times = [key for key in state.catalog.steps_us if key.what == "run" and key.size.stage is Stage.DENOISE]
    assert not times, "the run began anew from its tape"
    seen.until(60_000)
    times = [key for key in state.catalog.steps_us if key.what == "run" and key.size.stage is Stage.DENOISE]
    assert times, "the next image ran from its first step"


def _running(seen: Recorder, name: str, stage: Stage) -> ef.RunStage | None:
    told = [effect for effect in seen.effects if isinstance(effect, ef.RunStage)]
    return next((effect for effect in told if effect.job == name and effect.stage is stage), None)


def test_intent_takes_nothing_from_an_image() -> None:
    """Somebody types while an image is made: the model rises only where there is room."""
    seen = Recorder(house(5 * GIB), job(0, side=96)).until(800)
    seen.world.deliver(ev.IntentHeard(at_ms=seen.world.now_ms, model="llm0"))
    seen.until(60_000)
    finished = _first(seen, ef.FinishJob, job="job0")
    rises = [index for index, effect in enumerate(seen.effects) if isinstance(effect, ef.SetLevel)]
    assert all(index > finished for index in rises)

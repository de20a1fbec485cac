"""What the arbiter decides in worlds without faults: who yields, who waits, who comes back."""

from __future__ import annotations

import pytest
from tests.sim.workload import Act, Faults, Workload
from tests.sim.world import World

from tidegate.core import effects as ef
from tidegate.core import events as ev
from tidegate.core.house import CardDescriptor, House, ImageModel, LanguageModel, LlmFootprint, Sight
from tidegate.core.llm.level import Level, Tide
from tidegate.core.notice import NoticeKind
from tidegate.core.quantity import GIB, MIB
from tidegate.core.stage import Component, Placement, Stage

WEIGHTS = {Component.TEXT_ENCODER: 240 * MIB, Component.DIFFUSION: 1640 * MIB, Component.VAE: 94 * MIB}
LLM = LlmFootprint(
    layers_count=32, weights_bytes=3 * GIB, kv_bytes=800 * MIB, compute_bytes=200 * MIB, state_bytes=150 * MIB
)


def house(card_bytes: int, *, sight: Sight = Sight.PER_PROCESS, llms: int = 1) -> House:
    card = CardDescriptor(name="gpu0", total_bytes=card_bytes, context_bytes=200 * MIB, sight=sight)
    return House(
        ram=CardDescriptor(name="ram", total_bytes=32 * GIB),
        cards=(card,),
        image_models=(ImageModel(name="image0", weights_bytes=WEIGHTS),),
        language_models=tuple(LanguageModel(name=f"llm{index}", card="gpu0") for index in range(llms)),
    )


def job(at_ms: int, name: str = "job0", *, side: int = 64, steps: int = 8) -> Act:
    return Act(at_ms, "job", name, (side, steps, 0, 0), "image0")


def chat(at_ms: int, name: str, *, length_ms: int = 500, model: str = "llm0") -> Act:
    return Act(at_ms, "chat", name, (0, length_ms), model)


class Recorder:
    """A world without faults, and everything the arbiter said in it."""

    def __init__(self, built: House, *acts: Act, faults: Faults | None = None) -> None:
        llms = {model.name: LLM for model in built.language_models}
        self.world = World(Workload(seed=1, house=built, llms=llms, faults=faults or Faults(), acts=acts))
        self.effects: list[ef.Effect] = []
        self._times: list[int] = []
        handle = self.world.arbiter.handle

        def recorded(event: ev.Event) -> tuple[ef.Effect, ...]:
            said = handle(event)
            self.effects += said
            self._times += [event.at_ms] * len(said)
            return said

        self.world.arbiter.handle = recorded  # type: ignore[method-assign]  # It records and changes nothing.

    def until(self, at_ms: int) -> Recorder:
        """Let time pass."""
        while self.world.now_ms < at_ms and self.world.step():
            pass
        return self

    def at_ms(self, index: int) -> int:
        """When this effect was told."""
        return self._times[index]

    def stages(self) -> list[tuple[Stage, Placement, int]]:
        """How the stages ran."""
        runs = [effect for effect in self.effects if isinstance(effect, ef.RunStage)]
        return [(run.stage, run.execution.placement, run.execution.tile) for run in runs]

    def notices(self) -> list[NoticeKind]:
        """Which notices were told."""
        return [effect.notice.kind for effect in self.effects if isinstance(effect, ef.Tell)]

    def levels(self) -> list[Level]:
        """Which levels were asked for."""
        return [effect.level for effect in self.effects if isinstance(effect, ef.SetLevel)]

    @property
    def tide(self) -> Tide:
        """Where the language model stands."""
        return self.world.arbiter.state.models["llm0"].tide


def test_an_image_on_a_roomy_card_bothers_nobody() -> None:
    seen = Recorder(house(16 * GIB), chat(0, "a"), job(4_000)).until(30_000)
    assert [placement for _, placement, _ in seen.stages()] == [Placement.CARD] * 3
    assert seen.notices() == []
    assert seen.tide is Tide.HOT


def test_who_took_too_long_is_given_twice_as_long_the_next_time() -> None:
    """On a machine that is ten times slower today, a patience that never grows would fail every image."""
    seen = Recorder(house(16 * GIB, llms=0), job(0), faults=Faults(hang=1_000)).until(1_200_000)
    runs = [index for index, effect in enumerate(seen.effects) if isinstance(effect, ef.RunStage)]
    waits = [seen.effects[index].deadline_ms - seen.at_ms(index) for index in runs]  # type: ignore[union-attr]  # runs
    # A worker that hangs before it is up counts as well, so that not every length is seen.
    assert waits == [2 * 60_000, 4 * 60_000, 8 * 60_000, 8 * 60_000]


def test_a_language_model_yields_its_kv_cache_and_comes_back() -> None:
    # Idle model 4.2 GiB; sampling needs 1.9 GiB and the decode 1.7 GiB, with 0.2 GiB of context.
    seen = Recorder(house(6 * GIB), chat(0, "a"), job(6_000)).until(60_000)
    assert Level.WARM in seen.levels()
    assert NoticeKind.OFFLOADED in seen.notices()
    assert NoticeKind.RETURNED in seen.notices()
    assert seen.tide is Tide.HOT
    assert {placement for _, placement, _ in seen.stages()} == {Placement.CARD}


def test_a_chat_in_flight_is_suspended_and_goes_on() -> None:
    seen = Recorder(house(5 * GIB), chat(0, "a", length_ms=30_000), job(3_000)).until(90_000)
    assert NoticeKind.SUSPENDED in seen.notices()
    served = [effect for effect in seen.effects if isinstance(effect, ef.ServeChat)]
    assert len(served) >= 2
    assert [effect.outcome for effect in seen.effects if isinstance(effect, ef.FinishChat)] == [
        ef.Outcome.DONE
    ]


def test_a_chat_that_waits_too_long_makes_sampling_yield_without_loss() -> None:
    built = house(4 * GIB + 600 * MIB)
    seen = Recorder(
        built, *(job(index * 10, f"job{index}", side=128) for index in range(14)), chat(2_000, "a")
    )
    seen.until(400_000)
    answered = next(effect for effect in seen.effects if isinstance(effect, ef.FinishChat))
    assert answered.outcome is ef.Outcome.DONE
    before = seen.effects.index(answered)
    done = sum(isinstance(effect, ef.FinishJob) for effect in seen.effects[:before])
    assert done < 14, "the chat was answered before the last image"
    outcomes = {effect.outcome for effect in seen.effects if isinstance(effect, ef.FinishJob)}
    assert outcomes == {ef.Outcome.DONE}


def test_a_model_that_does_not_fit_comes_up_partly() -> None:
    seen = Recorder(house(3 * GIB), chat(0, "a")).until(20_000)
    assert seen.levels() == [Level.PARTIAL]
    assert 0 < seen.world.arbiter.state.models["llm0"].layers_count < LLM.layers_count


def test_the_decode_is_negotiated_while_sampling_runs() -> None:
    seen = Recorder(house(8 * GIB), chat(0, "a"), job(4_000, side=96)).until(60_000)
    story = seen.world.arbiter.story("job0")
    assert any("negotiated while sampling runs" in line for line in story)
    asked = next(index for index, effect in enumerate(seen.effects) if isinstance(effect, ef.SetLevel)
                 and effect.level is Level.WARM)  # fmt: skip
    decode = next(index for index, effect in enumerate(seen.effects) if isinstance(effect, ef.RunStage)
                  and effect.stage is Stage.DECODE)  # fmt: skip
    assert asked < decode


def test_how_a_stage_runs_is_told_once_for_each_image() -> None:
    """Also where the decode was negotiated ahead in other words, or is planned anew."""
    seen = Recorder(house(2_000 * MIB), chat(0, "a"), job(4_000, side=96)).until(100_000)
    told = [effect.notice for effect in seen.effects if isinstance(effect, ef.Tell)]
    assert any("negotiated while sampling runs" in line for line in seen.world.arbiter.story("job0"))
    ways = [notice.kind for notice in told if notice.subject == "job0"]
    assert ways == [NoticeKind.STREAMED, NoticeKind.TILED]


def test_a_regular_user_finds_the_model_warmed() -> None:
    hourly = [chat(index * 3_600_000, f"c{index}") for index in range(7)]
    seen = Recorder(house(8 * GIB), *hourly).until(6 * 3_600_000 - 1)
    assert seen.notices().count(NoticeKind.PREWARMED) == 2, "from the fifth gap on there is a rhythm"
    assert seen.tide is not Tide.COLD


def test_an_idle_model_leaves_after_the_rent_is_paid() -> None:
    seen = Recorder(house(8 * GIB), chat(0, "a")).until(3_000_000)
    assert seen.tide is Tide.COLD
    assert NoticeKind.RELEASED in seen.notices()


@pytest.mark.parametrize("sight", list(Sight))
def test_bytes_are_free_when_seen_whatever_the_sight(sight: Sight) -> None:
    seen = Recorder(house(5 * GIB, sight=sight), chat(0, "a"), job(9_000)).until(120_000)
    assert [effect.outcome for effect in seen.effects if isinstance(effect, ef.FinishJob)] == [
        ef.Outcome.DONE
    ]


def test_a_guest_hears_what_could_be_had() -> None:
    seen = Recorder(house(6 * GIB), chat(0, "a"), Act(5_000, "guest", "game", (4 * GIB, 1_000, 0), "gpu0"))
    seen.until(6_000)
    answer = next(effect for effect in seen.effects if isinstance(effect, ef.AnswerGuest))
    assert answer.state is ef.GuestState.DENIED
    assert 0 < answer.largest_now_bytes < 4 * GIB
    assert "wait_ms" in answer.alternatives[-1]


def asks(lease: str, *, card: str = "gpu0", amount_bytes: int = MIB, at_ms: int = 0) -> ev.GuestAsked:
    return ev.GuestAsked(
        at_ms=at_ms, lease=lease, card=card, amount_bytes=amount_bytes, purpose="", hold_ms=60_000, wait_ms=0
    )


def test_a_guest_hears_why_it_cannot_be() -> None:
    seen = Recorder(house(6 * GIB)).until(1_000)

    def answered(event: ev.GuestAsked) -> ef.AnswerGuest:
        seen.world.arbiter.handle(event)
        return [effect for effect in seen.effects if isinstance(effect, ef.AnswerGuest)][-1]

    now_ms = seen.world.now_ms
    nowhere = answered(asks("nowhere", card="gpu7", at_ms=now_ms))
    assert (nowhere.state, nowhere.largest_now_bytes) == (ef.GuestState.DENIED, 0)
    assert nowhere.alternatives == ("there is no card 'gpu7'; there are: gpu0",)
    huge = answered(asks("huge", amount_bytes=7 * GIB, at_ms=now_ms))
    assert huge.state is ef.GuestState.DENIED
    assert 0 < huge.largest_now_bytes <= 6 * GIB
    assert huge.alternatives[0] == "this is larger than the card: gpu0 has 6.00 GiB in all"
    # What is said to be there is there.
    granted = answered(asks("most", amount_bytes=huge.largest_now_bytes, at_ms=now_ms))
    assert granted.state is ef.GuestState.GRANTED


def test_a_guest_too_many_is_told_so() -> None:
    seen = Recorder(house(6 * GIB)).until(1_000)
    guests_max = seen.world.arbiter.state.policy.guests_max
    for number in range(guests_max + 1):
        seen.world.arbiter.handle(asks(f"guest{number}", at_ms=seen.world.now_ms))
    answers = [effect for effect in seen.effects if isinstance(effect, ef.AnswerGuest)]
    assert [answer.state for answer in answers[:-1]] == [ef.GuestState.GRANTED] * guests_max
    assert answers[-1].state is ef.GuestState.DENIED
    assert answers[-1].alternatives[0].startswith(f"{guests_max} other programs hold card memory")


def test_a_guest_that_waits_gets_what_the_idle_give_up() -> None:
    wish = Act(5_000, "guest", "game", (4 * GIB, 1_000, 4_000), "gpu0")
    seen = Recorder(house(6 * GIB), chat(0, "a"), wish).until(30_000)
    answers = [effect.state for effect in seen.effects if isinstance(effect, ef.AnswerGuest)]
    assert answers == [ef.GuestState.WAITING, ef.GuestState.GRANTED, ef.GuestState.ENDED]


def test_an_unknown_model_is_refused_in_words() -> None:
    seen = Recorder(house(6 * GIB))
    submitted = ev.JobSubmitted(
        at_ms=0,
        job="x",
        model="nobody",
        latent_height=8,
        latent_width=8,
        steps_count=1,
        stages=(Stage.DECODE,),
    )
    (refused, *_) = seen.world.arbiter.handle(submitted)
    assert isinstance(refused, ef.FinishJob)
    assert refused.message == "There is no image model nobody."


def test_who_came_later_is_expected_later() -> None:
    arbiter = Recorder(house(6 * GIB), job(0), job(10, "job1")).until(1_000).world.arbiter
    first, second = arbiter.eta_ms("job0"), arbiter.eta_ms("job1")
    assert first is not None
    assert second is not None
    assert first < second
    assert arbiter.eta_ms("nobody") is None

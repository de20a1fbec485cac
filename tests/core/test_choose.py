"""How the planner decides about one stage and about a whole image: given a question, then the plan."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tidegate.core.faults import CapacityError
from tidegate.core.image.failure import Attempt, Failure
from tidegate.core.image.ladder import ATTEMPTS_MAX, KILLS_MAX, LADDER, Rung, climb, next_rung, rung_of
from tidegate.core.notice import NoticeKind, notices_of
from tidegate.core.planner import (
    Concession,
    Footprint,
    Held,
    Plan,
    Reason,
    Refusal,
    RelayQuestion,
    Room,
    StageFacts,
    StageOption,
    StageQuestion,
    Work,
    YieldClass,
    advise,
    candidates_for,
    choose,
    option_of,
    plan_image,
    plan_stage,
)
from tidegate.core.planner.advice import advise_neighbours
from tidegate.core.planner.option import placed
from tidegate.core.quantity import GIB, MIB
from tidegate.core.stage import DecodeMode, Execution, Placement, Stage

RAM = Room(name="RAM", total_bytes=32 * GIB, free_bytes=24 * GIB, headroom_bytes=GIB)
WORK = Work(latent_height=64, latent_width=64, steps_count=20)


def card(free_bytes: int) -> Room:
    return Room(name="the card", total_bytes=8 * GIB, free_bytes=free_bytes)


def decode_options() -> tuple[StageOption, ...]:
    """SD1.5 at 512 px: 94 MiB of VAE, 1664 MiB whole, 416 MiB in tiles of 32."""
    found = []
    facts = StageFacts(latent_height=64, latent_width=64, weights_bytes=94 * MIB, room_bytes=8 * GIB)
    for execution in candidates_for(Stage.DECODE, facts):
        side = execution.tile or 64
        footprint = placed(execution, weights_bytes=94 * MIB, compute_bytes=side * side * 1664 * MIB // 4096)
        found.append(option_of(Stage.DECODE, execution, footprint=footprint, work=WORK))
    return tuple(found)


def denoise_options() -> tuple[StageOption, ...]:
    found = []
    facts = StageFacts(latent_height=64, latent_width=64, weights_bytes=1640 * MIB, room_bytes=8 * GIB)
    for execution in candidates_for(Stage.DENOISE, facts):
        footprint = placed(execution, weights_bytes=1640 * MIB, compute_bytes=560 * MIB)
        found.append(option_of(Stage.DENOISE, execution, footprint=footprint, work=WORK))
    return tuple(found)


def decode(free_bytes: int, *concessions: Concession, ram: Room = RAM) -> StageQuestion:
    return StageQuestion(
        stage=Stage.DECODE,
        subject="image 1",
        card=card(free_bytes),
        ram=ram,
        options=decode_options(),
        concessions=concessions,
    )


KV = Concession(
    tenant="qwen/kv",
    name="the KV cache of qwen",
    yields=YieldClass.LLM_KV,
    card_bytes=500 * MIB,
    ram_bytes=-100 * MIB,
    free_ms=30,
    return_ms=60,
    needed_permille=500,
)
WEIGHTS = Concession(
    tenant="qwen/weights",
    name="the weights of qwen",
    yields=YieldClass.LLM_WEIGHTS,
    card_bytes=4 * GIB,
    free_ms=250,
    return_ms=1800,
    needed_permille=500,
    after="qwen/kv",
)


def test_a_stage_that_fits_bothers_nobody() -> None:
    plan = plan_stage(decode(4 * GIB, KV, WEIGHTS))
    assert plan.execution == Execution(Placement.CARD)
    assert plan.releases == ()
    assert notices_of(plan) == ()


def test_own_finished_stages_go_before_anybody_else() -> None:
    own = Concession(
        tenant="own/diffusion",
        name="the diffusion model",
        yields=YieldClass.OWN_FINISHED,
        card_bytes=1640 * MIB,
    )
    plan = plan_stage(decode(800 * MIB, KV, WEIGHTS, own))
    assert [release.tenant for release in plan.releases] == ["own/diffusion"]


def test_what_others_took_of_ours_must_be_freed_before_anything_is_gained() -> None:
    """A game took the card while we held 4 GiB of it: giving back 4.5 leaves half of one."""
    plan = plan_stage(decode(-4 * GIB, KV, WEIGHTS))
    freed = sum(release.card_bytes for release in plan.releases)
    assert plan.option.footprint.card_bytes <= max(0, freed - 4 * GIB)
    assert plan.execution != Execution(Placement.CARD)


def test_the_kv_cache_yields_before_the_weights() -> None:
    plan = plan_stage(decode(1300 * MIB, WEIGHTS, KV))
    assert [release.tenant for release in plan.releases] == ["qwen/kv"]
    assert plan.execution.mode is DecodeMode.WHOLE


def test_weights_take_the_kv_cache_along() -> None:
    plan = plan_stage(decode(200 * MIB, WEIGHTS, KV))
    assert [release.tenant for release in plan.releases] == ["qwen/kv", "qwen/weights"]


def test_the_largest_tile_that_fits_is_taken() -> None:
    plan = plan_stage(decode(1100 * MIB))
    assert (plan.execution.placement, plan.execution.tile) == (Placement.CARD, 48)
    assert [rejection.reason for rejection in plan.rejected] == [Reason.CARD_BYTES]
    assert plan.rejected[0].needed_bytes == 1758 * MIB
    assert plan.rejected[0].available_bytes == 1100 * MIB
    assert [notice.kind for notice in notices_of(plan)] == [NoticeKind.TILED]


def test_no_piece_is_larger_than_the_card_gives_at_once() -> None:
    question = decode(8 * GIB)
    assert question.card is not None
    plan = plan_stage(replace(question, card=replace(question.card, allocation_max_bytes=GIB)))
    assert plan.execution.tile == 48, "936 MiB; the whole image needs 1.6 GiB in one piece"
    assert plan.rejected[0].reason is Reason.ALLOCATION
    assert "1.62 GiB in one piece" in plan.rejected[0].text()


def test_weights_are_split_over_as_many_pieces_as_it_takes() -> None:
    room = replace(card(8 * GIB), allocation_max_bytes=GIB)
    question = StageQuestion(
        stage=Stage.DENOISE, subject="image", card=room, ram=RAM, options=denoise_options()
    )
    assert plan_stage(question).execution == Execution(Placement.CARD), (
        "1640 MiB of weights, 560 to compute in"
    )


def test_the_cpu_comes_last_and_whole_when_ram_allows() -> None:
    plan = plan_stage(decode(10 * MIB))
    assert plan.execution == Execution(Placement.CPU)
    scarce = replace(RAM, free_bytes=GIB + 300 * MIB)
    assert plan_stage(decode(10 * MIB, ram=scarce)).execution == Execution(
        Placement.CPU, DecodeMode.TILED, 16
    )


def test_a_configured_yield_order_keeps_the_language_model() -> None:
    first_tiles = (YieldClass.TILES, *(yields for yields in YieldClass if yields is not YieldClass.TILES))
    question = replace(decode(1300 * MIB, KV, WEIGHTS), yield_order=first_tiles)
    assert plan_stage(question).execution.tile == 48


def test_nothing_fits_is_one_clear_error_with_numbers() -> None:
    question = decode(10 * MIB, ram=replace(RAM, free_bytes=GIB + 10 * MIB))
    answer = choose(question)
    assert isinstance(answer, Refusal)
    with pytest.raises(CapacityError) as caught:
        plan_stage(question)
    assert caught.value.available_bytes == 10 * MIB
    assert caught.value.needed_bytes == 198 * MIB
    assert "198 MiB" in caught.value.message


def test_state_saved_to_ram_must_fit_ram() -> None:
    plan = plan_stage(decode(1300 * MIB, KV, WEIGHTS, ram=replace(RAM, free_bytes=GIB + 50 * MIB)))
    assert plan.execution.tile == 48, "no room to save the KV cache, so the decode is tiled"


def test_a_component_loaded_in_the_same_way_is_not_counted_twice() -> None:
    held = Held(execution=Execution(Placement.CARD), card_bytes=1640 * MIB, ram_bytes=0)
    question = StageQuestion(
        stage=Stage.DENOISE,
        subject="image 2",
        card=card(600 * MIB),
        ram=RAM,
        options=denoise_options(),
        held=held,
    )
    plan = plan_stage(question)
    assert plan.execution.placement is Placement.CARD
    assert (plan.score.load_ms, plan.drops_held) == (0, False)
    tight = plan_stage(replace(question, card=card(100 * MIB)))
    assert tight.execution.placement is Placement.STREAM
    assert tight.drops_held


def test_without_a_card_the_cpu_is_no_concession() -> None:
    question = replace(decode(0), card=None)
    plan = plan_stage(question)
    assert plan.execution == Execution(Placement.CPU)
    assert plan.score.rank == 0
    assert notices_of(plan) == ()


def test_the_bound_on_candidates_is_reported() -> None:
    plan = plan_stage(replace(decode(1300 * MIB, KV, WEIGHTS), candidates_max=3))
    assert plan.skipped_count > 0
    assert any("the bound was reached" in line for line in plan.explain())


def test_a_whole_image_carries_along_what_stays_loaded() -> None:
    encode = tuple(
        StageOption(execution, footprint, run_ms=run_ms)
        for execution, footprint, run_ms in (
            (Execution(Placement.CARD), Footprint(236 * MIB, 0, 235 * MIB), 30),
            (Execution(Placement.CPU), Footprint(0, 236 * MIB, 235 * MIB), 500),
        )
    )
    options = {Stage.ENCODE: encode, Stage.DENOISE: denoise_options(), Stage.DECODE: decode_options()}
    plans = plan_image(RelayQuestion(subject="image", card=card(2300 * MIB), ram=RAM, options=options))
    assert [plan.execution.placement for plan in plans] == [Placement.CARD] * 3
    assert [[release.tenant for release in plan.releases] for plan in plans] == [
        [],
        ["own/text_encoder"],
        ["own/diffusion"],
    ]


def test_explain_names_decision_bytes_and_refusals() -> None:
    lines = plan_stage(decode(1100 * MIB)).explain()
    assert lines[0] == "image 1: decode runs on the card, in tiles of 48."
    assert any("needs 1.72 GiB of card memory" in line for line in lines)
    data = plan_stage(decode(1100 * MIB)).data()
    assert (data["tile"], data["card"]) == (48, "the card")


def test_advice_names_the_first_quantisation_that_changes_the_plan() -> None:
    question = StageQuestion(
        stage=Stage.DENOISE, subject="image", card=card(1600 * MIB), ram=RAM, options=denoise_options()
    )
    (advice,) = advise(question, weight_type="f16")
    assert advice.weight_type == "q8_0"
    assert advice.weights_bytes == 1640 * MIB * 34 // 64
    assert "on the card" in advice.text
    assert advise(replace(question, card=card(4 * GIB)), weight_type="f16") == ()


WHOLE, TILE = Execution(Placement.CARD), Execution(Placement.CARD, DecodeMode.TILED, 48)
SMALLEST, CPU = Execution(Placement.CARD, DecodeMode.TILED, 16), Execution(Placement.CPU)


def test_neighbours_hear_how_much_smaller_they_had_to_be() -> None:
    # 1758 MiB are needed, 200 are free; the model holds 4.5 GiB.
    assert advise_neighbours(decode(200 * MIB, WEIGHTS, KV)) == (
        "If the weights of qwen were 1.52 GiB smaller on the card, by quantisation or a shorter context, "
        "it could stay while decode runs.",
    )
    assert advise_neighbours(decode(200 * MIB, replace(KV, card_bytes=1600 * MIB))) == (), "nobody saves all"
    assert advise_neighbours(decode(4 * GIB, WEIGHTS, KV)) == ()


@pytest.mark.parametrize(
    ("tried", "rung"),
    [
        ([], Rung.CARD),
        ([Attempt(WHOLE, Failure.REFUSED)], Rung.TILED),
        ([Attempt(TILE, Failure.DIED)], Rung.SMALLEST_TILE),
        ([Attempt(SMALLEST, Failure.HANG)], Rung.CPU),
        ([Attempt(CPU, Failure.REFUSED)], Rung.CPU_SMALLEST_TILE),
        ([Attempt(WHOLE, Failure.NOT_FINITE)], Rung.CPU),
        ([Attempt(WHOLE, Failure.KILLED)], Rung.CARD),
        ([Attempt(WHOLE, Failure.KILLED), Attempt(WHOLE, Failure.KILLED)], Rung.TILED),
        ([Attempt(WHOLE, Failure.KILLED)] * 2 + [Attempt(TILE, Failure.KILLED)], Rung.TILED),
        ([Attempt(CPU, Failure.KILLED)] * ATTEMPTS_MAX * 2, Rung.CPU_SMALLEST_TILE),
        ([Attempt(CPU, Failure.KILLED)] * KILLS_MAX, None),
        ([Attempt(CPU, Failure.DIED)] * ATTEMPTS_MAX, None),
    ],
)
def test_the_class_of_a_failure_picks_the_rung(tried: list[Attempt], rung: Rung | None) -> None:
    assert next_rung(Stage.DECODE, tried, smallest_tile=16) is rung


def test_climbing_visits_every_rung_and_ends() -> None:
    question = decode(4 * GIB)
    tried: list[Attempt] = []
    seen = []
    while isinstance(plan := climb(question, tried), Plan):
        seen.append(rung_of(plan.execution, 16))
        tried.append(Attempt(plan.execution, Failure.REFUSED))
    assert tuple(dict.fromkeys(seen)) == LADDER[Stage.DECODE]
    assert len(tried) == ATTEMPTS_MAX


def test_what_was_nan_twice_in_the_same_way_is_not_tried_again() -> None:
    question = decode(4 * GIB)
    tried: list[Attempt] = []
    while isinstance(plan := climb(question, tried), Plan):
        tried.append(Attempt(plan.execution, Failure.NOT_FINITE))
    assert len(tried) < ATTEMPTS_MAX
    assert tried[-1] == tried[-2] and len(set(tried)) == len(tried) - 1


def test_when_lower_rungs_fit_nowhere_the_best_that_fits_is_tried_again() -> None:
    question = decode(4 * GIB, ram=replace(RAM, free_bytes=0))
    tried = [Attempt(SMALLEST, Failure.DIED)]
    plan = climb(question, tried)
    assert isinstance(plan, Plan)
    assert plan.execution.placement is Placement.CARD

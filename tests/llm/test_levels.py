"""Levels on a card that is too small, or refuses: a clear answer, nothing left behind, nothing lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_house import LlmHouse, order_for
from llm_walks import LAYERS_COUNT
from tidegate.core.llm.level import Level
from tidegate.core.quantity import MIB
from tidegate.runtime.cards.virtual import VirtualCard
from tidegate.wire import asks, llm_child, llm_front
from tidegate.wire.llm_child import Evaluation
from tidegate.wire.messages import FaultKind

BODY = asks.Completion(prompt="once upon a time", sampling=asks.Sampling(seed=2, tokens_max=60))


def house_on(card: VirtualCard, model: Path, **changes: object) -> LlmHouse:
    device = card.descriptor().device or ""
    made = LlmHouse(order_for(model, ledger=card.path, device=device, **changes))
    made.start_child()
    return made


def used(card: VirtualCard, house: LlmHouse) -> int:
    assert house.child is not None
    row = card.read().row_of(house.child.pid)
    return row.holdings[0].used_bytes if row is not None else 0


def card_bytes(holdings: tuple[llm_child.Holding, ...]) -> int:
    return sum(held.weights_bytes + held.kv_bytes + held.compute_bytes for held in holdings if held.device)


def test_weights_that_do_not_fit_are_refused_and_leave_nothing(card: VirtualCard, tiny: Path) -> None:
    card.set_capacity(4 * MIB)
    with house_on(card, tiny) as house:
        refused = house.try_level(Level.HOT, layers=LAYERS_COUNT)
        assert isinstance(refused, llm_child.LevelFailed)
        assert refused.fault is FaultKind.OUT_OF_MEMORY
        assert used(card, house) == 0
        house.ask("r", BODY)
        card.set_capacity(64 * MIB)
        house.set_level(Level.HOT, layers=LAYERS_COUNT)
        assert len(house.answered("r")[0].ids) == 60


def test_a_refused_context_leaves_the_weights(card: VirtualCard, tiny: Path) -> None:
    card.set_capacity(8 * MIB)
    with house_on(card, tiny) as house:
        refused = house.try_level(Level.HOT, layers=LAYERS_COUNT)
        assert isinstance(refused, llm_child.LevelFailed)
        assert refused.fault is FaultKind.OUT_OF_MEMORY
        held = used(card, house)
        assert 4 * MIB < held < 8 * MIB
        card.set_capacity(64 * MIB)
        reached = house.set_level(Level.HOT, layers=LAYERS_COUNT)
        assert used(card, house) == card_bytes(reached.holdings) > held


def test_parts_of_a_model_compute_the_same_text(card: VirtualCard, tiny: Path) -> None:
    with house_on(card, tiny, evaluation=Evaluation.REPRODUCIBLE) as house:
        texts = []
        held = []
        for layers in (LAYERS_COUNT, 2, 0):
            level = Level.HOT if layers == LAYERS_COUNT else Level.PARTIAL
            reached = house.set_level(level, layers=layers)
            assert used(card, house) == card_bytes(reached.holdings)
            held.append(used(card, house))
            house.ask(f"{layers}", BODY)
            texts.append(house.answered(f"{layers}")[0].text)
        assert held == sorted(held, reverse=True)
        assert held[-1] == 0
        assert texts[0] == texts[1] == texts[2]


def test_warm_gives_back_all_but_the_weights(card: VirtualCard, tiny: Path) -> None:
    with house_on(card, tiny) as house:
        hot = house.set_level(Level.HOT, layers=LAYERS_COUNT)
        weights = sum(held.weights_bytes for held in hot.holdings if held.device)
        house.ask("r", BODY)
        house.until(lambda: house.tokens_of("r") > 20)
        warm = house.set_level(Level.WARM, layers=LAYERS_COUNT)
        assert used(card, house) == card_bytes(warm.holdings) == weights
        assert warm.state_bytes > 0
        # Without room in RAM the state is dropped, and the history evaluated again.
        house.set_level(Level.HOT, layers=LAYERS_COUNT)
        dropped = house.set_level(Level.WARM, layers=LAYERS_COUNT, ram_bytes=0)
        assert dropped.state_bytes == 0
        house.set_level(Level.HOT, layers=LAYERS_COUNT)
        assert len(house.answered("r")[0].ids) == 60


@pytest.mark.parametrize("first", [1, 2, 3, 4, 6])
def test_no_refused_allocation_ends_the_child(card: VirtualCard, tiny: Path, first: int) -> None:
    with house_on(card, tiny) as house:
        card.reset_allocation_count()
        card.plant_fault(first)
        answer = house.try_level(Level.HOT, layers=LAYERS_COUNT)
        card.clear_faults()
        if isinstance(answer, llm_child.LevelFailed):
            assert answer.fault is FaultKind.OUT_OF_MEMORY
            house.set_level(Level.HOT, layers=LAYERS_COUNT)
        house.ask("r", BODY)
        assert len(house.answered("r")[0].ids) == 60


def test_a_model_that_is_none_is_said_to_be_none(card: VirtualCard, tiny: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    whole = tiny.read_bytes()
    cut.write_bytes(whole[: len(whole) - 4096])
    with house_on(card, cut) as house:
        assert isinstance(house.opened, llm_front.FrontRefused)
        assert house.opened.fault is FaultKind.INVALID_MODEL
        refused = house.try_level(Level.HOT, layers=LAYERS_COUNT)
        assert isinstance(refused, llm_child.LevelFailed)
        assert refused.fault is FaultKind.INVALID_MODEL
        assert used(card, house) == 0

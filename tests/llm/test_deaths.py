"""`kill -9` of the child at seeded moments: streams go on elsewhere, with the same text, and at most a
snapshot's distance of each is evaluated again.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from llm_house import LlmHouse, order_for
from llm_walks import LAYERS_COUNT, bodies, undisturbed
from tidegate.core.llm.level import Level
from tidegate.runtime.cards.virtual import VirtualCard
from tidegate.wire.llm_child import Evaluation

SNAPSHOT_TOKENS = 256
TOKENS_MAX = 400


def kill_now_and_then(card: VirtualCard, model: Path, *, kills: int, seed: int) -> None:
    chance = random.Random(seed)
    device = card.descriptor().device or ""
    order = order_for(model, ledger=card.path, device=device, evaluation=Evaluation.REPRODUCIBLE)
    with LlmHouse(order) as house:
        house.start_child()
        house.set_level(Level.HOT, layers=LAYERS_COUNT)
        texts = undisturbed(house, TOKENS_MAX)
        asked = bodies(TOKENS_MAX)
        names: list[str] = []
        for number in range(kills):
            if all(house.heard[name].ended is not None for name in names):
                names = [f"{name}/{number}" for name in asked]
                for name, body in zip(names, asked.values(), strict=True):
                    house.ask(name, body)
            going_on = [name for name in names if house.heard[name].ended is None]
            goal = house.tokens_of(*names) + chance.randrange(1, 200)
            house.until(
                lambda goal=goal, names=names: (
                    house.tokens_of(*names) >= goal or all(house.heard[name].ended for name in names)
                )
            )
            house.kill_child()
            house.start_child()
            house.working.clear()
            house.set_level(Level.HOT, layers=LAYERS_COUNT)
            going_on = [name for name in names if house.heard[name].ended is None]
            house.until(lambda going_on=going_on: all(name in house.working for name in going_on))
            for name in going_on:
                told = house.working[name][0]
                assert told.total_count - told.done_count <= SNAPSHOT_TOKENS, told
        house.answered(*names)
        for name, heard in house.heard.items():
            assert heard.ids == texts[name.split("/")[0]], f"{name} differs"
        assert not house.failures


def test_a_killed_child_costs_a_pause(card: VirtualCard, tiny: Path) -> None:
    kill_now_and_then(card, tiny, kills=4, seed=1)


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(5))
def test_a_hundred_deaths(card: VirtualCard, tiny: Path, seed: int) -> None:
    kill_now_and_then(card, tiny, kills=20, seed=200 + seed)

"""Idle conversations: what the front keeps of them, within which bounds, and over a restart."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_house import LlmHouse, order_for
from tidegate.core.llm.level import Level
from tidegate.wire import asks, llm_front
from tidegate.wire.llm_child import Evaluation

STORIES = [f"{n}. " + f"the {name} went on and on " * 12 for n, name in enumerate("abcdef")]


def go_on(house: LlmHouse, story: int, *, turn: int) -> asks.Ended:
    """One more turn of a story: its prompt is the last prompt and what was answered."""
    name = f"{story}/{turn}"
    before = "" if not turn else "".join(house.heard[f"{story}/{n}"].text for n in range(turn))
    body = asks.Completion(
        prompt=STORIES[story] + before, sampling=asks.Sampling(temperature=0.0, tokens_max=24)
    )
    house.ask(name, body)
    ended = house.answered(name)[0].ended
    assert ended is not None
    return ended


@pytest.mark.parametrize("evaluation", list(Evaluation))
def test_more_conversations_than_slots_go_on_without_being_evaluated_again(
    tiny: Path, evaluation: Evaluation
) -> None:
    with LlmHouse(order_for(tiny, slots_count=2, evaluation=evaluation)) as house:
        house.start_child()
        house.set_level(Level.HOT, layers=0)
        for story in range(len(STORIES)):
            go_on(house, story, turn=0)
        for story in range(len(STORIES)):
            ended = go_on(house, story, turn=1)
            # In reproducible mode only whole steps of 64 of the first prompt are taken over.
            least = (
                ended.prompt_count - 70 if evaluation is Evaluation.REPRODUCIBLE else ended.prompt_count - 30
            )
            assert ended.cached_count >= max(64, least - 64), ended
        assert house.keeping is not None
        assert house.keeping.idle_bytes > 0


def test_states_that_are_freed_take_no_memory_and_cost_an_evaluation(tiny: Path) -> None:
    with LlmHouse(order_for(tiny)) as house:
        house.start_child()
        house.set_level(Level.HOT, layers=0)
        go_on(house, 0, turn=0)
        house.end_child()
        freed = house.command_front(llm_front.FreeStates(serial=0, model=house.order.model))
        assert isinstance(freed, llm_front.StatesFreed)
        house.start_child()
        house.set_level(Level.HOT, layers=0)
        assert go_on(house, 0, turn=1).cached_count == 0


def test_conversations_survive_cold_and_a_restart_within_their_bounds(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "conversations"
    kept = {"ram_bytes": 64 << 20, "disk_bytes": 64 << 20, "folder": str(folder)}
    with LlmHouse(order_for(tiny), **kept) as house:
        house.start_child()
        house.set_level(Level.HOT, layers=0)
        prompts = [go_on(house, story, turn=0).prompt_count for story in range(3)]
        house.end_child()
        house.start_child()
        house.set_level(Level.HOT, layers=0)
        assert go_on(house, 0, turn=1).cached_count > prompts[0]
        texts = {name: heard for name, heard in house.heard.items() if name.endswith("/0")}
    files = sorted(folder.iterdir())
    assert len(files) >= 3
    files[0].write_bytes(files[0].read_bytes()[:-1])  # cut short: it is forgotten
    with LlmHouse(order_for(tiny), **kept) as house:
        house.heard.update(texts)
        house.start_child()
        house.set_level(Level.HOT, layers=0)
        cached = [go_on(house, story, turn=1).cached_count for story in range(3)]
        assert sum(count > prompts[0] - 8 for count in cached) >= 2, cached
    with LlmHouse(order_for(tiny), disk_bytes=1, folder=str(folder)) as house:
        assert not list(folder.iterdir()), "a smaller bound drops what was kept"


def test_a_damaged_state_is_dropped_and_evaluated_again(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "conversations"
    kept = {"ram_bytes": 64 << 20, "disk_bytes": 64 << 20, "folder": str(folder)}
    with LlmHouse(order_for(tiny), **kept) as house:
        house.start_child()
        house.set_level(Level.HOT, layers=0)
        go_on(house, 0, turn=0)
        texts = dict(house.heard)
    (path,) = folder.iterdir()
    damaged = bytearray(path.read_bytes())
    damaged[-5000] ^= 1
    path.write_bytes(damaged)
    with LlmHouse(order_for(tiny), **kept) as house:
        house.heard.update(texts)
        house.start_child()
        house.set_level(Level.HOT, layers=0)
        assert go_on(house, 0, turn=1).cached_count == 0
        whole = house.heard["0/1"].ids
    with LlmHouse(order_for(tiny)) as house:
        house.heard.update(texts)
        house.start_child()
        house.set_level(Level.HOT, layers=0)
        go_on(house, 0, turn=1)
        assert house.heard["0/1"].ids == whole

"""Which rows one call computes: in the order of their slots, with gaps filled where that is cheap."""

from __future__ import annotations

from pathlib import Path

from llm_house import LlmHouse, order_for
from tidegate.core.llm.level import Level
from tidegate.wire import asks, llm_link
from tidegate.workers.llm.calls import rows_of, without_gaps
from tidegate.workers.llm.context import Row
from tidegate.workers.llm.slots import Slot
from tidegate.workers.llm.streams import Piece, Step, Stream, merged


def stream(*items: int, generated_count: int = 0) -> Stream:
    begin = llm_link.Begin(stream=1, prompt=(), sampling=asks.Sampling())
    return Stream(number=1, order=begin, items=list(items), generated_count=generated_count, steps=())


def slots(*positions: int) -> list[Slot]:
    return [Slot(index, position=position) for index, position in enumerate(positions)]


def test_gaps_between_streams_are_filled_unless_they_are_many_or_full() -> None:
    places = slots(*[5] * 12)
    one, two, far = places[1], places[4], places[11]
    assert without_gaps(places, [], positions_max=9) == []
    assert without_gaps(places, [two], positions_max=9) == [two]
    assert without_gaps(places, places[3:6], positions_max=9) == places[3:6]
    assert without_gaps(places, [one, two], positions_max=9) == places[1:5]
    assert without_gaps(places, [one, two], positions_max=5) == [one, two]
    assert without_gaps(places, [one, far], positions_max=9) == [one, far]


def test_rows_are_in_the_order_of_slots_and_know_whose_logits_are_wanted() -> None:
    places = slots(7, 4, 0, 9)
    first, last = stream(1, 2, generated_count=1), stream(8, 9, generated_count=1)
    prompt = stream(30, 31, 32)
    whole = Step(0, 3, 3)
    rows, outputs, thrown = rows_of(
        [(places[0], first), (places[3], last)], [(places[2], prompt, whole)], places
    )
    assert rows == [
        Row(2, 7, 0, True),
        Row(0, 4, 1, False),
        Row(30, 0, 2, False),
        Row(31, 1, 2, False),
        Row(32, 2, 2, True),
        Row(9, 9, 3, True),
    ]
    assert [(slot.index, row) for slot, _, row in outputs] == [(0, 0), (2, 4), (3, 5)]
    assert thrown == [places[1]]
    rows, outputs, _ = rows_of([], [(places[2], prompt, Step(0, 2, 2))], [])
    assert [row.is_output for row in rows] == [False, False]
    assert outputs == []


def test_steps_of_text_are_one_and_pictures_stay_alone() -> None:
    picture = Piece(key="p", items_count=3, positions_count=2)
    steps = [Step(0, 4, 4), Step(4, 6, 2), Step(6, 9, 2, picture), Step(9, 10, 1), Step(10, 12, 2)]
    assert merged(steps) == [Step(0, 6, 6), Step(6, 9, 2, picture), Step(9, 12, 3)]


def test_an_idle_conversation_outlives_its_child(tiny: Path) -> None:
    """It is put by as soon as nobody wants anything, long before a copy of it would be due."""
    with LlmHouse(order_for(tiny)) as house:
        house.start_child()
        house.set_level(Level.HOT, layers=0)
        prompt = tuple(range(300, 400))
        house.ask("first", asks.Completion(prompt=prompt, sampling=asks.Sampling(tokens_max=2)))
        house.answered("first")
        house.until(lambda: house.keeping is not None and house.keeping.idle_bytes > 0)
        house.kill_child()
        house.start_child()
        house.set_level(Level.HOT, layers=0)
        house.ask("again", asks.Completion(prompt=(*prompt, 7, 8), sampling=asks.Sampling(tokens_max=2)))
        ended = house.answered("again")[0].ended
        assert ended is not None
        assert ended.cached_count >= len(prompt)

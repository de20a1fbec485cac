"""In `reproducible` a stream's text never depends on who else is being served, whatever the weights' type."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from llm_house import LlmHouse, order_for
from tidegate.core.llm.level import Level
from tidegate.wire import asks
from tidegate.wire.llm_child import Evaluation

TOKENS_MAX = 48
TYPES = ("f16", "q8_0", "q4_0", "q4_K")


def body(number: int) -> asks.Completion:
    sampling = asks.Sampling(temperature=0.0 if number % 2 else 0.9, seed=number, tokens_max=TOKENS_MAX)
    return asks.Completion(prompt=f"story {number} " + "and then " * (number % 7 * 9), sampling=sampling)


def compare(model: Path, streams_count: int) -> None:
    order = order_for(model, evaluation=Evaluation.REPRODUCIBLE, batch_tokens_count=32)
    with LlmHouse(order) as house:
        house.start_child()
        house.set_level(Level.HOT, layers=0)
        for number in range(streams_count):
            house.ask(f"alone/{number}", body(number))
            house.answered(f"alone/{number}")
        # Four slots, all asked at once: every stream has three others beside it nearly all the time.
        for number in range(streams_count):
            house.ask(f"among/{number}", body(number))
        house.answered(*(f"among/{number}" for number in range(streams_count)))
        differ = [
            number
            for number in range(streams_count)
            if house.heard[f"alone/{number}"].ids != house.heard[f"among/{number}"].ids
        ]
        assert not differ


def model_of(synthetic_models: Callable[[str], Path], kind: str) -> Path:
    name = "llama-tiny" if kind == "f16" else f"llama-tiny:{kind}"
    found = synthetic_models(name).glob("llama-tiny*.gguf")
    return next(path for path in found if "mmproj" not in path.name)


@pytest.mark.parametrize("kind", ["f16", "q4_0"])
def test_a_text_is_the_same_alone_and_among_others(
    synthetic_models: Callable[[str], Path], kind: str
) -> None:
    compare(model_of(synthetic_models, kind), 8)


@pytest.mark.chaos
@pytest.mark.parametrize("kind", TYPES)
def test_all_texts_are_the_same_alone_and_among_others(
    synthetic_models: Callable[[str], Path], kind: str
) -> None:
    compare(model_of(synthetic_models, kind), 32)

"""Over all levels and through deaths of the child, during four parallel streams: no ask fails, no token is
taken back, restored states are the saved bytes, the ledger is the engine's own figures. Where evaluation is
reproducible every text is the one that nobody disturbed, greedy and seeded.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from llm_house import LlmHouse, order_for
from llm_walks import LAYERS_COUNT, Walk, undisturbed
from tidegate.core.llm.level import Level
from tidegate.runtime.cards.virtual import VirtualCard
from tidegate.wire import asks, llm_child
from tidegate.wire.llm_child import Evaluation


def order_on(card: VirtualCard, model: Path, evaluation: Evaluation) -> llm_child.OpenLlm:
    return order_for(model, ledger=card.path, device=card.descriptor().device or "", evaluation=evaluation)


def walk(
    card: VirtualCard, model: Path, evaluation: Evaluation, *, steps: int, tokens_max: int, seed: int
) -> None:
    order = order_on(card, model, evaluation)
    with LlmHouse(order) as house:
        house.start_child()
        house.set_level(Level.HOT, layers=LAYERS_COUNT)
        texts = undisturbed(house, tokens_max)
    with LlmHouse(order) as house:
        moved = Walk(house, card, seed=seed, tokens_max=tokens_max)
        for _ in range(steps):
            moved.step(kills=True)
        finished = moved.end()
        assert not house.failures
    assert len(finished) >= len(texts)
    for name, heard in finished:
        assert heard.ended is not None
        assert heard.ended.finish is asks.Finish.LENGTH
        assert len(heard.ids) == heard.ended.completion_count == tokens_max
        if evaluation is Evaluation.REPRODUCIBLE:
            assert heard.ids == texts[name], f"{name} differs"


def test_a_walk_in_reproducible_mode(card: VirtualCard, tiny: Path) -> None:
    walk(card, tiny, Evaluation.REPRODUCIBLE, steps=16, tokens_max=300, seed=1)


def test_a_walk_in_throughput_mode(card: VirtualCard, tiny: Path) -> None:
    walk(card, tiny, Evaluation.THROUGHPUT, steps=12, tokens_max=200, seed=2)


@pytest.mark.parametrize("kind", ["cohere2-tiny", "lfm2-tiny"])
def test_a_walk_of_a_model_with_another_memory(
    card: VirtualCard, synthetic_models: Callable[[str], Path], kind: str
) -> None:
    """A sliding window that forgets, and a memory that cannot be cut anywhere but at its end."""
    model = synthetic_models(kind) / f"{kind}.gguf"
    walk(card, model, Evaluation.REPRODUCIBLE, steps=6, tokens_max=150, seed=5)


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("evaluation", list(Evaluation))
def test_a_thousand_steps(card: VirtualCard, tiny: Path, evaluation: Evaluation, seed: int) -> None:
    walk(card, tiny, evaluation, steps=100, tokens_max=300, seed=100 + seed)

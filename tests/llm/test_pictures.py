"""Pictures in a prompt: the same text over suspensions and a death, for positions of one and of three numbers
(M-RoPE), on a card; and what a model without eyes answers is in test_answers.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_house import LlmHouse, order_for
from llm_walks import LAYERS_COUNT
from tidegate.core.llm.level import Level
from tidegate.runtime.cards.virtual import VirtualCard
from tidegate.wire import asks
from tidegate.wire.llm_child import Evaluation

TOKENS_MAX = 60


def picture(seed: int, width: int, height: int) -> asks.Picture:
    return asks.Picture(width=width, height=height, rgb=random.Random(seed).randbytes(width * height * 3))


def chat(seed: int) -> asks.Chat:
    parts = (
        asks.Text(text="look closely at this "),
        asks.Seen(picture=1),
        # The marker that mtmd would look for, in a client's words.
        asks.Text(text=" <__media__> and then at that"),
        asks.Seen(picture=0),
    )
    return asks.Chat(
        turns=(asks.Turn(role="user", parts=parts),),
        pictures=(picture(seed, 56, 56), picture(seed + 1, 90, 70)),
        sampling=asks.Sampling(seed=seed, temperature=0.8, tokens_max=TOKENS_MAX),
    )


@pytest.mark.parametrize("kind", ["llama-tiny", "qwen2vl-tiny"])
def test_texts_about_pictures_survive_everything(
    card: VirtualCard, synthetic_models: Callable[[str], Path], kind: str
) -> None:
    folder = synthetic_models(kind)
    order = order_for(
        folder / f"{kind}.gguf",
        ledger=card.path,
        device=card.descriptor().device or "",
        projector_path=str(folder / f"{kind}-mmproj.gguf"),
        evaluation=Evaluation.REPRODUCIBLE,
    )
    with LlmHouse(order) as house:
        house.start_child()
        house.set_level(Level.HOT, layers=LAYERS_COUNT)
        for seed in range(3):
            house.ask(f"calm {seed}", chat(seed))
        calm = house.answered(*(f"calm {seed}" for seed in range(3)))
        names = [f"wild {seed}" for seed in range(3)]
        for seed, name in enumerate(names):
            house.ask(name, chat(seed))
        for goal in (0, 10, 40, 90):
            house.until(lambda goal=goal: house.tokens_of(*names) >= goal)
            if goal == 40:
                house.kill_child()
                house.start_child()
            else:
                house.set_level(Level.WARM, layers=LAYERS_COUNT)
            house.set_level(Level.HOT, layers=LAYERS_COUNT)
        wild = house.answered(*names)
        assert [heard.ids for heard in wild] == [heard.ids for heard in calm]
        assert len({tuple(heard.ids) for heard in calm}) == 3, "different pictures, different texts"
        ended = calm[0].ended
        assert ended is not None
        assert ended.prompt_count > 40, "the places of the pictures count"

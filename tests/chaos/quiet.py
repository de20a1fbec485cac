"""Quiet: the answers that a language model gives when one front and one process of it talk in peace.

Owns those two processes and its memory of hashes. No server, no card, no arbiter and no HTTP: what the
storm's chats are compared with must not come from the thing that is tested.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any  # Any: JSON as it is sent to the server

from llm_house import LlmHouse, order_for
from tidegate.core.llm.level import Level
from tidegate.wire import asks
from tidegate.wire.llm_child import Evaluation

# As the server has it: a text depends on how many rows there are, and on nothing else of the house.
CONTEXT, SLOTS, BATCH = 4_096, 4, 512


class Quiet:
    """Answers each question once."""

    def __init__(self, model: Path, *, known: dict[str, str]) -> None:
        self._model = model
        self._known = known
        self._open = contextlib.ExitStack()
        self._house: LlmHouse | None = None
        self._count = 0

    def text(self, wish: Mapping[str, Any]) -> str:
        """The hash of an answer."""
        key = json.dumps(wish, sort_keys=True)
        if key not in self._known:
            self._known[key] = digest_of(self._answered(wish))
        return self._known[key]

    def close(self) -> None:
        """End the processes."""
        self._open.close()
        self._house = None

    def _answered(self, wish: Mapping[str, Any]) -> str:
        house = self._house or self._opened()
        self._count += 1
        name = f"quiet{self._count}"
        turns = tuple(
            asks.Turn(role=message["role"], parts=(asks.Text(text=message["content"]),))
            for message in wish["messages"]
        )
        sampling = asks.Sampling(
            seed=wish["seed"],
            temperature=wish["temperature"],
            tokens_max=wish["max_tokens"],
            top_p=wish["top_p"],
        )
        accepted = house.ask(name, asks.Chat(turns=turns, sampling=sampling))
        assert isinstance(accepted, asks.Accepted), accepted
        (heard,) = house.answered(name)
        return heard.text

    def _opened(self) -> LlmHouse:
        order = order_for(
            self._model,
            context_tokens_count=CONTEXT,
            slots_count=SLOTS,
            batch_tokens_count=BATCH,
            evaluation=Evaluation.REPRODUCIBLE,
            proves_restores=False,
        )
        house = self._house = self._open.enter_context(LlmHouse(order))
        house.start_child()
        house.set_level(Level.HOT, layers=0)
        return house


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

"""What is no number is never sampled from: the ask fails in words, and nothing else is disturbed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGUFReader

from llm_house import LlmHouse, order_for
from tidegate.core.llm.level import Level
from tidegate.wire import asks
from tidegate.wire.messages import FaultKind


def spoilt(model: Path, folder: Path) -> Path:
    """A copy whose last norm is NaN in one place."""
    tensor = next(tensor for tensor in GGUFReader(model).tensors if tensor.name == "output_norm.weight")
    whole = bytearray(model.read_bytes())
    whole[tensor.data_offset : tensor.data_offset + 4] = np.float32("nan").tobytes()
    path = folder / "spoilt.gguf"
    path.write_bytes(whole)
    return path


def test_a_model_that_computes_no_numbers_fails_in_words(tiny: Path, tmp_path: Path) -> None:
    with LlmHouse(order_for(spoilt(tiny, tmp_path))) as house:
        house.start_child()
        house.set_level(Level.HOT, layers=0)
        for name, temperature in (("greedy", 0.0), ("seeded", 0.8)):
            sampling = asks.Sampling(temperature=temperature, tokens_max=10)
            house.ask(name, asks.Completion(prompt="once upon a time", sampling=sampling))
            heard = house.answered(name)[0]
            assert heard.ended is not None
            assert heard.ended.finish is asks.Finish.FAILED
            assert heard.ended.code == "not_finite"
            assert "NaN" in heard.ended.message
            assert not heard.ids
        # Once more from the beginning, each of them, and then no more.
        assert [failed.fault for failed in house.failures] == [FaultKind.NOT_FINITE] * 2

"""What the oracle of language models foretells is what the virtual card is charged, to the byte."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from llama_forecasts import CASES, compared


@pytest.mark.parametrize("name", CASES)
def test_predicted_is_observed(tmp_path: Path, synthetic_models: Callable[[str], Path], name: str) -> None:
    case = CASES[name]
    found = compared(case, synthetic_models, tmp_path)
    told, seen = found.told, found.seen
    assert found.asking_bytes == 0, "who only asks holds nothing of the card"
    assert found.holdings == [told["weights"], told["kv"], told["compute"]]
    assert (seen["weights"], seen["context"]) == (told["weights"], told["kv"] + told["compute"])
    assert seen["computing"] == 0, "a computation takes nothing more"
    if case.image_px:
        assert (seen["projector"], seen["image"]) == (told["projector"], told["image"])
        assert told["image"] > 0

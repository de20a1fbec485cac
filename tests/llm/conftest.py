"""What tests of the language engine share: the synthetic model and a virtual card for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tidegate.core.quantity import MIB
from tidegate.runtime.cards.virtual import VirtualCard, VirtualSpec


@pytest.fixture(scope="session")
def tiny(synthetic_models: Callable[[str], Path]) -> Path:
    """A llama of four layers with random weights: 6 MB, hundreds of tokens in a second."""
    return synthetic_models("llama-tiny") / "llama-tiny.gguf"


@pytest.fixture
def card(tmp_path: Path) -> Iterator[VirtualCard]:
    """A card that the tiny model fits on easily."""
    with VirtualCard.create_in(tmp_path, VirtualSpec(capacity_bytes=256 * MIB)) as made:
        yield made

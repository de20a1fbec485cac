"""Fixtures of the end-to-end tests: a state folder of their own, and the smallest model there is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from relay_runs import order_for
from tide_house import TideHouse
from tidegate.runtime.checkpoints import STATE_VARIABLE
from tidegate.runtime.order import ImageOrder


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Unfinished jobs of a test lie in its own folder, also for the programs that it starts."""
    folder = tmp_path / "state"
    monkeypatch.setenv(STATE_VARIABLE, str(folder))
    return folder


@pytest.fixture(scope="session")
def tiny(synthetic_models: Callable[[str], Path]) -> Path:
    """The checkpoint `sd1-tiny`, with its TAESD beside it."""
    return synthetic_models("sd1-tiny") / "sd1-tiny.safetensors"


@pytest.fixture(scope="session")
def tide_files(synthetic_models: Callable[[str], Path]) -> dict[str, Path]:
    """Models of both engines for a house, plain and quantised."""
    return {
        "image": synthetic_models("sd1-tiny") / "sd1-tiny.safetensors",
        "packed_image": synthetic_models("sd1-tiny:q8_0") / "sd1-tiny-q8_0.gguf",
        "language": synthetic_models("llama-tiny") / "llama-tiny.gguf",
        "packed_language": synthetic_models("llama-tiny:q4_K") / "llama-tiny-q4_K.gguf",
    }


@pytest.fixture(scope="module")
def open_house(tide_files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[TideHouse]:
    """A server of the module with these models."""
    with TideHouse(tmp_path_factory.mktemp("house"), **tide_files).open() as house:
        yield house


@pytest.fixture
def house(open_house: TideHouse) -> Iterator[TideHouse]:
    """The house of a module, whole again after each test."""
    yield open_house
    open_house.recover()


@pytest.fixture
def order(tiny: Path, tmp_path: Path) -> ImageOrder:
    """One image of 64 pixels in two steps."""
    return order_for(tiny, tmp_path / "out.png")

"""Fixtures of the API's tests: one real server for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import server_process
from server_process import Running


@pytest.fixture(scope="session")
def server(sd1_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server on a virtual card, with one tiny model."""
    with server_process.running(tmp_path_factory.mktemp("server"), sd1_tiny) as found:
        yield found


LANGUAGE_MODELS = """
[[llms]]
name = "hermes"
file = "{chatml}"
aliases = ["gpt-4o-mini"]
context = 1024
slots = 2
threads = 1

[[llms]]
name = "llama3"
file = "{llama3}"
mmproj = "none"
context = 1536
slots = 2
threads = 1
"""


@pytest.fixture(scope="session")
def llm_server(
    sd1_tiny: Path, synthetic_models: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """The same with two language models: `hermes` sees, `llama3` does not."""
    further = LANGUAGE_MODELS.format(
        chatml=synthetic_models("llama-tiny") / "llama-tiny.gguf",
        llama3=synthetic_models("llama3-tiny") / "llama3-tiny.gguf",
    )
    with server_process.running(tmp_path_factory.mktemp("llms"), sd1_tiny, further=further) as found:
        yield found

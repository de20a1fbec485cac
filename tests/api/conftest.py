"""Fixtures of the API's tests: one real server for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import server_process
from server_process import Running


@pytest.fixture(scope="session")
def server(sd1_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server on a virtual card, with one tiny model."""
    with server_process.running(tmp_path_factory.mktemp("server"), sd1_tiny) as found:
        yield found

"""The demo, as a user runs it: what it promises in words is true of its pictures."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

MAIN = "import sys; from tidegate.cli.main import main; sys.exit(main())"


@pytest.mark.chaos
def test_the_demo_kills_worker_and_server_and_shows_the_same_picture(
    synthetic_models: Callable[[str], Path], tmp_path: Path
) -> None:
    synthetic_models("sd1-tiny")
    command = [sys.executable, "-c", MAIN, "demo", "-o", str(tmp_path / "out")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    first, tiled, third, fourth, fifth = (pixels(Path(name)) for name in ended.stdout.split())
    assert first == third == fourth == fifth
    assert len(tiled) > len(first)
    for words in ("the worker", "the server", "in tiles of", "granted", "the answer goes on"):
        assert words in ended.stderr


def pixels(path: Path) -> bytes:
    with Image.open(path) as picture:
        return picture.convert("RGB").tobytes()

"""Two engines, two keys: a change in one is no reason to compile the other."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TREE = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for part in ("scripts", "native", "requirements"):
        shutil.copytree(TREE / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def keys(tree: Path) -> dict[str, str]:
    def key(part: str) -> str:
        command = [sys.executable, "scripts/build_native.py", part, "--key"]
        ended = subprocess.run(command, cwd=tree, stdout=subprocess.PIPE, text=True, check=True)
        return ended.stdout.strip()

    return {part: key(part) for part in ("image", "llama")}


@pytest.mark.parametrize(
    ("touched", "rebuilt"),
    [
        ("native/sdstage/engine.cpp", {"image"}),
        ("native/engine-sources.txt", {"image"}),
        ("native/llama/CMakeLists.txt", {"llama"}),
        ("native/llama/engine-sources.txt", {"llama"}),
        ("native/tidegate_engines/llama/prediction.py", {"llama"}),
        ("native/vcard/buffer.cpp", {"image", "llama"}),
        ("requirements/native.txt", {"image", "llama"}),
    ],
)
def test_a_change_compiles_what_it_is_in(copy: Path, touched: str, rebuilt: set[str]) -> None:
    before = keys(copy)
    path = copy / touched
    path.write_text(path.read_text(encoding="utf-8") + "\n# touched\n", encoding="utf-8")
    after = keys(copy)
    assert {part for part in before if before[part] != after[part]} == rebuilt

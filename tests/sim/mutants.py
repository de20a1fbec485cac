"""Planted bugs: each is put into a copy of the core, and the simulator must find it.

Owns the reading of `mutants.toml`, the copies and the hunt. A mutant that survives means that the judge is
blind to something; a mutant whose text is not found any more must be written anew.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
SEEDS_MAX = 3_000


@dataclass(frozen=True, slots=True)
class Mutant:
    """One planted bug."""

    name: str
    file: str
    find: str
    replace: str


@dataclass(frozen=True, slots=True)
class Hunt:
    """What became of a mutant: after how many seeds it was caught (0: not), and by which complaint."""

    mutant: Mutant
    seeds: int
    complaint: str


def mutants() -> tuple[Mutant, ...]:
    """Read the list."""
    listed = tomllib.loads((HERE / "mutants.toml").read_text())["mutant"]
    return tuple(Mutant(**entry) for entry in listed)


def hunt(mutant: Mutant) -> Hunt:
    """Plant one bug in a copy and run schedules until one of them complains."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        core = Path(folder) / "tidegate" / "core"
        shutil.copytree(
            ROOT / "src" / "tidegate" / "core", core, ignore=shutil.ignore_patterns("__pycache__")
        )
        (core.parent / "__init__.py").write_text('"""A copy with a planted bug."""\n')
        shutil.copytree(HERE, Path(folder) / "tests" / "sim", ignore=shutil.ignore_patterns("__pycache__"))
        planted = core / mutant.file
        text = planted.read_text()
        if text.count(mutant.find) != 1:
            return Hunt(mutant, 0, f"its text stands {text.count(mutant.find)} times in {mutant.file}")
        planted.write_text(text.replace(mutant.find, mutant.replace))
        done = subprocess.run(
            [sys.executable, "-m", "tests.sim.first", str(SEEDS_MAX)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    lines = done.stdout.strip().splitlines()
    seeds, _, complaint = lines[-1].partition(" ") if lines else ("0", "", done.stderr[-300:])
    return Hunt(mutant, int(seeds), complaint)


def hunt_all(processes: int = 2) -> list[Hunt]:
    """Hunt every mutant."""
    with ThreadPoolExecutor(processes) as pool:
        return list(pool.map(hunt, mutants()))


if __name__ == "__main__":
    for found in hunt_all():
        print(f"{found.seeds:5} seeds  {found.mutant.name}: {found.complaint[:120]}", flush=True)

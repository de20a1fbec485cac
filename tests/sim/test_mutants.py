"""Every planted bug is caught, and how soon."""

from __future__ import annotations

import pytest
from tests.sim.mutants import hunt_all, mutants


def test_there_are_enough_planted_bugs() -> None:
    assert len(mutants()) >= 25
    assert len({mutant.name for mutant in mutants()}) == len(mutants())


@pytest.mark.slow
def test_every_planted_bug_is_caught(capsys: pytest.CaptureFixture[str]) -> None:
    hunts = hunt_all()
    with capsys.disabled():
        caught = sum(hunt.seeds > 0 for hunt in hunts)
        print(f"\n{caught} of {len(hunts)} planted bugs caught; seeds needed:")
        for hunt in hunts:
            print(f"  {hunt.seeds:5}  {hunt.mutant.name}")
    survivors = [f"{hunt.mutant.name}: {hunt.complaint}" for hunt in hunts if not hunt.seeds]
    assert not survivors, "\n".join(survivors)

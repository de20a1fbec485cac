"""A few faults of the storm, broken off once and gone on with; and a few laps of the soak."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.chaos.__main__ import main
from tests.chaos.place import Place
from tests.chaos.script import House
from tests.chaos.soak import judged, soaked

# Among its first faults are killed workers, a killed server and a crash.
SEED = 7


@pytest.mark.slow
def test_after_a_few_faults_every_image_is_finished_and_the_same(
    tmp_path: Path, sd1_tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--seed", str(SEED), "--folder", str(tmp_path / "storm"), "--model", str(sd1_tiny)]
    common += ["--recipes", "2", "--resume"]
    for faults in (1, 4):
        code = main([*common, "--faults", str(faults)])
        said = capsys.readouterr().out.splitlines()
        assert code == 0, "\n".join(said)
        found = re.fullmatch(r"faults=(\d+) images=(\d+)/(\d+) identical=(\d+)/(\d+) chats=0/0", said[-1])
        assert found, said[-1]
        struck, finished, started, identical, compared = map(int, found.groups())
        assert struck == faults
        assert 0 < finished == started == identical == compared
    assert int(said[0].split()[1].rstrip(":")) > 1, "the second run went on where the first had stopped"


@pytest.mark.slow
def test_a_few_laps_leave_the_server_as_it_was(tmp_path: Path, sd1_tiny: Path) -> None:
    with Place(tmp_path, sd1_tiny, house=House()).open() as place:
        looks = soaked(place, minutes=0, warm_laps=1, jobs_per_lap=2)
    assert not judged(looks)

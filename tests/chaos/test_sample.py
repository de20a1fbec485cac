"""A few faults of the storm, broken off once and gone on with; and a few laps of the soak."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.chaos.__main__ import main
from tests.chaos.place import Place
from tests.chaos.script import House
from tests.chaos.soak import judged, soaked

# Among its first faults are a killed server, and killed workers of both engines.
SEED = 7


@pytest.mark.slow
def test_after_a_few_faults_every_image_and_every_answer_is_whole_and_the_same(
    tmp_path: Path,
    sd1_tiny: Path,
    synthetic_models: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    talker = synthetic_models("llama-tiny") / "llama-tiny.gguf"
    common = ["--seed", str(SEED), "--folder", str(tmp_path / "storm"), "--model", str(sd1_tiny)]
    common += ["--talker", str(talker), "--recipes", "2", "--questions", "2", "--resume"]
    for faults in (1, 5):
        code = main([*common, "--faults", str(faults)])
        said = capsys.readouterr().out.splitlines()
        assert code == 0, "\n".join(said)
        shape = r"faults=(\d+) images=(\d+)/(\d+) identical=(\d+)/(\d+) chats=(\d+)/(\d+)"
        found = re.fullmatch(shape, said[-1])
        assert found, said[-1]
        struck, finished, started, identical, compared, answered, asked = map(int, found.groups())
        assert struck == faults
        assert 0 < finished == started == identical == compared
        assert 0 < answered == asked
        assert said[-2] == f"answers that are the undisturbed ones: {asked}/{asked}"
    assert int(said[0].split()[1].rstrip(":")) > 1, "the second run went on where the first had stopped"


@pytest.mark.slow
def test_a_few_laps_leave_the_server_as_it_was(tmp_path: Path, sd1_tiny: Path) -> None:
    with Place(tmp_path, sd1_tiny, house=House()).open() as place:
        looks = soaked(place, minutes=0, warm_laps=1, jobs_per_lap=2)
    assert not judged(looks)

"""Standard streams that are full, closed or gone: the work goes on, and the end is a sentence and a code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from tidegate.cli.main import EXIT_CLIENT, EXIT_PIPE
from tidegate.cli.show import Show
from tidegate.core.stage import Execution, Placement, Stage

PROGRAM = (sys.executable, "-c", "from tidegate.cli.main import main; main()")
FULL = Path("/dev/full")


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_full_stderr_does_not_end_a_run(*, is_terminal: bool) -> None:
    with FULL.open("w", buffering=1) as file:
        with Show(Console(file=file, force_terminal=is_terminal)) as shown:
            shown.told("a notice")
            shown.stage_began(Stage.DENOISE, image=0, count=1, how=Execution(Placement.CPU))
            shown.step_done(1, 2, card_bytes=1)
            shown.told("another one")
        # What is still unwritten would fail again when the file is closed.
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), file.fileno())


def test_a_full_stdout_is_one_sentence() -> None:
    with FULL.open("w") as file:
        ended = subprocess.run([*PROGRAM, "--help"], stdout=file, stderr=subprocess.PIPE, text=True)
    assert ended.returncode == EXIT_CLIENT
    assert (
        ended.stderr.startswith("tidegate: Standard output does not take") and ended.stderr.count("\n") == 1
    )


def test_a_reader_that_went_away_is_a_code() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    ended = subprocess.run([*PROGRAM, "--help"], stdout=write_end, stderr=subprocess.PIPE, text=True)
    os.close(write_end)
    assert (ended.returncode, ended.stderr) == (EXIT_PIPE, "")


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_closed_streams_are_no_trouble(closed: str) -> None:
    ended = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *PROGRAM, "image", "x", "--steps", "0"],
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stdout) == (EXIT_CLIENT, "")
    assert ended.stderr == (
        "" if "2>" in closed else "tidegate: --steps 0 is out of range. Use a number from 1 to 1000.\n"
    )

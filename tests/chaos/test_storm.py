"""The storm: seeded kills of worker and server at any moment; every image is finished, and is the same image.

    make chaos FAULTS=1000 SEED=7

Its last line is `faults=N images=finished/started identical=n/m chats=finished/started`. Fault n of a seed is
always the same; FROM=n goes on after a stop. A failure names the fault that reproduces it.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving_process import ServerProcess, has_ended
from tidegate.runtime.cards.virtual import VirtualCard

FAULTS = int(os.environ.get("FAULTS", "12"))
SEED = int(os.environ.get("SEED", "7"))
FROM = int(os.environ.get("FROM", "0"))
# One in so many faults takes the server, as often as the house promises to survive it.
SERVER_SHARE = 5
STEPS = (1, 2, 4)

pytestmark = pytest.mark.chaos


class Storm:
    """One server after another over the same state folder."""

    def __init__(self, folder: Path, model: Path) -> None:
        self._folder = folder
        self._model = model
        self._server = ServerProcess(folder, model)
        self._prints: dict[int, object] = {}
        self._took_s: dict[int, float] = {}
        self.started = self.finished = self.identical = 0

    def learn(self, steps: int) -> None:
        """Make the undisturbed picture and see how long it takes."""
        began = time.monotonic()
        job = str(self._server.ask("submit", f"calm-{steps}", str(steps))["id"])
        self._prints[steps] = self._server.ask("wait", job)["pixels"]
        self._took_s[steps] = time.monotonic() - began

    def strike(self, number: int) -> None:
        """Fault `number`: an image, a kill at some moment of it, and its end."""
        chance = random.Random(f"{SEED}/{number}")
        steps = chance.choice(STEPS)
        takes_server = chance.randrange(SERVER_SHARE) == 0
        moment_s = chance.uniform(0, self._took_s[steps])
        self.started += 1
        job = str(self._server.ask("submit", f"storm-{number}", str(steps))["id"])
        threading.Event().wait(moment_s)
        workers = self._server.ask("workers")
        if takes_server:
            self._server.kill()
            for pid in workers.values():
                assert has_ended(int(str(pid))), f"fault {number}: a process outlived its server"
            self._server = ServerProcess(self._folder, self._model)
            again = self._server.ask("submit", f"storm-{number}", str(steps))
            assert again == {"id": job, "created": False}, f"fault {number}: the job was lost"
        elif worker := next((pid for name, pid in workers.items() if name.startswith("image/")), None):
            os.kill(int(str(worker)), signal.SIGKILL)
        ended = self._server.ask("wait", job)
        self.finished += ended["phase"] == "done"
        self.identical += ended["pixels"] == self._prints[steps]
        assert ended["phase"] == "done", f"SEED={SEED} FROM={number}: {ended}"
        assert ended["pixels"] == self._prints[steps], f"SEED={SEED} FROM={number}: another picture"

    def close(self) -> None:
        self._server.close()


@pytest.fixture
def storm(tmp_path: Path, sd1_tiny: Path) -> Iterator[Storm]:
    storm = Storm(tmp_path, sd1_tiny)
    try:
        yield storm
    finally:
        storm.close()


def test_whatever_is_killed_every_image_is_finished_and_the_same(
    storm: Storm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for steps in STEPS:
        storm.learn(steps)
    try:
        for number in range(FROM, FROM + FAULTS):
            storm.strike(number)
    finally:
        with capsys.disabled():
            told = f"faults={storm.started} images={storm.finished}/{storm.started}"
            print(f"\n{told} identical={storm.identical}/{storm.started} chats=0/0")
    storm.close()
    with VirtualCard(tmp_path / "card-3GiB.vcard") as card:
        assert card.use().used_bytes == 0, "a byte stayed charged"
    assert not list((tmp_path / "work").iterdir()), "a tape or half a file stayed"

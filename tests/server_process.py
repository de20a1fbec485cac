"""A real server in a process of its own, for tests that speak to it from outside.

Owns starting it on a virtual card and ending it well. Images are 64 pixels wide at most, so that requests
which nobody thought of stay cheap. What is asked of it is the tests' business.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2

MAIN = "import sys; from tidegate.cli.main import main; sys.exit(main())"
END_MAX_S = 60
SETTINGS = """
[listen]
pixels_max = 4096

[[cards]]
device = "virtual:3GiB"

[defaults]
width = 64
height = 64
steps = 2

[[models]]
name = "tiny"
model = "{model}"
aliases = ["gpt-image-1"]
threads = 2

[policy]
jobs_max = 12
requests_max = 8
"""


@dataclass(frozen=True)
class Running:
    """The server; `client` speaks to it."""

    url: str
    pid: int
    state: Path
    config: Path
    client: httpx2.Client

    def ended(self, job: str) -> dict[str, object]:
        """A job once it has ended, however busy the machine is."""
        for _ in range(20):
            view: dict[str, object] = self.client.get(f"/api/jobs/{job}?wait_ms=60000").json()
            if view["is_ended"]:
                return view
        raise AssertionError(f"{job} does not end: {view}")

    def cancel_all(self) -> None:
        """Nothing that a test began is left to the next one."""
        for job in self.client.get("/api/jobs?count_max=1000").json()["jobs"]:
            if not job["is_ended"]:
                self.client.post(f"/api/jobs/{job['id']}/cancel")


@contextlib.contextmanager
def running(folder: Path, model: Path, *, further: str = "") -> Iterator[Running]:
    """One server, with further settings; afterwards it ends well and leaves nobody behind."""
    config, state, log = folder / "tidegate.toml", folder / "state", folder / "log"
    config.write_text(SETTINGS.format(model=model) + further, encoding="utf-8")
    command = [
        sys.executable,
        "-c",
        MAIN,
        "serve",
        "--config",
        str(config),
        "--state",
        str(state),
        "--port",
        "0",
    ]
    # Threads that spin while they wait make an image many times slower on a machine that is busy otherwise.
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    with log.open("wb") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=environment)
    assert process.stdout is not None
    with process.stdout:
        said = process.stdout.readline().decode()
        assert said.startswith("tidegate serves "), log.read_text(encoding="utf-8")
        try:
            # A connection that is kept for later would look like one that a test left behind.
            limits = httpx2.Limits(max_keepalive_connections=0)
            with httpx2.Client(base_url=said.split()[2], timeout=120, limits=limits) as client:
                yield Running(url=said.split()[2], pid=process.pid, state=state, config=config, client=client)
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(END_MAX_S)
    assert code == 0, log.read_text(encoding="utf-8")
    assert not workers_of(state), "a worker outlived its server"


def workers_of(state: Path) -> list[str]:
    """Processes that have something of this state folder open."""
    found = []
    for process in Path("/proc").iterdir():
        if not process.name.isdecimal() or int(process.name) == os.getpid():
            continue
        try:
            links = [os.readlink(link) for link in (process / "fd").iterdir()]
        except OSError:  # it ended meanwhile, or is somebody else's
            continue
        found += [process.name for link in links if link.startswith(str(state))][:1]
    return found

"""The place: one server after another over the same state folder, each a process of its own.

Owns starting `tidegate serve`, talking to it over HTTP, killing it, and the check that nothing outlives it:
no process, and no byte on any of the virtual cards. What is asked of it is the workloads' business.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any  # Any: JSON as the server sends it

import httpx2
import psutil
from tests.chaos.script import House

from tidegate.runtime.cards.virtual import VirtualCard

MAIN = "import sys; from tidegate.cli.main import main; sys.exit(main())"
STANDBYS = frozenset({"tidegate.workers.image", "tidegate.workers.llm"})
# A machine with ten busy processes for each core was seen to take three minutes.
START_MAX_S = 600
END_MAX_S = 180
ANSWER_MAX_S = 180
# A worker that is killed again and again by us is not to rest for as long as one that fails by itself.
POLICY = "backoff_ms = 50\nbackoff_max_ms = 200\nquarantine_ms = 200"
SETTINGS = """
[[cards]]
device = "{device}"

[ram]
limit_bytes = {ram_bytes}

[policy]
{policy}
"""
MODEL = """
[[models]]
name = "{name}"
model = "{model}"
threads = 1
flash_attention = {flash}
"""
TALKER = """
[[llms]]
name = "talker"
file = "{talker}"
mmproj = "none"
context = 4096
slots = 4
batch = 512
threads = 1
evaluation = "reproducible"
"""
# Two that share all their components, and one that shares none with them.
MODELS = {"tiny": "true", "twin": "true", "plain": "false"}


class Broken(AssertionError):
    """A promise was not kept."""


class Place:
    """A state folder and the server that lives over it now."""

    def __init__(
        self, folder: Path, model: Path, *, house: House, policy: str = POLICY, talker: Path | None = None
    ) -> None:
        """`talker` is a language model, if there shall be one."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.state = folder / "state"
        self.house = house
        self.model = model
        self._talker = talker
        self._policy = policy
        self._process: subprocess.Popen[bytes] | None = None
        self._url = ""
        self._end_predecessor()

    # --- a server's life

    def start(self, house: House | None = None) -> None:
        """Start a server in this house, or in the one it had."""
        self.house = house or self.house
        self._configure()
        command = [sys.executable, "-c", MAIN, "serve", "--config", str(self._config)]
        command += ["--state", str(self.state), "--port", "0"]
        # Threads that spin while they wait make an image many times slower on a machine that is busy.
        environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
        with (self.folder / "server.log").open("ab") as log:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment)
        assert process.stdout is not None, "it was asked for"
        with process.stdout:
            heard, _, _ = select.select([process.stdout], [], [], START_MAX_S)
            said = process.stdout.readline().decode() if heard else ""
        self._process = process
        if not said.startswith("tidegate serves "):
            self.kill()
            raise Broken(f"no server came up: {said!r}\n{self.last_words()}")
        self._url = said.split()[2]

    def kill(self) -> None:
        """Kill the server and see that everything of it ends."""
        watches = {process.pid: _watch(process.pid) for process in self.family()}
        assert self._process is not None, "a server was started"
        self._process.kill()
        self._process.wait()
        self._process = None
        try:
            for pid, watch in watches.items():
                if watch is not None and not select.select([watch], [], [], END_MAX_S)[0]:
                    raise Broken(f"process {pid} outlived its server")
        finally:
            for watch in watches.values():
                if watch is not None:
                    os.close(watch)
        self._nothing_charged()

    def stop(self) -> None:
        """End the server politely and see that nothing is left of its work."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(END_MAX_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Broken("the server did not end when it was told to") from None
        self._process = None
        if code:
            raise Broken(f"the server ended with {code}\n{self.last_words()}")
        self._nothing_charged()
        if left := [path.name for path in (self.state / "work").iterdir()]:
            raise Broken(f"a tape or half a file stayed: {left}")

    def limit_ram(self, ram_bytes: int) -> None:
        """Let the server read settings with another limit."""
        self.house = House(card_bytes=self.house.card_bytes, ram_bytes=ram_bytes)
        self._configure()
        self.call("POST", "/api/reload")

    @contextlib.contextmanager
    def open(self) -> Iterator[Place]:
        """With a server; whatever happens, none is left."""
        try:
            self.start()
            yield self
            self.stop()
        finally:
            if self._process is not None:
                self._process.kill()
                self._process.wait()

    # --- talking

    def call(self, method: str, path: str, body: Mapping[str, object] | None = None, **headers: str) -> Any:
        """An answer; anything but success is a broken promise."""
        status, answer = self.ask(method, path, body, **headers)
        if status not in (200, 202):
            raise Broken(f"{method} {path} answered {status}: {answer}")
        return answer

    def ask(
        self, method: str, path: str, body: Mapping[str, object] | None = None, **headers: str
    ) -> tuple[int, Any]:
        """Status and answer."""
        # No connection is kept: the next server will not know it.
        limits = httpx2.Limits(max_keepalive_connections=0)
        with httpx2.Client(base_url=self._url, timeout=ANSWER_MAX_S, limits=limits) as client:
            sent = {name.replace("_", "-"): value for name, value in headers.items()}
            answer = client.request(method, path, json=body, headers=sent)
        kind = answer.headers.get("content-type", "")
        return answer.status_code, answer.json() if kind.startswith("application/json") else answer.content

    def glance(self, path: str) -> None:
        """Open a stream, and go away when it has begun."""
        with httpx2.Client(base_url=self._url, timeout=ANSWER_MAX_S) as client, client.stream("GET", path):
            return

    def worker(self, kind: str) -> int:
        """The process of the first worker of a kind, 0 when there is none."""
        workers = self.call("GET", "/internal/health")["workers"]
        return next((int(found["pid"]) for found in workers if found["kind"] == kind and found["pid"]), 0)

    def standby(self) -> int:
        """A worker that waits to be of use, 0 when there is none."""
        busy = {found["pid"] for found in self.call("GET", "/internal/health")["workers"]}
        for process in self.family()[1:]:
            with contextlib.suppress(psutil.Error):  # it ended meanwhile
                if process.pid not in busy and not STANDBYS.isdisjoint(process.cmdline()):
                    return process.pid
        return 0

    def card(self) -> VirtualCard:
        """The ledger of the card that the server has now; to be closed."""
        return VirtualCard(self._ledger(self.house))

    def family(self) -> list[psutil.Process]:
        """The server and all that it started."""
        assert self._process is not None, "a server was started"
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended by itself
            server = psutil.Process(self._process.pid)
            return [server, *server.children(recursive=True)]
        return []

    @property
    def url(self) -> str:
        """Where the server is now."""
        return self._url

    @property
    def pid(self) -> int:
        """The server's process."""
        assert self._process is not None, "a server was started"
        return self._process.pid

    def last_words(self) -> str:
        """The end of what servers wrote to stderr."""
        return (self.folder / "server.log").read_text(encoding="utf-8", errors="replace")[-4_000:]

    # --- details

    @property
    def _config(self) -> Path:
        return self.folder / "tidegate.toml"

    def _configure(self) -> None:
        text = SETTINGS.format(
            device=_device(self.house), ram_bytes=self.house.ram_bytes, policy=self._policy
        )
        for name, flash in MODELS.items():
            text += MODEL.format(name=name, model=self.model, flash=flash)
        if self._talker is not None:
            text += TALKER.format(talker=self._talker)
        self._config.write_text(text, encoding="utf-8")

    def _ledger(self, house: House) -> Path:
        return self.state / f"card-{_device(house).removeprefix('virtual:')}.vcard"

    def _nothing_charged(self) -> None:
        for path in self.state.glob("card-*.vcard"):
            with VirtualCard(path) as card:
                card.set_foreign(0)
                card.clear_faults()
                used_bytes = card.use().used_bytes
            if used_bytes:
                raise Broken(f"{used_bytes} bytes stayed charged on {path.name}")

    def _end_predecessor(self) -> None:
        """A driver that was killed leaves its server behind."""
        try:
            pid = int(json.loads((self.state / "address.json").read_bytes())["pid"])
            process = psutil.Process(pid)
            if str(self.state) in process.cmdline():
                process.kill()
                process.wait(END_MAX_S)
        except (OSError, ValueError, KeyError, psutil.NoSuchProcess):
            return  # there is none


def _device(house: House) -> str:
    if not house.card_bytes:
        return "cpu"
    gib, rest = divmod(house.card_bytes, 1 << 30)
    return f"virtual:{gib}GiB" if not rest else f"virtual:{house.card_bytes >> 20}MiB"


def _watch(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None

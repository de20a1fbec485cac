"""The demo's server: `tidegate serve` on a virtual card, in a process of its own that may be killed.

Owns that process, its settings and its folder. What is asked of it is told by `demo`; the tests that show
what tidegate promises have one too, with settings of their own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tidegate.cli.caller import Caller
from tidegate.core.faults import WorkerError
from tidegate.core.quantity import GIB
from tidegate.runtime.cards.virtual import CardReading, VirtualCard
from tidegate.synth.checkpoints import synthesise

CARD_BYTES: Final = 3 * GIB
MODEL_NAME: Final = "demo"
TALKER: Final = "talker"
_MAIN: Final = "import sys; from tidegate.cli.main import main; sys.exit(main())"
_SETTINGS: Final = """\
[[cards]]
device = "virtual:3GiB"

[[models]]
name = "{name}"
model = '{model}'

[[llms]]
name = "{talker}"
file = '{language_model}'
slots = 4
context = 8192
evaluation = "reproducible"

# Images first: else an answer as short as the demo's would have ended before anything is to be seen.
[policy]
answer_wait_max_ms = 0
chat_weight = 0
"""
_END_MAX_S: Final = 20


class DemoServer:
    """One server after another over the same state folder."""

    def __init__(self, folder: Path, settings: str) -> None:
        self.state = folder / "state"
        self._log = folder / "server.log"
        self._config = folder / "tidegate.toml"
        self._config.write_text(settings, encoding="utf-8")
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    @contextmanager
    def over(cls, model: Path) -> Iterator[DemoServer]:
        """A folder for servers with this image model; at the end neither is left."""
        with tempfile.TemporaryDirectory(prefix="tidegate-demo-") as folder:
            language_model = synthesise("llama-tiny", Path(folder))[0]
            settings = _SETTINGS.format(
                name=MODEL_NAME, model=model, talker=TALKER, language_model=language_model
            )
            server = cls(Path(folder), settings)
            try:
                yield server
            finally:
                server.stop()

    def start(self) -> str:
        """Start a server; its address. Raises WorkerError."""
        command = [sys.executable, "-c", _MAIN, "serve", "--config", str(self._config)]
        command += ["--state", str(self.state), "--port", "0"]
        with self._log.open("ab") as log:
            process = self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
        assert process.stdout is not None, "it was asked for"
        with process.stdout:
            said = process.stdout.readline().decode().split()
        if said[:2] != ["tidegate", "serves"]:
            words = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise WorkerError(
                f"The demo's server did not come up: {words[-1] if words else 'it said nothing'}",
                remedy="Look at: tidegate doctor",
            )
        return said[2]

    def kill(self) -> None:
        """Kill it, as a crash or a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """End it well."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_END_MAX_S)
        except subprocess.TimeoutExpired:  # somebody stopped it; the demo does not wait for ever
            self.kill()
        self._process = None

    def wait(self) -> None:
        """Wait until somebody ends it."""
        if self._process is not None:
            self._process.wait()

    @property
    def pid(self) -> int:
        """Its process id, 0 when there is none."""
        return self._process.pid if self._process else 0

    def ledger(self) -> VirtualCard:
        """The ledger of its card, open."""
        return VirtualCard(self.state / "card-3GiB.vcard")

    def card(self) -> CardReading:
        """The card as its ledger has it."""
        with self.ledger() as card:
            return card.read().cards[0]


def kill_image_worker(caller: Caller) -> int:
    """Kill the process that computes images; its id, 0 when there is none."""
    workers = caller.get("/internal/health")["workers"]
    pid = next((int(worker["pid"]) for worker in workers if worker["kind"] == "image"), 0)
    if pid:
        os.kill(pid, signal.SIGKILL)
    return pid

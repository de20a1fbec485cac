"""A process on a virtual card, for tests: starts `vcard_probe` and speaks its lines.

Owns finding the program (TIDEGATE_VCARD_PROBE, else the one in tidegate-engines) and its end. What the lines
mean stands at the head of native/vcard/probe.cpp.
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Self


def probe_program() -> Path:
    """The built probe."""
    named = os.environ.get("TIDEGATE_VCARD_PROBE")
    if named:
        return Path(named)
    # Imported here: the package touches no device, but is not built where the variable names another probe.
    from tidegate_engines import program

    return Path(program("vcard_probe"))


class VcardProcess:
    """One probe. Leaving the `with` ends it, whatever state it is in."""

    def __init__(self, ledger: Path) -> None:
        self.process = subprocess.Popen(
            [probe_program(), ledger],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            # An abort of ggml starts a debugger for its report, which takes seconds and speaks to our pipe.
            env={**os.environ, "GGML_NO_BACKTRACE": "1"},
        )
        self.greeting = self.answer()

    @property
    def pid(self) -> int:
        return self.process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:  # a line was still on its way to a process that died
                continue

    def send(self, line: str) -> None:
        """Give a command without waiting for its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        """The next answer; empty when the process is gone."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def ask(self, line: str) -> str:
        self.send(line)
        return self.answer()

    def number(self, line: str) -> int:
        """The number in an `ok N` answer."""
        said = self.ask(line).split()
        assert said[:1] == ["ok"], said
        return int(said[1])

    def kill(self) -> None:
        """SIGKILL, and nothing else: the process stays a zombie until it is waited for."""
        if self.process.returncode is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait_for_zombie(self) -> None:
        """Block until the process has ended, without reaping it."""
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)

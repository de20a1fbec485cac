"""A server in a process of its own, to be talked to by lines and to be killed.

Owns the process. What it answers is in `serving_runs`, which it runs.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from pathlib import Path

DRIVER = Path(__file__).parent / "serving_runs.py"


class ServerProcess:
    """A server of its own process, talked to by lines."""

    def __init__(self, state: Path, model: Path) -> None:
        command = [sys.executable, str(DRIVER), str(state), str(model), "virtual:3GiB"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.read() == {"up": True}

    def ask(self, *words: str) -> dict[str, object]:
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(words) + "\n")
        self._process.stdin.flush()
        return self.read()

    def read(self) -> dict[str, object]:
        assert self._process.stdout is not None
        said: dict[str, object] = json.loads(self._process.stdout.readline())
        return said

    def kill(self) -> None:
        self._process.kill()
        self.close()

    def close(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def has_ended(pid: int) -> bool:
    """Wait for a process that is not our child; the kernel ends it with its parent."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], 10)[0])
    finally:
        os.close(descriptor)

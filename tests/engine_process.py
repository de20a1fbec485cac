"""A process with the image engine in it, for tests: a script is run, its JSON lines are read and answered.

The engine never enters the test process: its thread pools outlive any test, and on a virtual card it must be
another process that reads the ledger.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar  # what JSON and keyword arguments carry

# What every script starts with. `say` hands a value to the test and waits until it has been read.
PRELUDE = """
import hashlib, json, sys
import numpy as np
from tidegate_engines import sdstage

arguments = json.loads(sys.argv[1])

def say(**values):
    print(json.dumps(values), flush=True)
    sys.stdin.readline()

def digest(array):
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()

def open_checkpoint(**options):
    device = "CPU"
    if "ledger" in arguments:
        device = sdstage.attach_virtual_card(arguments["ledger"])[0]
    return sdstage.Checkpoint(arguments["files"], device=device, threads=1, **options)

def request(**changes):
    return sdstage.Request(**{**arguments.get("request", {}), **changes})
"""


class EngineProcess:
    """Runs `PRELUDE + script` with `arguments` as JSON. Iterate over what it says; leaving the `with` ends
    it.
    """

    prelude: ClassVar[str] = PRELUDE

    def __init__(self, script: str, **arguments: Any) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.prelude + script, json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "GGML_NO_BACKTRACE": "1", "OMP_NUM_THREADS": "1"},
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        assert self.process.stdout is not None
        assert self.process.stdin is not None
        for line in self.process.stdout:
            if not line.startswith("{"):
                continue  # the engine's loader ends its progress with an empty line
            yield json.loads(line)
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        assert self.process.stderr is not None
        errors = self.process.stderr.read()
        status = self.process.wait()
        assert status == 0, f"the engine process ended with {status}:\n{errors}"

    def only(self) -> dict[str, Any]:
        """The one thing the script says."""
        said = list(self)
        assert len(said) == 1, said
        return said[0]


def tiny_files(folder: Path) -> dict[str, str]:
    """The files of the synthetic sd1-tiny and its TAESD, by kind, as `Checkpoint` takes them."""
    return {"model": str(folder / "sd1-tiny.safetensors"), "taesd": str(folder / "taesd.safetensors")}


SMALL: dict[str, Any] = {
    "prompt": "a lighthouse at dusk",
    "negative": "blurry",
    "width": 64,
    "height": 64,
    "steps": 3,
    "seed": 7,
}

"""Shapes of the real architectures, asked of the engine that will load them.

Owns the question and the answer. The engine is loaded in a child (`python -m tidegate.synth.shapes FAMILY
COMPONENT ...` prints JSON), because only children may load it. No shape stands in this repository: the engine
is the source.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from tidegate.core.faults import Bug, ClientError

CHILD_TIMEOUT_S = 120
ENGINE_MODULE = "tidegate_engines.sdstage"
EXIT_WITHOUT_ENGINE = 3


@dataclass(frozen=True, slots=True)
class TensorShape:
    """One tensor of an architecture: its name in a checkpoint and its shape in torch order."""

    name: str
    shape: tuple[int, ...]


def ask_engine(family: str, components: Sequence[str]) -> dict[str, list[TensorShape]]:
    """The tensors of each component of a family, in the engine's order; starts one child."""
    command = [sys.executable, "-m", "tidegate.synth.shapes", family, *components]
    try:
        done = subprocess.run(command, capture_output=True, timeout=CHILD_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        # Building the graphs takes a second; a child this slow hangs in a driver or a broken build.
        raise Bug(
            f"the engine did not describe {family} within {CHILD_TIMEOUT_S} s", code="engine_hangs"
        ) from error
    if done.returncode == EXIT_WITHOUT_ENGINE:
        raise ClientError(
            "The native engine is not installed, so the shapes of real models are not known.",
            remedy="Run `make setup`, which builds it.",
            code="engine_missing",
        )
    if done.returncode:
        last_line = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise Bug(f"the engine failed to describe {family}: {last_line}", code="engine_failed")
    answer = json.loads(done.stdout.decode().strip().rpartition("\n")[2])
    return {
        component: [TensorShape(name, tuple(shape)) for name, _, shape in tensors]
        for component, tensors in answer.items()
    }


def main(arguments: Sequence[str]) -> int:
    """The child: print the shapes as one line of JSON."""
    try:
        engine = importlib.import_module(ENGINE_MODULE)
    except ImportError as error:
        print(f"{ENGINE_MODULE}: {error}", file=sys.stderr)
        return EXIT_WITHOUT_ENGINE
    family, *components = arguments
    print(json.dumps({component: engine.architecture(family, component) for component in components}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

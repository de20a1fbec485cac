"""Sets everything up in .venv, step by step, and does again only what has changed.

Owns: the order of the steps and when a step is out of date. Does not own: how the native part is built
(build_native.py) and how models are made (demo_models.py). Runs with the machine's own Python 3.11+, standard
library only; `make setup` starts it.

    python3 scripts/bootstrap.py            all steps
    python3 scripts/bootstrap.py --tools    only what `make check` needs: no native build, no models

Each step has a key made of everything it depends on and of the key of the step before it; the keys of the
finished steps are kept in .venv, so that a second run compares a few hashes and ends.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import caches

VENV = caches.TREE / ".venv"
PYTHON = VENV / "bin" / "python"
UV = VENV / "bin" / "uv"
STAMPS = VENV / "tidegate-setup.json"
REQUIREMENTS = caches.TREE / "requirements"
PYTHON_MIN = (3, 11)


class SetupError(Exception):
    """A step could not be done; the message is one line with its remedy."""


@dataclass(frozen=True)
class Step:
    """`key` names the state the step leads to; `act` leads there from any earlier state."""

    name: str
    says: str
    key: str
    act: Callable[[], None]


def run(*command: str | Path) -> None:
    # Standard output goes to standard error: what a script prints as its answer stays the only thing there.
    ended = subprocess.run([str(part) for part in command], cwd=caches.TREE, stdout=sys.stderr, check=False)
    if ended.returncode != 0:
        raise SetupError(
            f"`{' '.join(str(part) for part in command)}` ended with exit code {ended.returncode}"
        )


def answer_of(*command: str | Path) -> str:
    """The one line a script of this folder prints."""
    parts = [str(part) for part in command]
    ended = subprocess.run(parts, cwd=caches.TREE, stdout=subprocess.PIPE, text=True, check=False)
    if ended.returncode != 0:
        raise SetupError(f"`{' '.join(parts)}` ended with exit code {ended.returncode}")
    return ended.stdout.strip()


def make_venv() -> None:
    shutil.rmtree(VENV, ignore_errors=True)
    try:
        venv.create(VENV, with_pip=True, symlinks=True)
    except subprocess.CalledProcessError as failure:
        shutil.rmtree(VENV, ignore_errors=True)
        raise SetupError("this Python cannot make virtual environments; install its venv package "
                         "(Debian and Ubuntu: python3-venv)") from failure  # fmt: skip


def install_uv() -> None:
    quietly = ("--quiet", "--disable-pip-version-check")
    run(PYTHON, "-m", "pip", "install", *quietly, "--require-hashes", "-r", REQUIREMENTS / "bootstrap.txt")


def sync_lock() -> None:
    use_pip_index_for_uv()
    run(UV, "pip", "sync", "--quiet", "--require-hashes", "--python", PYTHON, REQUIREMENTS / "dev.txt")


def install_tidegate() -> None:
    run(UV, "pip", "install", "--quiet", "--no-deps", "--python", PYTHON, "-e", caches.TREE)


def install_native() -> None:
    install_wheel_of("image")


def install_llama() -> None:
    install_wheel_of("llama")


def install_wheel_of(part: str) -> None:
    use_pip_index_for_uv()
    wheel = answer_of(PYTHON, "scripts/build_native.py", part)
    run(UV, "pip", "install", "--quiet", "--no-deps", "--reinstall", "--python", PYTHON, wheel)


def make_models() -> None:
    answer_of(PYTHON, "scripts/demo_models.py")


def tool_steps() -> list[Step]:
    lock = caches.digest_of_files(REQUIREMENTS / "dev.txt")
    uv_lock = caches.digest_of_files(REQUIREMENTS / "bootstrap.txt")
    project = caches.digest_of_files(caches.TREE / "pyproject.toml")
    # Another Python of the same version may stand first in PATH tomorrow; that is no reason to begin anew.
    python = f"{sys.version_info.major}.{sys.version_info.minor} {caches.TREE}"
    return [
        Step("venv", "making the virtual environment .venv", python, make_venv),
        Step("uv", "installing uv", uv_lock, install_uv),
        Step("lock", "installing the locked packages", lock, sync_lock),
        Step("tidegate", "installing tidegate from this tree", project, install_tidegate),
    ]


def native_steps() -> list[Step]:
    """Their keys need the tools: the native key is the build's own, asked of it."""
    native = answer_of(PYTHON, "scripts/build_native.py", "image", "--key")
    llama = answer_of(PYTHON, "scripts/build_native.py", "llama", "--key")
    models = answer_of(PYTHON, "scripts/demo_models.py", "--key")
    return [
        Step("native", "installing the image engine", native, install_native),
        Step("llama", "installing the language engine", llama, install_llama),
        Step("models", "making the demo models", models, make_models),
    ]


def finished_keys() -> dict[str, str]:
    if not PYTHON.exists():
        # The Python that .venv was made from is gone, and its link leads nowhere.
        return {}
    try:
        return dict(json.loads(STAMPS.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        # No stamps, or torn ones: every step is done again, which is always right.
        return {}


def perform(steps: list[Step], *, done: dict[str, str]) -> None:
    """Does each step whose key is new. `done` holds the steps before these, and gains these."""
    for step in steps:
        chained = caches.digest([*done.values(), step.name, step.key])
        if finished_keys().get(step.name) != chained:
            print(f"setup: {step.says}", file=sys.stderr, flush=True)
            began = time.monotonic()
            step.act()
            # Later steps are forgotten: this one may have removed what they had installed.
            STAMPS.write_text(json.dumps({**done, step.name: chained}, indent=1), encoding="utf-8")
            print(f"setup: {step.name} done in {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)
        done[step.name] = chained


def use_pip_index_for_uv() -> None:
    """uv reads no pip configuration: a mirror that is configured for pip alone is handed on."""
    if any(
        os.environ.get(name) for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_CONFIG_FILE", "UV_NO_INDEX")
    ):
        return
    asked = subprocess.run([str(PYTHON), "-m", "pip", "config", "get", "global.index-url"],
                           capture_output=True, text=True, check=False)  # fmt: skip
    index = os.environ.get("PIP_INDEX_URL") or (asked.stdout.strip() if asked.returncode == 0 else "")
    if index:
        os.environ["UV_DEFAULT_INDEX"] = index


def set_up(*, only_tools: bool) -> None:
    os.environ["UV_PYTHON_DOWNLOADS"] = "never"
    # uv would take an environment that happens to be active for the one it is asked about, or warn about it.
    os.environ.pop("VIRTUAL_ENV", None)
    done: dict[str, str] = {}
    perform(tool_steps(), done=done)
    if not only_tools:
        perform(native_steps(), done=done)


def main() -> int:
    parser = argparse.ArgumentParser(description="Sets up .venv; does again only what has changed.")
    parser.add_argument(
        "--tools", action="store_true", help="no native build, no models: enough for `make check`"
    )
    wanted = parser.parse_args()
    if sys.version_info < PYTHON_MIN:
        print(f"setup: Python 3.11 or newer is needed, this is {sys.version.split()[0]}; "
              "name another with `make setup PYTHON=python3.12`", file=sys.stderr)  # fmt: skip
        return 1
    began = time.monotonic()
    try:
        with caches.locked(caches.cache_folder() / "setup" / caches.digest([str(caches.TREE)])):
            set_up(only_tools=wanted.tools)
    except (SetupError, OSError) as failure:
        print(f"setup: {failure}", file=sys.stderr)
        return 1
    print(f"setup: ready in {time.monotonic() - began:.1f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

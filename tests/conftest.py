"""What every test shares: leaks are failures, skips are said aloud, synthetic models are made once.

Owns: the leak checks (file descriptors, threads, child processes), the rule for skipping, and the fixtures
for synthetic models, which scripts/demo_models.py keeps in the cache folder.
Does not own: anything about one part of the house; such fixtures stand in that part's own conftest.py.
"""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import hypothesis
import pytest

TREE = Path(__file__).resolve().parent.parent
# A driver keeps its device files open until the process ends, whatever is freed.
KEPT_BY_DRIVERS = ("/dev/nvidia", "/dev/dri/", "/dev/kfd")
# How long a thread that was told to end may take; it is joined, not polled.
THREAD_END_MAX_S = 2.0
# What a machine may lack, the variable that says it is there, and the words a reader gets when it is not.
NEEDS = {"real_card": ("TIDEGATE_TEST_CARD", "no real card was named; TIDEGATE_TEST_CARD=cuda:0 names one")}

hypothesis.settings.register_profile("house", deadline=None, print_blob=True)
hypothesis.settings.load_profile("house")


def pytest_addoption(parser: pytest.Parser) -> None:
    house = parser.getgroup("tidegate")
    house.addoption(
        "--refuse-skips", action="store_true", help="a skip that no `needs` marker asked for is a failure"
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs"):
        variable, lacking = NEEDS[marker.args[0]]
        if not os.environ.get(variable):
            pytest.skip(lacking)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A skip that was not announced by a marker hides a test; with --refuse-skips it fails."""
    report = yield
    refuse = bool(item.config.getoption("--refuse-skips"))
    if (
        refuse
        and report.skipped
        and not hasattr(report, "wasxfail")
        and item.get_closest_marker("needs") is None
    ):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped: {report.longrepr}"
    return report


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    unknown = {m.args[0] for item in items for m in item.iter_markers("needs") if m.args[0] not in NEEDS}
    if unknown:
        raise pytest.UsageError(f"unknown needs: {', '.join(sorted(unknown))}; known are {', '.join(NEEDS)}")


def open_descriptors() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            # The descriptor of this very listing is closed by now.
            continue
        if not target.startswith(KEPT_BY_DRIVERS):
            found[int(name)] = target
    return found


def child_processes() -> dict[int, str]:
    """Direct children, also those that ended and were never waited for."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # The thread has ended meanwhile.
            for pid in (task / "children").read_text(encoding="ascii").split():
                found[int(pid)] = command_of(pid) or "(ended, never waited for)"
    return found


def command_of(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except FileNotFoundError:
        # A thread waited for it between the listing and this look.
        return ""


def threads_left(before: set[threading.Thread]) -> list[str]:
    new = [thread for thread in threading.enumerate() if thread not in before]
    for thread in new:
        thread.join(THREAD_END_MAX_S)
    return [f"thread {thread.name}" for thread in new if thread.is_alive()]


def descriptors_left(before: dict[int, str]) -> list[str]:
    def new() -> list[str]:
        return [f"fd {fd} {target}" for fd, target in open_descriptors().items() if before.get(fd) != target]

    if new():
        # An object in a reference cycle closes its file when it is collected; that is late, and no leak.
        gc.collect()
    return new()


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that leaves descriptors, threads or processes; a `leaves` marker names what it may."""
    descriptors, threads, children = open_descriptors(), set(threading.enumerate()), child_processes()
    yield
    allowed = {kind for marker in request.node.iter_markers("leaves") for kind in marker.args[1:]}
    left = []
    if "threads" not in allowed:
        left += threads_left(threads)
    if "children" not in allowed:
        left += [
            f"child {pid} {command}" for pid, command in child_processes().items() if pid not in children
        ]
    if "fds" not in allowed:
        left += descriptors_left(descriptors)
    assert not left, "the test left behind: " + ", ".join(left)


@pytest.fixture(scope="session")
def synthetic_models() -> Callable[[str], Path]:
    """`synthetic_models("sd15")` is the folder with that model; made on first use, kept in the cache."""
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            command = [sys.executable, str(TREE / "scripts" / "demo_models.py"), kind]
            ended = subprocess.run(command, cwd=TREE, stdout=subprocess.PIPE, text=True, check=True)
            made[kind] = Path(ended.stdout.strip())
        return made[kind]

    return folder


@pytest.fixture(scope="session")
def sd1_tiny(synthetic_models: Callable[[str], Path]) -> Path:
    """A checkpoint with text encoder and a tiny SD1 diffusion model, no VAE: 1 GB, 64 px in a second."""
    return synthetic_models("sd1-tiny") / "sd1-tiny.safetensors"


@pytest.fixture(scope="session")
def taesd(synthetic_models: Callable[[str], Path]) -> Path:
    """The small decoder that goes with it, 5 MB."""
    return synthetic_models("sd1-tiny") / "taesd.safetensors"

"""Starting a child: whatever interrupts it, no process and no descriptor stays behind.

That no process stays is the check of every test (`nothing_left_behind`).
"""

from __future__ import annotations

import os
import resource
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest

from tidegate.core.faults import CapacityError
from tidegate.runtime.children import Child
from tidegate.runtime.worker import MODULE, ImageWorker


def descriptors() -> set[str]:
    return {name for name in os.listdir("/proc/self/fd") if Path(f"/proc/self/fd/{name}").exists()}


def interrupt_once_started(after_ms: int) -> None:
    while not any(MODULE in child.cmdline() for child in psutil.Process().children()):
        time.sleep(0.001)
    time.sleep(after_ms / 1000)
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("after_ms", [10, 50])
def test_an_interrupted_start_leaves_no_child(after_ms: int) -> None:
    meddler = threading.Thread(target=interrupt_once_started, args=(after_ms,))
    meddler.start()
    with pytest.raises(KeyboardInterrupt):
        ImageWorker.start()
    meddler.join()


@pytest.mark.parametrize("free_count", range(8))
def test_too_many_open_files_is_one_sentence(free_count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = descriptors()
    lowest = [os.open("/dev/null", os.O_RDONLY) for _ in range(free_count + 1)]
    for descriptor in lowest:
        os.close(descriptor)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest[-1], hard))
    try:
        with pytest.raises(CapacityError, match="Too many open files"):
            Child.spawn(MODULE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert descriptors() == before

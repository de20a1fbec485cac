"""Lifetime: how a worker begins, and how it makes sure that it never outlives its parent.

Owns the arguments of every worker, what it does before anything else, and its exit codes. The parent's half
(spawn, terminate, wait) is `tidegate.runtime.children`.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import faulthandler
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Final

# sysexits.h: EX_SOFTWARE and EX_PROTOCOL, so that the parent can tell the two from an exit it asked for.
EXIT_BUG: Final = 70
EXIT_PROTOCOL: Final = 76

_PR_SET_PDEATHSIG = 1
# When the machine runs out of RAM the kernel shall take a worker, which can be replaced, before the parent,
# which knows how. 1000 would make us the first victim on the whole machine, ahead of a runaway browser tab.
_OOM_SCORE_ADJUSTMENT = 300


def begin() -> tuple[socket.socket, int]:
    """Read the arguments and tie ourselves to the parent; our end of the channel, and the exchange."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--channel", type=int, required=True)
    parser.add_argument("--exchange", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    arguments = parser.parse_args()
    bind_to_parent(arguments.parent)
    prepare()
    return socket.socket(fileno=arguments.channel), arguments.exchange


def do_or_exit(work: Callable[[], None]) -> None:
    """Do it; whatever it raises is a bug, and a worker without what it is for is useless."""
    try:
        work()
    except BaseException:  # noqa: BLE001  whatever it is, the traceback goes to the parent, and we end
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(EXIT_BUG)


def bind_to_parent(parent_pid: int) -> None:
    """Die when the parent dies, even when it is killed. Exits at once if it is dead already."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) was refused")
    # The parent may have died between our start and the call above; then nobody will send the signal.
    if os.getppid() != parent_pid:
        sys.exit(0)


def prepare() -> None:
    """Leave Ctrl-C to the parent, volunteer for the kernel's memory killer, report crashes to stderr."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError):  # some containers forbid it; then the kernel chooses by size
        Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE_ADJUSTMENT), encoding="ascii")
    faulthandler.enable(all_threads=True)

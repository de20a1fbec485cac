"""Lifetime: how a worker makes sure that it never outlives its parent.

Owns the three calls a worker makes before anything else. The parent's half (spawn, terminate, wait) is
`tidegate.runtime.children`.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1
# When the machine runs out of RAM the kernel shall take a worker, which can be replaced, before the parent,
# which knows how. 1000 would make us the first victim on the whole machine, ahead of a runaway browser tab.
_OOM_SCORE_ADJUSTMENT = 300


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

"""Children: processes of our own, started by exec, ended with a bound, and asked why they ended.

Owns spawning, waiting without polling, TERM before KILL, grandchildren, and the last lines a child said. What
is said on its channel is `worker`'s business; the child's own half of the bargain (dying with us) is
`tidegate.workers.lifetime`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import BinaryIO, Final, Generic, TypeVar

from tidegate.core.faults import CapacityError, WorkerError
from tidegate.wire import channel, messages

# Enough for a Python traceback or the backtrace that the engine prints before it aborts.
LAST_LINES_MAX: Final = 40
LINE_BYTES_MAX: Final = 2000
# An engine that was told to go frees gigabytes; on a slow card that takes a second or two.
TERM_GRACE_MS: Final = 3000
# After KILL only the kernel is at work. A driver stuck in the kernel can keep a process for ever.
KILL_GRACE_MS: Final = 10_000


Incoming = TypeVar("Incoming")
# How often a thread of the engine looks again before it sleeps until the others are done. The library's own
# 300,000 suit a machine that does nothing else; with two busy neighbours on two cores an image took eight
# times as long as with this (41 s against 5.7 s of sampling). The user's own setting wins.
SPIN_VARIABLE: Final = "GOMP_SPINCOUNT"
SPIN_COUNT: Final = 10_000


def engine_environment() -> dict[str, str]:
    """What a child that computes is told about this machine."""
    return {SPIN_VARIABLE: str(SPIN_COUNT), **os.environ}


# Hears each line that a child says, on a thread of its own.
OnLine = Callable[[str], None]


def unheard(_line: str) -> None:
    """Nobody listens; the last lines are kept all the same."""


class Undead(WorkerError):
    """A process did not end although it was killed; it hangs in the kernel, most likely in a driver."""

    code = "undead"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a child ended: `signal_number` is 0 when it exited by itself with `exit_code`."""

    exit_code: int
    signal_number: int
    last_lines: tuple[str, ...]

    @property
    def was_killed(self) -> bool:
        """Whether somebody ended it. A crash of its own (SIGABRT, SIGSEGV, SIGBUS ...) does not count."""
        return self.signal_number in _SENT_BY_OTHERS

    def text(self) -> str:
        """Word it: 'died with signal 9 (SIGKILL)', 'exited with code 70'."""
        if self.signal_number:
            return f"died with signal {self.signal_number} ({_signal_name(self.signal_number)})"
        return f"exited with code {self.exit_code}"


_SENT_BY_OTHERS: Final = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP})


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no name
        return "unnamed"


class Child(Generic[Incoming]):
    """One child process with a channel and a memory file shared with it (the exchange)."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        *,
        talk: channel.Channel[Incoming],
        exchange: int,
        said: BinaryIO,
        on_line: OnLine,
    ) -> None:
        self._process = process
        self._pidfd = os.pidfd_open(process.pid)
        self._ending: Ending | None = None
        self._lines: deque[str] = deque(maxlen=LAST_LINES_MAX)
        self._on_line = on_line
        self.channel = talk
        self.exchange = exchange
        # A daemon: a child that nobody could end must not keep us from ending.
        self._listener = threading.Thread(
            target=self._listen, args=(said,), name=f"stderr of {process.pid}", daemon=True
        )
        try:
            self._listener.start()
        except BaseException:  # no thread is left, or Ctrl-C; whoever spawns undoes the rest
            os.close(self._pidfd)
            raise

    @staticmethod
    def spawn(
        module: str, *, environment: Mapping[str, str] | None = None, on_line: OnLine = unheard
    ) -> Child[messages.FromWorker]:
        """Start an image worker, or a predictor; see `spawned`."""
        return spawned(module, channel.parent_end, environment=environment, on_line=on_line)

    @property
    def pid(self) -> int:
        """Process id; valid until the child is waited for."""
        return self._process.pid

    @property
    def last_lines(self) -> tuple[str, ...]:
        """What the child said last on stdout and stderr."""
        return tuple(self._lines)

    def wait(self, wait_ms: int | None = None) -> Ending | None:
        """Wait for the end; None when it did not come in time. Sweeps grandchildren away."""
        if self._ending is not None:
            return self._ending
        poller = select.poll()
        poller.register(self._pidfd, select.POLLIN)
        if not poller.poll(wait_ms):
            return None
        # The child is a zombie until it is waited for, so the number of its group cannot have been reused.
        with contextlib.suppress(ProcessLookupError, PermissionError):  # no grandchildren, or only dead ones
            os.killpg(self._process.pid, signal.SIGKILL)
        code = self._process.wait()
        self._listener.join()
        self._ending = Ending(
            exit_code=max(0, code), signal_number=max(0, -code), last_lines=tuple(self._lines)
        )
        return self._ending

    def signal(self, number: int) -> None:
        """Send a signal unless the child is gone. By pidfd: never to a stranger with a reused number."""
        if self._ending is None:
            with contextlib.suppress(ProcessLookupError):  # it ended between the question and the signal
                signal.pidfd_send_signal(self._pidfd, number)

    def end(self, grace_ms: int = TERM_GRACE_MS) -> Ending:
        """End it, by TERM and then by KILL. Raises `Undead` if even KILL had no effect."""
        for number, patience_ms in ((signal.SIGTERM, grace_ms), (signal.SIGKILL, KILL_GRACE_MS)):
            self.signal(number)
            # A stopped process does not hear TERM before it is continued.
            self.signal(signal.SIGCONT)
            if ending := self.wait(patience_ms):
                self._close()
                return ending
        raise Undead(
            f"Process {self._process.pid} did not end although it was killed.",
            remedy="It hangs in a driver; only a restart of the machine removes it.",
        )

    def finish(self, wait_ms: int = TERM_GRACE_MS) -> Ending:
        """Wait for a child that is ending by itself, and end it if it does not."""
        ending = self.wait(wait_ms)
        if ending is None:
            return self.end()
        self._close()
        return ending

    def _close(self) -> None:
        if self._pidfd >= 0:
            self.channel.close()
            os.close(self._pidfd)
            os.close(self.exchange)
            self._pidfd = -1

    def _listen(self, said: BinaryIO) -> None:
        # Closed under our hands (a ValueError) when the spawning was interrupted: nobody wants to hear it.
        with contextlib.suppress(ValueError), said:
            while line := said.readline(LINE_BYTES_MAX):
                text = line.decode("utf-8", "replace").rstrip()
                self._lines.append(text)
                with contextlib.suppress(OSError):  # whoever listens has gone; the child must not notice
                    self._on_line(text)


def spawned(
    module: str,
    end: Callable[[socket.socket], channel.Channel[Incoming]],
    *,
    environment: Mapping[str, str] | None = None,
    on_line: OnLine = unheard,
) -> Child[Incoming]:
    """Start `python -m module` in a session of its own; by exec, as a fork would carry our locks.

    `end` makes our end of its channel, in the language that it speaks.
    """
    try:
        return _spawned(module, end, environment=environment, on_line=on_line)
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            raise
        raise CapacityError(
            "Too many open files: a worker cannot be started.",
            remedy="Allow more of them, for example with: ulimit -n 4096",
            code="too_many_open_files",
        ) from error


def _spawned(
    module: str,
    end: Callable[[socket.socket], channel.Channel[Incoming]],
    *,
    environment: Mapping[str, str] | None,
    on_line: OnLine,
) -> Child[Incoming]:
    # Left in this order: first what was only the child's, then, unless all went well, what is ours.
    with contextlib.ExitStack() as undone, contextlib.ExitStack() as passed:
        ours, theirs = socket.socketpair()
        undone.callback(ours.close)
        passed.callback(theirs.close)
        exchange = os.memfd_create("tidegate-exchange", os.MFD_CLOEXEC)
        undone.callback(os.close, exchange)
        read_end, write_end = os.pipe()
        passed.callback(os.close, write_end)
        said = undone.enter_context(os.fdopen(read_end, "rb"))
        # -P: a file named numpy.py in the user's folder is none of the child's business.
        command = [sys.executable, "-P", "-m", module, "--channel", str(theirs.fileno())]
        command += ["--exchange", str(exchange), "--parent", str(os.getpid())]
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=write_end,
            stderr=write_end,
            pass_fds=(theirs.fileno(), exchange),
            start_new_session=True,
            env=None if environment is None else dict(environment),
        )
        undone.callback(_sweep, process)
        child = Child(process, talk=end(ours), exchange=exchange, said=said, on_line=on_line)
        undone.pop_all()
    return child


def _sweep(process: subprocess.Popen[bytes]) -> None:
    """End a child that was started for nobody, with all that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # it is gone already
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()

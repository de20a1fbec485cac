"""An errand: another program, run in the user's own terminal, whose end is ours.

Owns its process: which signals are handed on, the exit code as a shell tells it, and that no signal
interrupts whoever runs it in the middle of something. A key such as Ctrl-C reaches the program from the
terminal itself, so it is not handed on once more.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Final

import typer

from tidegate.core.faults import ClientError

KEYS: Final = (signal.SIGINT, signal.SIGQUIT)
ENDING: Final = (*KEYS, signal.SIGTERM, signal.SIGHUP)
HANDED_ON: Final = (*ENDING, signal.SIGUSR1, signal.SIGUSR2)
_REMEDY: Final = "Write what is to be run behind --, as in: tidegate run --vram 4GiB -- python train.py"


class Ears:
    """Signals of this process, kept until they are asked for; use as a context manager.

    A mask would not do: libraries start threads of their own, and whoever of them hears one ends the process.
    """

    def __enter__(self) -> Ears:
        self._read_end, self._write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wakeup = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        # Whoever was started with a signal ignored (nohup) goes on ignoring it, and so does the program.
        numbers = [number for number in HANDED_ON if signal.getsignal(number) is not signal.SIG_IGN]
        self._before = {number: signal.signal(number, _kept) for number in (*numbers, signal.SIGCHLD)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._read_end)
        os.close(self._write_end)

    def next(self, wait_s: float) -> int:
        """The number of the next signal, 0 when none comes in time."""
        if not select.select([self._read_end], [], [], max(0.0, wait_s))[0]:
            return 0
        return os.read(self._read_end, 1)[0]

    def leave_if_told(self) -> None:
        """End as one ends by a signal, if one has come that ends us. Raises typer.Exit."""
        while number := self.next(0):
            if number in ENDING:
                raise typer.Exit(128 + number)


def _kept(_number: int, _frame: FrameType | None) -> None:
    """The number is in the pipe by now."""


def check_program(command: Sequence[str]) -> None:
    """Whether there is such a program. Raises ClientError."""
    if not command or shutil.which(command[0]) is None:
        what = f"There is no program {command[0]!r}." if command else "There is nothing to run."
        raise ClientError(what, remedy=_REMEDY, code="no_program")


def done(command: Sequence[str], ears: Ears, *, every_s: float, do: Callable[[], None]) -> int:
    """Run it to its end, doing something now and then; its exit code, 128 + n when signal n ended it."""
    with _started(command) as process:
        next_s = time.monotonic() + every_s
        while (code := process.poll()) is None:
            number = ears.next(next_s - time.monotonic())
            if not number:
                do()
                next_s = time.monotonic() + every_s
            elif number in HANDED_ON and not (number in KEYS and _is_in_foreground()):
                process.send_signal(number)
    return code if code >= 0 else 128 - code


def _is_in_foreground() -> bool:
    """Whether a terminal sends its keys to us and to the program alike."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # there is none
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    finally:
        os.close(terminal)


@contextlib.contextmanager
def _started(command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    try:
        process = subprocess.Popen(command)
    except OSError as error:
        why = error.strerror or str(error)
        raise ClientError(f"{command[0]} cannot be run: {why}.", remedy=_REMEDY, code="no_program") from error
    with process:
        yield process

"""The parent's side of one image worker: commands as calls, answers as values, failures as exceptions.

Owns the conversation (serials, which answer belongs to which command), the heartbeat that tells a busy child
from a stopped one, and the translation of a child's end into a failure of the stage it was running. Owns no
decision about what to do then: that is `tidegate.core.image.ladder`. Neighbours: `children` (the process),
`tidegate.workers.image` (the other side).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

import msgspec
import psutil

from tidegate.core.faults import Bug
from tidegate.core.image.failure import Failure
from tidegate.core.stage import Component, Execution, Stage
from tidegate.runtime import children
from tidegate.wire import channel, frames, messages

MODULE: Final = "tidegate.workers.image"

Answer = TypeVar("Answer", bound=messages.Message)
OnProgress = Callable[[messages.Progress], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a silent child is believed in.

    A child that does not answer a ping within `heartbeat_ms` is stopped. One that answers, but has used less
    than a tenth of one processor during `idle_max_ms` and reported nothing, is stuck. `command_max_ms` is the
    end of all patience: no stage we know takes four hours.
    """

    heartbeat_ms: int = 20_000
    idle_max_ms: int = 180_000
    command_max_ms: int = 4 * 3_600_000


class WorkerLost(Exception):
    """The child is gone, or was ended because it hung. It has been waited for."""

    def __init__(self, failure: Failure, ending: children.Ending) -> None:
        super().__init__(f"the worker {ending.text()}")
        self.failure = failure
        self.ending = ending


class CommandFailed(Exception):
    """The worker lives and says why it could not do what it was told."""

    def __init__(
        self, fault: messages.FaultKind, message: str, *, card_peak_bytes: int, ram_peak_bytes: int
    ) -> None:
        super().__init__(message)
        self.fault = fault
        self.message = message
        self.card_peak_bytes = card_peak_bytes
        self.ram_peak_bytes = ram_peak_bytes


class ImageWorker:
    """One live worker. Every call blocks until its answer is there; use from one thread."""

    def __init__(self, child: children.Child[messages.FromWorker], *, patience: Patience) -> None:
        self._child = child
        self._patience = patience
        self._on_progress: OnProgress | None = None
        self._serial = 0
        self.engine_build = ""

    @classmethod
    def start(
        cls, *, patience: Patience | None = None, on_line: children.OnLine = children.unheard
    ) -> ImageWorker:
        """Spawn a worker and greet it. Raises `WorkerLost`."""
        worker = cls(
            children.Child.spawn(MODULE, environment=children.engine_environment(), on_line=on_line),
            patience=patience or Patience(),
        )
        try:
            hello = worker._answer(0, messages.Hello)
            if hello.version != messages.WIRE_VERSION:
                raise Bug(f"The worker speaks version {hello.version}, we speak {messages.WIRE_VERSION}.")
        except BaseException:  # Ctrl-C too: nobody but us knows the child yet, so nobody else can end it
            worker.end()
            raise
        worker.engine_build = hello.engine_build
        return worker

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._child.pid

    @property
    def exchange(self) -> int:
        """The memory file in which pixels travel."""
        return self._child.exchange

    def survey(self, *, ledger_path: str = "") -> messages.Surveyed:
        """List the devices, after attaching the virtual card whose ledger is named."""
        return self._ask(messages.Survey(serial=self._next(), ledger_path=ledger_path), messages.Surveyed)

    def open(self, command: messages.Open) -> messages.Opened:
        """Open a model; the command's serial is set here."""
        return self._ask(_with_serial(command, self._next()), messages.Opened)

    def predict(
        self, stage: Stage, request: messages.ImageRequest, *, execution: Execution
    ) -> messages.FootprintPredicted:
        """Ask for a footprint."""
        command = messages.Predict(serial=self._next(), stage=stage, request=request, execution=execution)
        return self._ask(command, messages.FootprintPredicted)

    def load(self, component: Component, execution: Execution, *, with_encoder: bool) -> messages.Loaded:
        """Load a component."""
        command = messages.Load(
            serial=self._next(), component=component, execution=execution, encoder=with_encoder
        )
        return self._ask(command, messages.Loaded)

    def release(self, component: Component) -> messages.Released:
        """Release a component."""
        return self._ask(messages.Release(serial=self._next(), component=component), messages.Released)

    def measure(self, *, resets_peaks: bool = False) -> messages.Measured:
        """Ask what is free and what the worker holds."""
        return self._ask(messages.Measure(serial=self._next(), resets_peaks=resets_peaks), messages.Measured)

    def run(self, command: messages.RunStage, *, on_progress: OnProgress) -> messages.StageFinished:
        """Run a stage; the command's serial is set here."""
        self._on_progress = on_progress
        try:
            return self._ask(_with_serial(command, self._next()), messages.StageFinished)
        finally:
            self._on_progress = None

    def cancel(self) -> None:
        """Stop the stage that was begun last, at its next step. Its `run` raises CommandFailed(cancelled)."""
        self._child.channel.send(messages.Cancel(serial=self._serial))

    def signal(self, number: int) -> None:
        """Send the child a signal."""
        self._child.signal(number)

    def close(self) -> children.Ending:
        """Let the child release everything and exit; end it if it does not."""
        try:
            self._child.channel.send(messages.Shutdown())
        except channel.Closed:
            return self._child.finish()
        return self._child.finish()

    def end(self) -> children.Ending:
        """End the child now."""
        return self._child.end()

    def _next(self) -> int:
        self._serial += 1
        return self._serial

    def _ask(self, command: messages.ToWorker, expected: type[Answer]) -> Answer:
        try:
            self._child.channel.send(command)
        except channel.Closed:
            raise self._lost() from None
        return self._answer(self._serial, expected)

    def _answer(self, serial: int, expected: type[Answer]) -> Answer:
        watch = _Watch(self._child.pid, self._patience)
        while True:
            message = self._hear(watch)
            match message:
                case messages.Progress():
                    if self._on_progress is not None and message.serial == serial:
                        self._on_progress(message)
                case messages.Pong():
                    continue
                case messages.Refused() if message.serial == serial:
                    raise CommandFailed(message.fault, message.message, card_peak_bytes=0, ram_peak_bytes=0)
                case messages.StageFailed() if message.serial == serial:
                    raise CommandFailed(
                        message.fault,
                        message.message,
                        card_peak_bytes=message.card_peak_bytes,
                        ram_peak_bytes=message.ram_peak_bytes,
                    )
                case _ if isinstance(message, expected):
                    return message
                case _:
                    # An answer to a command that was interrupted (Ctrl-C) before it was heard.
                    continue

    def _hear(self, watch: _Watch) -> messages.FromWorker:
        pinged = False
        while True:
            try:
                message = self._child.channel.receive(self._patience.heartbeat_ms)
            except channel.SilenceTooLong:
                if pinged or watch.is_stuck():
                    raise self._hung() from None
                try:
                    self._child.channel.send(messages.Ping(serial=self._serial))
                except channel.Closed:
                    raise self._lost() from None
                pinged = True
                continue
            except (channel.Closed, frames.ProtocolError):
                raise self._lost() from None
            if isinstance(message, messages.Pong):
                pinged = False
                continue
            watch.heard()
            return message

    def _lost(self) -> WorkerLost:
        ending = self._child.finish()
        return WorkerLost(Failure.KILLED if ending.was_killed else Failure.DIED, ending)

    def _hung(self) -> WorkerLost:
        return WorkerLost(Failure.HANG, self._child.end(grace_ms=0))


class _Watch:
    """Judges whether a child that answers pings still works on its command."""

    def __init__(self, pid: int, patience: Patience) -> None:
        self._pid = pid
        self._patience = patience
        self._began = time.monotonic()
        self.heard()

    def heard(self) -> None:
        """The child said something about its work."""
        self._since = time.monotonic()
        self._worked_s = self._processor_s()

    def is_stuck(self) -> bool:
        """Whether patience is at its end."""
        now = time.monotonic()
        if (now - self._began) * 1000 > self._patience.command_max_ms:
            return True
        silent_s = now - self._since
        if silent_s * 1000 < self._patience.idle_max_ms:
            return False
        return self._processor_s() - self._worked_s < silent_s / 10

    def _processor_s(self) -> float:
        try:
            times = psutil.Process(self._pid).cpu_times()
        except psutil.Error:  # it is gone, and the channel will say so
            return 0.0
        return float(times.user + times.system)


def _with_serial(
    command: messages.RunStage | messages.Open, serial: int
) -> messages.RunStage | messages.Open:
    return msgspec.structs.replace(command, serial=serial)

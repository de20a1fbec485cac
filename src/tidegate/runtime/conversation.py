"""A conversation with a child on the event loop: commands as awaits, answers as values.

Owns the serials, which answer belongs to which command, and who hears progress. A child that talks nonsense
is killed at once: nothing that it says later could be trusted. The blocking twin for the one-shot is
`worker`; the process behind it is `children`.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from typing import Final, TypeVar

import msgspec

from tidegate.runtime import children
from tidegate.wire import channel, frames, messages

Answer = TypeVar("Answer", bound=messages.Message)
OnProgress = Callable[[messages.Progress], None]
Command = (
    messages.Survey
    | messages.Open
    | messages.Predict
    | messages.Load
    | messages.Release
    | messages.RunStage
    | messages.Measure
)
# Answers that carry no serial of a command.
_UNASKED: Final = (messages.Hello, messages.Pong)


class Gone(Exception):
    """The child does not talk any more; how it ended is told by its supervisor."""


class Declined(Exception):
    """The child lives and says why it could not do what it was told."""

    def __init__(self, fault: messages.FaultKind, message: str) -> None:
        super().__init__(message)
        self.fault = fault
        self.message = message


class Conversation:
    """The loop's end of a child's channel. Belongs to one event loop."""

    def __init__(self, child: children.Child) -> None:
        self._child = child
        self._loop = asyncio.get_running_loop()
        self._descriptor = child.channel.fileno()
        self._serial = 0
        self._waiting: dict[int, asyncio.Future[messages.FromWorker]] = {}
        self._hello: asyncio.Future[messages.Hello] = self._loop.create_future()
        self._on_progress: OnProgress | None = None
        self.is_open = True
        self._loop.add_reader(self._descriptor, self._arrived)

    async def hello(self) -> messages.Hello:
        """Wait for the child's first words. Raises `Gone`."""
        hello = await asyncio.shield(self._hello)
        if hello.version != messages.WIRE_VERSION:
            self._break_off()
            raise Gone(f"it speaks version {hello.version}, we speak {messages.WIRE_VERSION}")
        return hello

    async def ask(
        self, command: Command, expected: type[Answer], *, on_progress: OnProgress | None = None
    ) -> Answer:
        """Send a command and wait for its answer; its serial is set here. Raises `Gone` and `Declined`."""
        if not self.is_open:
            raise Gone
        self._serial += 1
        serial = self._serial
        answer: asyncio.Future[messages.FromWorker] = self._loop.create_future()
        self._waiting[serial] = answer
        self._on_progress = on_progress or self._on_progress
        try:
            self._send(msgspec.structs.replace(command, serial=serial))
            heard = await answer
        finally:
            self._waiting.pop(serial, None)
        if isinstance(heard, messages.Refused | messages.StageFailed):
            raise Declined(heard.fault, heard.message)
        if not isinstance(heard, expected):
            self._break_off()
            raise Gone(f"it answered {type(heard).__name__}")
        return heard

    def cancel(self) -> None:
        """Stop the stage that was begun last, at its next step."""
        if self.is_open:
            self._send(messages.Cancel(serial=self._serial))

    def say_goodbye(self) -> None:
        """Let the child release everything and exit."""
        if self.is_open:
            self._send(messages.Shutdown())

    def drain(self) -> None:
        """Hear what a child said just before it ended."""
        while self.is_open and self._arrived():
            pass

    def close(self) -> None:
        """Stop listening; whoever waits for an answer gets `Gone`."""
        if self.is_open:
            self.is_open = False
            self._loop.remove_reader(self._descriptor)
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(Gone("the worker is gone"))
        self._waiting.clear()
        if not self._hello.done():
            self._hello.set_exception(Gone("the worker ended before it was ready"))
            # Nobody may be waiting for its first words; that is no error.
            self._hello.exception()

    def _send(self, message: messages.ToWorker) -> None:
        try:
            # Frames are short and the child's reader never computes, so this does not wait.
            self._child.channel.send(message)
        except channel.Closed:
            self.close()

    def _arrived(self) -> bool:
        try:
            heard = self._child.channel.receive_ready()
        except channel.SilenceTooLong:
            return False
        except channel.Closed:
            self.close()
            return False
        except frames.ProtocolError:
            self._break_off()
            return False
        for message in heard:
            self._heard(message)
        return True

    def _heard(self, message: messages.FromWorker) -> None:
        match message:
            case messages.Hello():
                if not self._hello.done():
                    self._hello.set_result(message)
            case messages.Pong():
                pass
            case messages.Progress():
                if self._on_progress is not None and message.serial in self._waiting:
                    self._on_progress(message)
            case _:
                waiting = self._waiting.get(message.serial)
                if waiting is not None and not waiting.done():
                    waiting.set_result(message)

    def _break_off(self) -> None:
        self.close()
        self._child.signal(signal.SIGKILL)

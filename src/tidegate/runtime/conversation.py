"""A conversation with a child on the event loop: commands as awaits, answers as values.

Owns the serials, which answer belongs to which command, who hears progress and what is said unasked, and
the waiting of frames that a child does not take at once: the loop never waits for a child. A child that
talks nonsense is killed at once: nothing that it says later could be trusted. The blocking twin for the
one-shot is `worker`; the process behind it is `children`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import msgspec

from tidegate.runtime import children
from tidegate.wire import channel, frames, llm_child, llm_front, messages

Answer = TypeVar("Answer", bound=messages.Message)
OnProgress = Callable[[messages.Progress], None]
Heard = messages.FromWorker | llm_front.FromFront | llm_child.FromChild
AnyChild = (
    children.Child[messages.FromWorker]
    | children.Child[llm_front.FromFront]
    | children.Child[llm_child.FromChild]
)
# What a child says without being asked, for whoever carries it on.
Unasked = llm_front.Said | llm_front.Working | llm_front.Failed | llm_front.Keeping
OnWord = Callable[[Unasked], None]
# The commands that are answered; a serial is set in each.
Command = (
    messages.Survey
    | messages.Open
    | messages.Predict
    | messages.PredictLlm
    | messages.Load
    | messages.Release
    | messages.RunStage
    | messages.Measure
    | messages.Ping
    | llm_front.Furnish
    | llm_front.OpenModel
    | llm_front.CloseModel
    | llm_front.Ask
    | llm_front.Drop
    | llm_front.FreeStates
    | llm_front.Tokenize
    | llm_front.Detokenize
    | llm_child.OpenLlm
    | llm_child.SetLevel
)
# The others.
Word = llm_front.Attach | llm_front.Serve | llm_child.AttachFront | messages.Cancel | messages.Shutdown
_REFUSALS: Final = (
    messages.Refused,
    messages.StageFailed,
    llm_front.FrontRefused,
    llm_child.LlmRefused,
    llm_child.LevelFailed,
)
# A child that takes nothing for so many frames is stuck, and will be ended by whoever waits for its answer.
WAITING_MAX: Final = 4_096


class Gone(Exception):
    """The child does not talk any more; how it ended is told by its supervisor."""


class Declined(Exception):
    """The child lives and says why it could not do what it was told. `answer` is what it said."""

    def __init__(
        self, fault: messages.FaultKind, message: str, answer: messages.Message | None = None
    ) -> None:
        super().__init__(message)
        self.fault = fault
        self.message = message
        self.answer = answer


class Conversation:
    """The loop's end of a child's channel. Belongs to one event loop."""

    def __init__(self, child: AnyChild) -> None:
        self._child = child
        self._loop = asyncio.get_running_loop()
        self._descriptor = child.channel.fileno()
        # The same socket once more, because writing is waited for apart from reading.
        self._outlet = socket.socket(fileno=os.dup(self._descriptor))
        self._outgoing: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self._serial = 0
        self._waiting: dict[int, asyncio.Future[Heard]] = {}
        self._hello: asyncio.Future[messages.Hello] = self._loop.create_future()
        self._on_progress: OnProgress | None = None
        self.on_word: OnWord | None = None
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
        self,
        command: Command,
        expected: type[Answer],
        *,
        descriptors: Sequence[int] = (),
        on_progress: OnProgress | None = None,
    ) -> Answer:
        """Send a command and wait for its answer; its serial is set here. Raises `Gone` and `Declined`.

        Descriptors travel along as copies: those given stay the caller's.
        """
        if not self.is_open:
            raise Gone
        self._serial += 1
        serial = self._serial
        answer: asyncio.Future[Heard] = self._loop.create_future()
        self._waiting[serial] = answer
        self._on_progress = on_progress or self._on_progress
        try:
            self._send(msgspec.structs.replace(command, serial=serial), descriptors)
            heard = await answer
        finally:
            self._waiting.pop(serial, None)
        if isinstance(heard, _REFUSALS):
            raise Declined(heard.fault, heard.message, heard)
        if not isinstance(heard, expected):
            self._break_off()
            raise Gone(f"it answered {type(heard).__name__}")
        return heard

    def say(self, word: Word, *, descriptors: Sequence[int] = ()) -> None:
        """Send what has no answer. A child that is gone does not hear it."""
        if self.is_open:
            self._send(word, descriptors)

    def cancel(self) -> None:
        """Stop the stage that was begun last, at its next step."""
        self.say(messages.Cancel(serial=self._serial))

    def say_goodbye(self) -> None:
        """Let the child release everything and exit."""
        self.say(messages.Shutdown())

    def drain(self) -> None:
        """Hear what a child said just before it ended."""
        while self.is_open and self._arrived():
            pass

    def close(self) -> None:
        """Stop listening; whoever waits for an answer gets `Gone`."""
        if self.is_open:
            self.is_open = False
            self._loop.remove_reader(self._descriptor)
            self._loop.remove_writer(self._outlet.fileno())
            self._outlet.close()
            while self._outgoing:
                _close_all(self._outgoing.popleft()[1])
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(Gone("the worker is gone"))
        self._waiting.clear()
        if not self._hello.done():
            self._hello.set_exception(Gone("the worker ended before it was ready"))
            # Nobody may be waiting for its first words; that is no error.
            self._hello.exception()

    # --- sending

    def _send(self, message: messages.Message, descriptors: Sequence[int] = ()) -> None:
        frame = frames.encode_frame(messages.encode(message))
        self._outgoing.append((frame, tuple(os.dup(descriptor) for descriptor in descriptors)))
        if len(self._outgoing) > WAITING_MAX:
            self._break_off()
        elif len(self._outgoing) == 1:
            self._flush()

    def _flush(self) -> None:
        """Hand over what the socket takes; go on when it takes more."""
        try:
            while self._outgoing:
                frame, descriptors = self._outgoing[0]
                if descriptors:
                    sent = socket.send_fds(self._outlet, [frame], list(descriptors), socket.MSG_DONTWAIT)
                    _close_all(descriptors)
                else:
                    sent = self._outlet.send(frame, socket.MSG_DONTWAIT)
                if sent < len(frame):
                    self._outgoing[0] = (frame[sent:], ())
                else:
                    self._outgoing.popleft()
        except BlockingIOError:  # its buffer is full
            self._loop.add_writer(self._outlet.fileno(), self._flush)
        except OSError:  # nobody listens any more
            self.close()
        else:
            self._loop.remove_writer(self._outlet.fileno())

    # --- hearing

    def _arrived(self) -> bool:
        try:
            heard: Sequence[Heard] = self._child.channel.receive_ready()
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

    def _heard(self, message: Heard) -> None:
        match message:
            case messages.Hello():
                if not self._hello.done():
                    self._hello.set_result(message)
            case messages.Progress():
                if self._on_progress is not None and message.serial in self._waiting:
                    self._on_progress(message)
            case llm_front.Said() | llm_front.Working() | llm_front.Failed() | llm_front.Keeping():
                if self.on_word is not None:
                    self.on_word(message)
            case _:
                waiting = self._waiting.get(message.serial)
                if waiting is not None and not waiting.done():
                    waiting.set_result(message)

    def _break_off(self) -> None:
        self.close()
        self._child.signal(signal.SIGKILL)


def _close_all(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        with contextlib.suppress(OSError):  # closed already: nothing more is to be done about it
            os.close(descriptor)

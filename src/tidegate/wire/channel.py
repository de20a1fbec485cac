"""A channel: one end of a socket on which two processes exchange messages.

Owns reading and writing frames on a blocking socket, and the open files that travel beside them. Sending is
safe from several threads, receiving is for one. Neighbours: `frames` (the bytes) and `messages` (their
meaning); who is on the other end is the business of `tidegate.runtime.children` and `tidegate.workers`.
"""

from __future__ import annotations

import array
import contextlib
import os
import select
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Generic, TypeVar

from tidegate.wire import frames, llm_child, llm_front, llm_link, messages

Incoming = TypeVar("Incoming")
_READ_BYTES = 65536
# The kernel passes at most 253 descriptors with one message; a stream's state and pictures are far fewer.
DESCRIPTORS_MAX: Final = 64
_CONTROL_BYTES: Final = socket.CMSG_SPACE(DESCRIPTORS_MAX * array.array("i").itemsize)


class Closed(Exception):
    """The other side is gone: the stream ended between two frames, inside one, or was reset."""


class SilenceTooLong(Exception):
    """Nothing arrived within the time that the caller was willing to wait."""


class Channel(Generic[Incoming]):
    """Messages in both directions over one connected socket."""

    def __init__(self, connection: socket.socket, decode: Callable[[bytes], Incoming]) -> None:
        self._connection = connection
        self._decode = decode
        self._decoder = frames.FrameDecoder()
        self._ready: deque[bytes] = deque()
        self._sending = threading.Lock()
        self._descriptors: deque[int] = deque()

    def send(self, message: messages.Message, descriptors: Sequence[int] = ()) -> None:
        """Write one message as a whole. Raises `Closed` when nobody listens any more.

        Descriptors travel with its first byte, as copies: ours stay ours.
        """
        self.send_frame(frames.encode_frame(messages.encode(message)), descriptors)

    def send_frame(self, frame: bytes, descriptors: Sequence[int] = ()) -> None:
        """Write a whole frame, or the rest of one that `send_now` began; as `send` does."""
        with self._sending:
            try:
                if descriptors:
                    frame = frame[self._connection.sendmsg([frame], _control(descriptors)) :]
                self._connection.sendall(frame)
            except OSError as error:
                raise Closed(f"the other side no longer listens: {error}") from error

    def send_now(self, message: messages.Message, descriptors: Sequence[int] = ()) -> tuple[bytes, bool]:
        """Write what can be written without waiting: what is left of the frame, and whether the descriptors
        went, as they do with its first byte. Raises `Closed`.
        """
        frame = frames.encode_frame(messages.encode(message))
        with self._sending:
            try:
                control = _control(descriptors) if descriptors else ()
                sent_bytes = self._connection.sendmsg([frame], control, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return frame, False
            except OSError as error:
                raise Closed(f"the other side no longer listens: {error}") from error
        return frame[sent_bytes:], True

    def take_descriptor(self) -> int:
        """The next descriptor that came along, for whoever reads the message that it belongs to.

        It is the caller's to close. Raises `ProtocolError` when the other side promised one and sent none.
        """
        if not self._descriptors:
            raise frames.ProtocolError("a message came without the descriptor that belongs to it")
        return self._descriptors.popleft()

    def receive(self, wait_ms: int | None = None) -> Incoming:
        """The next message; None waits for ever. Raises `Closed`, `SilenceTooLong` or `ProtocolError`."""
        while not self._ready:
            self._ready.extend(self._decoder.feed(self._read(wait_ms)))
        return self._decode(self._ready.popleft())

    def _read(self, wait_ms: int | None) -> bytes:
        try:
            # The timeout is for reading only: a writer must never be torn off in the middle of a frame.
            # Polling first and then reading keeps the socket itself blocking.
            if wait_ms is not None and not _readable(self._connection, wait_ms):
                raise SilenceTooLong(f"nothing was heard for {wait_ms} ms")
            data = self._received()
        except OSError as error:
            raise Closed(f"the connection broke: {error}") from error
        if not data:
            try:
                self._decoder.end()
            except frames.ProtocolError as error:
                raise Closed(str(error)) from error
            raise Closed("the other side closed the connection")
        return data

    def _received(self) -> bytes:
        data, control, _flags, _address = self._connection.recvmsg(
            _READ_BYTES, _CONTROL_BYTES, socket.MSG_CMSG_CLOEXEC
        )
        for level, kind, packed in control:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                found = array.array("i")
                found.frombytes(packed[: len(packed) - len(packed) % found.itemsize])
                self._descriptors.extend(found)
        return data

    def fileno(self) -> int:
        """The socket's number, for an event loop that waits until it is readable."""
        return self._connection.fileno()

    def receive_ready(self) -> list[Incoming]:
        """Read once from a readable socket and return what became complete. Raises as `receive` does."""
        self._ready.extend(self._decoder.feed(self._read(0)))
        complete, self._ready = list(self._ready), deque()
        return [self._decode(payload) for payload in complete]

    def hang_up(self) -> None:
        """End both directions at once; whoever waits in `send` or `receive`, here or there, is woken."""
        with contextlib.suppress(OSError):  # the other side was faster
            self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close our end; the other side sees the end of the stream. Untaken descriptors are closed."""
        self._connection.close()
        while self._descriptors:
            os.close(self._descriptors.popleft())


def worker_end(connection: socket.socket) -> Channel[messages.ToWorker]:
    """The worker's end: it reads commands."""
    return Channel(connection, messages.decode_to_worker)


def parent_end(connection: socket.socket) -> Channel[messages.FromWorker]:
    """The parent's end: it reads answers."""
    return Channel(connection, messages.decode_from_worker)


def front_end(connection: socket.socket) -> Channel[llm_front.ToFront]:
    """The front's end of its talk with the runtime."""
    return Channel(connection, llm_front.decode_to_front)


def front_parent_end(connection: socket.socket) -> Channel[llm_front.FromFront]:
    """The runtime's end of it."""
    return Channel(connection, llm_front.decode_from_front)


def child_end(connection: socket.socket) -> Channel[llm_child.ToChild]:
    """A language model's child's end of its talk with the runtime."""
    return Channel(connection, llm_child.decode_to_child)


def child_parent_end(connection: socket.socket) -> Channel[llm_child.FromChild]:
    """The runtime's end of it."""
    return Channel(connection, llm_child.decode_from_child)


def engine_end(connection: socket.socket) -> Channel[llm_link.ToEngine]:
    """The child's end of its link with the front."""
    return Channel(connection, llm_link.decode_to_engine)


def engine_front_end(connection: socket.socket) -> Channel[llm_link.FromEngine]:
    """The front's end of it."""
    return Channel(connection, llm_link.decode_from_engine)


def _control(descriptors: Sequence[int]) -> list[tuple[int, int, array.array[int]]]:
    assert len(descriptors) <= DESCRIPTORS_MAX, "more descriptors than the other side can take in"
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]


def _readable(connection: socket.socket, wait_ms: int) -> bool:
    poller = select.poll()
    poller.register(connection, select.POLLIN)
    return bool(poller.poll(wait_ms))

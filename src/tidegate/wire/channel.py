"""A channel: one end of a socket on which two processes exchange messages.

Owns reading and writing frames on a blocking socket. Sending is safe from several threads, receiving is for
one. Neighbours: `frames` (the bytes) and `messages` (their meaning); who is on the other end is the business
of `tidegate.runtime.children` and `tidegate.workers`.
"""

from __future__ import annotations

import select
import socket
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from tidegate.wire import frames, messages

Incoming = TypeVar("Incoming")
_READ_BYTES = 65536


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

    def send(self, message: messages.ToWorker | messages.FromWorker) -> None:
        """Write one message as a whole. Raises `Closed` when nobody listens any more."""
        frame = frames.encode_frame(messages.encode(message))
        with self._sending:
            try:
                self._connection.sendall(frame)
            except OSError as error:
                raise Closed(f"the other side no longer listens: {error}") from error

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
            data = self._connection.recv(_READ_BYTES)
        except OSError as error:
            raise Closed(f"the connection broke: {error}") from error
        if not data:
            try:
                self._decoder.end()
            except frames.ProtocolError as error:
                raise Closed(str(error)) from error
            raise Closed("the other side closed the connection")
        return data

    def fileno(self) -> int:
        """The socket's number, for an event loop that waits until it is readable."""
        return self._connection.fileno()

    def receive_ready(self) -> list[Incoming]:
        """Read once from a readable socket and return what became complete. Raises as `receive` does."""
        self._ready.extend(self._decoder.feed(self._read(0)))
        complete, self._ready = list(self._ready), deque()
        return [self._decode(payload) for payload in complete]

    def close(self) -> None:
        """Close our end; the other side sees the end of the stream."""
        self._connection.close()


def worker_end(connection: socket.socket) -> Channel[messages.ToWorker]:
    """The worker's end: it reads commands."""
    return Channel(connection, messages.decode_to_worker)


def parent_end(connection: socket.socket) -> Channel[messages.FromWorker]:
    """The parent's end: it reads answers."""
    return Channel(connection, messages.decode_from_worker)


def _readable(connection: socket.socket, wait_ms: int) -> bool:
    poller = select.poll()
    poller.register(connection, select.POLLIN)
    return bool(poller.poll(wait_ms))

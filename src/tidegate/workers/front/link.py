"""Links: the front's ends of the sockets to GPU children.

Owns sending without ever waiting: a child reads between two steps of its computation, and the front must
serve the others meanwhile, so what a socket does not take at once is written by a thread of its own. What is
said is the `desk`'s business.
"""

from __future__ import annotations

import os
import queue
import socket
import threading
from collections.abc import Sequence

from tidegate.wire import channel, frames, llm_link, messages
from tidegate.wire.messages import Message


class Link:
    """The link to one incarnation of one child."""

    def __init__(self, descriptor: int, *, model: str, worker: str, incarnation: int) -> None:
        self.model, self.worker, self.incarnation = model, worker, incarnation
        self.channel = channel.engine_front_end(socket.socket(fileno=descriptor))
        # Frames, or the rest of one, with the descriptors that did not go yet.
        self._frames: queue.SimpleQueue[tuple[bytes, tuple[int, ...]] | None] = queue.SimpleQueue()
        self._left_count = 0  # Frames that were left to the writer; said by one thread only.
        self._written_count = 0  # And those of them that it is done with.
        self._writer = threading.Thread(target=self._write, name=f"to {worker}", daemon=True)
        self._writer.start()

    @property
    def descriptor(self) -> int:
        """The socket, for a poll."""
        return self.channel.fileno()

    def say(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        """Have a message written, with copies of these descriptors. If nobody listens any more it is dropped:
        the reading side notices too, and closes us.
        """
        if self._left_count == self._written_count:
            try:
                rest, has_sent = self.channel.send_now(message, descriptors)
            except channel.Closed:
                return
        else:
            rest, has_sent = frames.encode_frame(messages.encode(message)), False
        if rest:
            self._left_count += 1
            kept = () if has_sent else tuple(os.dup(descriptor) for descriptor in descriptors)
            self._frames.put((rest, kept))

    def hear(self) -> list[llm_link.FromEngine]:
        """What arrived. Raises `channel.Closed` and `frames.ProtocolError`."""
        return self.channel.receive_ready()

    def close(self) -> None:
        """Hang up. Words that were not written yet are dropped: nobody would read them."""
        self._frames.put(None)
        # Wakes a writer that waits for a child which does not read.
        self.channel.hang_up()
        self._writer.join()
        self.channel.close()

    def _write(self) -> None:
        is_open = True
        while (left := self._frames.get()) is not None:
            frame, descriptors = left
            try:
                if is_open:
                    self.channel.send_frame(frame, descriptors)
            except channel.Closed:
                is_open = False  # as above
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)
                self._written_count += 1

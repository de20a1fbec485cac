"""Links: the front's ends of the sockets to GPU children.

Owns sending without ever waiting: a child reads between two steps of its computation, and the front must
serve the others meanwhile, so a thread of its own writes to each. What is said is the `desk`'s business.
"""

from __future__ import annotations

import os
import queue
import socket
import threading
from collections.abc import Sequence

from tidegate.wire import channel, llm_link
from tidegate.wire.messages import Message


class Link:
    """The link to one incarnation of one child."""

    def __init__(self, descriptor: int, *, model: str, worker: str, incarnation: int) -> None:
        self.model, self.worker, self.incarnation = model, worker, incarnation
        self.channel = channel.engine_front_end(socket.socket(fileno=descriptor))
        self._words: queue.SimpleQueue[tuple[Message, tuple[int, ...]] | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, name=f"to {worker}", daemon=True)
        self._writer.start()

    @property
    def descriptor(self) -> int:
        """The socket, for a poll."""
        return self.channel.fileno()

    def say(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        """Have a message written, with copies of these descriptors."""
        self._words.put((message, tuple(os.dup(descriptor) for descriptor in descriptors)))

    def hear(self) -> list[llm_link.FromEngine]:
        """What arrived. Raises `channel.Closed` and `frames.ProtocolError`."""
        return self.channel.receive_ready()

    def close(self) -> None:
        """Hang up. Words that were not written yet are dropped: nobody would read them."""
        self._words.put(None)
        # Wakes a writer that waits for a child which does not read.
        self.channel.hang_up()
        self._writer.join()
        self.channel.close()

    def _write(self) -> None:
        is_open = True
        while (words := self._words.get()) is not None:
            message, descriptors = words
            try:
                if is_open:
                    self.channel.send(message, descriptors)
            except channel.Closed:
                is_open = False  # the reading side notices too, and closes us
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)

"""The process of the front: hears the runtime on one thread, does its work on another.

Started by exec as `python -m tidegate.workers.front --channel FD --exchange FD --parent PID`. Reading never
waits for work, so that the runtime never waits for us; the worker thread waits for commands and for the
children's words at once. It ends when told to, when the runtime's end closes, or when the parent dies.

Neighbours: `desk` does the work, `tidegate.wire.llm_front` has the conversation.
"""

from __future__ import annotations

import functools
import os
import queue
import select
import sys
import threading
from typing import NoReturn

from tidegate.wire import channel, frames, llm_front, messages
from tidegate.workers import lifetime


class Post:
    """What the runtime said and nobody has done yet, with a descriptor that a poll can wait for."""

    def __init__(self, talk: channel.Channel[llm_front.ToFront]) -> None:
        self._talk = talk
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._commands: queue.SimpleQueue[tuple[llm_front.ToFront, list[int]]] = queue.SimpleQueue()

    @property
    def bell(self) -> int:
        """Readable when there is something."""
        return self._bell

    def listen(self) -> NoReturn:
        """Read for ever."""
        while True:
            try:
                command = self._talk.receive()
                carries = isinstance(command, llm_front.Attach) or (
                    isinstance(command, llm_front.Ask) and not command.body
                )
                descriptors = [self._talk.take_descriptor()] if carries else []
            except channel.Closed:
                os._exit(0)
            except frames.ProtocolError as error:
                print(f"the runtime sent nonsense: {error}", file=sys.stderr, flush=True)
                os._exit(lifetime.EXIT_PROTOCOL)
            self._commands.put((command, descriptors))
            os.eventfd_write(self._bell, 1)

    def take(self) -> list[tuple[llm_front.ToFront, list[int]]]:
        """Everything that waits."""
        os.eventfd_read(self._bell)
        found = []
        while not self._commands.empty():
            found.append(self._commands.get())
        return found

    def say(self, message: messages.Message) -> None:
        """Say something to the runtime. If nobody listens any more there is nothing left to do here."""
        try:
            self._talk.send(message)
        except channel.Closed:
            os._exit(0)


def _work(post: Post) -> None:
    # Imported on the thread that uses it: the reader shall hear the runtime's end even while a disk is slow.
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ["HIP_VISIBLE_DEVICES"] = ""
    os.environ["GGML_VK_VISIBLE_DEVICES"] = ""
    from tidegate_engines import llama

    from tidegate.workers.front.desk import Desk

    llama.bindings()
    desk = Desk(post.say)
    version = messages.WIRE_VERSION
    post.say(messages.Hello(version=version, engine_build=llama.build_id(), pid=os.getpid()))
    while True:
        poller = select.poll()
        for descriptor in (post.bell, *desk.links):
            poller.register(descriptor, select.POLLIN)
        ready = [descriptor for descriptor, _ in poller.poll()]
        # Children first: what they said before a Drop or their end still counts.
        for link in [desk.links[descriptor] for descriptor in ready if descriptor in desk.links]:
            try:
                for word in link.hear():
                    desk.hear(link, word)
            except (channel.Closed, frames.ProtocolError):
                desk.lost(link)
        desk.flush()
        if post.bell in ready:
            for command, descriptors in post.take():
                desk.obey(command, descriptors)
                if isinstance(command, llm_front.Ask):
                    for descriptor in descriptors:
                        os.close(descriptor)
                if isinstance(command, messages.Shutdown):
                    os._exit(0)


def main() -> None:
    """Tie ourselves to the parent, start the work, listen."""
    connection, _ = lifetime.begin()
    post = Post(channel.front_end(connection))
    work = functools.partial(_work, post)
    threading.Thread(target=lifetime.do_or_exit, args=(work,), name="desk", daemon=True).start()
    post.listen()


if __name__ == "__main__":
    main()

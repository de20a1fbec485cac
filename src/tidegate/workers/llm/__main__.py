"""The process of a GPU child: listens to the runtime and to the front between two turns of its engine.

Started by exec as `python -m tidegate.workers.llm --channel FD --exchange FD --parent PID`. One thread: while
there is something to compute, the sockets are looked at after each turn and never waited for; else it waits
for a word. It ends when told to, when the runtime's end closes, or when the parent dies in any way.

Neighbours: `engine` does what is said, `tidegate.wire.llm_child` and `llm_link` are the two conversations.
"""

from __future__ import annotations

import functools
import os
import select
import socket
import sys
import time
from collections.abc import Sequence
from typing import Final

from tidegate.wire import channel, frames, llm_child, llm_link, messages
from tidegate.workers import lifetime
from tidegate.workers.llm.engine import Engine
from tidegate.workers.llm.outbox import Outbox

# How long we wait until the front says that it has what it was handed. It would get it without this too: what
# was written is the kernel's. The answer tells that it is in good hands before anybody ends this process.
KEPT_WAIT_MAX_S: Final = 5.0
# Requests that are served again come one after the other; those of one moment shall begin in one call.
TOGETHER_S: Final = 0.0003
# Who wants nothing for so long will hardly mind that idle conversations are put by.
IDLE_S: Final = 0.5


class Child:
    """Both conversations and the engine between them."""

    def __init__(self, talk: channel.Channel[llm_child.ToChild]) -> None:
        self._talk = talk
        self._out = Outbox()
        self._engine = Engine(self._out)
        self._poller = select.poll()
        self._poller.register(talk.fileno(), select.POLLIN)
        self._link: channel.Channel[llm_link.ToEngine] | None = None

    def run(self) -> None:
        """Listen and compute, for ever."""
        from tidegate_engines import llama

        llama.bindings()
        hello = messages.Hello(version=messages.WIRE_VERSION, engine_build=llama.build_id(), pid=os.getpid())
        self._say(hello)
        while True:
            if self._engine.has_work:
                self._hear(self._poller.poll(0))
            else:
                self._rest()
            self._engine.turn()

    def _rest(self) -> None:
        """There is nothing to compute: wait until somebody wants something, and hear all of them."""
        self._out.flush()
        while not (ready := self._poller.poll(IDLE_S * 1000 if self._engine.has_unkept else None)):
            self._engine.put_by()
        while ready:
            self._hear(ready)
            ready = self._poller.poll(0)
            if not ready:
                # Polls count whole milliseconds.
                select.select(self._listened, (), (), TOGETHER_S)
                ready = self._poller.poll(0)

    def _hear(self, ready: Sequence[tuple[int, int]]) -> None:
        """Read from those that have something to say."""
        for descriptor, _ in ready:
            if descriptor == self._talk.fileno():
                self._hear_runtime()
            elif self._link is not None and descriptor == self._link.fileno():
                self._hear_front()

    @property
    def _listened(self) -> list[int]:
        link = [self._link.fileno()] if self._link is not None else []
        return [self._talk.fileno(), *link]

    def _hear_runtime(self) -> None:
        for command in self._talk.receive_ready():
            match command:
                case llm_child.OpenLlm():
                    self._say(self._engine.open(command))
                case llm_child.AttachFront():
                    self._attach(self._talk.take_descriptor())
                case llm_child.SetLevel():
                    self._say(self._engine.set_level(command, self._wait_until_kept))
                case messages.Ping():
                    self._say(messages.Pong(serial=command.serial))
                case messages.Shutdown():
                    self._engine.close(self._wait_until_kept)
                    os._exit(0)

    def _hear_front(self) -> None:
        assert self._link is not None, "only a link is heard"
        try:
            for message in self._link.receive_ready():
                self._engine.hear(message, self._link.take_descriptor)
        except channel.SilenceTooLong:
            return  # it was read while a handover was waited for
        except channel.Closed:
            self._detach()

    def _attach(self, descriptor: int) -> None:
        self._detach()
        self._link = channel.engine_end(socket.socket(fileno=descriptor))
        self._out.link = self._link
        self._poller.register(self._link.fileno(), select.POLLIN)

    def _detach(self) -> None:
        if self._link is None:
            return
        self._poller.unregister(self._link.fileno())
        self._link.close()
        self._link = self._out.link = None
        self._engine.forget_streams()

    def _wait_until_kept(self) -> None:
        """Read the front's words until it has everything that was handed over, within a bound."""
        until = time.monotonic() + KEPT_WAIT_MAX_S
        while self._engine.unkept and self._link is not None:
            poller = select.poll()
            poller.register(self._link.fileno(), select.POLLIN)
            if not poller.poll(max(0.0, until - time.monotonic()) * 1000):
                break
            self._hear_front()
        self._engine.unkept.clear()

    def _say(self, message: messages.Message) -> None:
        self._talk.send(message)


def _run(child: Child) -> None:
    try:
        child.run()
    except channel.Closed:
        os._exit(0)  # nobody is there to be served
    except frames.ProtocolError as error:
        print(f"nonsense was heard: {error}", file=sys.stderr, flush=True)
        os._exit(lifetime.EXIT_PROTOCOL)


def main() -> None:
    """Tie ourselves to the parent, and run until it is over."""
    connection, _ = lifetime.begin()
    lifetime.do_or_exit(functools.partial(_run, Child(channel.child_end(connection))))


if __name__ == "__main__":
    main()

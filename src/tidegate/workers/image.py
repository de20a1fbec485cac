"""The image worker: a child process that holds the engine and answers the parent's frames.

Started by exec as `python -m tidegate.workers.image --channel FD --exchange FD --parent PID`. Two threads:
this one reads commands, so that Cancel and Ping are heard while the engine computes; the other, `engine`,
carries commands out one by one. The process ends when told to, when the parent's end of the channel closes,
or when the parent dies in any way; a programmer's error ends it too, with the traceback on stderr.

Neighbours: `stages` carries out a command, `lifetime` ties us to the parent, `tidegate.wire.messages` has the
conversation.
"""

from __future__ import annotations

import functools
import os
import queue
import sys
import threading
from collections.abc import Callable
from typing import Final, NoReturn

from tidegate.wire import channel, frames, messages
from tidegate.workers import lifetime

# The one-shot sends one command at a time; a parent that runs far ahead waits in its own sending.
COMMANDS_MAX: Final = 256


class Conversation:
    """Both directions of the talk with the parent, and which stages it has cancelled."""

    def __init__(self, talk: channel.Channel[messages.ToWorker]) -> None:
        self._talk = talk
        self._cancelled_serial = -1
        self.commands: queue.Queue[messages.ToWorker] = queue.Queue(COMMANDS_MAX)

    def send(self, message: messages.FromWorker) -> None:
        """Answer. If nobody listens any more there is nothing left to do in this process."""
        try:
            self._talk.send(message)
        except channel.Closed:
            os._exit(0)

    def is_cancelled(self, serial: int) -> bool:
        """Whether this stage shall stop. Serials rise, so a Cancel can come before its stage is begun."""
        return serial <= self._cancelled_serial

    def listen(self) -> NoReturn:
        """Read for ever. Cancel and Ping are answered here, everything else goes to the engine's thread."""
        while True:
            try:
                command = self._talk.receive()
            except channel.Closed:
                os._exit(0)  # the engine may be deep in a computation that nobody wants any more
            except frames.ProtocolError as error:
                print(f"the parent sent nonsense: {error}", file=sys.stderr, flush=True)
                os._exit(lifetime.EXIT_PROTOCOL)
            match command:
                case messages.Cancel():
                    self._cancelled_serial = command.serial
                case messages.Ping():
                    self.send(messages.Pong(serial=command.serial))
                case _:
                    self.commands.put(command)


Obey = Callable[[Conversation, int], None]


def _obey(talk: Conversation, exchange: int) -> None:
    # Imported on the thread that uses it: the reader shall hear the end of the parent even while a cold disk
    # is slow.
    from tidegate.workers import stages

    engine = stages.Engine(talk, exchange=exchange)
    engine.hello()
    while True:
        command = talk.commands.get()
        if isinstance(command, messages.Shutdown):
            engine.close()
            os._exit(0)
        talk.send(engine.answer(command))


def main(obey: Obey = _obey) -> None:
    """Tie ourselves to the parent, start the engine's thread with what it does, listen."""
    connection, exchange = lifetime.begin()
    talk = Conversation(channel.worker_end(connection))
    work = functools.partial(obey, talk, exchange)
    threading.Thread(target=lifetime.do_or_exit, args=(work,), name="engine", daemon=True).start()
    talk.listen()


if __name__ == "__main__":
    main()

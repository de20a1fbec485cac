"""An image worker that talks nonsense: the real one until its orders say otherwise.

The word of the orders (see `doubles`) is `MESSAGE/HABIT`: what is sent in the place of the next message of
that class. `fuzz-N` sends what the real worker would, with some bytes of it changed by chance N. Takes effect
when it is imported, before the worker begins; so nobody else may import it.
"""

from __future__ import annotations

import os
import random
import signal
import threading
from typing import NoReturn

from tests.chaos import doubles
from tests.chaos.habits import HABITS, framed, mutated

from tidegate.wire import channel, messages

FOREVER_S = 3_600


def _say(number: int, data: bytes) -> None:
    while data:
        data = data[os.write(number, data) :]


_honest_send = channel.Channel.send


def _send(talk: channel.Channel[object], message: messages.FromWorker) -> None:
    word = doubles.take_one(f"{type(message).__name__}/").partition("/")[2]
    number = talk.fileno()
    if not word:
        _honest_send(talk, message)
    elif word == "silence":
        _hang()
    elif word == "half":
        _say(number, framed(message)[:-1])
        os._exit(0)
    elif word == "exit":
        os._exit(0)
    elif word.startswith("fuzz-"):
        _say(number, mutated(framed(message), random.Random(word)))
    else:
        _say(number, HABITS[word](getattr(message, "serial", 0)))


def _hang() -> NoReturn:
    while True:
        threading.Event().wait(FOREVER_S)


channel.Channel.send = _send  # type: ignore[method-assign,assignment]  # that is the misdeed
# None of them obeys; whoever wants one to end must kill it.
signal.signal(signal.SIGTERM, signal.SIG_IGN)

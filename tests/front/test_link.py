"""A link never waits for a child that does not read; what it says arrives in order, with its open files."""

from __future__ import annotations

import os
import socket

from tidegate.wire import channel, llm_link
from tidegate.workers.front.link import Link

LARGE = bytes(300_000)


def test_what_a_socket_does_not_take_is_written_later_and_in_order() -> None:
    ours, theirs = socket.socketpair()
    link = Link(ours.detach(), model="m", worker="w", incarnation=1)
    engine = channel.engine_end(theirs)
    reader, writer = os.pipe()
    os.write(writer, b"x")
    try:
        for number in range(8):
            link.say(llm_link.Embed(stream=number, tokens=LARGE))
            link.say(llm_link.Kept(handover=number), [reader])
        for number in range(8):
            heard = engine.receive(60_000)
            assert heard == llm_link.Embed(stream=number, tokens=LARGE)
            assert engine.receive(60_000) == llm_link.Kept(handover=number)
            copy = engine.take_descriptor()
            assert os.fstat(copy).st_ino == os.fstat(reader).st_ino
            os.close(copy)
        link.say(llm_link.Leave(stream=1))
        assert engine.receive(60_000) == llm_link.Leave(stream=1)
    finally:
        link.close()
        engine.close()
        os.close(reader)
        os.close(writer)


def test_words_to_nobody_are_dropped() -> None:
    ours, theirs = socket.socketpair()
    link = Link(ours.detach(), model="m", worker="w", incarnation=1)
    theirs.close()
    for _ in range(3):
        link.say(llm_link.Leave(stream=1))
    link.close()

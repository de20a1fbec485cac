"""Server-sent events: the format, the beat of a silent stream, and who is told when the reader leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from starlette.types import Message

from tidegate.api import sse


def test_an_event_is_lines_and_an_empty_one() -> None:
    said = sse.event({"text": "a\nb"}, name="notice", number=7)
    assert said == b'id: 7\nevent: notice\ndata: {"text":"a\\nb"}\n\n'


def test_a_silent_stream_beats() -> None:
    async def run() -> list[bytes]:
        spoken = asyncio.Event()

        async def source() -> AsyncIterator[bytes]:
            await spoken.wait()
            yield b"said"

        heard: list[bytes] = []
        async for chunk in sse.beating(source(), every_s=0.01):
            heard.append(chunk)
            if len(heard) == 3:
                spoken.set()
        return heard

    heard = asyncio.run(run())
    assert heard[:3] == [b": open\n\n", b": beat\n\n", b": beat\n\n"]
    assert heard[-1] == b"said"


def test_the_source_may_await_when_its_reader_leaves() -> None:
    told: list[str] = []

    async def source() -> AsyncIterator[bytes]:
        try:
            yield b"first"
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            told.append("gone")

    async def run() -> None:
        first = asyncio.Event()

        async def receive() -> Message:
            await first.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            if message.get("body") == b"first":
                first.set()

        await sse.stream(source())({"type": "http"}, receive, send)

    asyncio.run(run())
    assert told == ["gone"]


class Maker:
    """Makes nothing, and is told when nobody wants it."""

    def __init__(self) -> None:
        self.is_closed = False

    def __aiter__(self) -> Maker:
        return self

    async def __anext__(self) -> bytes:
        await asyncio.Event().wait()
        raise AssertionError("nobody waits for this")

    async def aclose(self) -> None:
        self.is_closed = True


def test_a_reader_who_was_gone_before_the_first_word_is_told_of() -> None:
    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        await asyncio.Event().wait()

    async def run() -> Maker:
        maker = Maker()
        await sse.stream_of(maker)({"type": "http"}, receive, send)
        return maker

    assert asyncio.run(run()).is_closed


def test_a_stream_that_ends_is_closed() -> None:
    sent: list[Message] = []

    async def source() -> AsyncIterator[bytes]:
        yield b"only"

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError("nobody leaves")

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(sse.stream(source())({"type": "http"}, receive, send))
    assert [message.get("body") for message in sent[1:]] == [b": open\n\n", b"only", b""]
    assert sent[-1]["more_body"] is False

"""Server-sent events: how a stream of events is put on the wire and kept open.

Owns the format (WHATWG HTML, "Server-sent events") and the beat that keeps a silent stream from being cut.
What the events are is the business of those who send them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Final, TypeVar

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from tidegate.api.presence import until_gone

T = TypeVar("T")
MEDIA_TYPE: Final = "text/event-stream"
# Proxies commonly cut a connection that was silent for 30 or 60 s.
BEAT_S: Final = 15.0
BEAT: Final = b": beat\n\n"
# How streams of OpenAI's dialect say that nothing more will come.
DONE: Final = b"data: [DONE]\n\n"


def event(data: Mapping[str, object], *, name: str = "", number: int = -1) -> bytes:
    """One event. JSON has no line breaks, so it is one `data` line."""
    head = f"id: {number}\n" if number >= 0 else ""
    head += f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


def comment(text: str) -> bytes:
    """A line that clients leave alone, and people who look at the stream can read."""
    return f": {' '.join(text.split())}\n\n".encode()


class EventStream(StreamingResponse):
    """A response that goes on for as long as there are events and somebody who hears them."""

    media_type = MEDIA_TYPE

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until either side ends. Whoever makes the events is closed and may await there, also when the
        client was gone before the first of them; the framework's own response would cancel such an await.
        """
        assert scope["type"] == "http"
        sending = asyncio.ensure_future(self.stream_response(send))
        leaving = asyncio.ensure_future(until_gone(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            for task in (leaving, sending):
                task.cancel()
            await asyncio.gather(leaving, sending, return_exceptions=True)
            await close(self.body_iterator)


def stream(events: AsyncIterator[bytes]) -> EventStream:
    """A stream of these events, kept open while there are none."""
    return stream_of(beating(events))


def stream_of(chunks: AsyncIterator[bytes]) -> EventStream:
    """A stream of bytes whose maker keeps it open."""
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return EventStream(chunks, headers=headers)


@contextlib.asynccontextmanager
async def heard(source: AsyncIterator[T]) -> AsyncGenerator[AsyncIterator[T]]:
    """The same source, closed as soon as nobody listens any more, and not when it is collected."""
    try:
        yield source
    finally:
        await close(source)


async def close(source: object) -> None:
    """Tell its maker that nobody listens any more. Generators can be told, plain iterators need not."""
    closing = getattr(source, "aclose", None)
    if closing is not None:
        await closing()


async def beating(events: AsyncIterator[bytes], *, every_s: float = BEAT_S) -> AsyncIterator[bytes]:
    """The events, and a comment whenever there was none for a while."""
    following: asyncio.Future[bytes] | None = None
    try:
        yield b": open\n\n"  # headers go out at once, and the client knows that it is connected
        while True:
            following = following or asyncio.ensure_future(anext(events))
            done, _ = await asyncio.wait({following}, timeout=every_s)
            if not done:
                yield BEAT
                continue
            try:
                said = following.result()
            except StopAsyncIteration:
                return
            following = None
            yield said
    finally:
        if following is not None and not following.done():
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration):
                await following
        async with heard(events):
            pass

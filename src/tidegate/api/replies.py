"""Replies: several answers to one wish, asked for together and heard together.

Owns asking (each choice is an ask of its own, with a seed of its own, and shares the prompt's evaluation),
hearing them in one place, and letting go of all when one fails or nobody listens any more. How an answer
looks is the neighbours' business: `chat`, `completions`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import msgspec

from tidegate.api import sse
from tidegate.core.faults import ClientError, Fault, fault_by_code
from tidegate.runtime.asks import AskHandle, AskOrder
from tidegate.runtime.gate import Gate
from tidegate.runtime.order import SEED_MAX
from tidegate.wire import asks


@dataclass(slots=True, kw_only=True)
class Call:
    """A call put together from its pieces."""

    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(slots=True)
class Reply:
    """One whole answer."""

    texts: list[str] = field(default_factory=list)
    reasonings: list[str] = field(default_factory=list)
    calls: dict[int, Call] = field(default_factory=dict)
    chances: list[asks.Chance] = field(default_factory=list)
    ended: asks.Ended = field(default_factory=lambda: asks.Ended(finish=asks.Finish.STOP))

    @property
    def text(self) -> str:
        """What was said."""
        return "".join(self.texts)

    def add(self, delta: asks.Delta) -> None:
        """A further piece."""
        self.texts.append(delta.text)
        self.reasonings.append(delta.reasoning)
        self.chances += delta.chances
        for piece in delta.calls:
            call = self.calls.setdefault(piece.index, Call())
            call.id, call.name = call.id or piece.id, call.name or piece.name
            call.arguments += piece.arguments


def seeded(body: asks.Chat | asks.Completion, count: int) -> list[asks.Chat | asks.Completion]:
    """The same ask with seed, seed + 1, ..."""
    return [
        msgspec.structs.replace(
            body,
            sampling=msgspec.structs.replace(body.sampling, seed=(body.sampling.seed + n) % (SEED_MAX + 1)),
        )
        for n in range(count)
    ]


async def asked(gate: Gate, bodies: Sequence[asks.Body], *, model: str, priority: int) -> list[AskHandle]:
    """Ask all of them, or none. Raises the fault of the first that is refused."""
    handles: list[AskHandle] = []
    try:
        for body in bodies:
            handles.append(await gate.ask(AskOrder(body=body, model=model, priority=priority)))
    except BaseException:
        for handle in handles:
            await gate.cancel_ask(handle.id)
        raise
    return handles


async def whole(gate: Gate, handles: Sequence[AskHandle]) -> list[Reply]:
    """All answers, once each has ended. Raises the fault by which one ended; cancelled, it cancels all."""
    choir = Choir(gate, handles)
    replies = [Reply() for _ in handles]
    try:
        while not choir.is_over:
            for index, item in await choir.heard():
                match item:
                    case asks.Delta():
                        replies[index].add(item)
                    case asks.Ended():
                        replies[index].ended = checked(item)
                    case _:
                        pass  # a pause is only felt
    finally:
        await choir.aclose()
    return replies


def checked(ended: asks.Ended) -> asks.Ended:
    """The end, if it is a good one. Raises the fault that it names."""
    match ended.finish:
        case asks.Finish.FAILED:
            raise fault_by_code(
                ended.code or "worker", ended.message, retry_after_ms=ended.retry_after_ms
            )  # fmt: skip
        case asks.Finish.CANCELLED:
            raise ClientError("The request was cancelled.", code="conflict")
        case _:
            return ended


class Choir:
    """Hears several asks at once. What comes while nobody looks is handed out together."""

    def __init__(self, gate: Gate, handles: Sequence[AskHandle]) -> None:
        self._gate = gate
        self._handles = handles
        self._arrived = asyncio.Event()
        self._said: list[tuple[int, asks.Item]] = []
        self._fault: BaseException | None = None
        self._tasks: list[asyncio.Task[None]] | None = None
        self._singing_count = len(handles)

    @property
    def count(self) -> int:
        """How many asks are heard."""
        return len(self._handles)

    @property
    def is_over(self) -> bool:
        """Whether every ask has ended, and everything was handed out."""
        return not self._singing_count and not self._said

    async def heard(self, *, wait_s: float | None = None) -> list[tuple[int, asks.Item]]:
        """What came since the last time; waits for something, and not longer than this. Raises faults."""
        if self._tasks is None:
            self._tasks = [asyncio.create_task(self._hear(n)) for n in range(self.count)]
        if not self._said and self._singing_count:
            try:
                async with asyncio.timeout(wait_s):
                    await self._arrived.wait()
            except TimeoutError:  # nothing to hear for a while
                return []
        self._arrived.clear()
        if self._fault is not None and not self._said:
            raise self._fault
        said, self._said = self._said, []
        return said

    async def aclose(self) -> None:
        """Let go of all; what has not ended is cancelled."""
        for task in self._tasks or ():
            task.cancel()
        await asyncio.gather(*self._tasks or (), return_exceptions=True)
        for handle in self._handles:
            await self._gate.cancel_ask(handle.id)

    async def _hear(self, index: int) -> None:
        try:
            async with sse.heard(self._gate.hear(self._handles[index].id)) as items:
                async for item in items:
                    self._said.append((index, item))
                    self._arrived.set()
        except Fault as fault:
            self._fault = fault
        finally:
            self._singing_count -= 1
            self._arrived.set()


class Stream(AsyncIterator[bytes]):
    """Bytes of a stream, made from what a choir sings. It lets go of the choir also if it was never begun,
    which a generator would not.
    """

    def __init__(self, choir: Choir, chunks: AsyncIterator[bytes]) -> None:
        self._choir = choir
        self._chunks = chunks

    async def __anext__(self) -> bytes:
        return await anext(self._chunks)

    async def aclose(self) -> None:
        """Nobody listens any more."""
        try:
            await sse.close(self._chunks)
        finally:
            await self._choir.aclose()

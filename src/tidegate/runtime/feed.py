"""Feeds: what happens to jobs and to the house, for whoever watches, on a way of its own past the core.

Owns the bounded broadcasts. A slow reader loses the oldest items and is told how many; it never slows down
a worker or another reader. What is durable is in the journal, not here.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Final, Generic, TypeVar

from tidegate.runtime.views import EventItem, FeedItem

Item = TypeVar("Item")
# Previews of a 1024 px image are 48 kB, so a reader holds at most 3 MB.
PENDING_MAX: Final = 64
REPLAY_MAX: Final = 1_000
READERS_MAX: Final = 256


class Reader(Generic[Item]):
    """One subscriber's bounded queue."""

    def __init__(self) -> None:
        self.items: deque[Item] = deque(maxlen=PENDING_MAX)
        self.lost_count = 0
        self.arrived = asyncio.Event()
        self.is_closed = False

    def put(self, item: Item) -> None:
        """Add an item; the oldest goes when there are too many."""
        if len(self.items) == PENDING_MAX:
            self.lost_count += 1
        self.items.append(item)
        self.arrived.set()

    def close(self) -> None:
        """Nothing more will come."""
        self.is_closed = True
        self.arrived.set()


async def _drained(reader: Reader[Item], told: Callable[[int], Item] | None) -> AsyncIterator[Item]:
    while True:
        if reader.lost_count and told is not None:
            lost, reader.lost_count = reader.lost_count, 0
            yield told(lost)
        elif reader.items:
            yield reader.items.popleft()
        elif reader.is_closed:
            return
        else:
            reader.arrived.clear()
            await reader.arrived.wait()


class JobFeeds:
    """One broadcast per job."""

    def __init__(self) -> None:
        self._readers: dict[str, list[Reader[FeedItem]]] = {}

    def publish(self, item: FeedItem) -> None:
        """Hand an item to everybody who watches its job."""
        for reader in self._readers.get(item.job, ()):
            reader.put(item)

    def end(self, job: str) -> None:
        """The job has ended: its readers finish after what is pending."""
        for reader in self._readers.get(job, ()):
            reader.close()

    async def watch(self, job: str, *, is_ended: Callable[[], bool]) -> AsyncIterator[FeedItem]:
        """Items of a job from now on."""
        reader: Reader[FeedItem] = Reader()
        if is_ended():
            return
        self._readers.setdefault(job, []).append(reader)
        try:
            async for item in _drained(reader, None):
                yield item
        finally:
            left = self._readers[job]
            left.remove(reader)
            if not left:
                del self._readers[job]

    def close(self) -> None:
        """The server ends: nobody waits any more."""
        for job in tuple(self._readers):
            self.end(job)


class EventLog:
    """The last events for clients, and who is listening. Ids rise over restarts: they begin at the time."""

    def __init__(self, first_id: int) -> None:
        self._next_id = first_id
        self._kept: deque[EventItem] = deque(maxlen=REPLAY_MAX)
        self._readers: list[Reader[EventItem]] = []
        self._is_closed = False

    def publish(self, kind: str, data: Mapping[str, object]) -> None:
        """Give an event the next id and hand it to everybody."""
        item = EventItem(id=self._next_id, kind=kind, data=data)
        self._next_id += 1
        self._kept.append(item)
        for reader in self._readers:
            reader.put(item)

    async def listen(self, after: int) -> AsyncIterator[EventItem]:
        """Events after this id, or from now on (-1)."""
        reader: Reader[EventItem] = Reader()
        if self._is_closed:
            return
        replay = [item for item in self._kept if item.id > after] if after >= 0 else []
        if replay and replay[0].id > after + 1 and after > 0:
            yield self._lost(replay[0].id - after - 1)
        self._readers.append(reader)
        try:
            for item in replay:
                yield item
            async for item in _drained(reader, self._lost):
                yield item
        finally:
            self._readers.remove(reader)

    def close(self) -> None:
        """The server ends: nobody waits any more."""
        self._is_closed = True
        for reader in self._readers:
            reader.close()

    def _lost(self, count: int) -> EventItem:
        return EventItem(id=self._next_id - 1, kind="lost", data={"count": count})

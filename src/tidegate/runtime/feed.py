"""Feeds: what happens to jobs and to the house, for whoever watches, on a way of its own past the core.

Owns the bounded broadcasts. A slow reader loses the oldest items and is told how many; it never slows down
a worker or another reader. What is durable is in the journal, not here.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Generic, Self, TypeVar
from weakref import WeakSet

from tidegate.runtime.views import EventItem, FeedItem

Item = TypeVar("Item")
# Previews of a 1024 px image are 48 kB, so a reader holds at most 3 MB.
PENDING_MAX: Final = 64
REPLAY_MAX: Final = 1_000


class Reader(Generic[Item]):
    """One subscriber's bounded queue, read by iterating over it.

    It hears from the moment it is made, not from the first look into it: what happens between a question and
    the first read of its answer is not missed. The broadcast only knows it for as long as somebody has it.
    """

    def __init__(
        self, *, told_first: Iterable[Item] = (), told_lost: Callable[[int], Item] | None = None
    ) -> None:
        """`told_first` is read before anything that arrives; `told_lost` words what was dropped."""
        self._told_first = deque(told_first)
        self._told_lost = told_lost
        self._items: deque[Item] = deque(maxlen=PENDING_MAX)
        self._lost_count = 0
        self._arrived = asyncio.Event()
        self._is_closed = False

    def put(self, item: Item) -> None:
        """Add an item; the oldest goes when there are too many."""
        if len(self._items) == PENDING_MAX:
            self._lost_count += 1
        self._items.append(item)
        self._arrived.set()

    def close(self) -> None:
        """Nothing more will come."""
        self._is_closed = True
        self._arrived.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item:
        while True:
            if self._told_first:
                return self._told_first.popleft()
            if self._lost_count and self._told_lost is not None:
                lost, self._lost_count = self._lost_count, 0
                return self._told_lost(lost)
            if self._items:
                return self._items.popleft()
            if self._is_closed:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()

    async def aclose(self) -> None:
        """Stop reading."""
        self.close()


class JobFeeds:
    """One broadcast per job."""

    def __init__(self) -> None:
        self._readers: dict[str, WeakSet[Reader[FeedItem]]] = {}

    def publish(self, item: FeedItem) -> None:
        """Hand an item to everybody who watches its job."""
        for reader in self._readers.get(item.job, ()):
            reader.put(item)

    def end(self, job: str) -> None:
        """The job has ended: its readers finish after what is pending."""
        for reader in self._readers.pop(job, ()):
            reader.close()

    def watch(self, job: str, *, is_ended: bool) -> Reader[FeedItem]:
        """Items of a job from now on."""
        reader: Reader[FeedItem] = Reader()
        if is_ended:
            reader.close()
        else:
            self._readers.setdefault(job, WeakSet()).add(reader)
        return reader

    def close(self) -> None:
        """The server ends: nobody waits any more."""
        for job in tuple(self._readers):
            self.end(job)


class EventLog:
    """The last events for clients, and who is listening. Ids rise over restarts: they begin at the time."""

    def __init__(self, first_id: int) -> None:
        self._next_id = first_id
        self._kept: deque[EventItem] = deque(maxlen=REPLAY_MAX)
        self._readers: WeakSet[Reader[EventItem]] = WeakSet()
        self._is_closed = False

    def publish(self, kind: str, data: Mapping[str, object]) -> None:
        """Give an event the next id and hand it to everybody."""
        item = EventItem(id=self._next_id, kind=kind, data=data)
        self._next_id += 1
        self._kept.append(item)
        for reader in self._readers:
            reader.put(item)

    def listen(self, after: int) -> Reader[EventItem]:
        """Events after this id, or from now on (-1)."""
        replay = [item for item in self._kept if item.id > after] if after >= 0 else []
        if replay and replay[0].id > after + 1 and after > 0:
            replay.insert(0, self._lost(replay[0].id - after - 1))
        reader: Reader[EventItem] = Reader(told_first=replay, told_lost=self._lost)
        if self._is_closed:
            reader.close()
        else:
            self._readers.add(reader)
        return reader

    def close(self) -> None:
        """The server ends: nobody waits any more."""
        self._is_closed = True
        for reader in self._readers:
            reader.close()

    def _lost(self, count: int) -> EventItem:
        return EventItem(id=self._next_id - 1, kind="lost", data={"count": count})

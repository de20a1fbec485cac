"""Broadcasts: who reads hears everything from the moment it asked, in order, or how much it missed."""

from __future__ import annotations

import asyncio

from tidegate.runtime.feed import PENDING_MAX, REPLAY_MAX, EventLog, JobFeeds
from tidegate.runtime.views import FeedItem


def test_what_happens_between_asking_and_reading_is_heard() -> None:
    async def scene() -> list[int]:
        log = EventLog(10)
        log.publish("job", {})
        reader = log.listen(9)
        log.publish("job", {})
        log.close()
        return [item.id async for item in reader]

    assert asyncio.run(scene()) == [10, 11]


def test_a_late_reader_is_told_how_much_is_gone_and_misses_nothing_more() -> None:
    async def scene() -> None:
        log = EventLog(100)
        for _ in range(REPLAY_MAX + 5):
            log.publish("job", {})
        reader = log.listen(101)
        lost = await anext(reader)
        assert (lost.kind, lost.data) == ("lost", {"count": 3})
        log.publish("job", {})  # while the reader has only heard how much it missed
        log.close()
        ids = [item.id async for item in reader]
        assert ids == list(range(105, 100 + REPLAY_MAX + 6))

    asyncio.run(scene())


def test_a_slow_reader_loses_the_oldest_and_hears_how_many() -> None:
    async def scene() -> None:
        log = EventLog(0)
        reader = log.listen(-1)
        for _ in range(PENDING_MAX + 7):
            log.publish("job", {})
        log.close()
        items = [item async for item in reader]
        assert (items[0].kind, items[0].data) == ("lost", {"count": 7})
        assert [item.id for item in items[1:]] == list(range(7, PENDING_MAX + 7))

    asyncio.run(scene())


def test_the_feed_of_a_job_ends_with_it_and_forgets_who_left() -> None:
    async def scene() -> None:
        feeds = JobFeeds()
        reader, other = feeds.watch("a", is_ended=False), feeds.watch("a", is_ended=False)
        del other  # nobody has it any more
        feeds.publish(FeedItem(kind="progress", job="a", step=1))
        feeds.publish(FeedItem(kind="progress", job="b", step=9))
        feeds.end("a")
        assert [item.step async for item in reader] == [1]
        assert [item async for item in feeds.watch("a", is_ended=True)] == []

    asyncio.run(scene())

"""The event feed: order, bounds, drops that are told, an end that loses nothing."""

from __future__ import annotations

import pytest
import trio

from vpnd.api import SCHEMA, Event
from vpnd.event_feed import EventFeed, Subscription, TooManySubscribers


def event(number: int) -> Event:
    return Event(schema=SCHEMA, at="2026-01-01T00:00:00.000Z", event=f"e{number}")


def told(events: list[Event]) -> list[str | int]:
    """Names of events; for a gap how many were dropped."""
    return [one.get("dropped", one["event"]) for one in events]


async def rest(subscription: Subscription) -> list[Event]:
    subscription.close()
    return [one async for one in subscription]


async def test_each_reader_gets_everything_from_its_beginning_on() -> None:
    feed = EventFeed()
    feed.publish(event(0))
    with feed.subscribe() as first:
        feed.publish(event(1))
        with feed.subscribe() as second:
            feed.publish(event(2))
            assert told(await rest(second)) == ["e2"]
        assert told(await rest(first)) == ["e1", "e2"]
    assert feed.statistics().subscribers == 0
    assert feed.statistics().published == 3


async def test_a_slow_reader_is_told_what_it_lost() -> None:
    feed = EventFeed(queue_length=3)
    with feed.subscribe() as slow:
        for number in range(10):
            feed.publish(event(number))
        assert feed.statistics().dropped == 7
        assert told([await anext(slow), await anext(slow)]) == ["e0", "e1"]
        feed.publish(event(10))
        feed.publish(event(11))
        assert told(await rest(slow)) == ["e2", 7, "e10", 1]


async def test_a_gap_at_the_end_is_told_too() -> None:
    feed = EventFeed(queue_length=2)
    with feed.subscribe() as slow:
        for number in range(5):
            feed.publish(event(number))
        assert told(await rest(slow)) == ["e0", "e1", 3]


async def test_a_waiting_reader_is_woken_by_an_event_and_by_the_end(
    autojump_clock: trio.testing.MockClock,
) -> None:
    feed = EventFeed()
    seen: list[Event] = []

    async def read(subscription: Subscription) -> None:
        async for one in subscription:
            seen.append(one)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read, feed.subscribe())
        await trio.testing.wait_all_tasks_blocked()
        feed.publish(event(1))
        await trio.testing.wait_all_tasks_blocked()
        assert told(seen) == ["e1"]
        feed.close()
    assert feed.statistics().subscribers == 0


async def test_the_number_of_readers_is_bounded() -> None:
    feed = EventFeed(max_subscribers=2)
    first, second = feed.subscribe(), feed.subscribe()
    with pytest.raises(TooManySubscribers):
        feed.subscribe()
    first.close()
    first.close()
    feed.subscribe().close()
    second.close()

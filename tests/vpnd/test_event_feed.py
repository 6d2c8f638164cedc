"""The event feed: order, bounds, drops that are told, an end that loses nothing."""

from __future__ import annotations

import json
from typing import Any

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


def kept(feed: EventFeed, **asked: Any) -> list[str]:
    return [json.loads(line)["event"] for line in feed.kept(**asked)]


def test_the_past_is_kept_up_to_a_bound_and_a_gap_is_told() -> None:
    now = 1000.0
    feed = EventFeed(keep=4, now=lambda: now)
    for number in range(6):
        now = 1001.0 + number
        feed.publish(event(number))
    assert kept(feed) == ["e2", "e3", "e4", "e5"]
    assert kept(feed, since=1004.0) == ["e3", "e4", "e5"]
    assert kept(feed, since=1004.0, last=2) == ["e4", "e5"]
    assert kept(feed, last=100) == ["e2", "e3", "e4", "e5"]
    assert kept(feed, since=1001.5) == ["events_not_kept", "e2", "e3", "e4", "e5"]
    assert kept(feed, since=1002.5) == ["e2", "e3", "e4", "e5"]
    assert kept(feed, since=1001.5, last=2) == ["e4", "e5"]


def test_a_gap_before_the_start_is_told() -> None:
    feed = EventFeed(now=lambda: 1000.0)
    assert kept(feed, since=1000.0) == []
    assert kept(feed, since=999.0) == ["events_not_kept"]


def test_the_past_of_one_peer_is_its_own_and_what_is_everybodys() -> None:
    feed = EventFeed()
    for number, peer in enumerate(["ams1", "lon1", None, "ams1"]):
        one = event(number)
        if peer is not None:
            one["peer"] = peer
        feed.publish(one)
    assert kept(feed, peer="ams1") == ["e0", "e2", "e3"]
    assert kept(feed, peer="ams1", last=1) == ["e3"]

"""One record for each step of a link's life, handed to everybody who watches.

Publishing never blocks and never fails: a reader who is too slow loses records, and is told how
many. So a stuck `vpnctl status --watch` costs the daemon a bounded queue, and nothing else. The
last records are kept for who asks later.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Final

import trio

from vpnd.api import SCHEMA, Event
from vpnd.clock import rfc3339, wall

QUEUE_LENGTH: Final = 256
MAX_SUBSCRIBERS: Final = 16
NOT_KEPT: Final = "events_not_kept"
KEPT: Final = 10_000
"""Records; 3 MB. A day of ten links, or a few minutes of a thousand."""


class TooManySubscribers(Exception):
    """No more can watch at the same time."""


@dataclass(frozen=True, slots=True)
class FeedStatistics:
    subscribers: int
    published: int
    dropped: int
    """Records that some reader was too slow for, over all readers."""


class Subscription:
    """A queue of records for one reader: an async iterator that ends when it is closed.

    What was queued before the closing is still read. Use it as a context manager.
    """

    def __init__(self, feed: EventFeed, length: int) -> None:
        self._feed = feed
        self._length = length
        self._queue: deque[Event] = deque()
        self._dropped = 0
        self._closed = False
        self._changed = trio.Event()

    def __enter__(self) -> Subscription:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.close()

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Event:
        while not self._queue:
            if self._closed:
                raise StopAsyncIteration
            self._changed = trio.Event()
            await self._changed.wait()
        event = self._queue.popleft()
        if self._dropped and not self._queue:
            # Behind everything that came before the gap; the next record comes after it
            self._tell_dropped()
        return event

    def close(self) -> None:
        """No more records come in; a reader that waits is woken. Closing twice is fine."""
        self._closed = True
        self._changed.set()
        self._feed.forget(self)

    def put(self, event: Event) -> bool:
        """Queue a record; False if there was no room for it."""
        # One place more is kept free, for the word about what was dropped
        if len(self._queue) + bool(self._dropped) >= self._length:
            self._dropped += 1
            return False
        if self._dropped:
            self._tell_dropped()
        self._queue.append(event)
        self._changed.set()
        return True

    def _tell_dropped(self) -> None:
        self._queue.append(
            Event(schema=SCHEMA, at=rfc3339(wall()), event="events_dropped", dropped=self._dropped)
        )
        self._dropped = 0


def encode(event: Event) -> bytes:
    """A record as a line of `/v1/events`."""
    text = json.dumps(event, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # A name of a file or an interface may be any bytes: Python has half of a surrogate pair for
    # each that is not UTF-8, and what replaces it here is JSON's own escape for that
    return text.encode("utf-8", "backslashreplace") + b"\n"


@dataclass(frozen=True, slots=True)
class _Kept:
    """As a line: a fifth of what it takes as an Event, and nothing for the garbage collector."""

    at: float
    peer: str | None
    line: bytes


class EventFeed:
    """Where the daemon publishes, and readers subscribe."""

    def __init__(
        self,
        *,
        queue_length: int = QUEUE_LENGTH,
        max_subscribers: int = MAX_SUBSCRIBERS,
        keep: int = KEPT,
        now: Callable[[], float] = wall,
    ) -> None:
        self._kept: deque[_Kept] = deque(maxlen=keep)
        self._now = now
        self._kept_from = now()
        """Nothing is known of what was before."""
        self._queue_length = queue_length
        self._max_subscribers = max_subscribers
        self._subscriptions: dict[Subscription, None] = {}
        self._published = 0
        self._dropped = 0

    def publish(self, event: Event) -> None:
        """Hand a record to all who watch now, and keep it for later."""
        self._published += 1
        if len(self._kept) == self._kept.maxlen:
            self._kept_from = self._kept[0].at
        self._kept.append(_Kept(self._now(), event.get("peer"), encode(event)))
        for subscription in self._subscriptions:
            self._dropped += not subscription.put(event)

    def kept(
        self, *, since: float | None = None, last: int | None = None, peer: str | None = None
    ) -> list[bytes]:
        """Records of the past as lines, in their order: from a moment (wall clock) on, the last
        so many of them, and without those of other peers. Where some from that moment on are not
        kept, the first line says so."""
        found = [
            kept.line
            for kept in self._kept
            if (since is None or kept.at >= since) and (peer is None or kept.peer in (None, peer))
        ]
        if last is not None and len(found) >= last:
            return found[-last:] if last else []
        if since is not None and since < self._kept_from:
            reason = f"those from before {rfc3339(self._kept_from)} are not kept"
            gap = Event(schema=SCHEMA, at=rfc3339(self._now()), event=NOT_KEPT, reason=reason)
            found.insert(0, encode(gap))
        return found

    def subscribe(self) -> Subscription:
        """Watch from now on, until it is closed; TooManySubscribers."""
        if len(self._subscriptions) >= self._max_subscribers:
            raise TooManySubscribers(f"{self._max_subscribers} programs watch the events already")
        subscription = Subscription(self, self._queue_length)
        self._subscriptions[subscription] = None
        return subscription

    def forget(self, subscription: Subscription) -> None:
        """Called by a subscription that was closed."""
        self._subscriptions.pop(subscription, None)

    def close(self) -> None:
        """End every subscription."""
        for subscription in tuple(self._subscriptions):
            subscription.close()

    def statistics(self) -> FeedStatistics:
        """Counts since the start."""
        return FeedStatistics(len(self._subscriptions), self._published, self._dropped)

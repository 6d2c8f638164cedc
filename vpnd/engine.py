"""Drives the key exchange: datagrams and time in, datagrams and events out.

Every call of the endpoint goes through here, so that whatever it made is sent and handed on at
once, for datagrams once for all that had come. No await stands between a call and that: nothing
can come in between.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import trio

from kex.address import Address
from kex.callers import Caller
from kex.endpoint import Endpoint
from kex.errors import PacketRejected
from kex.events import Event
from kex.payload import Traffic
from vpnd.clock import boottime
from vpnd.deliveries import Deliveries
from vpnd.journal import Journal
from vpnd.transport import Transport

MAX_SLEEP: Final = 30.0
"""Seconds: the boot clock runs on in suspend, the one that sleeps are measured by does not."""
STARTS_PER_SECOND: Final = 25.0
"""First exchanges that are begun: a quarter of what a node opens before it asks for cookies, and
with their installs a tenth of a core at either end."""
STARTS_AT_ONCE: Final = 16
TIMERS_AT_ONCE: Final = 8
"""Links whose timers are handled at a stretch: the beginning of an exchange costs a millisecond."""
FLOOD_SECONDS: Final = 0.004
"""Junk that comes this soon after other junk is taken as a flood; longer than what is waited then
(LULL_SECONDS of vpnd.transport), which would end it."""

Handler = Callable[[Event], None]


class Engine:
    """The endpoint with its socket and its clock."""

    def __init__(self, endpoint: Endpoint, transport: Transport, journal: Journal) -> None:
        self._endpoint = endpoint
        self._transport = transport
        self._journal = journal
        self._handlers: dict[str, Handler] = {}
        self._changed: trio.Event | None = None
        self._sooner = trio.Event()
        self._sleeps_until = math.inf
        self._to_flush = False
        """Whether a datagram of the batch under way was accepted."""
        self._junk_at = -math.inf
        self._next_start = -math.inf
        self._handle_caller: Callable[[Caller], None] | None = None

    @property
    def endpoint(self) -> Endpoint:
        """To read only: calls that change it go through `driving`."""
        return self._endpoint

    @property
    def deliveries(self) -> Deliveries:
        """What is known of datagrams that did not arrive."""
        return self._transport.deliveries

    def handle_events(self, link: str, handler: Handler) -> None:
        """Give the events of a link to `handler`, which must not block."""
        self._handlers[link] = handler

    def handle_callers(self, handler: Callable[[Caller], None]) -> None:
        """Tell `handler`, which must not block, of who calls and is not answered."""
        self._handle_caller = handler

    def forget(self, link: str) -> None:
        self._handlers.pop(link, None)

    @contextmanager
    def driving(self) -> Iterator[tuple[Endpoint, float]]:
        """The endpoint and the time, for one call; what it made goes out afterwards."""
        try:
            yield self._endpoint, boottime()
        finally:
            self._flush()

    def count_traffic(self, link: str, traffic: Traffic | None) -> None:
        """Tell the key exchange WireGuard's counters of a link; nothing goes out for that."""
        self._endpoint.count_traffic(link, traffic)

    async def run(self) -> None:
        """Receive and keep time until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._transport.run, self._receive, self._received)
            nursery.start_soon(self._keep_time)

    def hold(self) -> None:
        """Begin no more exchanges: the daemon is about to stop."""
        with self.driving() as (endpoint, _):
            endpoint.hold()

    async def wait_changed(self) -> None:
        """Wait until the key exchange has done something."""
        if self._changed is None:
            self._changed = trio.Event()
        await self._changed.wait()

    def start_at(self) -> float:
        """When a link that is added now may begin its first exchange.

        Few at once, many one after the other, so that neither this node nor one at which all of
        them end is asked for more than it can do.
        """
        now = boottime()
        self._next_start = max(self._next_start, now - STARTS_AT_ONCE / STARTS_PER_SECOND)
        self._next_start += 1 / STARTS_PER_SECOND
        return max(now, self._next_start)

    def _receive(self, data: bytes, source: Address) -> None:
        try:
            self._endpoint.receive_datagram(data, source, boottime())
        except PacketRejected:
            return  # counted by the endpoint; an answer could be a help to who probes
        except Exception as error:
            # A bug, met by one peer's datagram: it must not stop the others
            self._journal.record("internal_error", level="error", reason="datagram", exc_info=error)
        self._to_flush = True

    def _received(self) -> bool:
        """The datagrams that came together have all been taken; whether it was junk again."""
        self._tell_callers()
        if self._to_flush:
            self._to_flush = False
            self._flush()
            return False
        before, self._junk_at = self._junk_at, boottime()
        return self._junk_at < before + FLOOD_SECONDS

    async def _keep_time(self) -> None:
        while True:
            at, now = self._endpoint.next_timer(), boottime()
            self._sleeps_until = now + MAX_SLEEP if at is None else min(at, now + MAX_SLEEP)
            self._sooner = trio.Event()
            with trio.move_on_after(max(0.0, self._sleeps_until - now)):
                await self._sooner.wait()
            at = self._endpoint.next_timer()
            if at is None or at > boottime():
                continue
            try:
                with self.driving() as (endpoint, now):
                    endpoint.handle_timer(now, at_most=TIMERS_AT_ONCE)
            except Exception as error:
                # A bug, met by one link's timer: the others' come with the next turn
                self._journal.record(
                    "internal_error", level="error", reason="timer", exc_info=error
                )

    def _tell_callers(self) -> None:
        while (caller := self._endpoint.next_caller()) is not None:
            if self._handle_caller is not None:
                self._handle_caller(caller)

    def _tell(self, handler: Handler, event: Event) -> None:
        try:
            handler(event)
        except Exception as error:
            # A bug, met by one link: it must not stop the others
            self._journal.record(
                "internal_error", peer=event.link, level="error", reason="event", exc_info=error
            )

    def _flush(self) -> None:
        """Send what there is to send, and hand on what happened, until nothing is left."""
        while True:
            for data, address in self._endpoint.datagrams_to_send():
                self._transport.send(data, address)
            event = self._endpoint.next_event()
            if event is None:
                break
            handler = self._handlers.get(event.link)
            if handler is not None:
                self._tell(handler, event)
        if self._changed is not None:
            self._changed.set()
            self._changed = None
        # The keeper of time is woken for what is due sooner than it thinks, not for each datagram
        at = self._endpoint.next_timer()
        if at is not None and at < self._sleeps_until:
            self._sooner.set()

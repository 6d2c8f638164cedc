"""Exchanges that bring missing external keys back before the next renewal is due.

They give a better key than the one in use, or none (StartReason.END_FALLBACK). During a fallback
they follow each other as exchanges do in `require`: after 1 s, doubling to 30 s. Where a source is
missing that no key needs, they are rare: each costs a key of the other sources.
"""

from __future__ import annotations

import math
from typing import Final

import trio

from kex import timing
from kex.events import Role, StartReason
from kex.external import ExternalMode
from vpnd.clock import boottime
from vpnd.external_policy import LEFT_OUT_SECONDS
from vpnd.fallback_watch import MAX_SLEEP
from vpnd.link_exchanges import LinkExchanges
from vpnd.link_external import LinkExternal

ASIDE_SECONDS: Final = LEFT_OUT_SECONDS + 10
"""Between two exchanges for a source that no key needs."""


class MissingKeys:
    """When a link tries again."""

    def __init__(self, external: LinkExternal, exchanges: LinkExchanges) -> None:
        self._external = external
        self._exchanges = exchanges
        self._due_at = math.inf
        self._tried = 0
        """Exchanges since the fallback began."""
        self._news = trio.Event()

    def key_set(self, role: Role) -> None:
        """A key is on the interface, from an exchange in which this end had that role.

        Who has answered tries, too, for the peer may find the key good enough; but it lets the
        peer go first.
        """
        if self._external.watch.fallback is None:
            self._tried = 0
        self._wait(timing.RETRY_LAST if role is Role.RESPONDER else 0.0)

    def exchange_failed(self) -> None:
        """An exchange of this end's own is over without a key."""
        self._wait(0.0)

    def _wait(self, at_least: float) -> None:
        watch = self._external.watch
        if watch.fallback is not None:
            pause = max(at_least, timing.retry_pause(self._tried + 1))
        else:
            pause = ASIDE_SECONDS if watch.standing else math.inf
        self._due_at = boottime() + pause
        self._news.set()

    @property
    def wanted(self) -> bool:
        """Whether such exchanges are begun now."""
        watch, state = self._external.watch, self._exchanges.state
        if not watch.standing or watch.over or state is None or state.address is None:
            return False  # over its limit it is as with `require`: each exchange is such a one
        return state.peer is None or state.peer.mode is not ExternalMode.OFF

    async def run(self) -> None:
        """Begin the exchanges, until cancelled."""
        while True:
            self._news = trio.Event()
            # The boot clock runs on in suspend, the one that sleeps are measured by does not
            left = max(0.0, self._due_at - boottime())
            with trio.move_on_after(min(left, MAX_SLEEP) if left < math.inf else math.inf):
                await self._news.wait()
            if boottime() < self._due_at:
                continue
            self._due_at = boottime() + timing.RETRY_LAST
            if self.wanted:
                self._tried += 1
                self._exchanges.want(StartReason.END_FALLBACK)

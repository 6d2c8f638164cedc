"""The addresses of one source: which to ask, and which to leave alone for a while.

One that cannot be reached is left alone for a second, then longer each time up to 30 s, with
jitter so that many nodes do not come back together. When its time is over one call tries it, and
the others wait for how that ends. So nobody is hammered while it is down, and nothing has to be
done when it is back.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Final

import trio

FIRST_PAUSE: Final = 1.0
"""Seconds."""
LONGEST_PAUSE: Final = 30.0
JITTER: Final = 0.25
"""Of a pause, either way."""
BUSY_IN_A_ROW: Final = 3
"""So many answers that it cannot now, one after the other, are one failure: a pool that is empty
for one far end must not keep the others waiting."""


class Address:
    """One base URL, and how it was lately."""

    def __init__(self, url: str, jitter: Callable[[], float]) -> None:
        self.url = url
        self.identity = ""
        """What it calls itself, once it has said so."""
        self._jitter = jitter
        self._pause = 0.0
        self._rests_until = 0.0
        self._busy = 0
        self._trial = trio.Lock()

    @property
    def down(self) -> bool:
        """Whether its last call failed."""
        return self._pause > 0

    def rests(self) -> float:
        """Seconds for which it is left alone from now on; 0 for none."""
        return max(0.0, self._rests_until - trio.current_time())

    def failed(self) -> None:
        self._pause = min(max(FIRST_PAUSE, self._pause * 2), LONGEST_PAUSE)
        self._rests_until = trio.current_time() + self._pause * (1 + JITTER * self._jitter())
        self._busy = 0

    def busy(self) -> None:
        """It answers that it cannot now."""
        self._busy += 1
        if self._busy >= BUSY_IN_A_ROW:
            self.failed()

    def answered(self) -> None:
        self._pause = self._rests_until = 0.0
        self._busy = 0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[bool]:
        """For one call; whether it may be asked. One that was down is asked by one at a time."""
        trying = False
        if self.down:
            await self._trial.acquire()
            trying = self.down and self.rests() == 0
            if not trying:
                self._trial.release()
        try:
            yield trying or not self.down
        finally:
            if trying:
                self._trial.release()


class Addresses:
    """All addresses of a source, in the order of the configuration."""

    def __init__(self, urls: Iterable[str], *, jitter: Callable[[], float] | None = None) -> None:
        self.all = tuple(Address(url, jitter or _either_way) for url in urls)
        self._last = self.all[0]

    @property
    def current(self) -> Address:
        """The one that answered last."""
        return self._last

    def candidates(self) -> list[Address]:
        """Those that may be asked now, in the order in which they are: first those that are not
        known to be down. Empty where all of them are left alone."""
        ready = [address for address in self.all if address.rests() == 0]
        return sorted(ready, key=lambda address: address.down)

    def rests(self) -> float:
        """Seconds until the first of them may be asked."""
        return min(address.rests() for address in self.all)

    def answered(self, address: Address) -> None:
        address.answered()
        self._last = address


def _either_way() -> float:
    return random.uniform(-1, 1)  # noqa: S311 -- it spreads load, and keeps nothing secret

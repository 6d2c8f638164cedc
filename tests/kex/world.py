"""Virtual time and a network in any weather; and what must hold at every step."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from kex.address import Address
from kex.events import StartReason

if TYPE_CHECKING:
    from tests.kex.gateway import Site
    from tests.kex.wireguard import Tunnel


class Broken(AssertionError):
    """Something that must never happen."""


@dataclass(slots=True)
class Weather:
    """What the network and the things around it do, as shares of 1 and in seconds."""

    loss: float = 0.0
    repeats: float = 0.0
    delay: float = 0.01
    jitter: float = 0.0
    """Up to this much more for each datagram: what comes of it is reordering."""
    late: float = 0.0
    """Share that arrives up to 20 s late."""
    cuts: tuple[tuple[float, float], ...] = ()
    """Times, from and to, in which nothing gets through."""
    install_seconds: float = 0.01
    install_fails: float = 0.0
    keys_fail: float = 0.0
    keys_differ: float = 0.0
    keys_seconds: float = 0.1


@dataclass(frozen=True, slots=True)
class Started:
    """An exchange that a site began: when, why, and how old the session and the key were."""

    site: str
    link: str
    at: float
    reason: StartReason
    session_age: float | None
    key_age: float | None


class World:
    """Time, the network, and what is watched."""

    def __init__(self, seed: int, weather: Weather) -> None:
        self.random = random.Random(seed)
        self.weather = weather
        self.now = 0.0
        self.sites: list[Site] = []
        self.tunnels: list[Tunnel] = []
        self.by_address: dict[Address, Site] = {}
        self.counts: Counter[str] = Counter()
        self.started: list[Started] = []
        self.roots: dict[bytes, bytes] = {}
        """By exchange id: the root with which the initiator wrote InitConf."""
        self.answered: dict[bytes, bytes] = {}
        """By exchange id: the PSK that the responder has installed."""
        self.meddle: Callable[[bytes, Address], float | None] = lambda data, source: 0.0
        """Somebody on the way: by how many seconds a datagram comes later, or None if never."""
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = 0

    def at(self, when: float, what: Callable[[], None]) -> None:
        self._sequence += 1
        heapq.heappush(self._queue, (max(when, self.now), self._sequence, what))

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        self.at(self.now + seconds, what)

    def run(self, until: float) -> None:
        """Let time pass."""
        idle = 0
        while True:
            site = min(self.sites, key=lambda s: s.wake)
            queued = self._queue[0][0] if self._queue else float("inf")
            when = min(site.wake, queued)
            if when > until:
                self.now = until
                return
            idle = idle + 1 if when <= self.now else 0
            if idle > 1000:
                raise Broken("time does not go on")
            self.now = max(self.now, when)
            if queued <= site.wake:
                heapq.heappop(self._queue)[2]()
            else:
                site.on_timer()

    def carry(self, data: bytes, source: Address, target: Address) -> None:
        """A datagram on its way."""
        weather = self.weather
        later = self.meddle(data, source)
        if self.is_cut() or later is None:
            return
        copies = 1 + (self.random.random() < weather.repeats)
        self.counts["datagrams"] += 1
        for _ in range(copies):
            if self.random.random() < weather.loss:
                self.counts["lost"] += 1
                continue
            delay = later + weather.delay + self.random.random() * weather.jitter
            if self.random.random() < weather.late:
                delay += 20 * self.random.random()
            self.after(delay, partial(self._arrive, data, source, target))

    def is_cut(self) -> bool:
        return any(begin <= self.now < end for begin, end in self.weather.cuts)

    def _arrive(self, data: bytes, source: Address, target: Address) -> None:
        site = self.by_address.get(target)
        if site is not None:
            site.receive(data, source)

    def watch(self) -> None:
        """Two different PSKs, and nobody is at work on it."""
        for tunnel in self.tunnels:
            if not tunnel.is_equal() and not tunnel.is_busy():
                raise Broken(f"{tunnel}: different PSKs, and nothing in flight or due")

    def calm(self, patience: float = 90.0) -> None:
        """Fine weather, until everything has settled. Raises Broken where it does not.

        An end that owes an exchange and knows no address waits for the other's next renewal.
        """
        self.weather = Weather(keys_seconds=self.weather.keys_seconds)
        deadline = self.now + patience
        while not all(tunnel.is_settled() for tunnel in self.tunnels):
            if self.now > deadline:
                states = "; ".join(tunnel.told() for tunnel in self.tunnels)
                raise Broken(f"not settled after {patience:.0f} s: {states}")
            self.run(self.now + 0.5)

"""When to ask for cookies: buckets of public-key operations done for strangers."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field, replace
from functools import lru_cache

from kex.address import Address
from kex.token_bucket import Allowance, TokenBucket

BURST = 64.0
"""InitHello messages opened in a burst before cookies are asked for."""
RATE = 100.0
"""InitHello messages a second that are opened without cookies."""
SOURCE = Allowance(burst=10.0, rate=10.0)
"""InitHello messages of one proven source that are opened under load."""
ALL_SOURCES = Allowance(burst=200.0, rate=200.0)
"""And of all of them together: once for sources at which a link's peer is known to be, and once
for all others. A thousand peers that begin at the same time are through within five seconds."""
MAX_SOURCES = 1024
"""A bucket is full again, and needs no place, a second after its source was served: fewer than
this are served in a second, so that one that is dropped was as good as full."""
IPV6_SITE_LENGTH = 64
"""Bits of an IPv6 address that name a source: who has one address has all of its /64."""


@dataclass(slots=True)
class Load:
    """Tokens are spent on each InitHello that is opened and come back with time.

    A cookie proves an address, no more, and who has a large IPv6 network has many: under load
    each source has a small bucket of its own, and all of them share a larger one. Peers at
    addresses that are known share another one, so that strangers cannot use theirs up.
    """

    at: float
    tokens: float = BURST
    burst: float = BURST
    rate: float = RATE
    high: bool = False
    sources: dict[str, TokenBucket] = field(default_factory=dict)
    """Of each source; the least recently served first."""
    known: TokenBucket = field(default_factory=TokenBucket)
    """Of all sources at which a link's peer is known to be."""
    others: TokenBucket = field(default_factory=TokenBucket)

    def copy(self) -> Load:
        return replace(self, sources=dict(self.sources))

    def is_high(self, now: float) -> bool:
        """Whether cookies are to be asked for; ends only when half the bucket is full again."""
        self._refill(now)
        if self.tokens < 1:
            self.high = True
        elif self.tokens >= self.burst / 2:
            self.high = False
        return self.high

    def charge(self, now: float) -> None:
        """An InitHello is about to be opened."""
        self._refill(now)
        self.tokens = max(0.0, self.tokens - 1)

    def admits(self, source: Address, now: float, *, known: bool = False) -> bool:
        """Whether one more InitHello of a source that proved itself is opened under load.

        `known`: the peer of a link is there. What is refused takes nothing from any bucket.
        """
        name = site(source.host)
        own, shared = self.sources.get(name, TokenBucket()), self.known if known else self.others
        if not (own.holds(1, SOURCE, now) and shared.holds(1, ALL_SOURCES, now)):
            return False
        self.sources.pop(name, None)
        self.sources[name] = own.less(1, SOURCE, now)
        if len(self.sources) > MAX_SOURCES:
            del self.sources[next(iter(self.sources))]
        if known:
            self.known = shared.less(1, ALL_SOURCES, now)
        else:
            self.others = shared.less(1, ALL_SOURCES, now)
        return True

    def _refill(self, now: float) -> None:
        if now > self.at:
            self.tokens = min(self.burst, self.tokens + (now - self.at) * self.rate)
            self.at = now


@lru_cache(maxsize=4096)
def site(host: str) -> str:
    """What counts as one source: an IPv4 host, or a /64 of IPv6."""
    address = ipaddress.ip_address(host)
    if isinstance(address, ipaddress.IPv4Address):
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((int(address), IPV6_SITE_LENGTH), strict=False))

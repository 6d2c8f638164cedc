"""When to ask for cookies: buckets of public-key operations done for strangers."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field, replace

from kex.address import Address

BURST = 64.0
"""InitHello messages opened in a burst before cookies are asked for."""
RATE = 100.0
"""InitHello messages a second that are opened without cookies."""
SOURCE_BURST = 10.0
"""InitHello messages of one proven source that are opened in a burst under load."""
SOURCE_RATE = 10.0
"""And a second."""
MAX_SOURCES = 1024
IPV6_SITE_LENGTH = 64
"""Bits of an IPv6 address that name a source: who has one address has all of its /64."""


@dataclass(slots=True)
class Load:
    """Tokens are spent on each InitHello that is opened and come back with time.

    A cookie proves an address, no more: under load each source has a small bucket of its own.
    """

    at: float
    tokens: float = BURST
    burst: float = BURST
    rate: float = RATE
    high: bool = False
    sources: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Tokens of each source, and when they were counted; the least recently seen first."""

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

    def admits(self, source: Address, now: float) -> bool:
        """Whether one more InitHello of a source that proved itself is opened under load."""
        site = _site(source.host)
        tokens, at = self.sources.pop(site, (SOURCE_BURST, now))
        tokens = min(SOURCE_BURST, tokens + max(0.0, now - at) * SOURCE_RATE)
        admitted = tokens >= 1
        self.sources[site] = (tokens - 1 if admitted else tokens, now)
        if len(self.sources) > MAX_SOURCES:
            del self.sources[next(iter(self.sources))]
        return admitted

    def _refill(self, now: float) -> None:
        if now > self.at:
            self.tokens = min(self.burst, self.tokens + (now - self.at) * self.rate)
            self.at = now


def _site(host: str) -> str:
    """What counts as one source."""
    address = ipaddress.ip_address(host)
    if isinstance(address, ipaddress.IPv4Address):
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((int(address), IPV6_SITE_LENGTH), strict=False))

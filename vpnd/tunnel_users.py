"""The links that use a tunnel, as the tunnel knows them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final, Protocol

import trio

from tun import PeerStatus, Prefix
from vpnd.journal import Journal

TOLD_AT_ONCE: Final = 50
"""Links that are told of something before other tasks get their turn."""


class TunnelUser(Protocol):
    """What a tunnel has to know of a link that uses it."""

    def peer_key(self) -> bytes | None:
        """The WireGuard public key of the peer that the link has on the interface."""

    def awaits_handshake(self) -> bool:
        """Whether a handshake is waited for, so that dumps come every second."""

    def observe(self, status: PeerStatus | None, now: float) -> None:
        """Take what a dump begun at `now` showed of the peer; None where it is gone."""

    def counters_unknown(self) -> None:
        """The interface cannot be read."""

    def interface_passes(self, *, withheld: bool, not_taken: bool) -> None:
        """Whether packets of the peer do not come out of the interface, and whether WireGuard takes
        none that go in."""

    def tunnel_opened(self, peers: Mapping[bytes, PeerStatus]) -> None:
        """There is an interface, with these peers on it: those of an earlier run, if any."""

    def tunnel_lost(self) -> None:
        """There is no interface any more."""

    def ways_changed(self) -> None:
        """What is known of the ways to the peer and to its prefixes has changed."""

    def wireguard_host(self) -> str | None:
        """The address of the peer's WireGuard, as far as it is known."""

    def wanted(self) -> tuple[tuple[Prefix, ...], int]:
        """Allowed IPs and keepalive, as configured."""

    def routed(self) -> tuple[Prefix, ...]:
        """What leads into the interface: nothing without a peer there, or one that comes next."""


class TunnelUsers:
    """The links of one tunnel, in the order in which they came."""

    def __init__(self, tunnel: str, journal: Journal) -> None:
        self._tunnel = tunnel
        self._journal = journal
        self._links: dict[TunnelUser, None] = {}

    def __iter__(self) -> Iterator[TunnelUser]:
        return iter(self._links)

    def __len__(self) -> int:
        return len(self._links)

    def add(self, link: TunnelUser) -> None:
        self._links[link] = None

    def discard(self, link: TunnelUser) -> None:
        self._links.pop(link, None)

    async def tell(self, tell: Callable[[TunnelUser], None]) -> None:
        """Tell each of them something; a bug that one meets does not stop the others."""
        for number, link in enumerate(tuple(self._links), 1):
            if number % TOLD_AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
            if link not in self._links:
                continue  # it was removed meanwhile
            try:
                tell(link)
            except Exception as error:
                self._journal.record(
                    "internal_error", tunnel=self._tunnel, level="error", exc_info=error
                )

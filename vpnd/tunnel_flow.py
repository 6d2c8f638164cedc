"""Whether packets pass between an interface and its WireGuard: the counters of both compared.

With wireguard-go the two are a TUN device and a process. Where these do not fit, handshakes pass,
WireGuard decrypts what comes, and the kernel throws it away; and the other way round. The kernel's
WireGuard counts what has passed alone, so nothing is ever found there.

Pure logic; times are seconds on the boot clock.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from tun import PacketCounts, PeerStatus
from vpnd.link_flow import BETWEEN_SECONDS, ENOUGH, handshakes_at_most

LOOK_SECONDS: Final = 20.0
"""Between two looks at the interface's counters."""
MANY_PACKETS: Final = 50
"""In a window, before it is told that WireGuard sends none: fewer may be what a host says into
every interface (mDNS), to nobody in particular."""


@dataclass(slots=True)
class InterfaceFlow:
    """One interface's counters, from look to look."""

    withheld: frozenset[bytes] = frozenset()
    """Peers (public keys) of which WireGuard receives packets, while none comes out."""
    not_taken: bool = False
    """Whether packets go into the interface, and WireGuard has never sent any."""
    _looked_at: float = -math.inf
    _at: float | None = None
    """When the window began."""
    _packets: PacketCounts = field(default_factory=lambda: PacketCounts(0, 0))
    _sent: dict[bytes, int] = field(default_factory=dict)
    _received: dict[bytes, int] = field(default_factory=dict)

    def is_due(self, now: float) -> bool:
        return now >= self._looked_at + LOOK_SECONDS

    def look(self, packets: PacketCounts, peers: Mapping[bytes, PeerStatus], now: float) -> None:
        """Take the interface's counters, read after the dump that `peers` is."""
        self._looked_at = now
        if self._at is None or packets.came_out < self._packets.came_out:
            self._begin(packets, peers, now)
            return
        if packets.came_out > self._packets.came_out:
            self.withheld, self.not_taken = frozenset(), False
            self._begin(packets, peers, now)
            return
        seconds = now - self._at
        if seconds < BETWEEN_SECONDS:
            return
        handshakes = handshakes_at_most(seconds)
        self.withheld |= {
            key
            for key, peer in peers.items()
            if peer.rx_bytes - self._received.get(key, peer.rx_bytes) > handshakes + ENOUGH
        }
        sends = any(
            peer.tx_bytes - self._sent.get(key, peer.tx_bytes) > handshakes
            for key, peer in peers.items()
        )
        many = packets.went_in - self._packets.went_in >= MANY_PACKETS
        if sends:
            self.not_taken = False
        elif many and packets.came_out == 0 and peers:
            self.not_taken = True
        self._begin(packets, peers, now)

    def _begin(self, packets: PacketCounts, peers: Mapping[bytes, PeerStatus], now: float) -> None:
        self._at, self._packets = now, packets
        self._sent = {key: peer.tx_bytes for key, peer in peers.items()}
        self._received = {key: peer.rx_bytes for key, peer in peers.items()}

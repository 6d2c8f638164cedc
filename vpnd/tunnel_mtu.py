"""`mtu = "auto"`: a tunnel's MTU from that of the underlay towards its peers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from tun import path_mtus
from vpnd.config_model import MIN_AUTO_MTU

OVERHEAD: Final = 80
"""Bytes around a packet in a tunnel over IPv6: 40 of IPv6, 8 of UDP, 32 of WireGuard."""
KEEP_SECONDS: Final = 60.0
"""What was looked up is looked up again after this: the route may have changed, or the path."""
AT_ONCE: Final = 64
"""Look-ups in one go; a worker thread is busy with them for some milliseconds."""


class AutoMtu:
    """What is known of the way to each peer's WireGuard."""

    def __init__(self, interface: str, fwmark: int | None) -> None:
        self._interface = interface
        self._fwmark = fwmark
        self._known: dict[str, tuple[float, int | None]] = {}
        """When each host was looked up, and what came of it."""

    def forget(self) -> None:
        """Look everything up again."""
        self._known = {host: (0.0, mtu) for host, (_, mtu) in self._known.items()}

    async def wanted(self, hosts: Iterable[str], now: float) -> int | None:
        """The MTU that suits all of these hosts; None while nothing is known of any.

        Raises OSError, TunError.
        """
        known = {host: self._known.get(host, (0.0, None)) for host in hosts}
        due = [host for host, (at, _) in known.items() if at == 0.0 or now - at > KEEP_SECONDS]
        due = sorted(due, key=lambda host: known[host][0])[:AT_ONCE]
        if due:
            found = await path_mtus(due, fwmark=self._fwmark, not_by=self._interface)
            known |= {host: (now, found.get(host, known[host][1])) for host in due}
        self._known = known
        mtus = [mtu for _, mtu in known.values() if mtu is not None]
        return max(MIN_AUTO_MTU, min(mtus) - OVERHEAD) if mtus else None

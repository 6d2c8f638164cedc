"""Whose guard route an address is in, in words: for what cannot be sent because of one."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from vpnd.guarded import guarded_prefixes

if TYPE_CHECKING:
    from vpnd.config import Config


class GuardNames:
    """Which guard route of the daemon's own namespace an address is in. Looked up for each link
    that cannot send, so there is an index, made anew for another configuration only."""

    def __init__(self) -> None:
        self._config: Config | None = None
        self._names: dict[tuple[int, int], dict[int, str]] = {}
        """By IP version and prefix length, the longest first, and by the first address."""

    def over(self, host: str, config: Config) -> str:
        """The most specific guard over a numeric address, with whose it is; '' for none."""
        if config is not self._config:
            self._config, self._names = config, _guard_names(config)
        address = ipaddress.ip_address(host.partition("%")[0])
        for (version, length), names in self._names.items():
            if version == address.version:
                rest = address.max_prefixlen - length
                name = names.get(int(address) >> rest << rest)
                if name is not None:
                    return name
        return ""


def _guard_names(config: Config) -> dict[tuple[int, int], dict[int, str]]:
    found: dict[tuple[int, int], dict[int, str]] = {}
    for peer in config.peers.values():
        tunnel = config.tunnels[peer.tunnel]
        for prefix in guarded_prefixes(peer, tunnel) if tunnel.netns is None else ():
            of_length = found.setdefault((prefix.version, prefix.prefixlen), {})
            of_length.setdefault(int(prefix.network_address), f"{prefix} of {peer.name}")
    return dict(sorted(found.items(), key=lambda entry: -entry[0][1]))

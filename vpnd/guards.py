"""Guard routes, under what a link must never leak in the clear (docs/operations.md)."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from tun import (
    InterfaceMissing,
    NamespaceMissing,
    Prefix,
    TunError,
    remove_guard_routes,
    set_guard_routes,
)
from vpnd.config_model import PeerConfig, TunnelConfig
from vpnd.tunnels import ENTERING_SECONDS, ManagedTunnel

if TYPE_CHECKING:
    from vpnd.config import Config


def guarded_prefixes(peer: PeerConfig, tunnel: TunnelConfig) -> tuple[Prefix, ...]:
    """The prefixes of one link that get an `unreachable` route under them.

    Everything in allowed_ips but a default route; where routes are not ours (`routes = "none"`)
    and for default routes, what `protect` names.
    """
    own: Iterable[Prefix] = peer.allowed_ips if tunnel.routes == "allowed-ips" else ()
    guarded = {prefix for prefix in own if prefix.prefixlen > 0}
    guarded.update(peer.protect or ())
    return tuple(sorted(guarded, key=lambda prefix: (prefix.version, prefix)))


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


async def set_guards(
    tunnel: ManagedTunnel, prefixes: Iterable[Prefix], *, entering: bool = False
) -> frozenset[Prefix]:
    """Guard routes for these prefixes, in the tunnel's table; those that were missing.

    A namespace is entered where `entering` says so: by the tunnel's own task, before there is
    an interface, since a helper may take long to open it. Else those of a tunnel that is not
    open are left to that task. Nothing leaves a namespace that is not there. Raises TunError.
    """
    config = tunnel.config
    if config.netns is not None and not entering:
        with suppress(InterfaceMissing):  # found at the next look, and opened anew
            if tunnel.open is not None:
                return await tunnel.open.set_guards(prefixes)
        return frozenset()
    with suppress(NamespaceMissing):
        return await set_guard_routes(
            prefixes, table=config.table, vrf=config.vrf, netns=config.netns
        )
    return frozenset()


async def remove_guards(tunnel: ManagedTunnel, prefixes: Iterable[Prefix]) -> None:
    """Take guard routes away. Raises TunError, also where a namespace has to be entered for
    that and the way into it takes long: others wait meanwhile."""
    config = tunnel.config
    if config.netns is not None and tunnel.open is not None:
        with suppress(InterfaceMissing):
            await tunnel.open.remove_guards(prefixes)
        return
    with suppress(NamespaceMissing), trio.move_on_after(ENTERING_SECONDS) as scope:
        await remove_guard_routes(prefixes, table=config.table, vrf=config.vrf, netns=config.netns)
    if scope.cancelled_caught:
        raise TunError(
            f"the network namespace {config.netns} was out of reach for "
            f"{ENTERING_SECONDS:.0f} s: guard routes of the peer may be left in it"
        )

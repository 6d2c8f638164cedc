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


def guard_over(host: str, config: Config) -> str:
    """The guard route of the daemon's own namespace that a numeric address is in, with whose it is;
    '' for none. The most specific one: that is the one which is in the way."""
    address = ipaddress.ip_address(host.partition("%")[0])
    found = [
        (prefix.prefixlen, f"{prefix} of {peer.name}")
        for peer in config.peers.values()
        if config.tunnels[peer.tunnel].netns is None
        for prefix in guarded_prefixes(peer, config.tunnels[peer.tunnel])
        if prefix.version == address.version and address in prefix
    ]
    return max(found, default=(0, ""))[1]


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

"""What can be known of the ways of a configuration before it is taken: loops, and being cut off.

The model is of the main routing table of the daemon's namespace, where the packets of WireGuard
and of the key exchange are routed unless they carry a fwmark. What the kernel says of it, once the
routes stand, is in vpnd.paths.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, collapse_addresses, ip_network
from typing import TYPE_CHECKING

from vpnd.config_errors import ConfigProblem
from vpnd.config_fields import Endpoint, Prefix
from vpnd.config_model import MAIN_TABLE, PeerConfig, TunnelConfig, protected_within

if TYPE_CHECKING:
    from vpnd.config_source import Source

IPAddress = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class _Led:
    """A prefix that a configuration gives a route, and where that leads."""

    peer: str
    tunnel: str
    into_tunnel: bool
    """Into the tunnel; else it is a guard route alone."""


def check_ways(
    tunnels: Mapping[str, TunnelConfig],
    peers: Mapping[str, PeerConfig],
    sources: Mapping[str, Source],
) -> Iterator[ConfigProblem]:
    """What would loop, or cut this host off."""
    yield from _check_whole_family(tunnels, peers, sources)
    led = _led(tunnels, peers)
    for peer in peers.values():
        tunnel = tunnels.get(peer.tunnel)
        if tunnel is None or tunnel.fwmark is not None:
            continue
        source = sources[peer.name]
        for key, endpoint in _endpoints(peer):
            if endpoint.address is None:
                yield from _check_name(peer, tunnel, key, endpoint, source)
            else:
                yield from _check_address(peer, tunnels, led, key, endpoint.address, source)


def notes_on_ways(
    tunnels: Mapping[str, TunnelConfig],
    peers: Mapping[str, PeerConfig],
    sources: Mapping[str, Source],
) -> Iterator[ConfigProblem]:
    """What may be meant, and works under a condition that only the operator knows."""
    led = _led(tunnels, peers)
    for peer in peers.values():
        tunnel, source = tunnels.get(peer.tunnel), sources[peer.name]
        if tunnel is None:
            continue
        for index, prefix in enumerate(peer.protect or ()):
            if not any(_within(prefix, wider) for wider in peer.allowed_ips):
                yield source.problem(
                    ("protect", index),
                    f"{prefix} lies within none of the peer's allowed_ips: nothing for it ever "
                    "passes this tunnel",
                    "allow it as well, or take it out unless it shall be held for good",
                    value=str(prefix),
                )
        if tunnel.fwmark is not None:
            continue
        if peer.endpoint is None and _in_main(tunnel) and tunnel.routes == "allowed-ips":
            default = next((one for one in peer.allowed_ips if one.prefixlen == 0), None)
            if default is not None:
                yield source.problem(
                    ("allowed_ips",),
                    f"{default} leads into the tunnel, and so does the way to the peer itself, "
                    "whose address is not known yet",
                    "set fwmark for the tunnel and an ip rule for it, or a table of its own, or "
                    "have a route to the peer",
                    value=str(default),
                )
        for key, endpoint in _endpoints(peer):
            found = None if endpoint.address is None else led.longest(endpoint.address)
            if found is None or (found[1].into_tunnel and found[1].tunnel == peer.tunnel):
                continue
            prefix, by = found
            yield source.problem(
                (key,),
                f"{endpoint.address} lies within {prefix} of peer {by.peer}"
                + (f": it is reached through tunnel {by.tunnel}" if by.into_tunnel else ""),
                "make sure that the far end passes it on"
                if by.into_tunnel
                else "it needs a route of its own, more specific than the guard",
                value=str(endpoint.address),
            )


def _in_main(tunnel: TunnelConfig) -> bool:
    return tunnel.netns is None and tunnel.routing_table == MAIN_TABLE


def _endpoints(peer: PeerConfig) -> Iterator[tuple[str, Endpoint]]:
    if peer.endpoint is not None:
        yield "endpoint", peer.endpoint
    if peer.wireguard_endpoint is not None:
        yield "wireguard_endpoint", peer.wireguard_endpoint


class _Table:
    """The routes and guards of the main table; those into a tunnel go before guards."""

    def __init__(self, routes: Mapping[Prefix, _Led]) -> None:
        self._routes = routes
        lengths = {(prefix.version, prefix.prefixlen) for prefix in routes}
        self._lengths = sorted(lengths, reverse=True)

    def longest(self, address: IPAddress) -> tuple[Prefix, _Led] | None:
        """The route that the address has, if any."""
        for version, length in self._lengths:
            if version == address.version:
                prefix: Prefix = ip_network((address.packed, length), strict=False)
                if prefix in self._routes:
                    return prefix, self._routes[prefix]
        return None


def _led(tunnels: Mapping[str, TunnelConfig], peers: Mapping[str, PeerConfig]) -> _Table:
    found: dict[Prefix, _Led] = {}
    for peer in peers.values():
        tunnel = tunnels.get(peer.tunnel)
        if tunnel is None or not _in_main(tunnel):
            continue
        for prefix in peer.protect or ():
            found.setdefault(prefix, _Led(peer.name, tunnel.name, into_tunnel=False))
        if tunnel.routes == "allowed-ips":
            for prefix in (*peer.allowed_ips, *protected_within(peer)):
                found[prefix] = _Led(peer.name, tunnel.name, into_tunnel=True)
    return _Table(found)


def _check_address(
    peer: PeerConfig,
    tunnels: Mapping[str, TunnelConfig],
    led: _Table,
    key: str,
    address: IPAddress,
    source: Source,
) -> Iterator[ConfigProblem]:
    for tunnel in tunnels.values():
        for own in tunnel.addresses:
            if tunnel.netns is None and tunnel.vrf is None and address in own.network:
                yield source.problem(
                    (key,),
                    f"{address} lies within {own.network}, the network of tunnel {tunnel.name}: "
                    "the way to it would lead through a tunnel that needs it",
                    "the peer's address outside of the tunnels, as this gateway reaches it",
                    value=str(address),
                )
                return
    found = led.longest(address)
    if found is None:
        return
    prefix, by = found
    if not by.into_tunnel or by.tunnel != peer.tunnel:
        return
    if by.peer == peer.name and key == "endpoint" and prefix in peer.allowed_ips:
        return  # told at allowed_ips (config_check)
    yield source.problem(
        (key,),
        f"{address} lies within {prefix} of peer {by.peer}: its route would lead the tunnel into "
        "itself",
        "set fwmark for the tunnel, or a table of its own, or take the prefix out",
        value=str(address),
    )


def _check_name(
    peer: PeerConfig, tunnel: TunnelConfig, key: str, endpoint: Endpoint, source: Source
) -> Iterator[ConfigProblem]:
    if tunnel.routes == "none" or not _in_main(tunnel):
        return
    default = next((prefix for prefix in peer.allowed_ips if prefix.prefixlen == 0), None)
    if default is not None and peer.protect is not None:  # else that is told first
        yield source.problem(
            (key,),
            f"whatever address {endpoint.host} has, {default} in allowed_ips holds it: its route "
            "would lead the tunnel into itself",
            "set fwmark for the tunnel and an ip rule for it, or a table of its own",
            value=str(endpoint),
        )


def _check_whole_family(
    tunnels: Mapping[str, TunnelConfig],
    peers: Mapping[str, PeerConfig],
    sources: Mapping[str, Source],
) -> Iterator[ConfigProblem]:
    """0.0.0.0/1 and 128.0.0.0/1, the usual way around a default route, and others like it."""
    guarded: list[tuple[Prefix, PeerConfig, str]] = []
    for peer in peers.values():
        tunnel = tunnels.get(peer.tunnel)
        if tunnel is None or not _in_main(tunnel):
            continue
        if tunnel.routes == "allowed-ips":
            guarded += [(one, peer, "allowed_ips") for one in peer.allowed_ips if one.prefixlen]
        guarded += [(one, peer, "protect") for one in peer.protect or () if one.prefixlen]
    for version, family in ((4, "IPv4"), (6, "IPv6")):
        some = [each for each in guarded if each[0].version == version]
        if not _is_everything(prefix for prefix, _, _ in some):
            continue
        # At the last one without which it would not be so
        prefix, peer, key = next(
            (
                each
                for each in reversed(some)
                if not _is_everything(one for one, _, _ in some if one != each[0])
            ),
            some[-1],
        )
        yield sources[peer.name].problem(
            (key,),
            f"with {prefix} all of {family} is guarded: this gateway would be cut off from "
            "everything while the tunnel is down, its peers included",
            "write 0.0.0.0/0 or ::/0 instead, which is not guarded; protect names what must not "
            "leave in the clear",
            value=str(prefix),
        )


def _is_everything(prefixes: Iterable[Prefix]) -> bool:
    return any(one.prefixlen == 0 for one in collapse_addresses(prefixes))  # type: ignore[type-var]  # of one version


def _within(prefix: Prefix, wider: Prefix) -> bool:
    return prefix.version == wider.version and prefix.subnet_of(wider)  # type: ignore[arg-type]  # the same version

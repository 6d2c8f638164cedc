"""What must hold between the tables of a configuration, once each of them is right by itself.

Every check runs over whatever could be read, so that one broken file does not hide what is
wrong in another. A problem between two peers is told at the later one and names the earlier.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from itertools import combinations
from typing import Final

from kex.identity import Fingerprint
from vpnd.config_errors import ConfigProblem, Location, shown
from vpnd.config_fields import Prefix, did_you_mean
from vpnd.config_key_sources import KeySourceConfig
from vpnd.config_model import (
    MAIN_TABLE,
    MAX_ANNOUNCED_PREFIXES,
    MIN_LIFETIME_MARGIN,
    NodeConfig,
    PeerConfig,
    TunnelConfig,
)
from vpnd.config_source import Source
from vpnd.external_check import check_external
from vpnd.local_identity import check_identities
from vpnd.way_check import check_ways, notes_on_ways

_MIN_IPV6_MTU: Final = 1280
_Place = tuple[IPv4Address | IPv6Address, str | None, str | None]
_ALL_HOSTS: Final = ("::", "0.0.0.0")  # noqa: S104


@dataclass(frozen=True, slots=True)
class Draft:
    """A configuration before it is accepted: the parts that could be read."""

    main: Source
    node: NodeConfig | None
    tunnels: Mapping[str, TunnelConfig]
    peers: Mapping[str, PeerConfig]
    sources: Mapping[str, Source]
    """Where each peer of `peers` came from."""
    identities: Mapping[str, Fingerprint]
    """This node's identities by name, the one in use first, as far as they are known."""
    key_sources: Mapping[str, KeySourceConfig | None]
    """Those of [key_sources]; None for one whose table is wrong, which is told there."""


def check(draft: Draft) -> Iterator[ConfigProblem]:
    """All that contradicts itself."""
    yield from _check_tunnels(draft)
    yield from _check_marks(draft)
    yield from check_identities(draft.peers, draft.sources, draft.identities)
    yield from _check_prefixes(draft)
    yield from _check_wireguard_keys(draft)
    yield from check_ways(draft.tunnels, draft.peers, draft.sources)
    for peer in draft.peers.values():
        tunnel, source = draft.tunnels.get(peer.tunnel), draft.sources[peer.name]
        yield from _check_peer(peer, tunnel, source)
        yield from check_external(peer, tunnel, draft.key_sources, source)


def _check_wireguard_keys(draft: Draft) -> Iterator[ConfigProblem]:
    """An interface has one peer for a WireGuard key."""
    owners: dict[tuple[str, str], str] = {}
    for peer in draft.peers.values():
        if peer.wireguard_key is None:
            continue
        place = (peer.tunnel, peer.wireguard_key)
        if place in owners:
            yield draft.sources[peer.name].problem(
                ("wireguard_key",),
                f"is the WireGuard key of peer {owners[place]}, too",
                "on a tunnel each peer has a key of its own",
            )
        owners.setdefault(place, peer.name)


def notes(draft: Draft) -> Iterator[ConfigProblem]:
    """What is allowed, and worth knowing: prefixes within others, and on several tunnels."""
    yield from notes_on_ways(draft.tunnels, draft.peers, draft.sources)
    owners: dict[Prefix, list[PeerConfig]] = {}
    for peer in draft.peers.values():
        for prefix in peer.allowed_ips:
            owners.setdefault(prefix, []).append(peer)
    for peer in draft.peers.values():
        for index, prefix in enumerate(peer.allowed_ips):
            source = draft.sources[peer.name]
            for wider, other in _covering(prefix, owners):
                if other.name != peer.name:
                    same = "is also" if wider == prefix else f"lies within {wider}"
                    yield source.problem(
                        ("allowed_ips", index),
                        f"{prefix} {same} at peer {other.name} (tunnel {other.tunnel})",
                        "the longest match decides"
                        if other.tunnel == peer.tunnel
                        else "the routing tables decide between the tunnels",
                        value=str(prefix),
                    )


def _check_marks(draft: Draft) -> Iterator[ConfigProblem]:
    """The key exchange has one socket for all tunnels, which carries their fwmark."""
    marks = {tunnel.fwmark: tunnel.name for tunnel in draft.tunnels.values() if tunnel.fwmark}
    if len(marks) > 1:
        *_, last = marks.values()
        yield draft.main.problem(
            ("tunnels", last, "fwmark"),
            "the tunnels have different fwmarks, and the key exchange can carry one only",
            "give all tunnels the same fwmark",
        )


def _check_tunnels(draft: Draft) -> Iterator[ConfigProblem]:
    interfaces: dict[str, str] = {}
    addresses: dict[_Place, str] = {}
    # Every port of the key exchange is taken, whatever address it is bound to: WireGuard
    # binds all of them
    ports = {} if draft.node is None else {one.port: "node.listen" for one in draft.node.listen}
    if draft.node is not None:
        yield from _check_listen(draft.node, draft.main)
    for tunnel in draft.tunnels.values():
        at: Location = ("tunnels", tunnel.name)
        here = ".".join(map(str, at))
        if tunnel.interface in interfaces:
            yield draft.main.problem(
                (*at, "interface"),
                f"{tunnel.interface} is the interface of tunnel {interfaces[tunnel.interface]}",
                "each tunnel has an interface of its own",
            )
        if tunnel.listen_port in ports:
            yield draft.main.problem(
                (*at, "listen_port"),
                f"UDP port {tunnel.listen_port} is in use at {ports[tunnel.listen_port]}",
                "each tunnel, and the key exchange, has a port of its own",
            )
        interfaces.setdefault(tunnel.interface, tunnel.name)
        ports.setdefault(tunnel.listen_port, f"{here}.listen_port")
        for index, address in enumerate(tunnel.addresses):
            place = _place(address.ip, tunnel)
            if place in addresses:
                yield draft.main.problem(
                    (*at, "addresses", index),
                    f"{address.ip} is already at {addresses[place]}",
                    value=str(address),
                )
            addresses.setdefault(place, f"{here}.addresses")
        if len(tunnel.announced) > MAX_ANNOUNCED_PREFIXES:
            yield draft.main.problem(
                (*at, "announce"),
                f"{len(tunnel.announced)} prefixes would be announced: the tunnel's "
                f"{len(tunnel.addresses)} addresses, and {len(tunnel.announce)} listed here",
                f"at most {MAX_ANNOUNCED_PREFIXES} fit into an exchange; prefixes that make up a "
                "wider one can be given as that",
            )
        if tunnel.least_mtu < _MIN_IPV6_MTU and any(one.version == 6 for one in tunnel.addresses):
            yield draft.main.problem(
                (*at, "mtu"),
                f"{tunnel.mtu} is too small for the tunnel's IPv6 addresses",
                f"at least {_MIN_IPV6_MTU}",
            )


def _place(address: IPv4Address | IPv6Address, tunnel: TunnelConfig) -> _Place:
    """Where an address is one of a kind: link-local ones on their link alone (RFC 4291, 2.5.6)."""
    return address, tunnel.netns, tunnel.name if address.is_link_local else None


def _check_listen(node: NodeConfig, main: Source) -> Iterator[ConfigProblem]:
    """What the kernel would refuse as a port that is taken."""
    for one, other in combinations(node.listen, 2):
        same_family = (":" in one.host) == (":" in other.host)
        on_one_device = one.device == other.device or "" in (one.device, other.device)
        same_host = one.host == other.host or any(e.host in _ALL_HOSTS for e in (one, other))
        if one == other:
            yield main.problem(("node", "listen"), f"{one} stands there twice")
        elif same_family and one.port == other.port and on_one_device and same_host:
            yield main.problem(
                ("node", "listen"),
                f"{other} cannot be had beside {one}, which takes the port for it as well",
                "leave one of them out, or give each another device or another address",
            )


def _check_prefixes(draft: Draft) -> Iterator[ConfigProblem]:
    owners: dict[Prefix, list[PeerConfig]] = {}
    own_addresses = {
        _place(address.ip, tunnel): tunnel.name
        for tunnel in draft.tunnels.values()
        for address in tunnel.addresses
    }
    for peer in draft.peers.values():
        source = draft.sources[peer.name]
        tunnel = draft.tunnels.get(peer.tunnel)
        seen: set[Prefix] = set()
        for index, prefix in enumerate(peer.allowed_ips):
            at = ("allowed_ips", index)
            if prefix in seen:
                yield source.problem(at, f"{prefix} stands in the list twice", value=str(prefix))
                continue
            seen.add(prefix)
            own = tunnel and own_addresses.get(_place(prefix.network_address, tunnel))
            if own is not None and prefix.num_addresses == 1:
                yield source.problem(
                    at,
                    f"{prefix} is this node's own address in tunnel {own}",
                    "allowed_ips are the peer's addresses and the networks behind it",
                    value=str(prefix),
                )
            for other in owners.get(prefix, ()):
                reason = _collision(peer, other, draft.tunnels)
                if reason is not None:
                    yield source.problem(at, f"{prefix} {reason[0]}", reason[1], value=str(prefix))
                    break
            owners.setdefault(prefix, []).append(peer)


def _collision(
    peer: PeerConfig, other: PeerConfig, tunnels: Mapping[str, TunnelConfig]
) -> tuple[str, str] | None:
    """Why two peers cannot both have a prefix, and what to do."""
    if peer.tunnel == other.tunnel:
        return (
            f"is also at peer {other.name} of the same tunnel",
            "WireGuard gives a prefix to one peer; a longer prefix may lie within another",
        )
    mine, theirs = tunnels.get(peer.tunnel), tunnels.get(other.tunnel)
    if mine is None or theirs is None or "none" in (mine.routes, theirs.routes):
        return None
    if (mine.netns, mine.routing_table) != (theirs.netns, theirs.routing_table):
        return None
    return (
        f"is also at peer {other.name} of tunnel {other.tunnel}, and both tunnels' routes are in "
        "the same table",
        'set routes = "none" or another table for one of the tunnels',
    )


def _check_peer(
    peer: PeerConfig, tunnel: TunnelConfig | None, source: Source
) -> Iterator[ConfigProblem]:
    shortest = peer.rekey_interval + MIN_LIFETIME_MARGIN
    if peer.key_lifetime < shortest:
        yield source.problem(
            ("key_lifetime",),
            f"{peer.key_lifetime} s is too short for a rekey_interval of {peer.rekey_interval} s",
            f"at least {shortest} s; left out, it follows the interval",
        )
    for index, prefix in enumerate(peer.protect or ()):
        if prefix.prefixlen == 0:
            yield source.problem(
                ("protect", index),
                f"{prefix} cannot be guarded: the host's own default route goes before the guard",
                "name the prefixes that must not leave in the clear",
                value=str(prefix),
            )
    if tunnel is None:
        return
    yield from _check_routes(peer, tunnel, source)
    if (
        tunnel.least_mtu < _MIN_IPV6_MTU
        and all(address.version == 4 for address in tunnel.addresses)  # else it is told there
        and any(prefix.version == 6 for prefix in peer.allowed_ips)
    ):
        yield source.problem(
            ("allowed_ips",),
            f"has IPv6 prefixes, and tunnel {tunnel.name} has an mtu of {tunnel.mtu}",
            f"IPv6 needs at least {_MIN_IPV6_MTU}",
        )


def _check_routes(
    peer: PeerConfig, tunnel: TunnelConfig, source: Source
) -> Iterator[ConfigProblem]:
    default = next((prefix for prefix in peer.allowed_ips if prefix.prefixlen == 0), None)
    if peer.protect is None and (tunnel.routes == "none" or default is not None):
        why = (
            f"{default} is in allowed_ips"
            if default
            else f'tunnel {tunnel.name} has routes = "none"'
        )
        yield source.problem(
            ("protect",),
            f"is missing: {why}, so no guard route follows from allowed_ips",
            "protect = [prefixes that must never leave in the clear]; [] says that there are none",
        )
    address = None if peer.endpoint is None else peer.endpoint.address
    apart = tunnel.netns is not None or tunnel.routing_table != MAIN_TABLE
    if address is None or tunnel.routes == "none" or apart or tunnel.fwmark is not None:
        return
    for index, prefix in enumerate(peer.allowed_ips):
        if address in prefix:
            yield source.problem(
                ("allowed_ips", index),
                f"{prefix} holds the peer's own endpoint {address}: its route would lead the "
                "tunnel into itself",
                "set fwmark for the tunnel, or a table of its own, or take the prefix out",
                value=str(prefix),
            )


def _covering(
    prefix: Prefix, owners: Mapping[Prefix, Iterable[PeerConfig]]
) -> Iterator[tuple[Prefix, PeerConfig]]:
    """Every prefix that holds this one, itself included, with the peers that have it."""
    for length in range(prefix.prefixlen, -1, -1):
        wider: Prefix = prefix.supernet(new_prefix=length)
        for peer in owners.get(wider, ()):
            yield wider, peer


def unknown_tunnel(wanted: str, known: Sequence[str]) -> tuple[str, str]:
    """Reason and hint for a tunnel that does not exist."""
    names = ", ".join(map(shown, known)) or "none"
    return (
        f"there is no tunnel {shown(wanted)}",
        f"{did_you_mean(wanted, known)}tunnels here: {names}",
    )

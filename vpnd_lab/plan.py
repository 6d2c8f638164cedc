"""From a lab file to what is to be built: nodes, cables, addresses, routes. No I/O.

        fra-host ── fra ── internet ── ams ── ams-host
              10.1.0.0/24  198.18.0.0/24
                              198.18.1.0/24  10.2.0.0/24

An interface has the name of the node it leads to. Numbers follow the order in the lab file:
cable n is 198.18.n.0/24 (RFC 2544's range for tests) and 2001:db8:n::/64, site n has the lan
10.n.0.0/16 and fd00:n::/48, host k of a site the k-th /24 and /64 of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_interface,
    ip_network,
)
from itertools import combinations, islice
from typing import TYPE_CHECKING, Literal

from vpnd_lab.plan_keys import (
    ExternalKeysPlan,
    KmePlan,
    SourcePlan,
    key_managers,
    shared_sources,
    sources_of,
)

if TYPE_CHECKING:
    from vpnd_lab.spec import LabSpec, Link

Address = IPv4Address | IPv6Address
Interface = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network
Kind = Literal["site", "router", "host", "kme"]

_CABLES_IPV4 = IPv4Network("198.18.0.0/15")


@dataclass(frozen=True, slots=True)
class End:
    """One end of a cable: an interface of a node."""

    node: str
    interface: str
    addresses: tuple[Interface, ...]


@dataclass(frozen=True, slots=True)
class Cable:
    """A veth pair."""

    near: End
    far: End
    mtu: int = 1500

    def ends(self) -> Iterator[tuple[End, End]]:
        """Each end, with the opposite one."""
        yield self.near, self.far
        yield self.far, self.near


@dataclass(frozen=True, slots=True)
class Route:
    """A route by way of a neighbour; `destination` with prefix length 0 is the default route."""

    destination: Network
    via: Address
    interface: str


@dataclass(frozen=True, slots=True)
class SiteTunnel:
    """A tunnel as one site has it."""

    name: str
    interface: str
    listen_port: int
    backend: str
    addresses: tuple[Interface, ...]


@dataclass(frozen=True, slots=True)
class SitePlan:
    """What a site's daemon is to be told."""

    name: str
    listen_port: int
    lan: tuple[Network, ...]
    hosts: tuple[str, ...]
    tunnels: tuple[SiteTunnel, ...]
    sources: tuple[SourcePlan, ...] = ()

    def tunnel(self, name: str) -> SiteTunnel:
        """The tunnel of that name. Raises KeyError."""
        for tunnel in self.tunnels:
            if tunnel.name == name:
                return tunnel
        raise KeyError(name)

    def prefixes(self, tunnel: str) -> tuple[Network, ...]:
        """What a peer sends to this site through `tunnel`: its address there, and its lan."""
        own = (ip_network(address.ip) for address in self.tunnel(tunnel).addresses)
        return (*own, *self.lan)


@dataclass(frozen=True, slots=True)
class LinkPlan:
    """Two sites that are to know each other; `endpoints`: those whose address the other is told."""

    sites: tuple[str, str]
    tunnel: str
    family: Literal[4, 6]
    endpoints: tuple[str, ...]
    keepalive: int | None
    external_keys: ExternalKeysPlan | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything to build."""

    nodes: dict[str, Kind]
    cables: tuple[Cable, ...]
    routes: dict[str, tuple[Route, ...]]
    sites: dict[str, SitePlan]
    links: tuple[LinkPlan, ...]
    kmes: dict[str, KmePlan]

    def addresses(self, node: str) -> tuple[Interface, ...]:
        """A node's addresses, its main ones first."""
        return tuple(
            address
            for cable in self.cables
            for end, _ in cable.ends()
            if end.node == node
            for address in end.addresses
        )

    def interfaces(self, node: str) -> tuple[str, ...]:
        """A node's ends of cables."""
        return tuple(
            end.interface for cable in self.cables for end, _ in cable.ends() if end.node == node
        )

    def address(self, node: str, family: Literal[4, 6]) -> Address | None:
        """A node's main address of a family, if it has one."""
        for address in self.addresses(node):
            if address.version == family:
                return address.ip
        return None

    def link(self, one: str, other: str) -> LinkPlan:
        """The link between two sites, in either order. Raises KeyError."""
        for link in self.links:
            if set(link.sites) == {one, other}:
                return link
        raise KeyError((one, other))


def make_plan(spec: LabSpec) -> Plan:
    """The plan for a lab file whose names and sizes have been checked."""
    links = _links(spec)
    sites = {
        name: _site(spec, name, number, links) for number, name in enumerate(spec.sites, start=1)
    }
    nodes: dict[str, Kind] = dict.fromkeys(spec.sites, "site")
    nodes |= dict.fromkeys(spec.routers, "router")
    nodes |= dict.fromkeys((host for site in sites.values() for host in site.hosts), "host")
    kmes = key_managers(spec)
    nodes |= dict.fromkeys(kmes, "kme")
    underlay = tuple(_underlay(spec))
    lans = (cable for site in sites.values() for cable in _lan_cables(site))
    cables = (*underlay, *lans, *_kme_cables(kmes, first=len(underlay)))
    routes = {name: tuple(_default_routes(name, cables, nodes)) for name in nodes}
    for name in spec.routers:
        routes[name] = tuple(_router_routes(name, underlay, nodes))
    return Plan(nodes=nodes, cables=cables, routes=routes, sites=sites, links=links, kmes=kmes)


def host_prefix_length(lan: Network) -> int:
    """The prefix length of one client host's network within a lan."""
    if lan.version == 4:
        return max(lan.prefixlen, min(30, lan.prefixlen + 8))
    return 64 if lan.prefixlen <= 56 else max(lan.prefixlen, min(126, lan.prefixlen + 8))


def _links(spec: LabSpec) -> tuple[LinkPlan, ...]:
    first = next(iter(spec.tunnels))
    if spec.links is None:
        return tuple(
            LinkPlan(
                sites=pair,
                tunnel=first,
                family=4,
                endpoints=pair,
                keepalive=None,
                external_keys=_external_keys(spec, pair),
            )
            for pair in combinations(spec.sites, 2)
        )
    return tuple(
        LinkPlan(
            sites=link.sites,
            tunnel=link.tunnel or first,
            family=link.family,
            endpoints=link.sites if link.endpoints is None else link.endpoints,
            keepalive=link.keepalive,
            external_keys=_external_keys(spec, link.sites, link),
        )
        for link in spec.links
    )


def _external_keys(
    spec: LabSpec, sites: tuple[str, str], link: Link | None = None
) -> ExternalKeysPlan | None:
    """What is said of a link, else of all; None: none are mixed in."""
    said = spec.external_keys if link is None or link.external_keys is None else link.external_keys
    if said is None or said.mode == "off":
        return None
    sources = shared_sources(spec, sites) if said.sources is None else said.sources
    return ExternalKeysPlan(mode=said.mode, sources=sources, further=said.further)


def _site(spec: LabSpec, name: str, number: int, links: tuple[LinkPlan, ...]) -> SitePlan:
    site = spec.sites[name]
    wanted = {link.tunnel for link in links if name in link.sites} | set(site.tunnels)
    wanted = wanted or {next(iter(spec.tunnels))}
    return SitePlan(
        name=name,
        listen_port=site.listen_port,
        lan=spec.lan_of(name),
        hosts=spec.hosts_of(name),
        tunnels=tuple(
            SiteTunnel(
                name=tunnel_name,
                interface=tunnel.interface,
                listen_port=tunnel.listen_port,
                backend=tunnel.backend,
                addresses=site.tunnels.get(tunnel_name)
                or tuple(_in_network(network, number) for network in tunnel.networks),
            )
            for tunnel_name, tunnel in spec.tunnels.items()
            if tunnel_name in wanted
        ),
        sources=sources_of(spec, name),
    )


def _in_network(network: Network, number: int) -> Interface:
    """The address `number` of a network, with the network's prefix length."""
    return ip_interface(f"{network[number]}/{network.prefixlen}")


def _underlay(spec: LabSpec) -> Iterator[Cable]:
    """Cables from sites to routers in the order of the file, then between routers."""
    number = 0
    for name in spec.sites:
        for router, uplink in spec.uplinks_of(name).items():
            own = uplink.addresses or tuple(_in_network(net, 2) for net in _cable(number))
            yield Cable(
                near=End(name, router, own),
                far=End(router, name, tuple(_beside(address) for address in own)),
                mtu=uplink.mtu,
            )
            number += 1
    done: set[frozenset[str]] = set()
    for name, router_spec in spec.routers.items():
        for neighbour in router_spec.neighbours:
            if frozenset((name, neighbour)) not in done:
                done.add(frozenset((name, neighbour)))
                networks = _cable(number)
                yield Cable(
                    near=End(name, neighbour, tuple(_in_network(net, 1) for net in networks)),
                    far=End(neighbour, name, tuple(_in_network(net, 2) for net in networks)),
                )
                number += 1


def _cable(number: int) -> tuple[Network, Network]:
    return _part(_CABLES_IPV4, 24, number), IPv6Network(f"2001:db8:{number:x}::/64")


def _part(network: Network, prefix_length: int, number: int) -> Network:
    """The part `number` (from 0) of a network, cut into parts of that prefix length."""
    parts: Iterator[Network] = network.subnets(new_prefix=prefix_length)
    return next(islice(parts, number, None))


def _beside(address: Interface) -> Interface:
    """The router's address in a site's network: the first that the site does not have."""
    network = address.network
    # A network of two addresses (RFC 3021, RFC 6164) has no first one to leave out.
    start = 0 if network.num_addresses == 2 else 1
    free = start if network[start] != address.ip else start + 1
    return _in_network(network, free)


def _lan_cables(site: SitePlan) -> Iterator[Cable]:
    for number, host in enumerate(site.hosts):
        networks = [_part(lan, host_prefix_length(lan), number) for lan in site.lan]
        # The host's end comes first: a host's main address is the one in its lan.
        yield Cable(
            near=End(host, site.name, tuple(_in_network(net, 2) for net in networks)),
            far=End(site.name, host, tuple(_in_network(net, 1) for net in networks)),
        )


def _kme_cables(kmes: dict[str, KmePlan], *, first: int) -> Iterator[Cable]:
    """From each key manager to each of its sites; numbered on from the other cables."""
    pairs = [(kme.name, site) for kme in kmes.values() for site in kme.sites]
    for number, (kme, site) in enumerate(pairs, start=first):
        networks = _cable(number)
        yield Cable(
            near=End(kme, site, tuple(_in_network(net, 2) for net in networks)),
            far=End(site, kme, tuple(_in_network(net, 1) for net in networks)),
        )


def _default_routes(node: str, cables: Iterable[Cable], nodes: dict[str, Kind]) -> Iterator[Route]:
    """A site's towards its first uplink of each family, a host's towards its site."""
    upstream: Kind = "site" if nodes[node] == "host" else "router"
    seen = set()
    for cable in cables:
        for end, opposite in cable.ends():
            if end.node != node or nodes[opposite.node] != upstream:
                continue
            for address in opposite.addresses:
                if address.version not in seen:
                    seen.add(address.version)
                    anywhere = ip_network("0.0.0.0/0" if address.version == 4 else "::/0")
                    yield Route(destination=anywhere, via=address.ip, interface=end.interface)


def _router_routes(
    router: str, cables: tuple[Cable, ...], nodes: dict[str, Kind]
) -> Iterator[Route]:
    """To every cable that is not its own, by way of the nearest router that has it."""
    known = {
        address.network
        for cable in cables
        for end, _ in cable.ends()
        if end.node == router
        for address in end.addresses
    }
    # Breadth first over routers; with each, the first step towards it: our end and theirs.
    queue: deque[tuple[str, tuple[End, End] | None]] = deque([(router, None)])
    visited = {router}
    while queue:
        node, first_step = queue.popleft()
        for cable in cables:
            for end, opposite in cable.ends():
                if end.node != node:
                    continue
                step = first_step or (end, opposite)
                for address in end.addresses:
                    if address.network not in known:
                        known.add(address.network)
                        yield from _route_by(step, address.network)
                if nodes[opposite.node] == "router" and opposite.node not in visited:
                    visited.add(opposite.node)
                    queue.append((opposite.node, step))


def _route_by(step: tuple[End, End], destination: Network) -> Iterator[Route]:
    near, far = step
    for address in far.addresses:
        if address.version == destination.version:
            yield Route(destination=destination, via=address.ip, interface=near.interface)

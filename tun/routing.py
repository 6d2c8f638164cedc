"""Which routes to add and to delete: blocking steps on an open rtnetlink socket.

Each route is by itself: one that cannot be had keeps no other away.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tun.errors import NotOurs, TunError, tun_error
from tun.model import ALIAS_PREFIX, Prefix
from tun.rtnl import KERNEL_PROTOCOL, MAIN_TABLE, OUR_PROTOCOL, Route, Rtnl, default_metric

__all__ = [
    "OwnNetwork",
    "RoutesSet",
    "add_routes",
    "delete_routes",
    "networks_of_this_host",
    "own_networks",
    "set_routes_into",
    "yielded",
]

NetworkNames = Mapping[Prefix, str]
"""Networks of other interfaces of this host, with the interface's name."""


@dataclass(frozen=True, slots=True)
class RoutesSet:
    """What came of setting routes."""

    missing: frozenset[Prefix] = frozenset()
    """Prefixes that had no route, and have one now."""
    faults: Mapping[Prefix, str] = field(default_factory=dict)
    """Prefixes that have none, each with the reason."""


@dataclass(frozen=True, slots=True)
class OwnNetwork:
    """The network of an address of an interface that is not a tunnel's of ours."""

    interface: str
    prefix: Prefix
    is_lasting: bool
    """Set by the operator for good, not for a time by DHCP or a router's advertisement."""
    vrf: int | None
    """The index of the VRF (or bridge) that the interface is part of."""


def networks_of_this_host(rtnl: Rtnl) -> list[OwnNetwork]:
    """The networks of all addresses, but for those of tunnels of ours and of loopback."""
    links = {link.index: link for link in rtnl.links()}
    found = []
    for each in rtnl.addresses():
        link = links.get(each.index)
        if link is None or (link.alias or "").startswith(ALIAS_PREFIX):
            continue
        if each.network.is_loopback or each.network.is_link_local:
            continue
        found.append(OwnNetwork(link.name, each.network, each.is_lasting, link.master))
    return found


def own_networks(rtnl: Rtnl, index: int, table: int) -> NetworkNames:
    """The networks whose routes of the kernel's stand in the table of an interface's routes."""
    this = rtnl.link_at(index)
    vrf = this.master if this is not None else None
    if table != MAIN_TABLE and vrf is None:
        return {}  # a table of its own, which has no routes of the kernel's
    return {each.prefix: each.interface for each in networks_of_this_host(rtnl) if each.vrf == vrf}


def yielded(prefix: Prefix, own: NetworkNames) -> str:
    """Why there is no route for a prefix, or ''. A network of this host's own goes first: a route
    of ours to the same prefix would cut it off, at once or once its interface has been down."""
    interface = own.get(prefix)
    if interface is None:
        return ""
    return (
        f"{prefix} is also the network of {interface} on this host, which goes first: what is sent "
        "there does not go through the tunnel; renumber one of the two"
    )


def set_routes_into(
    rtnl: Rtnl, index: int, prefixes: Iterable[Prefix], *, table: int, metric: int | None
) -> RoutesSet:
    """Make these our only routes into an interface; adds first, so that none is missed.

    A prefix for which the kernel has its own route there, from an address, needs none of ours.
    Raises TunError where routes cannot be read or deleted.
    """
    standing = rtnl.routes_into(index)
    connected = {
        route.prefix
        for route in standing
        if route.protocol == KERNEL_PROTOCOL and route.table == table
    }
    own = own_networks(rtnl, index, table)
    prefixes = set(prefixes) - connected
    faults = {prefix: reason for prefix in prefixes if (reason := yielded(prefix, own))}
    wanted = {
        Route(
            prefix=prefix,
            table=table,
            metric=default_metric(prefix) if metric is None else metric,
            index=index,
        )
        for prefix in prefixes - faults.keys()
    }
    ours = {route for route in standing if route.protocol == OUR_PROTOCOL}
    missing = wanted - ours
    faults |= add_routes(rtnl, missing)
    delete_routes(rtnl, ours - wanted)
    # One with another metric was there before, of a former version or a former configuration
    had = {route.prefix for route in ours}
    return RoutesSet(
        frozenset(
            route.prefix
            for route in missing
            if route.prefix not in faults and route.prefix not in had
        ),
        faults,
    )


def add_routes(rtnl: Rtnl, routes: Iterable[Route]) -> dict[Prefix, str]:
    """Add each of them by itself; why those were not that could not be. Raises InterfaceMissing."""
    faults: dict[Prefix, str] = {}
    for route in sorted(routes, key=_order):
        try:
            rtnl.add_route(route)
        except OSError as error:
            if error.errno == errno.ENODEV:  # true of all of them
                raise tun_error(error, f"adding the route {route.prefix}") from error
            faults[route.prefix] = str(_refusal(error, route))
    return faults


def delete_routes(rtnl: Rtnl, routes: Iterable[Route]) -> None:
    """Delete routes of ours; one that is gone already is no error."""
    for route in sorted(routes, key=_order):
        try:
            rtnl.delete_route(route)
        except OSError as error:
            if error.errno != errno.ESRCH:
                raise tun_error(error, f"deleting the route {route.prefix}") from error


def _order(route: Route) -> tuple[int, bytes, int]:
    prefix = route.prefix
    return prefix.version, prefix.network_address.packed, prefix.prefixlen


def _refusal(error: OSError, route: Route) -> TunError:
    if error.errno == errno.EEXIST:
        return NotOurs(
            f"table {route.table} has a route {route.prefix} with metric {route.metric} that "
            f"vpnd did not make (see `ip route show {route.prefix} table {route.table}`): "
            "choose another table or metric for the tunnel"
        )
    no_ipv6 = (errno.EACCES, errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.EINVAL)
    if route.prefix.version == 6 and error.errno in no_ipv6:
        return TunError(
            f"adding the route {route.prefix}: IPv6 is switched off on this host "
            "(see `sysctl net.ipv6.conf.all.disable_ipv6`)"
        )
    return tun_error(error, f"adding the route {route.prefix} to table {route.table}")

"""Guard routes: what leaves through no tunnel leaves not at all.

An ``unreachable`` route with the worst metric stands under each prefix of a link, set before
the interface and independent of interface and daemon, removed only with the link. It is in
force when no other route to the prefix is left: no key yet, interface deleted, wireguard-go dead.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable

from tun.model import Prefix
from tun.netlink import HERE, Netlink, entered
from tun.routing import RoutesSet, add_routes, delete_routes
from tun.rtnl import MAIN_TABLE, Route, Rtnl
from tun.vrf import routing_table

__all__ = [
    "GUARD_METRIC",
    "guard_routes",
    "put_back_guard_routes",
    "remove_guard_routes",
    "set_guard_routes",
]

GUARD_METRIC = 4294967294
"""The worst but one: any other route to the same prefix goes before a guard route."""


async def set_guard_routes(
    prefixes: Iterable[Prefix],
    *,
    table: int | None = None,
    vrf: str | None = None,
    netns: str | Netlink | None = None,
) -> RoutesSet:
    """Add the guard routes that are missing; others that stand already are left alone.

    0.0.0.0/0 and ::/0 get none: it would cut the host off, and mean nothing for the rest. Where a
    route that is not ours has the same prefix and metric there is none, and the answer says so;
    the others are added all the same. `table` None is that of the VRF, or the main table; `netns`
    None is this process's namespace, and another one is entered by its name or is held already.
    Raises NamespaceMissing, and TunError also for a VRF that is not there.
    """

    def set_missing(rtnl: Rtnl) -> RoutesSet:
        number = routing_table(rtnl, table=table, vrf=vrf)
        wanted = {_guard(prefix, number) for prefix in prefixes if prefix.prefixlen > 0}
        missing = wanted - _standing(rtnl, number)
        failed = add_routes(rtnl, missing)
        # What a host without IPv6 cannot guard does not leave it either
        faults = {one: why for one, why in failed.items() if one.version == 4 or _has_ipv6()}
        return RoutesSet(frozenset(route.prefix for route in missing) - failed.keys(), faults)

    async with entered(netns) as netlink:
        return await netlink.run(set_missing)


async def put_back_guard_routes(
    prefixes: Iterable[Prefix], *, table: int | None = None, vrf: str | None = None
) -> None:
    """Add guard routes that were deleted just now, in this process's namespace, without a look at
    the others. Raises TunError for a VRF that is not there."""

    def put_back(rtnl: Rtnl) -> None:
        number = routing_table(rtnl, table=table, vrf=vrf)
        # One that stands again, whosoever it is, is told of at the next look
        add_routes(rtnl, [_guard(prefix, number) for prefix in prefixes])

    await HERE.run(put_back)


async def remove_guard_routes(
    prefixes: Iterable[Prefix],
    *,
    table: int | None = None,
    vrf: str | None = None,
    netns: str | Netlink | None = None,
) -> None:
    """Remove the guard routes of these prefixes; one that is not there is no error."""

    def remove(rtnl: Rtnl) -> None:
        number = routing_table(rtnl, table=table, vrf=vrf)
        unwanted = {_guard(prefix, number) for prefix in prefixes}
        delete_routes(rtnl, unwanted & _standing(rtnl, number))

    async with entered(netns) as netlink:
        await netlink.run(remove)


async def guard_routes(*, table: int | None = None, netns: str | None = None) -> tuple[Prefix, ...]:
    """The prefixes whose guard routes stand in a table, sorted, IPv4 first."""
    number = MAIN_TABLE if table is None else table
    with await Netlink.open(netns) as netlink:
        standing = await netlink.run(lambda rtnl: _standing(rtnl, number))
    prefixes = [route.prefix for route in standing]
    return tuple(sorted(prefixes, key=lambda p: (p.version, p.network_address.packed, p.prefixlen)))


def _has_ipv6() -> bool:
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()
    except OSError as error:
        return error.errno != errno.EAFNOSUPPORT
    return True


def _guard(prefix: Prefix, table: int) -> Route:
    return Route(prefix=prefix, table=table, metric=GUARD_METRIC, index=None)


def _standing(rtnl: Rtnl, table: int) -> set[Route]:
    routes = rtnl.unreachable_routes(table)
    return {route for route in routes if route.metric == GUARD_METRIC}

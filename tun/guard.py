"""Guard routes: what leaves through no tunnel leaves not at all.

An ``unreachable`` route with the worst metric stands under each prefix of a link, set before
the interface and independent of interface and daemon, removed only with the link. It is in
force when no other route to the prefix is left: no key yet, interface deleted, wireguard-go dead.
"""

from __future__ import annotations

from collections.abc import Iterable

from tun.model import Prefix
from tun.netlink import Netlink
from tun.routing import add_routes, delete_routes
from tun.rtnl import MAIN_TABLE, Route, Rtnl

__all__ = ["GUARD_METRIC", "guard_routes", "remove_guard_routes", "set_guard_routes"]

GUARD_METRIC = 4294967294
"""The worst but one: any other route to the same prefix goes before a guard route."""


async def set_guard_routes(
    prefixes: Iterable[Prefix], *, table: int | None = None, netns: str | None = None
) -> None:
    """Add the guard routes that are missing; others that stand already are left alone.

    0.0.0.0/0 and ::/0 get none: it would cut the host off, and mean nothing for the rest.
    Raises NotOurs where a route that is not ours has the same prefix and metric; none of them
    was added then. `table` None is the main table, `netns` None this process's namespace. Raises
    NamespaceMissing, TunError.
    """
    wanted = {_guard(prefix, table) for prefix in prefixes if prefix.prefixlen > 0}
    with await Netlink.open(netns) as netlink:
        await netlink.run(lambda rtnl: add_routes(rtnl, wanted - _standing(rtnl, table)))


async def remove_guard_routes(
    prefixes: Iterable[Prefix], *, table: int | None = None, netns: str | None = None
) -> None:
    """Remove the guard routes of these prefixes; one that is not there is no error."""
    unwanted = {_guard(prefix, table) for prefix in prefixes}
    with await Netlink.open(netns) as netlink:
        await netlink.run(lambda rtnl: delete_routes(rtnl, unwanted & _standing(rtnl, table)))


async def guard_routes(*, table: int | None = None, netns: str | None = None) -> tuple[Prefix, ...]:
    """The prefixes whose guard routes stand in a table, sorted, IPv4 first."""
    with await Netlink.open(netns) as netlink:
        standing = await netlink.run(lambda rtnl: _standing(rtnl, table))
    prefixes = [route.prefix for route in standing]
    return tuple(sorted(prefixes, key=lambda p: (p.version, p.network_address.packed, p.prefixlen)))


def _guard(prefix: Prefix, table: int | None) -> Route:
    return Route(
        prefix=prefix,
        table=MAIN_TABLE if table is None else table,
        metric=GUARD_METRIC,
        index=None,
    )


def _standing(rtnl: Rtnl, table: int | None) -> set[Route]:
    routes = rtnl.unreachable_routes(MAIN_TABLE if table is None else table)
    return {route for route in routes if route.metric == GUARD_METRIC}

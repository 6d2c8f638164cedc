"""Which routes to add and to delete: blocking steps on an open rtnetlink socket."""

from __future__ import annotations

import errno
from collections.abc import Iterable

from tun.errors import NotOurs, tun_error
from tun.model import Prefix
from tun.rtnl import KERNEL_PROTOCOL, OUR_PROTOCOL, Route, Rtnl, default_metric

__all__ = ["add_routes", "delete_routes", "set_routes_into"]


def set_routes_into(
    rtnl: Rtnl, index: int, prefixes: Iterable[Prefix], *, table: int, metric: int | None
) -> frozenset[Prefix]:
    """Make these our only routes into an interface; adds first, so that none is missed.
    Returns the prefixes that had none.

    A prefix for which the kernel has its own route there, from an address, needs none of ours.
    Raises NotOurs where another's route stands in the way, and TunError; nothing was added then.
    """
    standing = rtnl.routes_into(index)
    connected = {
        route.prefix
        for route in standing
        if route.protocol == KERNEL_PROTOCOL and route.table == table
    }
    wanted = {
        Route(
            prefix=prefix,
            table=table,
            metric=default_metric(prefix) if metric is None else metric,
            index=index,
        )
        for prefix in set(prefixes) - connected
    }
    ours = {route for route in standing if route.protocol == OUR_PROTOCOL}
    missing = wanted - ours
    add_routes(rtnl, missing)
    delete_routes(rtnl, ours - wanted)
    return frozenset(route.prefix for route in missing)


def add_routes(rtnl: Rtnl, routes: Iterable[Route]) -> None:
    """Add all or none of them; raises NotOurs where one stands that is not ours, and TunError."""
    added: list[Route] = []
    try:
        for route in sorted(routes, key=_order):
            try:
                rtnl.add_route(route)
            except OSError as error:
                raise _refusal(error, route) from None
            added.append(route)
    except BaseException:
        delete_routes(rtnl, added)
        raise


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


def _refusal(error: OSError, route: Route) -> Exception:
    if error.errno == errno.EEXIST:
        return NotOurs(
            f"table {route.table} has a route {route.prefix} with metric {route.metric} that "
            f"vpnd did not make (see `ip route show {route.prefix} table {route.table}`): "
            "choose another table or metric for the tunnel"
        )
    return tun_error(error, f"adding the route {route.prefix} to table {route.table}")

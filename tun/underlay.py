"""What a packet to a peer may measure on the way there, as far as this host knows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tun.rtnl import Rtnl, with_rtnl

__all__ = ["path_mtus"]


async def path_mtus(hosts: Iterable[str], *, fwmark: int | None, not_by: str) -> Mapping[str, int]:
    """The MTU in bytes towards each numeric address: what the kernel has learnt of the path or
    was told in the route, else what the device takes.

    A host without a route is left out, and so is one whose route leads into the interface `not_by`
    (a tunnel within itself).
    """

    def look_up(rtnl: Rtnl) -> Mapping[str, int]:
        found = {}
        for host in hosts:
            way = rtnl.way_to(host, fwmark or 0)
            if way is None:
                continue
            link = rtnl.link_at(way.index)
            if link is not None and link.name != not_by:
                found[host] = min(way.mtu or link.mtu, link.mtu)
        return found

    return await with_rtnl(look_up)

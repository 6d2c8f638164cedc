"""What the kernel says of the ways to prefixes and to peers, in one namespace."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tun.detours import Detours, Watched, find_detours, note_overlap
from tun.errors import TunError
from tun.model import ALIAS_PREFIX, Prefix
from tun.netlink import HERE, Netlink
from tun.routing import networks_of_this_host
from tun.rtnl import MAIN_TABLE, Rtnl, default_metric
from tun.vrf import routing_table
from tun.ways import Ranges, read_rules, read_ways

__all__ = ["Lookout", "Toward", "look_out", "ways_to_peers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookout:
    """A tunnel, and the prefixes that have to lead into it."""

    interface: str
    table: int | None
    vrf: str | None
    metric: int | None
    fwmark: int | None
    routed: frozenset[Prefix]
    """Those to which we make routes."""
    protected: frozenset[Prefix]
    """Those that somebody else routes, into any of our tunnels."""
    behind: frozenset[Prefix] = frozenset()
    """Parts of those that are behind this host."""
    networks: frozenset[Prefix] = frozenset()
    """Those of the tunnel's own addresses."""


@dataclass(frozen=True, slots=True)
class Toward:
    """Where a packet to a peer leaves."""

    interface: str
    """'' where it does not."""
    is_ours: bool
    """Whether the interface is a tunnel of ours."""


async def look_out(lookouts: Iterable[Lookout], netlink: Netlink = HERE) -> Mapping[str, Detours]:
    """What was found of each tunnel's prefixes, by its interface. Raises TunError, OSError.

    Tunnels with one table are looked at together: a route belongs to the longest prefix that holds
    it, whichever tunnel that leads into.
    """
    wanted = list(lookouts)
    ranges = Ranges(prefix for each in wanted for prefix in each.routed | each.protected)
    ways = await netlink.run_raw(lambda opened: read_ways(opened, ranges))
    rules = await netlink.run_raw(read_rules)

    def compare(rtnl: Rtnl) -> Mapping[str, Detours]:
        links = {link.index: link for link in rtnl.links()}
        names = {index: link.name for index, link in links.items()}
        indexes = {name: index for index, name in names.items()}
        ours = frozenset(
            index for index, link in links.items() if (link.alias or "").startswith(ALIAS_PREFIX)
        )
        networks = networks_of_this_host(rtnl)
        found: dict[str, Detours] = {}
        tables: dict[tuple[int, int | None], list[Lookout]] = {}
        for each in wanted:
            try:
                table = routing_table(rtnl, table=each.table, vrf=each.vrf)
            except TunError:
                continue  # its VRF is not there: the tunnel says so
            vrf = None if each.vrf is None else indexes.get(each.vrf)
            tables.setdefault((table, vrf), []).append(each)
        for (table, vrf), together in tables.items():
            watched = [
                one
                for each in together
                for one in _watched(each, indexes.get(each.interface), ours)
            ]
            of_table = table == MAIN_TABLE or vrf is not None
            detours = find_detours(
                watched,
                table=table,
                ways=ways,
                rules=rules,
                own=[each for each in networks if of_table and each.vrf == vrf],
                names=names,
                mark=together[0].fwmark,
                behind=frozenset().union(*(each.behind for each in together)),
            )
            for each in together:
                found[each.interface] = detours
                here = [one for one in networks if of_table and one.vrf == vrf]
                for prefix in each.networks:
                    for one in here:
                        note_overlap(detours, each.interface, prefix, one)
        return found

    return await netlink.run(compare)


def _watched(each: Lookout, index: int | None, ours: frozenset[int]) -> Iterable[Watched]:
    for prefix in each.routed:
        metric = default_metric(prefix) if each.metric is None else each.metric
        into = frozenset(() if index is None else (index,))
        yield Watched(prefix=prefix, interfaces=into, metric=metric)
    for prefix in each.protected:
        yield Watched(prefix=prefix, interfaces=ours, metric=None)


async def ways_to_peers(hosts: Iterable[str], *, fwmark: int | None) -> Mapping[str, Toward]:
    """Where what carries the fwmark leaves for each numeric address. Raises TunError, OSError."""

    def look_up(rtnl: Rtnl) -> Mapping[str, Toward]:
        found = {}
        for host in hosts:
            way = rtnl.way_to(host, fwmark or 0)
            link = None if way is None else rtnl.link_at(way.index)
            if link is None:
                found[host] = Toward("", is_ours=False)
            else:
                ours = (link.alias or "").startswith(ALIAS_PREFIX)
                found[host] = Toward(link.name, is_ours=ours)
        return found

    return await HERE.run(look_up)

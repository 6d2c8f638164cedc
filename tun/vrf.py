"""The VRF that an interface is part of, and the routing table that follows from it.

Blocking steps on an open rtnetlink socket.
"""

from __future__ import annotations

from tun.errors import NotOurs, TunError
from tun.rtnl import MAIN_TABLE, Link, Rtnl

__all__ = ["find_vrf", "routing_table"]


def find_vrf(rtnl: Rtnl, name: str) -> Link:
    """The VRF device. Raises TunError where there is none (yet), NotOurs for another device."""
    link = rtnl.link(name)
    if link is None:
        raise TunError(
            f"there is no VRF {name} (yet): ip link add {name} type vrf table NUMBER, and "
            f"ip link set {name} up"
        )
    if link.kind != "vrf" or link.vrf_table is None:
        raise NotOurs(f"the interface {name} is no VRF: name another one")
    return link


def routing_table(rtnl: Rtnl, *, table: int | None, vrf: str | None) -> int:
    """The table of a tunnel's routes and guards: as configured, else the VRF's, else the main one.

    A table that is configured stands without its VRF, too. Raises TunError where it is another
    one than the VRF's, and where the VRF alone is known and is not there.
    """
    if vrf is None:
        return MAIN_TABLE if table is None else table
    if table is not None and rtnl.link(vrf) is None:
        return table
    found = find_vrf(rtnl, vrf).vrf_table
    if found is None or table not in (None, found):
        raise TunError(
            f"the VRF {vrf} has the table {found}, and the tunnel is configured with {table}: "
            "leave the tunnel's table out, or correct it"
        )
    return found

"""An interface of ours that is not wanted any more, or not where it is."""

from __future__ import annotations

from contextlib import suppress

from tun import userspace
from tun.device import Device
from tun.errors import InterfaceMissing, NamespaceMissing
from tun.interface import BACKENDS, delete_link
from tun.model import TunnelSpec
from tun.netlink import HERE, Netlink
from tun.rtnl import Link, Rtnl

__all__ = ["delete_device", "delete_left_here", "delete_leftover"]


async def delete_leftover(spec: TunnelSpec) -> bool:
    """Delete the interface that the spec of an earlier run describes; whether there was one.

    Its routes and its wireguard-go process go with it. One of that name without this tunnel's
    alias is somebody else's, and stays. Raises NamespaceOutOfReach, TunError.
    """
    try:
        with await Netlink.open(spec.netns) as netlink:
            return await _delete_ours(spec, netlink)
    except NamespaceMissing:
        return False  # and the interface with it


async def delete_left_here(spec: TunnelSpec) -> None:
    """Delete what was never moved to its namespace, or is from before it was to live there.

    It is not moved now: a wireguard-go that has been running would not hear that its link is up.
    """
    await _delete_ours(spec, HERE)


async def _delete_ours(spec: TunnelSpec, netlink: Netlink) -> bool:
    def find(rtnl: Rtnl) -> Link | None:
        link = rtnl.link(spec.interface)
        return link if link is not None and link.alias == spec.alias else None

    link = await netlink.run(find)
    if link is None:
        return False
    index = link.index
    if BACKENDS.get(link.kind) == "userspace":
        with suppress(InterfaceMissing):  # then there is no process, and the link alone is left
            await delete_device(spec, index, await userspace.attach(link.name), netlink)
            return True
    await netlink.run(lambda rtnl: delete_link(rtnl, spec, index))
    return True


async def delete_device(spec: TunnelSpec, index: int, device: Device, netlink: Netlink) -> None:
    """Delete an interface, and wait until nothing is left of what carries it."""
    try:
        await netlink.run(lambda rtnl: delete_link(rtnl, spec, index))
        await device.wait_gone()
    finally:
        await device.aclose()

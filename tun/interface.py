"""The link beneath a tunnel: whose it is, its addresses, MTU and state.

Blocking steps on an open rtnetlink socket.
"""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass

from tun.errors import InterfaceMissing, NotOurs, TunError, tun_error
from tun.kernel import HALF_MADE_GROUP
from tun.model import ALIAS_PREFIX, BackendName, InterfaceAddress, TunnelSpec
from tun.routing import networks_of_this_host
from tun.rtnl import Link, Rtnl
from tun.vrf import find_vrf

__all__ = [
    "BACKENDS",
    "Configured",
    "configure_link",
    "delete_link",
    "find_link",
    "is_half_made",
    "require_free_port",
]

BACKENDS: dict[str | None, BackendName] = {"wireguard": "kernel", "tun": "userspace"}
"""The backend behind a kind of link."""


_YIELDING_METRIC = 2048
"""Of a tunnel's network that another interface has as well: worse than the kernel's own."""


def find_link(rtnl: Rtnl, spec: TunnelSpec) -> Link | None:
    """The interface of the tunnel if it exists; raises NotOurs for what is in its way.

    In its way is an interface of that name without our alias, and one of its addresses on an
    interface that is not ours. Tunnels of ours may share an address (unnumbered).
    """
    link = rtnl.link(spec.interface)
    if link is not None and not is_half_made(link):
        if link.alias != spec.alias:
            alias = f"with the alias {link.alias!r}" if link.alias else "without an alias"
            raise NotOurs(
                f"there is an interface {spec.interface} already, {alias} instead of "
                f"{spec.alias!r}: choose another name for the tunnel's"
            )
        if link.kind not in BACKENDS:
            raise NotOurs(
                f"the interface {spec.interface} is not a WireGuard one: choose another name for "
                "the tunnel's"
            )
    others = {other.index: other for other in rtnl.links() if other.name != spec.interface}
    wanted = {address.ip for address in spec.addresses if not address.ip.is_link_local}
    for found in rtnl.addresses():
        other = others.get(found.index)
        if other is None or (other.alias or "").startswith(ALIAS_PREFIX):
            continue
        if found.address.ip in wanted:
            raise NotOurs(
                f"the address {found.address.ip} of tunnel {spec.tunnel_name} is on the "
                f"interface {other.name} already: give the tunnel another one"
            )
    return link


def is_half_made(link: Link) -> bool:
    """Whether a killed daemon of ours left it between its creation and its alias."""
    return link.alias is None and link.group == HALF_MADE_GROUP and link.kind == "wireguard"


@dataclass(frozen=True, slots=True)
class Configured:
    """What came of bringing a link to its spec."""

    changed: list[str]
    """What differed, in words."""
    faults: tuple[str, ...]
    """What cannot be had, while the rest can: IPv6 addresses on a host without IPv6."""


def configure_link(rtnl: Rtnl, spec: TunnelSpec, index: int) -> Configured:
    """Bring name, VRF, MTU, addresses and state to what is wanted.

    Addresses that somebody else added to the interface stay; those that we added once and that
    are not wanted any more go (where the kernel remembers who added one: Linux 5.18).
    """
    link = rtnl.link_at(index)
    if link is None:
        raise InterfaceMissing(f"the interface {spec.interface} is gone")
    faults: list[str] = []
    named = _set_name(rtnl, spec, link)
    link = rtnl.link_at(index) or link
    try:
        # First: a change of VRF takes routes and IPv6 addresses away
        changed = named + _set_master(rtnl, spec, link)
        if spec.mtu is not None and link.mtu != spec.mtu:
            rtnl.set_mtu(index, spec.mtu)
            changed.append(f"MTU {link.mtu}")
        is_up = link.is_up
        if not is_up:
            _without_link_local(rtnl, index)
        changed += _set_addresses(rtnl, spec, index, faults)
        if not is_up:
            rtnl.set_up(index)
            changed.append("down")
    except OSError as error:
        raise tun_error(error, f"configuring the interface {spec.interface}") from error
    return Configured(changed, tuple(faults))


def _set_name(rtnl: Rtnl, spec: TunnelSpec, link: Link) -> list[str]:
    """The fence lets packets out by the interface of this name alone."""
    if link.name == spec.interface:
        return []
    if rtnl.link(spec.interface) is not None:
        raise TunError(
            f"the interface {spec.interface} was renamed to {link.name}, and another one has its "
            "name now: delete or rename that one"
        )
    try:
        try:
            rtnl.rename(link.index, spec.interface)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            rtnl.set_down(link.index)
            rtnl.rename(link.index, spec.interface)
    except OSError as error:
        raise tun_error(error, f"renaming {link.name} back to {spec.interface}") from error
    return [f"renamed to {link.name}"]


def _set_master(rtnl: Rtnl, spec: TunnelSpec, link: Link) -> list[str]:
    if spec.vrf is None:
        return []  # whoever made it a part of something had a reason
    vrf = find_vrf(rtnl, spec.vrf)
    if link.master == vrf.index:
        return []
    rtnl.set_master(link.index, vrf.index)
    return [f"not in the VRF {spec.vrf}"]


def _set_addresses(rtnl: Rtnl, spec: TunnelSpec, index: int, faults: list[str]) -> list[str]:
    changed = []
    standing = rtnl.addresses(index)
    this = rtnl.link_at(index)
    vrf = None if this is None else this.master
    taken = {each.prefix for each in networks_of_this_host(rtnl) if each.vrf == vrf}
    present = {found.address: found.metric for found in standing}
    for address in spec.addresses:
        # Another interface has the network as well: it goes first, also after it was down
        metric = _YIELDING_METRIC if address.network in taken else 0
        if metric and present.get(address) == 0:
            rtnl.delete_address(index, address)
            del present[address]
        if address not in present:
            fault = _add_address(rtnl, index, address, metric)
            if fault:
                faults.append(fault)
            else:
                changed.append(f"address {address} missing")
    for found in standing:
        if found.is_ours and found.address not in spec.addresses:
            rtnl.delete_address(index, found.address)
            changed.append(f"address {found.address} left over")
    return changed


def _without_link_local(rtnl: Rtnl, index: int) -> None:
    # As kernel WireGuard does of its own: a TUN link would get one, announce it by multicast, and
    # so send packets into the tunnel that nobody meant to send.
    try:
        rtnl.without_link_local(index)
    except OSError as error:
        if error.errno not in (errno.EAFNOSUPPORT, errno.EOPNOTSUPP):  # a host without IPv6
            raise


def _add_address(rtnl: Rtnl, index: int, address: InterfaceAddress, metric: int) -> str:
    """Add it; why it cannot be where only IPv6 is missing, else ''. Raises TunError."""
    try:
        rtnl.add_address(index, address, metric)
    except OSError as error:
        if error.errno == errno.EEXIST:
            return ""
        if address.version == 6 and error.errno in (errno.EACCES, errno.EOPNOTSUPP):
            no_ipv6 = TunError(
                f"adding the address {address}: IPv6 is switched off on this host "
                "(see `sysctl net.ipv6.conf.all.disable_ipv6`)"
            )
            return str(no_ipv6)
        raise tun_error(error, f"adding the address {address}") from error
    return ""


def delete_link(rtnl: Rtnl, spec: TunnelSpec, index: int) -> None:
    """Delete the interface if it still exists and still is ours; raises NotOurs if it is not."""
    link = rtnl.link_at(index)
    if link is None:
        return
    if link.alias != spec.alias and not is_half_made(link):
        raise NotOurs(f"the interface {link.name} is not ours any more: its alias has changed")
    try:
        rtnl.delete_link(index)
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise tun_error(error, f"deleting the interface {link.name}") from error


def require_free_port(port: int) -> None:
    """Raise TunError if a UDP port is taken.

    Asked before wireguard-go starts: while it does, it tells of that in its log only.
    """
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):  # noqa: S104
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind((address, port))
        except OSError as error:
            if error.errno != errno.EAFNOSUPPORT:
                raise tun_error(error, f"taking the UDP port {port}") from None

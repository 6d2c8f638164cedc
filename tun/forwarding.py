"""Whether the kernel forwards what comes in by an interface: net.ipv4.conf.*.forwarding and
net.ipv6.conf.all.forwarding, by netlink (RTM_GETNETCONF).

/proc/sys is another namespace's where the interface lives in one, and a unit with ProcSubset=pid
has none at all. Numbers from linux/rtnetlink.h and linux/netconf.h.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Final

from tun.errors import TunError
from tun.model import Prefix
from tun.namespace import NetlinkKind, open_here, open_in_namespace
from tun.rtnl import Link, Rtnl, borrowed, open_rtnl, prepare_rtnl

__all__ = ["Forwarding", "forwarding", "look_at_forwarding"]

_GET, _NEW, _ERROR = 82, 80, 2  # RTM_GETNETCONF, RTM_NEWNETCONF, NLMSG_ERROR
_IFINDEX, _FORWARDING = 1, 2  # NETCONFA_…
_ALL, _DEFAULT = -1, -2  # NETCONFA_IFINDEX_…
_REQUEST: Final = 1  # NLM_F_REQUEST
_HEADER: Final = struct.Struct("=IHHII")
_MESSAGE: Final = struct.Struct("=B3x")
_ATTRIBUTE: Final = struct.Struct("=HHi")
_PATIENCE: Final = 2.0
_HOSTS: Final = 3
"""Addresses of a prefix that are tried: one of them may be this host's own."""


@dataclass(frozen=True, slots=True)
class Forwarding:
    """What is not forwarded: the settings that are 0, as sysctl names them; none where all is."""

    ipv4_off: tuple[str, ...]
    ipv6_off: tuple[str, ...]


def forwarding(netns: str | None, interface: str, behind: Iterable[Prefix]) -> Forwarding:
    """The same as `look_at_forwarding`, in the namespace of that name, or here. Blocking.

    Raises NamespaceMissing, NamespaceOutOfReach, TunError, OSError.
    """
    if netns is None:
        return look_at_forwarding(None, interface, behind)
    with open_in_namespace(netns, NetlinkKind.ROUTE) as standing:
        prepare_rtnl(standing)
        return look_at_forwarding(standing, interface, behind)


def look_at_forwarding(
    standing: socket.socket | None, interface: str, behind: Iterable[Prefix]
) -> Forwarding:
    """What keeps packets between a tunnel's interface and the networks behind this host from being
    forwarded. Blocking; in the namespace of a socket that stands, or here.

    IPv4 goes by the interface that a packet comes in by: the tunnel's, and those that lead to the
    prefixes `behind`; an interface that is not there yet will be as `default` says. IPv6 goes by
    one setting for all. Raises TunError, OSError.
    """
    with open_rtnl(standing) as rtnl:
        link = rtnl.link(interface)
        inner = {} if link is None else _leading_to(rtnl, behind, link)
    with _raw(standing) as raw:
        index = _DEFAULT if link is None else link.index
        named = {index: interface, **inner}
        off = [name for at, name in named.items() if _forwards(raw, socket.AF_INET, at) is False]
        ipv4: tuple[str, ...] = tuple(f"net.ipv4.conf.{_spelt(name)}.forwarding" for name in off)
        if len(off) == len(named) and _forwards(raw, socket.AF_INET, _ALL) is False:
            ipv4 = ("net.ipv4.ip_forward",)
        ipv6 = _forwards(raw, socket.AF_INET6, _ALL)
    return Forwarding(ipv4, ("net.ipv6.conf.all.forwarding",) if ipv6 is False else ())


def _leading_to(rtnl: Rtnl, behind: Iterable[Prefix], tunnel: Link) -> dict[int, str]:
    """The interfaces, by index, that lead to IPv4 prefixes: packets from there come in by them."""
    found: dict[int, str] = {}
    for prefix in behind:
        if prefix.version != 4 or prefix.prefixlen == 0:
            continue
        hosts = prefix.hosts() if prefix.num_addresses > 1 else iter([prefix.network_address])
        for host in islice(hosts, _HOSTS):
            way = rtnl.way_to(str(host), 0)
            link = None if way is None else rtnl.link_at(way.index)
            if link is not None and link.name != "lo" and link.index != tunnel.index:
                found[link.index] = link.name
                break
    return found


def _spelt(interface: str) -> str:
    """An interface's name as a part of a sysctl's: a VLAN's has a dot in it."""
    return interface.replace(".", "/")


@contextmanager
def _raw(standing: socket.socket | None) -> Iterator[socket.socket]:
    opened = open_here(NetlinkKind.ROUTE) if standing is None else borrowed(standing)
    with opened as raw:
        raw.settimeout(_PATIENCE)
        yield raw


def _forwards(raw: socket.socket, family: int, index: int) -> bool | None:
    """One setting; None where the kernel has none: the family is switched off, the interface is
    gone."""
    body = _MESSAGE.pack(family) + _ATTRIBUTE.pack(_ATTRIBUTE.size, _IFINDEX, index)
    raw.sendto(_HEADER.pack(_HEADER.size + len(body), _GET, _REQUEST, 1, 0) + body, (0, 0))
    try:
        answer = raw.recv(65536)
    except TimeoutError:
        raise TunError("the kernel does not say whether it forwards") from None
    _, kind, _, _, _ = _HEADER.unpack_from(answer)
    if kind == _ERROR:
        (code,) = struct.unpack_from("=i", answer, _HEADER.size)
        if -code in (errno.EOPNOTSUPP, errno.ENODEV, errno.EINVAL, errno.EAFNOSUPPORT):
            return None
        raise OSError(-code, "asking whether packets are forwarded")
    at = _HEADER.size + _MESSAGE.size
    while kind == _NEW and at + _ATTRIBUTE.size <= len(answer):
        length, name, value = _ATTRIBUTE.unpack_from(answer, at)
        if name == _FORWARDING:
            return bool(value)
        at += max(length + 3 & ~3, 4)
    return None

"""Links, addresses and routes, through pyroute2: the one module that sees its untyped values.

pyroute2's synchronous sockets keep an event loop and a socket for each thread that calls them,
and a worker thread of trio's may be another one at every call. So a socket lives for one piece
of work in one thread: opening it takes less than a millisecond.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_interface, ip_network
from typing import Any, TypeVar

from pyroute2 import IPRoute  # type: ignore[import-untyped]
from pyroute2.netlink.exceptions import NetlinkError  # type: ignore[import-untyped]

from tun.model import InterfaceAddress, PacketCounts, Prefix

_T = TypeVar("_T")

__all__ = [
    "KERNEL_PROTOCOL",
    "MAIN_TABLE",
    "OUR_PROTOCOL",
    "Address",
    "Link",
    "Route",
    "Rtnl",
    "Way",
    "borrowed",
    "default_metric",
    "open_rtnl",
    "prepare_rtnl",
]

OUR_PROTOCOL = 157
"""Marks routes and addresses as vpnd's (rtm_protocol, ifa_proto); unused by others (rt_protos)."""

KERNEL_PROTOCOL = 2
"""Marks the routes that the kernel adds itself, beside each address."""

MAIN_TABLE = 254

_IFF_UP = 1
_NODAD = 0x02  # IFA_F_NODAD
_PERMANENT = 0x80  # IFA_F_PERMANENT
_UNICAST = 1
_UNREACHABLE = 7
_CLONED = 0x200  # RTM_F_CLONED: a cache entry, no route
_NO_LINK_LOCAL = 1  # IN6_ADDR_GEN_MODE_NONE

# What the kernel says where it would not send a packet: no route, and routes of such types
_NO_WAY = (
    errno.ENETUNREACH,
    errno.EHOSTUNREACH,
    errno.EACCES,
    errno.EINVAL,
    errno.ENODEV,
    errno.EPERM,
)

_UNREADABLE = (ValueError, KeyError, TypeError, IndexError, AttributeError, struct.error)
"""What pyroute2, and what is made of its values here, may fail with where the kernel says something
that nobody has thought of: about an interface, an address or a route of somebody else's."""

_SOL_NETLINK = 270
_STRICT_CHECK = 12  # NETLINK_GET_STRICT_CHK


@contextmanager
def open_rtnl(standing: socket.socket | None = None) -> Iterator[Rtnl]:
    """An open socket in this process's namespace, or one that stands (prepared; it is left open).

    Blocking, and for one thread at a time.
    """
    chosen = {} if standing is None else {"use_socket": _Borrowed(standing)}
    # groups=0: without it, the socket subscribes to every change of every route of the host.
    with _as_oserror(), IPRoute(strict_check=True, groups=0, **chosen) as iproute:
        yield Rtnl(iproute)


def prepare_rtnl(standing: socket.socket) -> None:
    """Make a socket that somebody else opened fit for `open_rtnl`. Raises OSError."""
    standing.setsockopt(_SOL_NETLINK, _STRICT_CHECK, 1)
    standing.bind((0, 0))


def borrowed(standing: socket.socket) -> socket.socket:
    """A copy of a prepared socket, to be closed by who asked; nothing waits to be read from it."""
    return _Borrowed(standing)


class _Borrowed(socket.socket):
    """A copy of a socket that stands, for pyroute2 to use and to close."""

    def __init__(self, standing: socket.socket) -> None:
        super().__init__(fileno=os.dup(standing.fileno()))
        self.setblocking(False)
        try:
            while True:  # what an earlier piece of work did not wait for
                self.recv(65536)
        except BlockingIOError:
            pass

    def bind(self, address: Any, /) -> None:
        """It is bound: a second time is refused."""

    def send(self, data: Any, flags: int = 0, /) -> int:
        """To the kernel, by its address: with none, Linux asks whether who opened the socket had
        CAP_NET_ADMIN as well (netlink_ns_capable in net/netlink/af_netlink.c)."""
        return self.sendto(data, flags, (0, 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A network interface."""

    index: int
    name: str
    kind: str | None
    alias: str | None
    group: int
    mtu: int
    is_up: bool
    master: int | None
    """The index of the VRF (or bridge) that it is part of."""
    vrf_table: int | None
    """The routing table, of a VRF."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """An address of an interface."""

    index: int
    address: InterfaceAddress
    is_ours: bool
    network: Prefix
    """What the kernel has a route for because of it."""
    metric: int
    """Of that route; 0 is the kernel's own choice."""
    is_lasting: bool
    """Without an end, as neither DHCP nor a router's advertisement gives them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """What the kernel says of the way to an address."""

    index: int
    """Of the interface that leads there."""
    mtu: int | None
    """Where the kernel knows of another one than the interface's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A route into an interface, or (without `index`) an unreachable one."""

    prefix: Prefix
    table: int
    metric: int
    index: int | None
    protocol: int = OUR_PROTOCOL


class Rtnl:
    """Blocking calls; each raises OSError with the kernel's error number."""

    def __init__(self, iproute: Any) -> None:
        self._iproute = iproute

    def link(self, name: str) -> Link | None:
        """The interface of this name, or None."""
        return self._one_link(ifname=name)

    def link_at(self, index: int) -> Link | None:
        """The interface of this index, or None."""
        return self._one_link(index=index)

    def _one_link(self, **chosen: Any) -> Link | None:
        try:
            with _as_oserror():
                (message,) = self._iproute.link("get", **chosen)
                return _link(message)
        except OSError as error:
            if error.errno == errno.ENODEV:
                return None
            raise

    def links(self) -> list[Link]:
        """All interfaces."""
        with _as_oserror():
            return list(_readable(self._iproute.get_links(), _link))

    def packets(self, index: int) -> PacketCounts | None:
        """What was counted at an interface; None where there is none."""
        try:
            with _as_oserror():
                (message,) = self._iproute.link("get", index=index)
                counts = message.get_attr("IFLA_STATS64")
                return PacketCounts(went_in=counts["tx_packets"], came_out=counts["rx_packets"])
        except OSError as error:
            if error.errno == errno.ENODEV:
                return None
            raise

    def create_wireguard(self, name: str, *, group: int, namespace: int | None = None) -> None:
        """Create a kernel WireGuard interface, in another namespace where its descriptor is given:
        its UDP socket will be in this one. EOPNOTSUPP where the kernel has none."""
        where = {} if namespace is None else {"net_ns_fd": namespace}
        self._link("add", ifname=name, kind="wireguard", group=group, **where)

    def move_link(self, index: int, namespace: int) -> None:
        """Move an interface to the namespace behind a descriptor; it is down and bare then."""
        self._link("set", index=index, net_ns_fd=namespace)

    def mark_link(self, index: int, alias: str) -> None:
        """Set the alias, and in the same step the default group."""
        self._link("set", index=index, ifalias=alias, group=0)

    def set_mtu(self, index: int, mtu: int) -> None:
        self._link("set", index=index, mtu=mtu)

    def set_master(self, index: int, master: int) -> None:
        """Make it a part of a VRF; what routes it had are lost."""
        self._link("set", index=index, master=master)

    def set_up(self, index: int) -> None:
        self._link("set", index=index, state="up")

    def set_down(self, index: int) -> None:
        self._link("set", index=index, state="down")

    def rename(self, index: int, name: str) -> None:
        """Give a link another name; before Linux 6.2 it has to be down for that."""
        self._link("set", index=index, ifname=name)

    def without_link_local(self, index: int) -> None:
        """Let the kernel generate no IPv6 link-local address."""
        mode = {"attrs": [["IFLA_INET6_ADDR_GEN_MODE", _NO_LINK_LOCAL]]}
        self._link("set", index=index, IFLA_AF_SPEC={"attrs": [["AF_INET6", mode]]})

    def delete_link(self, index: int) -> None:
        self._link("del", index=index)

    def _link(self, command: str, **values: Any) -> None:
        with _as_oserror():
            self._iproute.link(command, **values)

    def addresses(self, index: int | None = None) -> list[Address]:
        """The addresses of one interface, or of all."""
        chosen = {} if index is None else {"index": index}
        with _as_oserror():
            return list(_readable(self._iproute.addr("dump", **chosen), _address))

    def add_address(self, index: int, address: InterfaceAddress, metric: int = 0) -> None:
        """Add an address as ours, IPv6 without duplicate address detection; `metric` is that of
        the route that comes with it, 0 leaves it to the kernel."""
        more = {"rt_priority": metric} if metric else {}
        self._address("add", index, address, proto=OUR_PROTOCOL, **more)

    def delete_address(self, index: int, address: InterfaceAddress) -> None:
        self._address("del", index, address)

    def _address(self, command: str, index: int, address: InterfaceAddress, **values: int) -> None:
        if address.version == 6 and command == "add":
            values["flags"] = _NODAD
        with _as_oserror():
            self._iproute.addr(
                command,
                index=index,
                address=str(address.ip),
                prefixlen=address.network.prefixlen,
                **values,
            )

    def routes_into(self, index: int) -> list[Route]:
        """All routes into an interface, ours and others, of all tables."""
        return self._routes(oif=index)

    def unreachable_routes(self, table: int) -> list[Route]:
        """Our unreachable routes in a table."""
        return self._routes(table=table, proto=OUR_PROTOCOL, type=_UNREACHABLE)

    def _routes(self, **chosen: int) -> list[Route]:
        found: list[Route] = []

        def take(message: Any) -> bool:
            found.extend(_readable([message], _route))
            # It is not wanted any more: a thousand that are kept until the end of the dump are
            # garbage in a thousand circles then, whose collection holds everybody up
            return False

        for family in (socket.AF_INET, socket.AF_INET6):
            # Without a filter of one's own, pyroute2 fetches every route of the host and filters
            # here: half a minute where BGP fills a table. With one, what is chosen goes into the
            # request, and the kernel filters (strict_check).
            with _as_oserror():
                self._iproute.route("dump", family=family, dump_filter=take, **chosen)
        return found

    def way_to(self, host: str, mark: int) -> Way | None:
        """By where a packet with a mark leaves for a numeric address; None where it does not."""
        plain, _, zone = host.partition("%")
        chosen: dict[str, Any] = {"dst": plain, "mark": mark}
        if zone:
            chosen["oif"] = int(zone)
        try:
            with _as_oserror():
                (message,) = self._iproute.route(
                    "get", family=socket.AF_INET6 if ":" in plain else socket.AF_INET, **chosen
                )
                return _way(message)
        except OSError as error:
            if error.errno in _NO_WAY:
                return None
            raise

    def add_route(self, route: Route) -> None:
        """Add a route as ours; EEXIST where one of the same prefix and metric stands."""
        self._route("add", route)

    def delete_route(self, route: Route) -> None:
        """Delete a route that is ours; ESRCH where there is none."""
        self._route("del", route)

    def _route(self, command: str, route: Route) -> None:
        values: dict[str, Any] = {
            "dst": str(route.prefix),
            "family": socket.AF_INET if route.prefix.version == 4 else socket.AF_INET6,
            "table": route.table,
            "proto": OUR_PROTOCOL,
        }
        if route.metric:  # for IPv4, none at all is 0
            values["priority"] = route.metric
        if route.index is None:
            values["type"] = "unreachable"
        else:
            values["oif"] = route.index
        with _as_oserror():
            self._iproute.route(command, **values)


@contextmanager
def _as_oserror() -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        raise OSError(error.code, error.args[1]) from None
    except _UNREADABLE as error:
        raise OSError(errno.EBADMSG, "the kernel's answer cannot be read") from error


def _readable(messages: Iterable[Any], read: Callable[[Any], _T | None]) -> Iterator[_T]:
    """What can be made of a dump's messages: one that cannot be read is not one of ours, and does
    not keep the others from being seen."""
    for message in messages:
        try:
            found = read(message)
        except _UNREADABLE:
            continue
        if found is not None:
            yield found


def _text(value: Any) -> str | None:
    """A name or an alias: bytes that somebody chose, and UTF-8 only as a rule. What is not is
    escaped, so that it can be shown."""
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value


def default_metric(prefix: Prefix) -> int:
    """The metric of a route of ours where none is configured: the best one that there is."""
    return 0 if prefix.version == 4 else 1


def _link(message: Any) -> Link:
    info = message.get_attr("IFLA_LINKINFO")
    kind = info.get_attr("IFLA_INFO_KIND") if info is not None else None
    vrf = info.get_attr("IFLA_INFO_DATA") if kind == "vrf" else None
    return Link(
        index=message["index"],
        name=_text(message.get_attr("IFLA_IFNAME")) or "",
        kind=_text(kind),
        alias=_text(message.get_attr("IFLA_IFALIAS")),
        group=message.get_attr("IFLA_GROUP") or 0,
        mtu=message.get_attr("IFLA_MTU"),
        is_up=bool(message["flags"] & _IFF_UP),
        master=message.get_attr("IFLA_MASTER"),
        vrf_table=None if vrf is None else vrf.get_attr("IFLA_VRF_TABLE"),
    )


def _address(message: Any) -> Address:
    length, far = message["prefixlen"], message.get_attr("IFA_ADDRESS")
    host = message.get_attr("IFA_LOCAL") or far
    flags = message.get_attr("IFA_FLAGS") or message["flags"]
    return Address(
        index=message["index"],
        address=ip_interface(f"{host}/{length}"),
        is_ours=message.get_attr("IFA_PROTO") == OUR_PROTOCOL,
        network=ip_network(f"{far or host}/{length}", strict=False),
        metric=message.get_attr("IFA_RT_PRIORITY") or 0,
        is_lasting=bool(flags & _PERMANENT),
    )


def _way(message: Any) -> Way | None:
    index, metrics = message.get_attr("RTA_OIF"), message.get_attr("RTA_METRICS")
    if index is None:
        return None
    return Way(index=index, mtu=None if metrics is None else metrics.get_attr("RTAX_MTU"))


def _route(message: Any) -> Route | None:
    if message["flags"] & _CLONED:
        return None
    default = "0.0.0.0" if message["family"] == socket.AF_INET else "::"  # noqa: S104 - a prefix
    destination = message.get_attr("RTA_DST") or default
    return Route(
        prefix=ip_network(f"{destination}/{message['dst_len']}"),
        table=message.get_attr("RTA_TABLE") or message["table"],
        metric=message.get_attr("RTA_PRIORITY") or 0,
        index=message.get_attr("RTA_OIF") if message["type"] == _UNICAST else None,
        protocol=message["proto"],
    )

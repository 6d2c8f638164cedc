"""Which routes and rules of this host could lead a prefix elsewhere than into its tunnel.

Read from the kernel by hand: where BGP fills a table, pyroute2 would take half a minute for what
takes a second here, since of each route only a few bytes are looked at. Blocking.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Final

from tun.errors import MalformedAnswer
from tun.model import Prefix

__all__ = ["Ranges", "Rule", "Way", "read_rules", "read_ways", "route_of"]

_HEADER: Final = struct.Struct("=IHHII")
_ATTRIBUTE: Final = struct.Struct("=HH")
_ROUTE: Final = struct.Struct("=BBBBBBBBI")  # struct rtmsg
_RULE: Final = struct.Struct("=BBBBBBBBI")  # struct fib_rule_hdr
_NEXT_HOP: Final = struct.Struct("=HBBi")  # struct rtnexthop
_U32: Final = struct.Struct("=I")

_ERROR: Final = 2
_DONE: Final = 3
_F_REQUEST: Final = 0x01
_F_DUMP: Final = 0x300
_NEW_ROUTE, _GET_ROUTE = 24, 26
_NEW_RULE, _GET_RULE = 32, 34
_CLONED: Final = 0x200
_LOCAL_TABLE: Final = 255
_LOCAL_TYPES: Final = (2, 3, 4, 5)  # local, broadcast, anycast, multicast
_INVERTED: Final = 2  # FIB_RULE_INVERT
_REFUSING: Final = (6, 7, 8)  # FR_ACT_BLACKHOLE, _UNREACHABLE, _PROHIBIT
_SELECTORS: Final = (3, 10, 16, 17, 20, 22, 23, 24)
"""Interfaces, mark, users, protocol and ports."""
_PATIENCE: Final = 10.0  # seconds
_BUFFER: Final = 1 << 18


class Ranges:
    """The addresses that are looked at, for a quick no."""

    def __init__(self, prefixes: Iterable[Prefix]) -> None:
        spans: dict[int, list[tuple[int, int]]] = {4: [], 6: []}
        for prefix in prefixes:
            first, last = int(prefix.network_address), int(prefix.broadcast_address)
            spans[prefix.version].append((first, last))
        self._merged = {version: _merged(some) for version, some in spans.items()}
        self._starts = {version: [one for one, _ in some] for version, some in self._merged.items()}

    def touch(self, version: int, first: int, last: int) -> bool:
        """Whether any of these addresses is one of them."""
        position = bisect_right(self._starts[version], last) - 1
        return position >= 0 and self._merged[version][position][1] >= first


def _merged(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for first, last in sorted(spans):
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return merged


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A route."""

    prefix: Prefix
    table: int
    metric: int
    protocol: int
    """Who made it (rtm_protocol)."""
    outs: frozenset[int]
    """The interfaces that it leads into; empty for one that refuses or drops."""
    gateway: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """An `ip rule`."""

    version: int
    priority: int
    table: int
    is_lookup: bool
    source: Prefix | None
    destination: Prefix | None
    mark: int | None
    by_interface: bool
    """For sockets that are bound to an interface."""
    is_selective: bool
    """Whether there is anything that has to match, but for the destination."""
    suppressed: int | None
    """Routes of this prefix length and shorter are passed over."""
    refuses: bool = False
    """It looks nothing up, and drops or refuses what it matches."""


def read_ways(opened: socket.socket, ranges: Ranges) -> list[Way]:
    """All routes of all tables, but the local one, to addresses of these ranges."""
    found = []
    for family, version, bits in ((socket.AF_INET, 4, 32), (socket.AF_INET6, 6, 128)):
        request = _ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
        for body in _dump(opened, _GET_ROUTE, _NEW_ROUTE, request):
            way = route_of(body, version, bits, ranges)
            if way is not None:
                found.append(way)
    return found


def route_of(body: memoryview, version: int, bits: int, ranges: Ranges) -> Way | None:
    """The route of one message; None for one that is not looked at."""
    family, length, _, _, table, protocol, _, kind, flags = _ROUTE.unpack_from(body)
    if family != (socket.AF_INET if version == 4 else socket.AF_INET6):
        return None  # asked for IPv6, a host without it tells of IPv4
    if table == _LOCAL_TABLE or kind in _LOCAL_TYPES or flags & _CLONED:
        return None
    metric, outs, gateway, address = 0, set(), "", 0
    for attribute, value in _attributes(body[_ROUTE.size :]):
        if attribute == 1:
            address = int.from_bytes(value, "big")
            if not ranges.touch(version, address, address | ((1 << (bits - length)) - 1)):
                return None
        elif attribute == 4:
            outs.add(_U32.unpack(value)[0])
        elif attribute == 5:
            gateway = str(ip_address(bytes(value)))
        elif attribute == 6:
            metric = _U32.unpack(value)[0]
        elif attribute == 9:
            outs |= _next_hops(value)
        elif attribute == 15:
            table = _U32.unpack(value)[0]
    if table == _LOCAL_TABLE:
        return None
    if length == 0 and not ranges.touch(version, 0, (1 << bits) - 1):
        return None
    packed = address.to_bytes(bits // 8, "big")
    return Way(
        prefix=ip_network((packed, length)),
        table=table,
        metric=metric,
        protocol=protocol,
        outs=frozenset(outs if kind == 1 else ()),
        gateway=gateway,
    )


def read_rules(opened: socket.socket) -> list[Rule]:
    """All rules by which tables are chosen, in their order."""
    found = []
    for family, version in ((socket.AF_INET, 4), (socket.AF_INET6, 6)):
        request = _RULE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
        try:
            found += [_rule(body, version) for body in _dump(opened, _GET_RULE, _NEW_RULE, request)]
        except OSError as error:
            if error.errno not in (errno.EAFNOSUPPORT, errno.EOPNOTSUPP):  # without IPv6
                raise
    return sorted(found, key=lambda rule: rule.priority)


def _rule(body: memoryview, version: int) -> Rule:
    _, to_length, from_length, tos, table, _, _, action, flags = _RULE.unpack_from(body)
    values = dict(_attributes(body[_RULE.size :]))

    def number(attribute: int) -> int | None:
        value = values.get(attribute)
        return None if value is None or len(value) != _U32.size else int(_U32.unpack(value)[0])

    def prefix(attribute: int, length: int) -> Prefix | None:
        value = values.get(attribute)
        return None if value is None else ip_network((bytes(value), length))

    is_inverted = bool(flags & _INVERTED)
    suppressed = number(14)
    return Rule(
        version=version,
        priority=number(6) or 0,
        table=number(15) or table,
        # A rule for VRFs (FRA_L3MDEV) names no table
        is_lookup=action == 1 and 19 not in values,
        source=None if is_inverted else prefix(2, from_length),
        destination=None if is_inverted else prefix(1, to_length),
        mark=None if is_inverted else number(10),
        by_interface=17 in values,
        is_selective=bool(is_inverted or tos or from_length or values.keys() & set(_SELECTORS)),
        suppressed=None if suppressed in (None, 0xFFFFFFFF) else suppressed,
        refuses=action in _REFUSING,
    )


def _next_hops(value: memoryview) -> set[int]:
    found, position = set(), 0
    while position + _NEXT_HOP.size <= len(value):
        length, _, _, index = _NEXT_HOP.unpack_from(value, position)
        found.add(index)
        position += max((length + 3) & ~3, _NEXT_HOP.size)
    return found


def _attributes(view: memoryview) -> Iterator[tuple[int, memoryview]]:
    position = 0
    while position + _ATTRIBUTE.size <= len(view):
        length, kind = _ATTRIBUTE.unpack_from(view, position)
        if length < _ATTRIBUTE.size:
            return
        yield kind & 0x3FFF, view[position + _ATTRIBUTE.size : position + length]
        position += (length + 3) & ~3


def _dump(opened: socket.socket, kind: int, wanted: int, request: bytes) -> Iterator[memoryview]:
    opened.settimeout(_PATIENCE)
    sequence = int.from_bytes(os.urandom(4), "big") or 1
    header = _HEADER.pack(_HEADER.size + len(request), kind, _F_REQUEST | _F_DUMP, sequence, 0)
    opened.sendto(header + request, (0, 0))
    while True:
        datagram, _, flags, sender = opened.recvmsg(_BUFFER)
        if flags & socket.MSG_TRUNC:
            raise MalformedAnswer("the kernel's answer does not fit the buffer")
        if sender[0] != 0:
            continue  # another process; only the kernel (port 0) may answer
        view, position = memoryview(datagram), 0
        while position + _HEADER.size <= len(view):
            length, answer, _, number, _ = _HEADER.unpack_from(view, position)
            if length < _HEADER.size or position + length > len(view):
                raise MalformedAnswer("the kernel's answer has a message of a wrong length")
            body = view[position + _HEADER.size : position + length]
            position += (length + 3) & ~3
            if number != sequence:
                continue
            if answer in (_ERROR, _DONE):
                (code,) = struct.unpack_from("=i", body) if len(body) >= 4 else (0,)
                if code:
                    raise OSError(-code, os.strerror(-code))
                return
            if answer == wanted:
                yield body

"""Notices that links, addresses, routes or fences were changed, by whomever.

`ChangeWatch` is told of every change of a link or an address, and of those routes that carry our
protocol number: a filter in the kernel keeps the others away, which on a host with BGP come by the
thousand. `RouteWatch` is told of those, too, and of rules, and looks at few bytes of each.
`FenceWatch` is told of changes of nftables.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
from ctypes import addressof, create_string_buffer
from dataclasses import dataclass
from ipaddress import ip_network
from types import TracebackType
from typing import Final, Self

import trio

from tun.fence import FENCE_PREFIX
from tun.guard import GUARD_METRIC
from tun.model import Prefix
from tun.rtnl import OUR_PROTOCOL
from tun.ways import Ranges, route_of

__all__ = ["ChangeWatch", "Changes", "FenceWatch", "RouteWatch"]

_NETLINK_ROUTE: Final = 0
_NETLINK_NETFILTER: Final = 12
_GROUP_OF_NFTABLES: Final = 1 << 6  # NFNLGRP_NFTABLES
# RTMGRP_IPV4_IFADDR, _IPV4_ROUTE, _IPV4_RULE, _IPV6_IFADDR, _IPV6_ROUTE; RTNLGRP_IPV6_RULE
_GROUPS_OF_ROUTING: Final = 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 1 << 18
_AT_ONCE: Final = 1000
"""Messages that are taken before other tasks get their turn."""
_LONGEST: Final = 1 << 16
_HEADER_LENGTH: Final = 16  # struct nlmsghdr
_KIND_OFFSET: Final = 7  # rtm_type
_UNREACHABLE: Final = 7
_EVERYTHING: Final = Ranges(map(ip_network, ("0.0.0.0/0", "::/0")))
# RTMGRP_LINK, _IPV4_IFADDR, _IPV4_ROUTE, _IPV6_IFADDR, _IPV6_ROUTE: linux/rtnetlink.h
_GROUPS: Final = 0x1 | 0x10 | 0x40 | 0x100 | 0x400
_SO_ATTACH_FILTER: Final = 26
_RTM_NEWROUTE: Final = 24
_RTM_DELROUTE: Final = 25
_TYPE_OFFSET: Final = 4  # of struct nlmsghdr
_PROTOCOL_OFFSET: Final = 16 + 5  # rtm_protocol, behind the header
# linux/bpf_common.h
_LOAD_HALF: Final = 0x28
_LOAD_BYTE: Final = 0x30
_JUMP_EQUAL: Final = 0x15
_RETURN: Final = 0x06
_INSTRUCTION: Final = struct.Struct("=HBBI")
_ALL_OF_IT: Final = 0xFFFF


@dataclass(frozen=True, slots=True)
class Changes:
    """What has changed since the last call."""

    deleted_guards: frozenset[Prefix] = frozenset()
    """Prefixes whose guard route was deleted, in whichever table."""


class _Watch:
    """An open netlink socket that listens to groups; a context manager."""

    def __init__(self, protocol: int, groups: int, program: bytes = b"") -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK,
            socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK,
            protocol,
        )
        try:
            if program:
                _attach(self._socket, program)
            self._socket.bind((0, groups))
        except BaseException:
            self._socket.close()
            raise

    async def _received(self) -> tuple[list[bytes], bool]:
        """Wait for a message and take all that there are, up to a bound; whether some were lost."""
        await trio.lowlevel.wait_readable(self._socket)
        messages: list[bytes] = []
        while len(messages) < _AT_ONCE:
            try:
                messages.append(self._socket.recv(_LONGEST))
            except BlockingIOError:
                return messages, False
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # more changes than there was room for
                    raise
                return messages, True
        return messages, False

    def close(self) -> None:
        trio.lowlevel.notify_closing(self._socket)
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class ChangeWatch(_Watch):
    """Tells that something changed, and which guard routes were deleted."""

    def __init__(self) -> None:
        """Open it in the current network namespace. Raises OSError."""
        super().__init__(_NETLINK_ROUTE, _GROUPS, _our_routes_only())

    async def wait_changed(self) -> Changes:
        """Wait for a change since the last call, and take note of all that there are."""
        messages, _ = await self._received()
        deleted = {prefix for each in messages if (prefix := _deleted_guard(each)) is not None}
        return Changes(frozenset(deleted))


class RouteWatch(_Watch):
    """Tells of changes of whosoever's routes and rules that may concern some addresses."""

    def __init__(self) -> None:
        """Open it in the current network namespace. Raises OSError."""
        super().__init__(_NETLINK_ROUTE, _GROUPS_OF_ROUTING)
        self.ranges = Ranges(())

    async def wait_changed(self) -> None:
        """Wait for a change that may concern the addresses of `ranges`."""
        while True:
            messages, lost = await self._received()
            if lost or any(map(self._concerns, messages)):
                return

    def _concerns(self, message: bytes) -> bool:
        kind = int.from_bytes(message[_TYPE_OFFSET : _TYPE_OFFSET + 2], sys.byteorder)
        if kind not in (_RTM_NEWROUTE, _RTM_DELROUTE):
            return True
        body = memoryview(message)[_HEADER_LENGTH:]
        version, bits = (4, 32) if body[0] == socket.AF_INET else (6, 128)
        if body[0] not in (socket.AF_INET, socket.AF_INET6):
            return False
        way = route_of(body, version, bits, self.ranges)
        return way is not None and way.protocol != OUR_PROTOCOL


class FenceWatch(_Watch):
    """Tells that somebody changed an nftables table of a fence."""

    def __init__(self) -> None:
        """Open it in the current network namespace. Raises OSError where there is no nftables."""
        super().__init__(_NETLINK_NETFILTER, _GROUP_OF_NFTABLES)

    async def wait_changed(self) -> None:
        """Wait for a change of a table whose name begins as a fence's does."""
        while True:
            messages, lost = await self._received()
            if lost or any(FENCE_PREFIX.encode() in each for each in messages):
                return


def _deleted_guard(message: bytes) -> Prefix | None:
    """The prefix of a guard route whose deletion this message tells of."""
    if int.from_bytes(message[_TYPE_OFFSET : _TYPE_OFFSET + 2], sys.byteorder) != _RTM_DELROUTE:
        return None
    body = memoryview(message)[_HEADER_LENGTH:]
    if len(body) < _KIND_OFFSET + 1 or body[_KIND_OFFSET] != _UNREACHABLE:
        return None
    if body[0] not in (socket.AF_INET, socket.AF_INET6):
        return None
    version, bits = (4, 32) if body[0] == socket.AF_INET else (6, 128)
    way = route_of(body, version, bits, _EVERYTHING)
    return None if way is None or way.metric != GUARD_METRIC else way.prefix


def _our_routes_only() -> bytes:
    """All but routes of another protocol, as instructions of classic BPF (man 7 socket)."""

    def loaded(value: int) -> int:
        # BPF loads in network order what netlink wrote in the host's
        return socket.htons(value)

    steps = (
        (_LOAD_HALF, 0, 0, _TYPE_OFFSET),
        (_JUMP_EQUAL, 1, 0, loaded(_RTM_NEWROUTE)),
        (_JUMP_EQUAL, 0, 2, loaded(_RTM_DELROUTE)),
        (_LOAD_BYTE, 0, 0, _PROTOCOL_OFFSET),
        (_JUMP_EQUAL, 0, 1, OUR_PROTOCOL),
        (_RETURN, 0, 0, _ALL_OF_IT),
        (_RETURN, 0, 0, 0),
    )
    return b"".join(_INSTRUCTION.pack(*step) for step in steps)


def _attach(to: socket.socket, program: bytes) -> None:
    buffer = create_string_buffer(program, len(program))
    # struct sock_fprog: the number of instructions, and where they are
    fprog = struct.pack("@HP", len(program) // _INSTRUCTION.size, addressof(buffer))
    to.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)

"""Told by the kernel at once when a network interface goes: the next look may be seconds away.

Of netlink's link group only the deletions are read: no answer is awaited, so this needs neither a
thread nor pyroute2. A look at the interface stays the authority; what comes from here is a hint.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import AsyncIterator, Iterator

import trio

__all__ = ["deleted_links"]

_RTMGRP_LINK = 1
_RTM_DELLINK = 17
_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence number, port
_INFO = struct.Struct("=BxHi")  # ifinfomsg, its first fields: family, type, index
_BUFFER = 65536  # netlink(7): larger than any datagram of it


async def deleted_links() -> AsyncIterator[int | None]:
    """The index of each interface that is deleted in this process's network namespace.

    None where the kernel had more to tell than it could keep: any of them may be gone then.
    """
    opened = trio.socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
    )
    with opened as group:
        await group.bind((0, _RTMGRP_LINK))
        while True:
            try:
                data = await group.recv(_BUFFER)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                yield None
                continue
            for index in _deleted(data):
                yield index


def _deleted(data: bytes) -> Iterator[int]:
    """The indices in the deletions of one netlink datagram."""
    offset = 0
    while offset + _HEADER.size + _INFO.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, offset)
        family, _, index = _INFO.unpack_from(data, offset + _HEADER.size)
        # Another family is that of a bridge's port that leaves its bridge: the link itself stays
        if kind == _RTM_DELLINK and family == socket.AF_UNSPEC:
            yield index
        if length < _HEADER.size:
            return
        offset += (length + 3) & ~3

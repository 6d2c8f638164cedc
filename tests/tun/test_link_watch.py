"""Which links a netlink datagram says are deleted."""

from __future__ import annotations

import socket
import struct

import pytest

from tun.link_watch import _deleted

NEW_LINK, DELETED_LINK = 16, 17


def message(kind: int, index: int, *, family: int = socket.AF_UNSPEC, more: bytes = b"") -> bytes:
    body = struct.pack("=BxHiII", family, 1, index, 0, 0) + more
    head = struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0)
    return (head + body).ljust(-(-len(head + body) // 4) * 4, b"\0")


@pytest.mark.parametrize(
    ("data", "indices"),
    [
        (message(DELETED_LINK, 7), [7]),
        (message(NEW_LINK, 7), []),
        (message(NEW_LINK, 7, more=b"wg0") + message(DELETED_LINK, 8), [8]),
        (message(DELETED_LINK, 8, more=b"x") + message(DELETED_LINK, 9), [8, 9]),
        (message(DELETED_LINK, 7, family=socket.AF_BRIDGE), []),
        (b"", []),
        (message(DELETED_LINK, 7)[:20], []),
        (struct.pack("=IHHII", 0, DELETED_LINK, 0, 0, 0) + bytes(16), [0]),
    ],
)
def test_deletions(data: bytes, indices: list[int]) -> None:
    assert list(_deleted(data)) == indices

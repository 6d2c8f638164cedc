"""The generic netlink socket, against the kernel (needs no rights)."""

from __future__ import annotations

import errno

import pytest

from tun.genetlink import GenericNetlink
from tun.namespace import NetlinkKind, open_here


def test_a_family_is_found_and_dumped() -> None:
    netlink = GenericNetlink(open_here(NetlinkKind.GENERIC), "nlctrl")
    try:
        messages: list[bytes] = []
        for _ in range(2):  # the socket stays usable
            messages.clear()
            netlink.dump(3, bytearray(), lambda attributes: messages.append(bytes(attributes)))
        assert any(b"nlctrl\0" in message for message in messages)
        assert not any(netlink._buffer), "what was received is overwritten"
    finally:
        netlink.close()


def test_a_missing_family_is_an_error_with_its_number() -> None:
    with pytest.raises(OSError, match="No such file") as caught:
        GenericNetlink(open_here(NetlinkKind.GENERIC), "vpnd-has-none")
    assert caught.value.errno == errno.ENOENT


def test_a_refused_command_is_an_error_and_the_next_one_works() -> None:
    netlink = GenericNetlink(open_here(NetlinkKind.GENERIC), "nlctrl")
    try:
        with pytest.raises(OSError, match=r".") as caught:
            netlink.request(250, bytearray())
        assert caught.value.errno == errno.EOPNOTSUPP
        netlink.dump(3, bytearray(), lambda _: None)
    finally:
        netlink.close()

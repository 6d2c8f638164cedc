"""Notices that links, addresses or routes of ours were changed, by whomever.

A netlink socket that is told of every change of a link or an address, and of those routes that
carry our protocol number: a filter in the kernel keeps the others away, which on a host with BGP
come by the thousand.
"""

from __future__ import annotations

import errno
import socket
import struct
from ctypes import addressof, create_string_buffer
from types import TracebackType
from typing import Final, Self

import trio

from tun.rtnl import OUR_PROTOCOL

__all__ = ["ChangeWatch"]

_NETLINK_ROUTE: Final = 0
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


class ChangeWatch:
    """An open socket; a context manager. Tells that something changed, not what."""

    def __init__(self) -> None:
        """Open it in the current network namespace. Raises OSError."""
        self._socket = socket.socket(
            socket.AF_NETLINK,
            socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK,
            _NETLINK_ROUTE,
        )
        try:
            _attach(self._socket, _our_routes_only())
            self._socket.bind((0, _GROUPS))
        except BaseException:
            self._socket.close()
            raise

    async def wait_changed(self) -> None:
        """Wait for a change since the last call, and take note of all that there are."""
        await trio.lowlevel.wait_readable(self._socket)
        while True:
            try:
                self._socket.recv(1)  # the rest of the message is dropped
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # more changes than there was room for
                    raise

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

"""A generic netlink socket for one family: requests with acknowledgement, and dumps.

Blocking: called in a worker thread. Why not pyroute2's: its socket writes decoded messages,
keys and all, to its debug log, and keeps what it received in buffers that cannot be overwritten.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable

from tun.errors import MalformedAnswer

__all__ = ["DumpInterrupted", "GenericNetlink"]

_NLMSG_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence number, port
_GENL_HEADER = struct.Struct("=BBH")  # command, version, reserved
_ERROR = struct.Struct("=i")
_ATTRIBUTE = struct.Struct("=HH")

_NLMSG_NOOP = 1
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_F_REQUEST = 0x01
_F_ACK = 0x04
_F_DUMP_INTERRUPTED = 0x10
_F_DUMP = 0x300

_CONTROL_FAMILY = 0x10
_CONTROL_GET_FAMILY = 3
_CONTROL_FAMILY_ID = 1
_CONTROL_FAMILY_NAME = 2

_RECEIVE_BUFFER = 65536  # the kernel never makes a dump's message longer than 32 KiB
_TIMEOUT = 10.0  # seconds; the kernel answers at once, or something is very wrong


class DumpInterrupted(Exception):
    """The interface changed while it was dumped: what was read may be inconsistent."""


class GenericNetlink:
    """An open socket. Its methods raise OSError with the kernel's error number."""

    def __init__(self, socket_: socket.socket, family_name: str) -> None:
        """Take over a new socket for generic netlink; ENOENT if there is no such family."""
        self._sequence = 0
        self._buffer = bytearray(_RECEIVE_BUFFER)
        self._socket = socket_
        try:
            self._socket.settimeout(_TIMEOUT)
            self._socket.bind((0, 0))
            self._family = self._resolve(family_name)
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        self._socket.close()

    def request(self, command: int, attributes: bytearray) -> None:
        """Send a command and wait for its acknowledgement."""
        self._send(self._family, _F_REQUEST | _F_ACK, command, attributes)
        self._receive(lambda _: None)

    def dump(self, command: int, attributes: bytearray, take: Callable[[memoryview], None]) -> None:
        """Send a dump command; `take` gets the attributes of each message, for the call only.

        The buffer behind them is overwritten before this returns. Raises DumpInterrupted.
        """
        self._send(self._family, _F_REQUEST | _F_DUMP, command, attributes)
        self._receive(take)

    def _resolve(self, name: str) -> int:
        value = name.encode("ascii") + b"\0"
        request = bytearray(_ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), _CONTROL_FAMILY_NAME))
        request += value + bytes(-len(value) % 4)
        found: list[int] = []

        def take(attributes: memoryview) -> None:
            position = 0
            while position + _ATTRIBUTE.size <= len(attributes):
                length, kind = _ATTRIBUTE.unpack_from(attributes, position)
                if kind == _CONTROL_FAMILY_ID:
                    found.extend(struct.unpack_from("=H", attributes, position + _ATTRIBUTE.size))
                position += max((length + 3) & ~3, _ATTRIBUTE.size)

        self._send(_CONTROL_FAMILY, _F_REQUEST | _F_ACK, _CONTROL_GET_FAMILY, request)
        self._receive(take)
        if not found:
            raise MalformedAnswer("the kernel's answer names no generic netlink family")
        return found[0]

    def _send(self, family: int, flags: int, command: int, attributes: bytearray) -> None:
        self._sequence = self._sequence % 0xFFFFFFFF + 1
        length = _NLMSG_HEADER.size + _GENL_HEADER.size + len(attributes)
        message = bytearray(_NLMSG_HEADER.pack(length, family, flags, self._sequence, 0))
        message += _GENL_HEADER.pack(command, 1, 0)
        message += attributes
        try:
            self._socket.sendto(message, (0, 0))
        finally:
            message[:] = bytes(len(message))

    def _receive(self, take: Callable[[memoryview], None]) -> None:
        """Take messages up to the acknowledgement, the error or the end of the dump."""
        used = 0
        interrupted = False
        try:
            with memoryview(self._buffer) as view:
                done = False
                while not done:
                    size, _, flags, sender = self._socket.recvmsg_into([view])
                    used = max(used, size)
                    if flags & socket.MSG_TRUNC:
                        raise MalformedAnswer("the kernel's answer does not fit the buffer")
                    if sender[0] != 0:
                        continue  # another process; only the kernel (port 0) may answer
                    done, changed = self._messages(view[:size], take)
                    interrupted |= changed
        finally:
            self._buffer[:used] = bytes(used)
        if interrupted:
            raise DumpInterrupted

    def _messages(
        self, datagram: memoryview, take: Callable[[memoryview], None]
    ) -> tuple[bool, bool]:
        """Go through one datagram; whether the answer is complete, and whether interrupted."""
        position = 0
        interrupted = False
        while position < len(datagram):
            if len(datagram) - position < _NLMSG_HEADER.size:
                raise MalformedAnswer("the kernel's answer ends within a header")
            length, kind, flags, sequence, _ = _NLMSG_HEADER.unpack_from(datagram, position)
            if length < _NLMSG_HEADER.size or position + length > len(datagram):
                raise MalformedAnswer("the kernel's answer has a message of a wrong length")
            body = datagram[position + _NLMSG_HEADER.size : position + length]
            position += (length + 3) & ~3
            if sequence != self._sequence or kind == _NLMSG_NOOP:
                continue  # left over from a call that timed out
            interrupted |= bool(flags & _F_DUMP_INTERRUPTED)
            if kind in (_NLMSG_ERROR, _NLMSG_DONE):
                if kind == _NLMSG_ERROR or len(body) >= _ERROR.size:
                    _raise_error(body)
                return True, interrupted
            if len(body) < _GENL_HEADER.size:
                raise MalformedAnswer("the kernel's answer ends within a header")
            take(body[_GENL_HEADER.size :])
        return False, interrupted


def _raise_error(body: memoryview) -> None:
    """Raise what an error message (or the end of a dump) says, if it says one."""
    if len(body) < _ERROR.size:
        raise MalformedAnswer("the kernel's answer ends within an error")
    (code,) = _ERROR.unpack_from(body)
    if code == -errno.EINTR:
        raise DumpInterrupted
    if code:
        raise OSError(-code, os.strerror(-code))

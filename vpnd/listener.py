"""One UDP socket of the key exchange: how it is opened, and what became of it.

Answers leave from the address that was asked. A socket of one address does so by itself; with one
of all addresses the kernel tells for each datagram which of them it came to, and takes it back for
the answer (IP_PKTINFO, IPV6_PKTINFO: ip(7), ipv6(7)).
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from typing import Final

import trio

from kex.address import Address
from vpnd.config_fields import ListenAddress
from vpnd.deliveries import IP_RECVERR, IPV6_RECVERR, Returned, read_error

MAX_DATAGRAM: Final = 2048
"""What is read of one datagram; the longest legal one has 1,232 bytes."""
RECEIVE_BUFFER: Final = 4 * 1024 * 1024
HANDSHAKE_TOS: Final = 0x88
"""DSCP AF41 without ECN, as WireGuard's own handshake has it (HANDSHAKE_DSCP in messages.h)."""
NOT_OPENED: Final = "not opened yet"
_SO_RCVBUFFORCE: Final = 33  # asm-generic/socket.h; Python's socket module does not name it
_IP_PKTINFO: Final = 8  # linux/in.h; neither does it name this
_ALL_ADDRESSES: Final = ("::", "0.0.0.0")  # noqa: S104
_MAPPED: Final = "::ffff:"
_LINK_LOCAL: Final = (b"\xfe\x80", b"\xfe\xbf")
"""The first two bytes of the first and the last address of fe80::/10."""
_UNSPECIFIED_INDEX: Final = bytes(4)
_ERRORS_AT_ONCE: Final = 256
"""Messages of the error queue that are read at a stretch."""
_ERROR_ROOM: Final = 256
"""Bytes: a sock_extended_err of 16 with a sockaddr_in6 of 28, and the address it was sent from."""

Ancillary = list[tuple[int, int, bytes]]


class Arrival(Address):
    """Where a datagram came from, and the way back. Equal to the plain address."""

    way: tuple[Listener, Ancillary]
    """The listener that it came to, and what the kernel told of it."""


class Listener:
    """A place to listen at, with or without its socket."""

    def __init__(self, entry: ListenAddress, *, ipv6_only: bool, mark: int | None) -> None:
        self.entry = entry
        self.problem = NOT_OPENED
        """Why there is no socket; '' while there is one."""
        self._ipv6_only = ipv6_only
        self._mark = mark
        self._family = socket.AF_INET6 if ":" in entry.host else socket.AF_INET
        self._socket: socket.socket | None = None
        self._device_index: int | None = None
        # Room for one in6_pktinfo of 20 bytes, or one in_pktinfo of 12
        self._room = socket.CMSG_SPACE(20) if entry.host in _ALL_ADDRESSES else 0

    # ---- opening and closing

    def try_open(self) -> bool:
        """Open the socket; whether there is one now. What went wrong is kept in `problem`."""
        try:
            self._open()
        except OSError as error:
            self.close()
            self.problem = _why(self.entry, error)
        else:
            self.problem = ""
        return self._socket is not None

    def _open(self) -> None:
        self._socket = opened = socket.socket(self._family, socket.SOCK_DGRAM)
        opened.setblocking(False)
        if self._family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(self._ipv6_only))
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, HANDSHAKE_TOS)
        if not (self._family == socket.AF_INET6 and self._ipv6_only):
            opened.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, HANDSHAKE_TOS)
            opened.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        if self._family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
        if self._room and self._family == socket.AF_INET6:
            # For IPv4, too, whose addresses then come as mapped ones
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        elif self._room:
            opened.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        _enlarge_buffer(opened)
        if self._mark is not None:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, self._mark)
        if self.entry.device:
            # First: the kernel keeps the number, and another device may have the name soon
            self._device_index = _index_of(self.entry.device)
            opened.setsockopt(
                socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self.entry.device.encode() + b"\0"
            )
        opened.bind((self.entry.host, self.entry.port))

    def lose(self) -> None:
        """Close the socket, whose device is gone."""
        self.close()
        self.problem = f"cannot listen on {self.entry}: the device is gone"

    def close(self) -> None:
        if self._socket is not None:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()
            self._socket = None

    def lost_device(self) -> bool:
        """Whether the device is gone, or another one of its name: the socket is deaf then."""
        if self._socket is None or not self.entry.device:
            return False
        try:
            return _index_of(self.entry.device) != self._device_index
        except OSError:
            return True

    # ---- receiving

    async def wait_readable(self) -> None:
        """Wait for a datagram."""
        if self._socket is not None:
            await trio.lowlevel.wait_readable(self._socket)

    def receive(self) -> tuple[bytes, Arrival]:
        """One datagram that is there. Raises BlockingIOError where there is none, OSError."""
        if self._socket is None:
            raise BlockingIOError
        data, ancillary, _, source = self._socket.recvmsg(MAX_DATAGRAM, self._room)
        host = _plain(source[0])
        # As Arrival(host, port) does it, in half the time: a flood pays this for each datagram
        arrival = tuple.__new__(Arrival, (host, source[1]))
        arrival.way = self, ancillary
        return data, arrival

    def take_errors(self) -> list[tuple[Address, Returned]]:
        """What ICMP says of datagrams of ours since the last look, with where they were sent to.

        Until that is read the socket counts as readable, and each call on it may fail with the
        error of another datagram.
        """
        found: list[tuple[Address, Returned]] = []
        for _ in range(_ERRORS_AT_ONCE):
            if self._socket is None:
                break
            try:
                _, ancillary, _, target = self._socket.recvmsg(1, _ERROR_ROOM, socket.MSG_ERRQUEUE)
            except OSError:
                break  # there is no more
            message = read_error(ancillary)
            if message is not None and target:
                found.append((Address(_plain(target[0]), target[1]), message))
        return found

    # ---- sending

    def send(self, data: bytes, address: Address, way: Ancillary | None = None) -> int | None:
        """Send by the `way` that an arrival had, or as the kernel chooses; 0 where it was taken,
        else the errno, or None where this is no socket for that address."""
        target = self._target(address)
        if self._socket is None or target is None:
            return None
        try:
            if way:
                self._socket.sendmsg([data], _back(way), 0, target)
            else:
                self._socket.sendto(data, target)
        except OSError as error:
            # An address that cannot be used is one link's trouble, and is told there
            return error.errno or errno.EIO
        return 0

    def _target(self, address: Address) -> tuple[str, int] | None:
        """The address as this socket takes it; None where it cannot."""
        is_ipv6 = ":" in address.host
        if self._family == socket.AF_INET:
            return None if is_ipv6 else (address.host, address.port)
        if is_ipv6:
            return (address.host, address.port)
        return None if self._ipv6_only else (_MAPPED + address.host, address.port)


def _plain(host: str) -> str:
    """An IPv4 address as itself, where a socket of both families has it as a mapped one."""
    return host[len(_MAPPED) :] if host.startswith(_MAPPED) and "." in host else host


def _back(way: Ancillary) -> Ancillary:
    """What to give the kernel so that a datagram leaves from where another one arrived.

    The address alone: by which interface is for the routing table to say, except for a link-local
    address, which means nothing without its interface.
    """
    for level, kind, value in way:
        if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
            low, high = _LINK_LOCAL
            index = value[16:] if low <= value[:2] <= high else _UNSPECIFIED_INDEX
            return [(level, kind, value[:16] + index)]
        if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
            # struct in_pktinfo: interface, our address, the address in the header
            return [(level, kind, _UNSPECIFIED_INDEX + value[4:8] + bytes(4))]
    return []


def listeners(entries: Sequence[ListenAddress], *, mark: int | None) -> list[Listener]:
    """One for each entry. `[::]` serves IPv4 as well, unless IPv4 has a socket of its own."""
    return [Listener(entry, ipv6_only=_alone(entry, entries), mark=mark) for entry in entries]


def _alone(entry: ListenAddress, entries: Sequence[ListenAddress]) -> bool:
    return entry.host != "::" or any(
        ":" not in other.host
        and other.port == entry.port
        and ("" in (other.device, entry.device) or other.device == entry.device)
        for other in entries
    )


def _index_of(device: str) -> int:
    """The number of a device. Raises OSError with ENODEV."""
    try:
        return socket.if_nametoindex(device)
    except OSError:
        raise OSError(errno.ENODEV, "no such device") from None


def _enlarge_buffer(opened: socket.socket) -> None:
    try:
        # Past net.core.rmem_max, which is 208 KiB by default: CAP_NET_ADMIN allows it
        opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER)
    except PermissionError:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)


def _why(entry: ListenAddress, error: OSError) -> str:
    reason = error.strerror or str(error)
    if error.errno == errno.EADDRINUSE:
        reason = "another program has this port; change node.listen or stop it"
    elif error.errno == errno.EADDRNOTAVAIL:
        reason = "no interface has this address (yet)"
    elif error.errno == errno.ENODEV:
        reason = f"there is no device {entry.device} (yet)"
    elif error.errno == errno.EAFNOSUPPORT:
        reason = f"this host has no IPv6; listen on 0.0.0.0:{entry.port}"
    elif error.errno == errno.EACCES and entry.port < 1024:
        reason = "ports below 1024 are out of the daemon's reach; change node.listen"
    return f"cannot listen on {entry}: {reason}"

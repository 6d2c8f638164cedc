"""The UDP sockets of the key exchange: bytes and addresses, and nothing about what they mean."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable, Sequence
from typing import Final

import trio

from kex.address import Address
from vpnd.config_fields import Endpoint

MAX_DATAGRAM: Final = 2048
"""What is read of one datagram; the longest legal one has 1,232 bytes."""
DRAIN: Final = 64
"""Datagrams read at a stretch before other tasks get their turn."""
DRAIN_SECONDS: Final = 0.01
"""And how long at the most, since a step of an exchange costs a millisecond."""
LULL_SECONDS: Final = 0.001
"""What is waited under a flood, so that many datagrams are taken at one wake-up."""
RECEIVE_BUFFER: Final = 4 * 1024 * 1024
_SO_RCVBUFFORCE: Final = 33  # asm-generic/socket.h; Python's socket module does not name it
_MAPPED: Final = "::ffff:"

Receive = Callable[[bytes, Address], None]


class CannotListen(Exception):
    """A UDP socket could not be had; the message says which and what to do."""


class Transport:
    """Bound UDP sockets. An IPv6 wildcard serves IPv4 as well, unless IPv4 has its own."""

    def __init__(self, sockets: Sequence[trio.socket.SocketType]) -> None:
        self._sockets = sockets
        self._outgoing = [
            (_raw(bound), int(bound.family), str(bound.getsockname()[0])) for bound in sockets
        ]
        """For each its family and address, which the system would have to be asked for."""
        self.unsent = 0
        """Datagrams that the system did not take; the exchange repeats them."""

    @classmethod
    async def bind(cls, listen: Sequence[Endpoint], *, mark: int | None = None) -> Transport:
        """Bind all of them, with this fwmark. Raises CannotListen."""
        ipv4_ports = {entry.port for entry in listen if ":" not in entry.host}
        sockets = []
        try:
            for entry in listen:
                sockets.append(await _bound(entry, ipv4_ports, mark))
        except OSError as error:
            for bound in sockets:
                bound.close()
            raise CannotListen(_why(entry, error)) from error
        return cls(sockets)

    async def run(self, receive: Receive, drained: Callable[[], bool]) -> None:
        """Hand every datagram to `receive` until cancelled; `drained` is called when those that
        had come have been taken, and says whether to wait a moment for more."""
        async with trio.open_nursery() as nursery:
            for bound in self._sockets:
                nursery.start_soon(self._read, bound, receive, drained)

    async def _read(
        self, bound: trio.socket.SocketType, receive: Receive, drained: Callable[[], bool]
    ) -> None:
        # One wait for many datagrams: an await for each would cost more than refusing it
        raw = _raw(bound)
        while True:
            await trio.lowlevel.wait_readable(raw)
            until = time.perf_counter() + DRAIN_SECONDS
            for _ in range(DRAIN):
                try:
                    data, source = raw.recvfrom(MAX_DATAGRAM)
                except BlockingIOError:
                    break
                except OSError as error:
                    if error.errno not in _TRANSIENT:
                        raise
                    continue
                receive(data, _address(source))
                if time.perf_counter() > until:
                    break  # exchanges, not junk
            if drained():
                await trio.sleep(LULL_SECONDS)

    def send(self, data: bytes, address: Address) -> None:
        """Send, or count that it could not be: a lost datagram is repeated by its sender."""
        for bound, family, local in self._outgoing:
            target = _target(family, local, address)
            if target is None:
                continue
            try:
                bound.sendto(data, target)
            except OSError:
                # An address that cannot be used is one link's trouble, and shows as no answer
                self.unsent += 1
            return
        self.unsent += 1

    def local_names(self) -> list[str]:
        """Where we listen, as text."""
        names = [bound.getsockname() for bound in self._sockets]
        return [str(Address(name[0], name[1])) for name in names]

    def close(self) -> None:
        for bound in self._sockets:
            bound.close()


_TRANSIENT = {
    errno.EAGAIN,
    errno.ENOBUFS,
    errno.ENOMEM,
    errno.EINTR,
    errno.ECONNREFUSED,
    errno.ENETUNREACH,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.EADDRNOTAVAIL,
    errno.EPERM,  # a firewall's verdict
    errno.EACCES,
    errno.EINVAL,  # no route of the address's scope
    errno.EMSGSIZE,
}


def _raw(bound: trio.socket.SocketType) -> socket.socket:
    # trio's own wrapper, taken off: its calls await, ours must not
    raw: socket.socket = bound._sock  # type: ignore[attr-defined]
    return raw


async def _bound(entry: Endpoint, ipv4_ports: set[int], mark: int | None) -> trio.socket.SocketType:
    family = socket.AF_INET6 if ":" in entry.host else socket.AF_INET
    bound = trio.socket.socket(family, socket.SOCK_DGRAM)
    try:
        if family == socket.AF_INET6:
            alone = entry.host != "::" or entry.port in ipv4_ports
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(alone))
        _enlarge_buffer(bound)
        if mark is not None:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        await bound.bind((entry.host, entry.port))
    except OSError:
        bound.close()
        raise
    return bound


def _enlarge_buffer(bound: trio.socket.SocketType) -> None:
    try:
        # Past net.core.rmem_max, which is 208 KiB by default: CAP_NET_ADMIN allows it
        bound.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER)
    except PermissionError:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)


def _address(source: tuple[str, int] | tuple[str, int, int, int]) -> Address:
    host = source[0]
    if host.startswith(_MAPPED) and "." in host:
        return Address(host[len(_MAPPED) :], source[1])
    return Address(host, source[1])


def _target(family: int, local: str, address: Address) -> tuple[str, int] | None:
    """The address as a socket of this family takes it; None where it cannot."""
    is_ipv6 = ":" in address.host
    if family == socket.AF_INET:
        return None if is_ipv6 else (address.host, address.port)
    if is_ipv6:
        return (address.host, address.port)
    return (_MAPPED + address.host, address.port) if local == "::" else None


def _why(entry: Endpoint, error: OSError) -> str:
    reason = error.strerror or str(error)
    if error.errno == errno.EADDRINUSE:
        reason += ": another program has this port; change node.listen or stop it"
    elif error.errno == errno.EADDRNOTAVAIL:
        reason += ": no interface has this address; change node.listen or wait for it"
    return f"cannot listen on {entry}: {reason}"

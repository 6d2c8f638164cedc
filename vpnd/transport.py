"""The UDP sockets of the key exchange: bytes and addresses, and nothing about what they mean.

A socket that cannot be had (its address or its device is not there yet, another program has the
port) is waited for, while the others work.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Sequence
from typing import Final

import trio

from kex.address import Address
from vpnd.config_fields import ListenAddress
from vpnd.deliveries import NO_SOCKET, Deliveries
from vpnd.journal import Journal
from vpnd.listener import NOT_OPENED, Ancillary, Arrival, Listener, listeners

DRAIN: Final = 64
"""Datagrams read at a stretch before other tasks get their turn."""
DRAIN_SECONDS: Final = 0.01
"""And how long at the most, since a step of an exchange costs a millisecond."""
LULL_SECONDS: Final = 0.002
"""What is waited under a flood, so that many datagrams are taken at one wake-up."""
RETRY_SECONDS: Final = 2.0
"""Between two attempts to open a socket, and two looks whether its device is still there."""

Receive = Callable[[bytes, Address], None]
Drained = Callable[[], bool]

_TRANSIENT: Final = {
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
    # What ICMP says of an earlier datagram (icmp_err_convert in the kernel's net/ipv4/icmp.c)
    errno.EHOSTDOWN,
    errno.ENONET,
    errno.ENOPROTOOPT,
    errno.EOPNOTSUPP,
    errno.EPROTO,
    errno.ETIMEDOUT,
}
_OF_ANOTHER: Final = _TRANSIENT - {errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.EPERM}
"""What a call on a socket may fail with that an earlier datagram has met."""


class Transport:
    """All places to listen at."""

    def __init__(
        self, listen: Sequence[ListenAddress], journal: Journal, *, mark: int | None = None
    ) -> None:
        self._listeners = listeners(listen, mark=mark)
        self._journal = journal
        self._scopes: dict[Listener, trio.CancelScope] = {}
        self.unsent = 0
        """Datagrams that the system did not take; the exchange repeats them."""
        self.deliveries = Deliveries()

    def open(self) -> None:
        """Open what can be opened now; `run` tries the rest again."""
        for listener in self._listeners:
            self._try_open(listener)

    def _try_open(self, listener: Listener) -> None:
        before = listener.problem
        if listener.try_open():
            if before != NOT_OPENED:
                self._journal.record("listening", address=str(listener.entry))
        elif listener.problem != before:
            self._journal.record(
                "listen_failed",
                level="error",
                address=str(listener.entry),
                reason=listener.problem,
            )

    async def run(self, receive: Receive, drained: Drained) -> None:
        """Hand every datagram to `receive` until cancelled; `drained` is called when those that
        had come have been taken, and says whether to wait a moment for more."""
        async with trio.open_nursery() as nursery:
            for listener in self._listeners:
                nursery.start_soon(self._keep, listener, receive, drained)
            if any(listener.entry.device for listener in self._listeners):
                nursery.start_soon(self._watch_devices)

    async def _keep(self, listener: Listener, receive: Receive, drained: Drained) -> None:
        while True:
            while listener.problem:
                await trio.sleep(RETRY_SECONDS)
                self._try_open(listener)
            with trio.CancelScope() as scope:
                self._scopes[listener] = scope
                await self._read(listener, receive, drained)
            listener.lose()
            self._try_open(listener)

    async def _read(self, listener: Listener, receive: Receive, drained: Drained) -> None:
        # One wait for many datagrams: an await for each would cost more than refusing it
        while True:
            await listener.wait_readable()
            self._take_errors(listener)
            until = time.perf_counter() + DRAIN_SECONDS
            for _ in range(DRAIN):
                try:
                    data, source = listener.receive()
                except BlockingIOError:
                    break
                except OSError as error:
                    if error.errno not in _TRANSIENT:
                        raise
                    continue
                receive(data, source)
                if time.perf_counter() > until:
                    break  # exchanges, not junk
            if drained():
                await trio.sleep(LULL_SECONDS)

    async def _watch_devices(self) -> None:
        # A socket stays bound to a device that was deleted, and hears nothing of its successor
        while True:
            await trio.sleep(RETRY_SECONDS)
            for listener, scope in self._scopes.items():
                if listener.lost_device():
                    scope.cancel()

    def send(self, data: bytes, address: Address) -> None:
        """Send, or count that it could not be: a lost datagram is repeated by its sender.

        To where a datagram came from, it goes the way that that one came.
        """
        why = NO_SOCKET
        if isinstance(address, Arrival):
            listener, way = address.way
            if self._sent(listener, data, address, way) == 0:
                return
        # Nothing came from there, or the address that was asked is gone
        for listener in self._listeners:
            outcome = self._sent(listener, data, address)
            if outcome == 0:
                return
            why = why if outcome is None else outcome
            if outcome == errno.EAGAIN:
                break  # the socket is full: none else is the way there
        self.unsent += 1
        self.deliveries.unsent(address, why)

    def _sent(
        self, listener: Listener, data: bytes, address: Address, way: Ancillary | None = None
    ) -> int | None:
        """As Listener.send, but an error is that of this datagram."""
        outcome = listener.send(data, address, way)
        if outcome in _OF_ANOTHER:
            self._take_errors(listener)
            outcome = listener.send(data, address, way)
        if outcome == 0:
            self.deliveries.sent(address)
        return outcome

    def _take_errors(self, listener: Listener) -> None:
        for address, message in listener.take_errors():
            self.deliveries.returned(address, message)

    def local_names(self) -> list[str]:
        """Where we listen, as text."""
        return [str(one.entry) for one in self._listeners if not one.problem]

    def problems(self) -> list[str]:
        """Where we should listen and cannot."""
        return [listener.problem for listener in self._listeners if listener.problem]

    def close(self) -> None:
        for listener in self._listeners:
            listener.close()

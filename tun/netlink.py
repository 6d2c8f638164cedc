"""A network namespace as the rest of `tun` has it: a way to what is in it.

``HERE`` is the one that this process is in, and where all sockets of WireGuard stay. Another one
is held by an open socket: it remains the same one whatever becomes of its name, and nobody is
asked for it again.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final, Self, TypeVar

import trio

from tun.errors import InterfaceMissing, NamespaceMissing, TunError, tun_error
from tun.namespace import (
    NetlinkKind,
    id_of_name,
    id_of_socket,
    namespace_of_socket,
    open_here,
    open_in_namespace,
)
from tun.rtnl import Rtnl, open_rtnl, prepare_rtnl

__all__ = ["HERE", "Netlink", "entered"]

_T = TypeVar("_T")


class Netlink:
    """The links, addresses and routes of one namespace; ``Netlink.open`` makes one."""

    def __init__(
        self,
        name: str | None = None,
        route: socket.socket | None = None,
        netfilter: socket.socket | TunError | None = None,
    ) -> None:
        """Take over the sockets of a named one; for nftables, perhaps why there is none."""
        self.name = name
        self._route = route
        self._netfilter = netfilter
        self._id = None if route is None else id_of_socket(route)
        # On one socket one piece of work at a time; several where each opens its own
        self._limiter = trio.CapacityLimiter(4 if route is None else 1)

    @classmethod
    async def open(cls, name: str | None) -> Netlink:
        """The namespace of that name, or ``HERE``; to be closed.

        Who is cancelled does not wait for a helper that is silent: what comes late is closed.
        Raises NamespaceMissing, NamespaceOutOfReach, TunError.
        """
        if name is None:
            return HERE
        made: list[Netlink] = []
        abandoned = threading.Event()

        def enter() -> Netlink:
            made.append(cls._open(name))
            if abandoned.is_set():
                made[0].close()
            return made[0]

        try:
            return await trio.to_thread.run_sync(enter, abandon_on_cancel=True)
        except trio.Cancelled:
            abandoned.set()
            for late in made:
                late.close()
            raise

    @classmethod
    def _open(cls, name: str) -> Netlink:
        route = open_in_namespace(name, NetlinkKind.ROUTE)
        try:
            prepare_rtnl(route)
            found = cls(name, route, cls._open_netfilter(name))
            found.require_name()
        except OSError as error:
            route.close()
            raise tun_error(error, f"entering the network namespace {name}") from error
        except InterfaceMissing:
            route.close()
            raise NamespaceMissing(name) from None
        return found

    @staticmethod
    def _open_netfilter(name: str) -> socket.socket | TunError:
        try:
            return open_in_namespace(name, NetlinkKind.NETFILTER)
        except NamespaceMissing as missing:
            return InterfaceMissing(str(missing))
        except TunError as error:  # a kernel without, or a helper of an earlier version
            return error

    async def run(self, work: Callable[[Rtnl], _T]) -> _T:
        """Run `work` in a worker thread with an open socket; a cancelled call is finished first."""

        def run() -> _T:
            with open_rtnl(self._route) as rtnl:
                return work(rtnl)

        return await trio.to_thread.run_sync(run, limiter=self._limiter)

    async def run_on_socket(self, work: Callable[[socket.socket | None], _T]) -> _T:
        """Run `work` in a worker thread with the prepared socket of this namespace; None: here."""
        return await trio.to_thread.run_sync(work, self._route, limiter=self._limiter)

    async def generic_socket(self) -> socket.socket:
        """A new socket for generic netlink. Raises InterfaceMissing where the name of the
        namespace is another one's by now, TunError, OSError."""
        return await trio.to_thread.run_sync(self._new_socket, NetlinkKind.GENERIC)

    async def netfilter_socket(self) -> socket.socket:
        """A socket for nftables, of its own or one that is held: nobody is asked for another one.
        Raises TunError, OSError."""
        match self._netfilter:
            case TunError() as reason:
                raise reason
            case None:
                return await trio.to_thread.run_sync(self._new_socket, NetlinkKind.NETFILTER)
            case held:
                return _fresh(held)

    async def run_raw(self, work: Callable[[socket.socket], _T]) -> _T:
        """Run `work` in a worker thread with a socket for links and routes."""

        def run() -> _T:
            if self._route is None:
                opened = open_here(NetlinkKind.ROUTE)
                prepare_rtnl(opened)
            else:
                opened = _fresh(self._route)
            with opened:
                return work(opened)

        return await trio.to_thread.run_sync(run, limiter=self._limiter)

    def _new_socket(self, kind: NetlinkKind) -> socket.socket:
        if self.name is None:
            return open_here(kind)
        opened = open_in_namespace(self.name, kind)
        if id_of_socket(opened) != self._id:
            opened.close()
            raise self._renamed()
        return opened

    @contextmanager
    def descriptor(self) -> Iterator[int | None]:
        """The namespace as a descriptor, for making or moving a link; None is here."""
        if self._route is None:
            yield None
        else:
            with namespace_of_socket(self._route) as namespace:
                yield namespace.fileno()

    def require_name(self) -> None:
        """Raise InterfaceMissing unless the name still is this namespace's."""
        if self.name is not None and id_of_name(self.name) != self._id:
            raise self._renamed()

    def _renamed(self) -> TunError:
        return InterfaceMissing(f"the network namespace {self.name} was deleted, or made anew")

    def close(self) -> None:
        """Let go of the namespace."""
        if self._route is not None:
            self._route.close()
        if isinstance(self._netfilter, socket.socket):
            self._netfilter.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _fresh(held: socket.socket) -> socket.socket:
    """A copy of a socket that is held, without what an earlier piece of work did not wait for."""
    copy = held.dup()
    copy.setblocking(False)
    try:
        while True:
            copy.recv(65536)
    except BlockingIOError:
        return copy
    except BaseException:
        copy.close()
        raise


HERE: Final = Netlink()


@asynccontextmanager
async def entered(netns: str | Netlink | None) -> AsyncIterator[Netlink]:
    """A namespace that is held already, or that of a name for as long as the block lasts; None is
    this process's. Raises NamespaceMissing, NamespaceOutOfReach, TunError."""
    if isinstance(netns, Netlink):
        yield netns
    else:
        with await Netlink.open(netns) as netlink:
            yield netlink

"""Nodes of the real key exchange on loopback sockets: the daemon's engine, without WireGuard."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, TypeVar

import trio

from bench.liboqs import provider
from kex.address import Address
from kex.endpoint import Endpoint
from kex.events import Event, ExchangeFailed, KeyConfirmed, KeyEstablished, Role, StartReason
from kex.identity import Fingerprint, Identity
from kex.link_config import LinkConfig
from kex.load import Load
from kex.suites import Suite
from kex.token_bucket import Allowance
from kex.wire import MessageType
from vpnd.clock import boottime
from vpnd.config_fields import ListenAddress
from vpnd.engine import Engine
from vpnd.event_feed import EventFeed
from vpnd.identity_store import system_suite
from vpnd.journal import Journal
from vpnd.ml_kem import MlKemName
from vpnd.transport import Transport

NEVER: Final = 1e12
LOOPBACK: Final = "127.0.0.1"

_Socket = TypeVar("_Socket", bound=Transport)


def free_port() -> int:
    """A UDP port that nobody has at the moment."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


class CountingTransport(Transport):
    """Counts the datagrams it sends, by type, and the first fragments of each."""

    def count(self) -> None:
        self.sent: Counter[MessageType] = Counter()
        self.messages: Counter[MessageType] = Counter()
        self.bytes = 0

    def send(self, data: bytes, address: Address) -> None:
        kind = MessageType(data[0] & 0x0F)
        self.sent[kind] += 1
        self.messages[kind] += data[2] == 0
        self.bytes += len(data)
        super().send(data, address)


class BenchNode:
    """A node whose keys are "installed" the moment they are there."""

    def __init__(
        self, seed: bytes, number: int, ml_kem: MlKemName, *, unlimited: bool = True
    ) -> None:
        suites: dict[int, Suite] = {n: system_suite(n, provider(ml_kem)) for n in (1, 2)}
        self.identity = Identity(suites[number], suites[number].private_key(seed))
        self.port = free_port()
        self.confirmed = trio.Event()
        self.failed: list[ExchangeFailed] = []
        now = boottime()
        self.endpoint = Endpoint(
            suites=suites,
            identities=(self.identity,),
            random=os.urandom,
            now=now,
            # One exchange after the other, faster than any peer begins them
            load=Load(at=now, tokens=1e12, burst=1e12) if unlimited else None,
        )

    @property
    def fingerprint(self) -> Fingerprint:
        return self.identity.fingerprint

    @property
    def address(self) -> Address:
        return Address(LOOPBACK, self.port)

    def know(
        self, name: str, fingerprint: Fingerprint, public_key: bytes, address: Address
    ) -> None:
        """Add a link; its first exchange begins when asked for."""
        config = LinkConfig(
            name=name,
            locals=(self.fingerprint,),
            remotes=(fingerprint,),
            wireguard_key=self.fingerprint.digest,
            wireguard_port=51820,
            address=address,
            init_confs=Allowance(burst=1e12, rate=0.0),  # as with the load
        )
        self.endpoint.add_link(config, boottime(), start_at=NEVER)
        self.endpoint.know_public_key(fingerprint, public_key)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The engine on its socket, and nothing that a daemon does not have."""
        async with self._on(Transport):
            yield

    @asynccontextmanager
    async def counted(self) -> AsyncIterator[CountingTransport]:
        """The engine on a socket that counts what is sent."""
        async with self._on(CountingTransport) as transport:
            transport.count()
            yield transport

    @asynccontextmanager
    async def _on(self, kind: type[_Socket]) -> AsyncIterator[_Socket]:
        journal = Journal(EventFeed())
        # All addresses, as the daemon listens by default: it costs more than one does
        transport = kind([ListenAddress("::", self.port)], journal)
        transport.open()
        if transport.problems():
            raise OSError(transport.problems()[0])
        self.engine = Engine(self.endpoint, transport, journal)
        for name in self.endpoint.links():
            self.engine.handle_events(name, self._handle)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.engine.run)
                try:
                    yield transport
                finally:
                    nursery.cancel_scope.cancel()
        finally:
            transport.close()

    def _handle(self, event: Event) -> None:
        if isinstance(event, KeyEstablished):
            with self.engine.driving() as (endpoint, now):
                endpoint.key_installed(event.link, event.token, now)
        elif isinstance(event, KeyConfirmed) and event.role is Role.INITIATOR:
            self.confirmed.set()
        elif isinstance(event, ExchangeFailed):
            self.failed.append(event)

    async def exchange(self, name: str) -> None:
        """One whole exchange with a peer; returns when this end knows that it is complete."""
        self.confirmed = trio.Event()
        with self.engine.driving() as (endpoint, now):
            endpoint.request_exchange(name, StartReason.REQUESTED, now)
        await self.confirmed.wait()


def pair(number: int, ml_kem: MlKemName, *, unlimited: bool = True) -> tuple[BenchNode, BenchNode]:
    """Two nodes that know each other as "left" and "right"."""
    left = BenchNode(b"l" * 32, number, ml_kem, unlimited=unlimited)
    right = BenchNode(b"r" * 32, number, ml_kem, unlimited=unlimited)
    left.know("right", right.fingerprint, right.identity.public_key, right.address)
    right.know("left", left.fingerprint, left.identity.public_key, left.address)
    right.endpoint.hold()  # answers only: exchanges that cross would be counted twice
    return left, right

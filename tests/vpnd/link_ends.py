"""Two real links over real UDP on loopback, with a device that only remembers, and key sources
that a test can spoil.

ManagedLink, Engine, Transport and Endpoint are the daemon's own. What is on the interface is
remembered by `Device`; `Vault` is what a pair of key managers shares.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import trio

from kex.endpoint import Endpoint
from kex.external import ExternalKey, ExternalKeyReference
from kex.identity import Identity
from kex.secret import Secret
from tests.vpnd.test_transport import free_port
from tun import PeerSpec, PeerStatus, Prefix, psk_mark
from vpnd.api import Event
from vpnd.clock import boottime
from vpnd.config import complete_peer
from vpnd.config_fields import ListenAddress
from vpnd.config_model import Defaults, PeerConfig, PeerSettings, TunnelConfig, validate
from vpnd.config_source import Source
from vpnd.engine import Engine
from vpnd.event_feed import EventFeed
from vpnd.external_record import ExternalRecords
from vpnd.handshake import OLD_KEY_MARGIN
from vpnd.identity_store import PeerKeyCache, system_suite
from vpnd.journal import Journal
from vpnd.keysource.base import (
    Correspondent,
    KeyFetchedAhead,
    KeySource,
    ProbeStep,
    SourceError,
    SourceFault,
    SourceStatus,
    SourceType,
)
from vpnd.link import ManagedLink
from vpnd.link_external import Asked
from vpnd.link_record import LinkRecords
from vpnd.transport import Transport
from vpnd.tunnel_ways import TunnelWays
from vpnd.tunnels import Installed, ManagedTunnel


def random(length: int) -> bytes:

    return os.urandom(length)


@dataclass
class Vault:
    """The keys that a pair of key managers shares, by ID."""

    keys: dict[str, bytes] = field(default_factory=dict)
    made: int = 0
    delivered: list[str] = field(default_factory=list)
    """IDs that were asked for by ID, in order."""


class StandInSource:
    """A key source at one end of a vault. `fault` makes every call fail, `hangs` makes it wait."""

    def __init__(self, name: str, vault: Vault, own: str) -> None:
        self._name = name
        self.vault = vault
        self.own = own
        self.fault: SourceFault | None = None
        self.hangs = False
        self.wrong = False
        """Whether it answers with other keys than the far end's."""
        self.asked = 0
        self.ahead: list[ExternalKey] = []
        """Keys that were fetched ahead."""
        self._awake = trio.Event()

    def wake(self) -> None:
        """Let those go on who hang."""
        self._awake.set()
        self._awake = trio.Event()

    @property
    def name(self) -> str:
        return self._name

    @property
    def source_type(self) -> SourceType:
        return SourceType.QKD

    async def _trouble(self) -> None:
        self.asked += 1
        await trio.lowlevel.checkpoint()
        if self.hangs:
            await self._awake.wait()
        if self.fault is not None:
            raise SourceError(self._name, self.fault, "as the test wants it")

    async def obtain(self, far: Correspondent, *, fresh: bool = False) -> ExternalKey:
        if not fresh and self.ahead:
            ready = self.ahead.pop()
            return KeyFetchedAhead(ready.reference, ready.key)
        await self._trouble()
        self.vault.made += 1
        key_id = f"{self._name}-{self.vault.made}"
        self.vault.keys[key_id] = random(32)
        reference = ExternalKeyReference("qkd", f"KME-{self.own}", self.own, (key_id,), 256)
        return ExternalKey(reference, Secret(self.vault.keys[key_id]))

    async def retrieve(self, far: Correspondent, reference: ExternalKeyReference) -> Secret:
        await self._trouble()
        (key_id,) = reference.key_ids
        if key_id not in self.vault.keys:
            raise SourceError(self._name, SourceFault.UNKNOWN_KEY, f"no key {key_id}")
        self.vault.delivered.append(key_id)
        key = self.vault.keys.pop(key_id)
        return Secret(random(32) if self.wrong else key)

    def serves(self, far: Correspondent, reference: ExternalKeyReference) -> bool:
        return (reference.source_type, reference.sae) == ("qkd", far.peer_id)

    def status(self) -> SourceStatus:
        return SourceStatus(self._name, SourceType.QKD, "nowhere", f"KME-{self.own}", True)

    async def refresh_status(self) -> None:
        await trio.lowlevel.checkpoint()

    async def probe(self, far: Correspondent | None) -> Sequence[ProbeStep]:
        await trio.lowlevel.checkpoint()
        return [ProbeStep("connect", True, "nowhere")]

    async def run(self) -> None:
        await trio.sleep_forever()


@dataclass
class _Opened:
    public_key: bytes
    backend: str = "none"
    adopted: bool = False


class NoDumps:
    """Nobody looks by himself here: see `Site.shake_hands`."""

    def want(self, *, at_first: bool = False) -> None:
        """They never come."""


class Device:
    """A tunnel whose interface is a dictionary."""

    def __init__(self, name: str, public_key: bytes) -> None:
        self.name = name
        self.users: set[Any] = set()
        self.dumps = NoDumps()
        self.open = _Opened(public_key)
        self.error: str | None = None
        self.ways = TunnelWays()
        self.peers: dict[bytes, PeerSpec] = {}
        self.config = TunnelConfig(name=name, interface="wg-none", listen_port=51820)
        self.stamps = itertools.count(1)
        self.stamp: tuple[int, int] | None = None

    async def install(self, spec: PeerSpec, *, instead_of: bytes | None) -> Installed:
        await trio.lowlevel.checkpoint()
        before = self.peers.get(spec.public_key)
        if instead_of not in (None, spec.public_key):
            self.peers.pop(instead_of, None)
        self.peers[spec.public_key] = spec
        return Installed(
            was_present=before is not None, stamp_before=None if before is None else self.stamp
        )

    async def update_peer(
        self,
        public_key: bytes,
        *,
        allowed_ips: tuple[Prefix, ...],
        keepalive: int,
        endpoint: tuple[str, int] | None,
    ) -> None:
        spec = self.peers[public_key]
        self.peers[public_key] = replace(
            spec,
            allowed_ips=allowed_ips,
            keepalive=keepalive,
            endpoint=endpoint or spec.endpoint,
        )

    async def add_routes(self, prefixes: object) -> None:
        await trio.lowlevel.checkpoint()

    async def set_routes(self) -> None:
        await trio.lowlevel.checkpoint()

    def discard(self, public_key: bytes) -> None:
        self.peers.pop(public_key, None)

    async def discard_now(self, public_key: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.discard(public_key)

    async def move_peer(self, public_key: bytes, endpoint: object) -> None:
        await trio.lowlevel.checkpoint()


class News:
    """Whether anything has happened at either end."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def tell(self) -> None:
        self._event.set()
        self._event = trio.Event()

    async def wait(self) -> None:
        await self._event.wait()


class Site:
    """One end of the link."""

    def __init__(self, name: str, folder: Path, port: int, identity: Identity, news: News) -> None:
        self.name = name
        self.folder = folder
        self.port = port
        self.identity = identity
        self.sources: dict[str, KeySource] = {}
        self.feed = EventFeed()
        self.events: list[Event] = []
        self.news = news
        self.link: ManagedLink
        self.engine: Engine
        self.device: Device
        self.peer: PeerConfig

    def configure(self, far: Site, external: dict[str, Any], **more: Any) -> PeerConfig:
        values = {
            "identity": far.identity.fingerprint.text(),
            "endpoint": f"127.0.0.1:{far.port}",
            "allowed_ips": ["10.0.0.0/8"],
            "external_keys": {"min_interval": 0} | external,
        } | more
        settings = validate(PeerSettings, values, Source(None))
        file = self.folder / "peer.toml"
        return complete_peer(far.name, file, settings, Defaults(), ("backbone",), Source(None))

    @asynccontextmanager
    async def running(self, far: Site, peer: PeerConfig) -> AsyncIterator[None]:
        """The daemon's part that is a link; again and again, like restarts."""
        journal = Journal(self.feed)
        transport = Transport([ListenAddress("127.0.0.1", self.port)], journal)
        transport.open()
        try:
            async with self._running(far, peer, transport, journal):
                yield
        finally:
            transport.close()

    @asynccontextmanager
    async def _running(
        self, far: Site, peer: PeerConfig, transport: Transport, journal: Journal
    ) -> AsyncIterator[None]:
        suite = system_suite(1)
        endpoint = Endpoint(
            suites={1: suite}, identities=[self.identity], random=random, now=boottime()
        )
        self.engine = engine = Engine(endpoint, transport, journal)
        # A key of its own at each start: nothing is adopted here
        self.device = Device("backbone", self.name.encode().ljust(32, b"."))
        self.peer = peer
        self.link = ManagedLink(
            peer,
            cast(ManagedTunnel, self.device),
            own=(self.identity.fingerprint,),
            engine=engine,
            records=LinkRecords(self.folder),
            external_records=ExternalRecords(self.folder),
            find_source=self.sources.get,
            peer_keys=PeerKeyCache(self.folder, warn=print),
            journal=journal,
        )
        with self.feed.subscribe() as subscription:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._follow, subscription)
                nursery.start_soon(engine.run)
                self.link.start()
                nursery.start_soon(self.link.run)
                try:
                    yield
                finally:
                    nursery.cancel_scope.cancel()

    async def _follow(self, subscription: Any) -> None:
        async for event in subscription:
            self.events.append(event)
            self.news.tell()

    def named(self, event: str) -> list[Event]:
        return [each for each in self.events if each["event"] == event]

    async def wait_for(self, event: str, count: int = 1, seconds: float = 20) -> Event:
        """The event of that name, at the latest the `count`th of them."""
        with trio.fail_after(seconds):
            while len(self.named(event)) < count:
                await self.news.wait()
        return self.named(event)[count - 1]

    def psk(self, far: Site) -> bytes | None:
        spec = self.device.peers.get(far.name.encode().ljust(32, b"."))
        return None if spec is None or spec.psk is None else spec.psk.expose()

    def shake_hands(self) -> None:
        """WireGuard takes the key up."""
        (spec,) = self.device.peers.values()
        self.device.stamp = (1_700_000_000 + next(self.device.stamps), 0)
        status = PeerStatus(
            public_key=spec.public_key,
            endpoint=None,
            handshake_stamp=self.device.stamp,
            rx_bytes=next(self.device.stamps) * 1000,
            tx_bytes=0,
            allowed_ips=spec.allowed_ips,
            keepalive=spec.keepalive,
            psk_mark=b"" if spec.psk is None else psk_mark(spec.psk.expose()),
        )
        # Later than a handshake with the key before could come
        self.link.observe(status, boottime() + OLD_KEY_MARGIN)

    async def renew(self) -> None:
        """Begin an exchange, as soon as none is under way."""
        with trio.fail_after(20):
            while not self.link.exchanges.begin():
                await self.news.wait()

    async def exchange_with(self, source: str) -> Asked:
        """Begin an exchange that needs this source, as soon as none is under way."""
        with trio.fail_after(20):
            while (asked := self.link.exchanges.begin_with(source)) is None:
                await self.news.wait()
        return asked


def make_sites(folder: Path) -> tuple[Site, Site]:
    """fra and ams; fra has the smaller fingerprint. Both have the sources kme-a and kme-b, and
    know each other there as sae-fra and sae-ams."""
    suite = system_suite(1)
    identities = sorted(
        (Identity(suite, suite.generate_private_key()) for _ in range(2)),
        key=lambda one: one.fingerprint,
    )
    sites, news = [], News()
    for name, identity in zip(("fra", "ams"), identities, strict=True):
        (folder / name).mkdir()
        sites.append(Site(name, folder / name, free_port(), identity, news))
    fra, ams = sites
    for source in ("kme-a", "kme-b"):
        vault = Vault()
        for site in sites:
            site.sources[source] = StandInSource(source, vault, f"sae-{site.name}-{source}")
    return fra, ams


def use(far: Site, source: str) -> dict[str, str]:
    return {"source": source, "peer_sae": f"sae-{far.name}-{source}"}


async def agree(fra: Site, ams: Site, *, but: bytes | None = None, seconds: float = 45) -> bytes:
    """Wait until both ends have the same PSK, another one than `but`."""
    with trio.fail_after(seconds):
        while True:
            psk = fra.psk(ams)
            if psk is not None and psk == ams.psk(fra) and psk != but:
                return psk
            await fra.news.wait()

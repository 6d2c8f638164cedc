"""The daemon: everything that was configured, put together, and what the control socket asks."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Final

import trio

from kex.endpoint import Endpoint
from kex.identity import Identity
from kex.link_state import NotPossible
from kex.suites import SUITE_NUMBERS
from kex.wire import HEADER_LENGTH, TRAILER_LENGTH
from tun import TunError, remove_guard_routes
from vpnd.api import (
    SCHEMA,
    ErrorCode,
    IdentityInfo,
    LinkStatus,
    NodeStatus,
    PeerInfo,
    PeerRemoved,
    RekeyStarted,
)
from vpnd.clock import boottime
from vpnd.config import Config
from vpnd.config_model import PeerConfig, PeerRequest
from vpnd.engine import Engine
from vpnd.event_feed import EventFeed, Subscription
from vpnd.guards import guarded_prefixes
from vpnd.identity_store import PeerKeyCache, load_identities, system_suite
from vpnd.journal import Journal
from vpnd.link import UNKNOWN_PEER_SECONDS, ManagedLink
from vpnd.link_record import LinkRecords
from vpnd.node_control import Caller, ControlError, no_such_peer
from vpnd.peer_file import remove_peer_file, write_peer_file
from vpnd.transport import Transport
from vpnd.tunnels import ManagedTunnel
from vpnd.view import link_status, peer_info, tunnel_status

STOP_SECONDS: Final = 15.0
"""How long a clean stop waits for an exchange that the other end may have completed."""
ACTIVE_SOON_SECONDS: Final = 1.0


class NoIdentity(Exception):
    """This node has no identity that can be used; the message says what to do."""


class Node:
    """The daemon's parts, and the answers to its control socket (NodeControl)."""

    def __init__(self, config: Config, transport: Transport, journal: Journal, feed: EventFeed):
        self._config = config
        self._transport = transport
        self._journal = journal
        self._feed = feed
        self._started_at = boottime()
        self._identities = self._load_identities()
        self._records = LinkRecords(config.node.runtime_dir)
        self._peer_keys = PeerKeyCache(config.node.state_dir, warn=self._warn)
        self.engine = Engine(self._endpoint(), transport, journal)
        self.tunnels = {
            name: ManagedTunnel(tunnel, journal) for name, tunnel in config.tunnels.items()
        }
        self.links: dict[str, ManagedLink] = {}
        self._scopes: dict[str, trio.CancelScope] = {}
        self._nursery: trio.Nursery | None = None
        self._changing = trio.Lock()

    def _load_identities(self) -> tuple[Identity, ...]:
        stored = load_identities(self._config.node.state_dir)
        for fault in stored.faults:
            self._warn(str(fault))
        if not stored.identities:
            raise NoIdentity(
                f"no identity in {self._config.node.state_dir}: run `vpnctl init` once"
            )
        return tuple(stored.identities.values())

    def _endpoint(self) -> Endpoint:
        return Endpoint(
            suites={number: system_suite(number) for number in SUITE_NUMBERS},
            identities=self._identities,
            random=os.urandom,
            now=boottime(),
            chunk_length=self._config.node.max_datagram - HEADER_LENGTH - TRAILER_LENGTH,
        )

    def _warn(self, text: str) -> None:
        self._journal.record("warning", level="warning", reason=text)

    # ---- life

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Bring everything up; on leaving, links stop and interfaces stay as they are."""
        await self._guard_all()
        for tunnel in self.tunnels.values():
            await tunnel.try_open()
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await self._start_links()
            nursery.start_soon(self.engine.run)
            for tunnel in self.tunnels.values():
                nursery.start_soon(tunnel.run)
            yield
            nursery.cancel_scope.cancel()
        for tunnel in self.tunnels.values():
            await tunnel.aclose()

    async def _guard_all(self) -> None:
        """Guard routes come first: before any interface, and whatever becomes of it."""
        for peer in self._config.peers.values():
            await self._guard(peer)

    async def _guard(self, peer: PeerConfig) -> None:
        tunnel = self.tunnels[peer.tunnel]
        try:
            await tunnel.set_guards(guarded_prefixes(peer, tunnel.config))
        except TunError as error:
            self._journal.record("guard_failed", peer=peer.name, level="error", reason=str(error))
            raise

    async def _start_links(self) -> None:
        for peer in self._config.peers.values():
            self._start_link(peer)
        for tunnel in self.tunnels.values():
            if tunnel.open is not None and tunnel.open.adopted:
                await self._adopt(tunnel)
            await tunnel.set_routes()

    async def _adopt(self, tunnel: ManagedTunnel) -> None:
        peers = await tunnel.peers()
        claimed = set()
        for link in self.links.values():
            key = link.peer_key()
            if link.tunnel is tunnel and key is not None:
                claimed.add(key)
                link.adopt_session(peers.get(key))
        for key in peers.keys() - claimed:
            tunnel.give_grace(key, UNKNOWN_PEER_SECONDS)

    def _start_link(self, peer: PeerConfig) -> ManagedLink:
        if self._nursery is None:
            raise RuntimeError("links are started by a node that runs")
        link = ManagedLink(
            peer,
            self.tunnels[peer.tunnel],
            own=tuple(identity.fingerprint for identity in self._identities),
            engine=self.engine,
            records=self._records,
            peer_keys=self._peer_keys,
            journal=self._journal,
        )
        link.start()
        self.links[peer.name] = link
        scope = self._scopes[peer.name] = trio.CancelScope()
        self._nursery.start_soon(self._run_link, link, scope)
        return link

    @staticmethod
    async def _run_link(link: ManagedLink, scope: trio.CancelScope) -> None:
        with scope:
            await link.run()

    async def settle(self) -> None:
        """Before a stop: let an exchange be answered whose key the other end may have."""
        with trio.move_on_after(STOP_SECONDS):
            for link in tuple(self.links.values()):
                while link.busy():
                    await self.engine.wait_changed()

    # ---- control

    async def status(self) -> NodeStatus:
        await self._look()
        endpoint = self.engine.endpoint.statistics()
        counters = {f"rejected: {reason}": count for reason, count in endpoint.rejected.items()}
        counters |= {
            "datagrams_accepted": endpoint.accepted,
            "datagrams_unsent": self._transport.unsent,
            "cookie_replies": endpoint.cookie_replies,
        }
        return NodeStatus(
            schema=SCHEMA,
            node=self._config.node.name,
            version=version("vpnd"),
            identities=[
                IdentityInfo(suite=own.fingerprint.suite, text=own.fingerprint.text())
                for own in self._identities
            ],
            pid=os.getpid(),
            uptime_seconds=round(boottime() - self._started_at, 1),
            listen=self._transport.local_names(),
            tunnels=[tunnel_status(tunnel) for tunnel in self.tunnels.values()],
            links=[self._link_status(link) for link in self.links.values()],
            counters=counters,
            warnings=[str(note) for note in self._config.notes],
        )

    async def _look(self) -> None:
        """Fresh counters and handshakes: a status that is seconds old misleads."""
        for tunnel in self.tunnels.values():
            if tunnel.open is not None:
                await tunnel.look()

    def _link_status(self, link: ManagedLink) -> LinkStatus:
        counters = dict(self._journal.link_counters.get(link.name, {}))
        exchange = self.engine.endpoint.link(link.name) if link.joined else None
        return link_status(link, exchange, counters)

    def _named(self, name: str) -> ManagedLink:
        try:
            return self.links[name]
        except KeyError:
            raise no_such_peer(name) from None

    async def link(self, name: str) -> LinkStatus:
        link = self._named(name)
        if link.tunnel.open is not None:
            await link.tunnel.look()
        return self._link_status(self._named(name))

    async def peers(self) -> list[PeerInfo]:
        return [peer_info(peer) for peer in self._config.peers.values()]

    async def add_peer(self, request: PeerRequest, caller: Caller) -> LinkStatus:
        async with self._changing:
            if request.name in self._config.peers:
                raise ControlError(
                    ErrorCode.PEER_EXISTS,
                    f"there is a peer {request.name} already",
                    f"`vpnctl peer remove {request.name}` first, or choose another name",
                )
            config = self._config.with_peer(request)
            peer = config.peers[request.name]
            write_peer_file(config.node.peers_dir, peer.name, request)
            try:
                await self._guard(peer)
                link = self._start_link(peer)
            except (TunError, ValueError) as error:
                remove_peer_file(config.node.peers_dir, peer.name)
                raise ControlError(ErrorCode.BACKEND_FAILED, str(error)) from error
            self._config = config
            self._journal.record("peer_added", peer=peer.name, uid=caller.uid)
            return self._link_status(link)

    async def remove_peer(self, name: str, caller: Caller) -> PeerRemoved:
        async with self._changing:
            link = self._named(name)
            config = self._config.without_peer(name)
            remove_peer_file(config.node.peers_dir, name)
            self._config = config
            del self.links[name]
            self._scopes.pop(name).cancel()
            try:
                await link.remove()
                await self._unguard(link)
            except TunError as error:
                raise ControlError(
                    ErrorCode.BACKEND_FAILED,
                    f"the peer is no longer configured, but WireGuard still has it: {error}",
                    "look at `wg show`, and restart vpnd if it does not go",
                ) from error
            self._journal.record("peer_removed", peer=name, uid=caller.uid)
            self._journal.forget_link(name)
            return PeerRemoved(schema=SCHEMA, peer=name, removed=True)

    async def _unguard(self, gone: ManagedLink) -> None:
        """Remove the guard routes of a link, but for those that another link needs as well."""
        needed = {
            prefix
            for link in self.links.values()
            if link.tunnel.config.table == gone.tunnel.config.table
            for prefix in guarded_prefixes(link.peer, link.tunnel.config)
        }
        own = guarded_prefixes(gone.peer, gone.tunnel.config)
        await remove_guard_routes(
            [prefix for prefix in own if prefix not in needed], table=gone.tunnel.config.table
        )

    async def rekey(self, name: str, caller: Caller) -> RekeyStarted:
        link = self._named(name)
        try:
            link.rekey()
        except NotPossible as error:
            raise ControlError(
                ErrorCode.CONFLICT, str(error), "run `vpnctl peer rekey` at the other end"
            ) from error
        self._journal.record("rekey_requested", peer=name, uid=caller.uid)
        return RekeyStarted(schema=SCHEMA, peer=name, started=True)

    def subscribe_events(self) -> Subscription:
        return self._feed.subscribe()

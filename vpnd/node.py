"""The daemon: everything that was configured, put together, and what the control socket asks."""

from __future__ import annotations

import gc
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import trio

from kex.endpoint import Endpoint
from kex.identity import Identity
from kex.link_state import NotPossible
from kex.suites import SUITE_NUMBERS
from kex.wire import HEADER_LENGTH, TRAILER_LENGTH
from vpnd import reload, source_test
from vpnd.api import (
    SCHEMA,
    ErrorCode,
    FallbackExtension,
    IdentityInfo,
    KeySourceInfo,
    KeySourceTest,
    LinkStatus,
    NodeStatus,
    PeerInfo,
    PeerRemoved,
    RekeyStarted,
    ReloadResult,
)
from vpnd.atomic_file import remove_durably
from vpnd.clock import boottime, rfc3339, wall
from vpnd.config import Config, HeldPeer
from vpnd.config_model import PeerConfig, PeerRequest, TunnelConfig
from vpnd.disk_watch import DiskWatch
from vpnd.engine import Engine
from vpnd.event_feed import EventFeed, Subscription
from vpnd.external_record import ExternalRecords
from vpnd.fallback import NotExtensible
from vpnd.file_trust import FileFault
from vpnd.forwarding_watch import ForwardingWatch
from vpnd.guard_names import GuardNames
from vpnd.guards import Guards
from vpnd.identity_store import PeerKeyCache, load_identities, system_suite
from vpnd.journal import DROPPED, Journal
from vpnd.keysource.base import KeySource
from vpnd.keysource.registry import KeySources
from vpnd.last_good import LastGood, write_last_good
from vpnd.leftovers import Leftovers
from vpnd.link import ManagedLink
from vpnd.link_record import LinkRecords
from vpnd.ml_kem import ml_kem_provider
from vpnd.node_control import (
    Caller,
    ControlError,
    is_held,
    no_such_peer,
    no_such_source,
    not_guarded,
    not_taken,
)
from vpnd.paths import PathWatch
from vpnd.pause_watch import PauseWatch
from vpnd.peer_file import remove_peer_file, restore_peer_file, write_peer_file
from vpnd.source_journal import SourceJournal
from vpnd.start_config import Start, last_good_of
from vpnd.strangers import Strangers
from vpnd.transport import Transport
from vpnd.tunnels import ENTERING_SECONDS, BackendErrors, ManagedTunnel
from vpnd.upkeep import Upkeep
from vpnd.view import held_status, link_status, peer_info, tunnel_status
from vpnd.view_external import key_source, source_warnings

GARBAGE: Final = (10_000, 10, 10)
"""After how many new objects the youngest are looked through for garbage, and the older ones
(gc.set_threshold). With Python's 700, much of what a netlink call or an exchange leaves behind has
grown old by its end, and is found with all that is old: pauses of 60 ms with 1,000 links."""
SETTLE_SECONDS: Final = 15.0
"""How long a clean stop waits for an exchange that the other end may have completed."""
CLOSE_SECONDS: Final = 15.0
"""And then for the links that are not to run on without the daemon. With what the control server
takes in between, a stop has to fit into the unit's TimeoutStopSec."""
AT_ONCE: Final = 30
"""Links that are started or shown before other tasks get their turn."""
LOOK_SECONDS: Final = 2.0
"""How long a status waits for the interface; then it shows what was seen last."""


class NoIdentity(Exception):
    """This node has no identity that can be used; the message says what to do."""


class Node:
    """The daemon's parts, and the answers to its control socket (NodeControl)."""

    def __init__(
        self,
        config: Config,
        transport: Transport,
        journal: Journal,
        feed: EventFeed,
        start: Start | None = None,
    ):
        self.config = config
        self._start = start
        self._last_good = LastGood(str(config.path), None) if start is None else start.last_good
        self._last_good_fault = ""
        self.disk = DiskWatch(lambda: self.config, journal)
        self._transport = transport
        self._journal = journal
        self._feed = feed
        self._started_at = boottime()
        self._started_wall = rfc3339(wall())
        self._pauses = PauseWatch()
        self._suites = {
            number: system_suite(number, ml_kem_provider(config.crypto.ml_kem))
            for number in SUITE_NUMBERS
        }
        self.identities = self._load_identities()
        """By name, the one in use first."""
        self._records = LinkRecords(config.node.runtime_dir)
        self._external_records = ExternalRecords(config.node.runtime_dir)
        self.sources = KeySources(config.key_sources, SourceJournal(journal))
        self._peer_keys = PeerKeyCache(config.node.state_dir, warn=self._warn)
        self.engine = Engine(self._endpoint(), transport, journal)
        self._forwarding = ForwardingWatch(journal)
        self._leftovers = Leftovers(config, self._records, journal)
        self.tunnels: dict[str, ManagedTunnel] = {}
        self.links: dict[str, ManagedLink] = {}
        self.guards = Guards(
            journal,
            config=lambda: self.config,
            tunnels=self.tunnels,
            links=lambda: [(link.peer, link.tunnel) for link in self.links.values()],
        )
        self._upkeep = Upkeep(
            self.guards, self.tunnels, self.unchanging, self.look_at_forwarding, journal
        )
        self._paths = PathWatch(self.guards, self.tunnels, self.links, journal)
        for tunnel in config.tunnels.values():
            self.make_tunnel(tunnel)
        self._scopes: dict[str, trio.CancelScope] = {}
        self._tunnel_scopes: dict[str, trio.CancelScope] = {}
        self._nursery: trio.Nursery | None = None
        self._changing = trio.Lock()
        self._strangers = Strangers(self, journal)
        self.engine.handle_callers(self._strangers.called)
        guards = GuardNames()
        transport.deliveries.guard_over = lambda host: guards.over(host, self.config)

    def _load_identities(self) -> Mapping[str, Identity]:
        stored = load_identities(self.config.node.state_dir, suite_of=self._suites.__getitem__)
        for fault in stored.faults:
            self._warn(str(fault))
        if not stored.identities:
            raise NoIdentity(f"no identity in {self.config.node.state_dir}: run `vpnctl init` once")
        return stored.identities

    def _endpoint(self) -> Endpoint:
        return Endpoint(
            suites=self._suites,
            identities=self.identities.values(),
            random=os.urandom,
            now=boottime(),
            chunk_length=self.config.node.max_datagram - HEADER_LENGTH - TRAILER_LENGTH,
        )

    def _warn(self, text: str) -> None:
        self._journal.record("warning", level="warning", reason=text)

    # ---- life

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Bring everything up; on leaving, links stop and interfaces stay as they are."""
        trio.lowlevel.add_instrument(self._pauses)
        gc.set_threshold(*GARBAGE)
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            # Guards come first: before any interface, and whatever becomes of it
            await self.guards.guard_all()
            self._tell_start()
            await self._leftovers.take_away(self.tunnels)
            for number, peer in enumerate(self.config.peers.values(), 1):
                self.start_link(peer)
                if number % AT_ONCE == 0:
                    await trio.lowlevel.checkpoint()
            for tunnel in self.tunnels.values():
                # The way into a namespace may take long: that is its own task's business
                if tunnel.config.netns is None:
                    await tunnel.try_open()
            nursery.start_soon(self.sources.run)
            nursery.start_soon(self.engine.run)
            nursery.start_soon(self._upkeep.run)
            nursery.start_soon(self._paths.run)
            for tunnel in self.tunnels.values():
                self._tunnel_scopes[tunnel.name] = self._keep_running(tunnel.run)
            with trio.move_on_after(ENTERING_SECONDS):
                for tunnel in self.tunnels.values():
                    await tunnel.wait_tried()
            if self._start is not None:
                for name, guards in self._start.stale.items():
                    await self.guards.release(name, guards)
            await self.keep_last_good()
            nursery.start_soon(self.disk.run)
            # What lives as long as the daemon is not looked through for garbage again and again:
            # with 1,000 links that takes 60 ms each time
            gc.freeze()
            yield
            self._nursery = None
            for number, scope in enumerate(self._scopes.values(), 1):
                scope.cancel()
                if number % AT_ONCE == 0:
                    await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        await self._close_links()
        for tunnel in self.tunnels.values():
            await tunnel.aclose()

    def _tell_start(self) -> None:
        """What the start has found wrong on disk."""
        if self._start is None:
            return
        for note in self._start.notes:
            self._journal.record("last_good_unusable", level="warning", reason=str(note))
        self.disk.tell_start(self._start.problems)
        for held in self.config.held.values():
            self._journal.record(
                "peer_held", peer=held.name, level="error", reason=f"not started: {held.reason}"
            )

    async def _close_links(self) -> None:
        """Take off what is not to run on without the daemon; what there was no time for is told."""
        to_close = {
            name: link
            for name, link in self.links.items()
            if (link.peer.on_stop or self.config.node.on_stop) == "close"
        }
        used = {link.tunnel.name for link in to_close.values()}
        with trio.move_on_after(CLOSE_SECONDS):
            for name, link in tuple(to_close.items()):
                # Routes for all at once afterwards: with many links each look at them takes long
                await link.wireguard.take_off(with_routes=False)
                del to_close[name]
                self._journal.record("link_closed", peer=name, reason='on_stop = "close"')
            for name in used:
                await self.tunnels[name].set_routes()
        for name in to_close:
            self._journal.record(
                "peer_not_removed",
                peer=name,
                level="error",
                reason=f'on_stop = "close" took more than {CLOSE_SECONDS:.0f} s: it runs on',
            )

    def _keep_running(self, task: Callable[[], Awaitable[None]]) -> trio.CancelScope:
        """Run a part's task, which meets its own errors, until its scope is cancelled."""
        scope = trio.CancelScope()

        async def run() -> None:
            with scope:
                await task()

        if self._nursery is not None:
            self._nursery.start_soon(run)
        return scope

    # ---- parts that come and go (for vpnd.reload)

    def require_running(self) -> None:
        """Raises ControlError where links can not be started."""
        if self._nursery is None:
            raise ControlError(
                ErrorCode.UNAVAILABLE, "the daemon is starting or stopping", "try again"
            )

    def make_tunnel(self, config: TunnelConfig) -> None:
        """A further tunnel, not opened yet: guards and links can have it from now on."""
        self.tunnels[config.name] = ManagedTunnel(
            config,
            self._journal,
            guard_links=self.guards.guard_tunnel,
            records=self._leftovers.tunnels,
        )

    async def open_tunnel(self, name: str) -> None:
        """Open it, and keep it open; what goes wrong is told, and tried again."""
        tunnel = self.tunnels[name]
        if tunnel.config.netns is None:
            await tunnel.try_open()
        self._tunnel_scopes[name] = self._keep_running(tunnel.run)
        with trio.move_on_after(ENTERING_SECONDS):
            await tunnel.wait_tried()

    async def delete_tunnel(self, name: str) -> None:
        """Take a tunnel away that no link uses. Raises TunError, OSError, FileFault."""
        self._tunnel_scopes.pop(name).cancel()
        tunnel = self.tunnels.pop(name)
        await self.guards.forget_tunnel(tunnel)
        await tunnel.delete()

    def update_links(self, config: Config, identities: Mapping[str, Identity]) -> None:
        """Let every link, and the key exchange, go by another configuration: all or nothing.

        `config` has every peer that has a link, on the same tunnel. Raises ValueError.
        """
        news = [(link, config.peers[name]) for name, link in self.links.items()]
        with self.engine.driving() as (endpoint, now):
            known = [
                link_config
                for link, peer in news
                if (link_config := link.exchanges.config_with(peer, config.locals_of(peer)))
                is not None
            ]
            for fingerprint in {one for link_config in known for one in link_config.remotes}:
                if endpoint.knows_public_key(fingerprint):
                    continue
                public_key = self._peer_keys.load(fingerprint)
                if public_key is not None:
                    endpoint.know_public_key(fingerprint, public_key)
            endpoint.update_links(known, now, identities=identities.values())
            self.identities = identities
            for link, peer in news:
                link.take(peer, config.locals_of(peer))

    async def drop_link(self, name: str) -> ManagedLink:
        """End a link and take its peer off the interface; its guard routes stay."""
        link = self.links.pop(name)
        self._scopes.pop(name).cancel()
        await link.remove()
        self._journal.forget_link(name)
        return link

    async def keep_last_good(self) -> None:
        """Keep what runs now, for a start that finds something else on disk."""
        config, before = self.config, self._last_good

        def keep() -> LastGood:
            good = last_good_of(config, before)
            write_last_good(config.node.state_dir, good)
            return good

        fault = ""
        with trio.CancelScope(shield=True):
            try:
                self._last_good = await trio.to_thread.run_sync(keep)
            except FileFault as error:
                fault = f"the last good configuration was not kept: {error}"
        if fault and fault != self._last_good_fault:
            self._journal.record("last_good_not_written", level="warning", reason=fault)
        self._last_good_fault = fault

    def unchanging(self) -> AbstractAsyncContextManager[object]:
        """No peer comes, goes or changes meanwhile."""
        return self._changing

    def start_link(self, peer: PeerConfig, config: Config | None = None) -> ManagedLink:
        """Make a link and its task; `config` is the one that has the peer, unless it is the
        current one. Raises ValueError, ControlError."""
        self.require_running()
        link = ManagedLink(
            peer,
            self.tunnels[peer.tunnel],
            own=(config or self.config).locals_of(peer),
            engine=self.engine,
            records=self._records,
            external_records=self._external_records,
            find_source=self.sources.get,
            peer_keys=self._peer_keys,
            journal=self._journal,
        )
        link.start()
        self.links[peer.name] = link
        self._scopes[peer.name] = self._keep_running(link.run)
        return link

    async def settle(self) -> None:
        """Before a stop: let an exchange be answered whose key the other end may have."""
        self.engine.hold()
        with trio.move_on_after(SETTLE_SECONDS):
            while any(link.busy() for link in self.links.values()):
                await self.engine.wait_changed()

    # ---- control

    async def look_at_forwarding(self) -> None:
        """Whether hosts behind this node can use its tunnels."""
        await self._forwarding.look(self.config, self.tunnels)

    async def status(self) -> NodeStatus:
        for tunnel in tuple(self.tunnels.values()):
            await self._refresh(tunnel)
        await self.look_at_forwarding()
        endpoint = self.engine.endpoint.statistics()
        links: list[LinkStatus] = []
        strangers = self._strangers.warnings()
        for link in tuple(self.links.values()):
            links.append(self._link_status(link, strangers))
            if len(links) % AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
        links += [held_status(held, self._started_wall) for held in self.config.held.values()]
        counters = {f"rejected: {reason}": count for reason, count in endpoint.rejected.items()}
        counters |= {
            "datagrams_accepted": endpoint.accepted,
            "datagrams_unsent": self._transport.unsent,
            "cookie_replies": endpoint.cookie_replies,
            DROPPED: self._journal.unwritten,
        }
        return NodeStatus(
            schema=SCHEMA,
            node=self.config.node.name,
            version=version("vpnd"),
            identities=[
                IdentityInfo(
                    suite=own.fingerprint.suite,
                    text=own.fingerprint.text(),
                    name=name,
                    in_use=index == 0,
                )
                for index, (name, own) in enumerate(self.identities.items())
            ],
            pid=os.getpid(),
            uptime_seconds=round(boottime() - self._started_at, 1),
            longest_pause_ms=round(self._pauses.longest * 1e3, 1),
            longest_pause_cpu_ms=round(self._pauses.longest_cpu * 1e3, 1),
            listen=self._transport.local_names(),
            tunnels=[
                tunnel_status(tunnel, self.guards.fence_of(tunnel.config))
                for tunnel in self.tunnels.values()
            ],
            links=links,
            counters=counters,
            warnings=[
                *(str(note) for note in self.config.notes),
                *self._transport.problems(),
                *self.guards.warnings,
                *self._paths.warnings,
                *self._forwarding.warnings,
                *source_warnings(self.sources.statuses()),
                *filter(None, [self._last_good_fault]),
            ],
            configuration=await self.disk.look(),
            callers=self._strangers.listed(),
        )

    async def _refresh(self, tunnel: ManagedTunnel) -> None:
        """Fresh counters and handshakes: a status that is seconds old misleads."""
        if tunnel.open is None:
            return
        with trio.move_on_after(LOOK_SECONDS):
            try:
                await tunnel.dumps.refresh_for_status()
            except BackendErrors:
                return  # the tunnel's own task meets it, too, and deals with it

    def _link_status(
        self, link: ManagedLink, strangers: Mapping[str, list[str]] | None = None
    ) -> LinkStatus:
        counters = dict(self._journal.link_counters.get(link.name, {}))
        status = link_status(link, counters)
        told = self._strangers.warnings() if strangers is None else strangers
        status["warnings"] += told.get(link.name, [])
        return status

    def _named(self, name: str) -> ManagedLink:
        try:
            return self.links[name]
        except KeyError:
            held = self.config.held.get(name)
            raise no_such_peer(name) if held is None else is_held(name, held.reason) from None

    async def link(self, name: str) -> LinkStatus:
        held = self.config.held.get(name)
        if held is not None:
            return held_status(held, self._started_wall)
        link = self._named(name)
        await self._refresh(link.tunnel)
        return self._link_status(self._named(name))

    async def peers(self) -> list[PeerInfo]:
        on_stop = self.config.node.on_stop
        return [peer_info(peer, on_stop) for peer in self.config.peers.values()]

    async def add_peer(self, request: PeerRequest, caller: Caller) -> LinkStatus:
        async with self._changing:
            if request.name in self.config.peers:
                raise ControlError(
                    ErrorCode.PEER_EXISTS,
                    f"there is a peer {request.name} already",
                    f"`vpnctl peer set {request.name}` changes it while its link runs; another "
                    "peer needs another name",
                )
            held = self.config.held.get(request.name)
            if held is not None:
                raise is_held(request.name, held.reason)
            # The tunnel by its name: the file holds, too, when there are several
            tunnels = tuple(self.config.tunnels)
            if request.tunnel is None and len(tunnels) == 1:
                request = request.model_copy(update={"tunnel": tunnels[0]})
            config = self.config.with_peer(request)
            peer = config.peers[request.name]
            # In a thread, as all that waits for a disk; once begun it is finished
            await trio.to_thread.run_sync(
                write_peer_file, config.node.peers_dir, peer.name, request
            )
            try:
                link = await self._bring_up(peer, config)
            except BaseException:
                # Whatever it was: nothing of the peer stays
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(
                        remove_peer_file, config.node.peers_dir, peer.name
                    )
                    await self.guards.unguard(peer, self.tunnels[peer.tunnel])
                self.update_links(self.config, self.identities)
                raise
            await self.adopt(config, peer.file)
            self._journal.record("peer_added", peer=peer.name, uid=caller.uid)
            return self._link_status(link)

    async def adopt(self, config: Config, file: Path) -> None:
        """Go by a configuration whose one change, of a peer's file, has been made by the daemon."""
        with suppress(OSError):
            config = replace(config, folder=file.parent.stat().st_ino)
        self.config = config
        await self.keep_last_good()
        self.disk.own_change(config, file)

    async def _bring_up(self, peer: PeerConfig, config: Config) -> ManagedLink:
        """Guard a new peer and start its link. Raises ControlError."""
        fault = await self.guards.guard(peer)
        if fault:
            raise not_guarded(peer.name, fault)
        try:
            # The new link may have named an identity that other links have used so far
            self.update_links(config, self.identities)
            return self.start_link(peer, config)
        except ValueError as error:
            raise not_taken(error) from error

    async def change_peer(self, name: str, change: Mapping[str, Any], caller: Caller) -> LinkStatus:
        async with self._changing:
            if name in self.config.held:
                changed = await self._repair(name, change)
            else:
                self._named(name)
                changed = await reload.change_peer(self, name, change)
            self._journal.record(
                "peer_changed", peer=name, uid=caller.uid, changes=", ".join(changed) or "nothing"
            )
        return await self.link(name)

    async def _repair(self, name: str, change: Mapping[str, Any]) -> list[str]:
        """Change the file of a peer that is held so that it is right, and start its link."""
        held = self.config.held[name]
        settings, kept = await reload.repaired_settings(held, change)
        config = self.config.with_repaired_peer(name, settings)
        await trio.to_thread.run_sync(
            partial(write_peer_file, held.file.parent, name, settings, replace=True)
        )
        try:
            await self._bring_up(config.peers[name], config)
        except BaseException:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(restore_peer_file, held.file, kept)
            self.update_links(self.config, self.identities)
            raise
        await self.adopt(config, held.file)
        await self.guards.release(name, held.guards)
        return list(change)

    async def reload(
        self, *, dry_run: bool, caller: Caller | None, remove_all: bool = False
    ) -> ReloadResult:
        """Take the configuration as it is on disk; `caller` is None for a signal.

        Raises ConfigErrors, ControlError: nothing was changed then.
        """
        async with self._changing:
            return await reload.reload(
                self, self._journal, dry_run=dry_run, caller=caller, remove_all=remove_all
            )

    async def _remove_held(self, held: HeldPeer, caller: Caller) -> PeerRemoved:
        config = self.config.without_held(held.name)
        await trio.to_thread.run_sync(remove_durably, held.file)
        await self.adopt(config, held.file)
        await self.guards.release(held.name, held.guards)
        self._journal.record("peer_removed", peer=held.name, uid=caller.uid)
        self._journal.forget_link(held.name)
        return PeerRemoved(schema=SCHEMA, peer=held.name, removed=True)

    async def remove_peer(self, name: str, caller: Caller) -> PeerRemoved:
        async with self._changing:
            if name in self.config.held:
                return await self._remove_held(self.config.held[name], caller)
            self._named(name)
            config = self.config.without_peer(name)
            file = self.config.peers[name].file
            await trio.to_thread.run_sync(remove_peer_file, config.node.peers_dir, name)
            self.config = config
            link = await self.drop_link(name)
            self.update_links(config, self.identities)
            await self.guards.unguard(link.peer, link.tunnel)
            await self.adopt(config, file)
            self._journal.record("peer_removed", peer=name, uid=caller.uid)
            self._journal.forget_link(name)  # what the record just now has counted
            return PeerRemoved(schema=SCHEMA, peer=name, removed=True)

    async def rekey(self, name: str, caller: Caller) -> RekeyStarted:
        link = self._named(name)
        try:
            started = link.exchanges.begin()
        except NotPossible as error:
            raise _not_begun(link, error) from error
        self._journal.record("rekey_requested", peer=name, uid=caller.uid)
        return RekeyStarted(schema=SCHEMA, peer=name, started=started)

    async def extend_fallback(
        self, name: str, request: FallbackExtension, caller: Caller
    ) -> LinkStatus:
        link = self._named(name)
        try:
            link.extend_fallback(request["seconds"], request["reason"], uid=caller.uid)
        except NotExtensible as error:
            raise ControlError(
                ErrorCode.CONFLICT,
                f"{name}: {error}",
                f"`vpnctl status {name}` shows it; fallback_limit in the peer's file is for longer",
            ) from error
        return await self.link(name)

    async def key_sources(self) -> list[KeySourceInfo]:
        peers = self.config.peers
        return [key_source(status, peers) for status in self.sources.statuses()]

    def _source(self, name: str) -> KeySource:
        found = self.sources.get(name)
        if found is None:
            raise no_such_source(name)
        return found

    async def key_source(self, name: str) -> KeySourceInfo:
        return key_source(self._source(name).status(), self.config.peers)

    async def test_key_source(
        self, name: str, *, peer: str | None, consume_one: bool, deep: bool, caller: Caller
    ) -> KeySourceTest:
        source = self._source(name)
        if peer is not None:
            self._named(peer)
        consume_one = consume_one or deep
        user = source_test.user_of(source, list(self.config.peers.values()), peer)
        if consume_one and user is None:
            raise ControlError(
                ErrorCode.CONFLICT,
                f"no link uses the key source {name}: no far end could be compared with",
                "name it in [external_keys] of a peer's file first",
            )
        told = None if user is None else user[0].name
        self._journal.record(
            "source_tested",
            peer=told,
            source=name,
            uid=caller.uid,
            consume_one=consume_one,
            deep=deep,
        )
        test = await source_test.probe(source, None if user is None else user[1], told)
        if deep and user is not None and test["done"]:
            test = await source_test.try_out(source, user[1], test)
        if not consume_one or user is None or not test["done"]:
            return test
        link = self._named(user[0].name)
        try:
            return await source_test.consume_one(link, source, test)
        except NotPossible as error:
            raise _not_begun(link, error) from error

    def subscribe_events(self) -> Subscription:
        return self._feed.subscribe()

    def kept_events(
        self, *, since: float | None, last: int | None, peer: str | None
    ) -> list[bytes]:
        return self._feed.kept(since=since, last=last, peer=peer)


def _not_begun(link: ManagedLink, error: NotPossible) -> ControlError:
    """An exchange that somebody asked for, and that this end cannot begin."""
    hint = (
        "run it at the other end of the link"
        if link.exchanges.joined
        else f"`vpnctl status {link.name}` says what of the interface; it is tried again every 5 s"
    )
    return ControlError(ErrorCode.CONFLICT, str(error), hint)

"""The tunnels of this node: opened, adopted, watched, and changed by one task at a time.

An interface that is gone is made anew, and the links are told that it is another one.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

import trio

from tun import (
    DEFAULT_MTU,
    HandshakeStamp,
    InterfaceMissing,
    KeyChanged,
    PeerMissing,
    PeerSpec,
    PeerStatus,
    Prefix,
    TunError,
    Tunnel,
    TunnelSpec,
    open_tunnel,
)
from vpnd.clock import boottime
from vpnd.config_model import TunnelConfig
from vpnd.file_trust import FileFault
from vpnd.journal import Journal
from vpnd.tunnel_dumps import TunnelDumps
from vpnd.tunnel_flow import InterfaceFlow
from vpnd.tunnel_mtu import AutoMtu
from vpnd.tunnel_record import TunnelRecords
from vpnd.tunnel_users import TunnelUser, TunnelUsers
from vpnd.tunnel_ways import TunnelWays

RETRY_SECONDS: Final = 5.0
ENTERING_SECONDS: Final = 5.0
"""What a start, a reload and the removal of a peer wait for the way into another network namespace;
the tunnel's own task goes on looking for it."""
CHANGE_SECONDS: Final = 6.0
"""A change that the backend has not made by then has failed."""
UNKNOWN_PEER_SECONDS: Final = 180.0
"""What a peer that nobody knows gets after a restart: the life of a WireGuard session."""

BackendErrors = (TunError, OSError)
INTERNAL_ERROR: Final = "an internal error; see the log"


@dataclass(frozen=True, slots=True)
class Installed:
    """What a PSK met on the interface."""

    was_present: bool
    stamp_before: HandshakeStamp | None
    """Of the last handshake that was or may have been made with the PSK before."""


class ManagedTunnel:
    """One tunnel of the configuration, with or without its interface."""

    def __init__(
        self,
        config: TunnelConfig,
        journal: Journal,
        *,
        guard_links: Callable[[str], Awaitable[None]],
        records: TunnelRecords,
    ) -> None:
        """`guard_links` sets the guard routes of all links of the tunnel of that name."""
        self.config = config
        self._guard_links = guard_links
        self._records = records
        self._record_error = ""
        self.spec = _spec_of(config)
        self._auto_mtu = AutoMtu(config.interface, config.fwmark)
        self._journal = journal
        self._tunnel: Tunnel | None = None
        self._changing = trio.Lock()
        self._installing: set[bytes] = set()
        """Peers whose PSK is being set."""
        self._tried = trio.Event()
        """Set once it was tried to open it."""
        self._gone: Tunnel | None = None
        """What was found to be deleted."""
        self._unwanted: dict[bytes, float] = {}
        """Peers that have to go, and when; an entry leaves only once the peer has."""
        self.users = TunnelUsers(config.name, journal)
        self.dumps = TunnelDumps(self.users, self._read_peers)
        self._peers: Mapping[bytes, PeerStatus] = {}
        """As the last dump showed them."""
        self._flow = InterfaceFlow()
        self.error: str | None = "not opened yet"
        self._routes: frozenset[Prefix] = frozenset()
        """What routes were set for last."""
        self.ways = TunnelWays()
        self._routes_error = self._restore_error = ""

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def table(self) -> tuple[str | None, int | str]:
        """Namespace of its routes and guards, and their routing table, or the name of the VRF that
        has it."""
        return self.config.netns, self.config.routing_table

    @property
    def mtu(self) -> int:
        """Bytes, as the interface has it or is to have it."""
        return DEFAULT_MTU if self.spec.mtu is None else self.spec.mtu

    @property
    def open(self) -> Tunnel | None:
        """The interface, if there is one."""
        return self._tunnel

    # ---- the interface

    async def wait_tried(self) -> None:
        """Until there is an interface, or an error that says why not."""
        await self._tried.wait()

    async def try_open(self) -> None:
        """Open the interface, or adopt it; a failure is kept in `error`, and told once. Links go by
        it either way."""
        try:
            await self._try_open()
        except Exception as error:
            await self._met_a_bug(error)
        finally:
            self._tried.set()

    async def _met_a_bug(self, error: Exception) -> None:
        """What nobody has foreseen in what the host said: it is this tunnel's trouble alone."""
        self._journal.record("internal_error", level="error", tunnel=self.name, exc_info=error)
        tunnel, self._tunnel, self.error = self._tunnel, None, INTERNAL_ERROR
        if tunnel is not None:
            await tunnel.aclose()
        await self.users.tell(lambda user: user.tunnel_lost())

    async def _try_open(self) -> None:
        if self.config.netns is not None:
            # It may have come just now, or have been made anew, without any of our guards
            await self._guard_links(self.name)
        self._remember()
        try:
            tunnel = await open_tunnel(self.spec)
            peers = await tunnel.peers()
        except BackendErrors as error:
            if str(error) != self.error:
                self._trouble("tunnel_failed", error)
            self.error = str(error)
            await self.users.tell(lambda user: user.tunnel_lost())
            return
        self._tunnel, self.error, self._routes = tunnel, None, frozenset()
        self._flow = InterfaceFlow()
        self._journal.record(
            "tunnel_opened",
            tunnel=self.name,
            interface=self.spec.interface,
            backend=tunnel.backend,
            adopted=tunnel.adopted,
        )
        await self.users.tell(lambda user: user.tunnel_opened(peers))
        await self._adopt(peers)

    def _remember(self) -> None:
        """Before there is an interface, so that a daemon that dies in between knows of it."""
        try:
            self._records.store(self.spec)
            self._record_error = ""
        except FileFault as fault:
            if str(fault) != self._record_error:
                self._record_error = str(fault)
                self._journal.record(
                    "record_not_written", level="warning", tunnel=self.name, reason=str(fault)
                )

    async def _adopt(self, peers: Mapping[bytes, PeerStatus]) -> None:
        """Bring what an earlier run left in line with the configuration."""
        claimed = {user.peer_key(): user for user in self.users}
        for key, status in peers.items():
            user = claimed.get(key)
            if user is None:
                self._unwanted.setdefault(key, boottime() + UNKNOWN_PEER_SECONDS)
                continue
            allowed_ips, keepalive = user.wanted()
            if set(allowed_ips) != set(status.allowed_ips) or keepalive != status.keepalive:
                try:
                    await self._live().update_peer(
                        key, allowed_ips=allowed_ips, keepalive=keepalive
                    )
                except BackendErrors as error:
                    self._trouble("tunnel_failed", error)
        await self.set_routes()

    async def run(self) -> None:
        """Keep the interface there, and look at it as often as somebody waits for something."""
        if not self._tried.is_set():
            await self.try_open()
        while True:
            if self._tunnel is None:
                await trio.sleep(RETRY_SECONDS)
                await self.try_open()
                continue
            await self.dumps.wait_due()
            try:
                await self._attend()
            except Exception as error:
                # A bug: the interface runs on, and is looked at again
                self._journal.record(
                    "internal_error", level="error", tunnel=self.name, exc_info=error
                )
                await trio.sleep(RETRY_SECONDS)

    async def _attend(self) -> None:
        """One look, and all that follows from it."""
        await self._look()
        await self._remove_unwanted()
        await self._follow_mtu()
        await self._watch_flow()
        if self._tunnel is not None and self._tunnel.is_altered:
            await self.restore()

    async def _look(self) -> None:
        """One dump, told to every link; an interface that is gone is made anew."""
        tunnel, gone, self._gone = self._tunnel, self._gone, None
        try:
            # wireguard-go answers for a moment after its link was deleted
            if gone is not None and gone is tunnel:
                raise InterfaceMissing(f"{self.spec.interface} was deleted")  # noqa: TRY301
            await self.dumps.refresh(at_most=0.0)
        except InterfaceMissing as error:
            if self._tunnel is tunnel:
                await self._renew_key(error)
                await self._lost(str(error))
        except BackendErrors as error:
            self._trouble("tunnel_unreadable", error)
            await self.users.tell(lambda user: user.counters_unknown())

    async def _read_peers(self) -> Mapping[bytes, PeerStatus]:
        self._peers = await self._live().peers()
        return self._peers

    async def _watch_flow(self) -> None:
        """Whether what WireGuard receives comes out of the interface, and what goes in is sent."""
        tunnel, peers, flow = self._tunnel, self._peers, self._flow
        if tunnel is None or tunnel.backend != "userspace" or not flow.is_due(boottime()):
            return
        try:
            packets = await tunnel.packets()
        except BackendErrors:
            return  # the next dump finds out what it is
        flow.look(packets, peers, boottime())

        def show(user: TunnelUser) -> None:
            withheld = user.peer_key() in flow.withheld
            user.interface_passes(withheld=withheld, not_taken=flow.not_taken)

        await self.users.tell(show)

    async def _renew_key(self, error: InterfaceMissing) -> None:
        """A private key that somebody else has set is known to somebody else."""
        if isinstance(error, KeyChanged) and self._tunnel is not None:
            try:
                await self._tunnel.give_new_key()
            except BackendErrors as trouble:
                self._trouble("tunnel_failed", trouble)

    async def _lost(self, reason: str) -> None:
        self._journal.record("tunnel_lost", level="error", tunnel=self.name, reason=reason)
        tunnel, self._tunnel, self.error = self._tunnel, None, reason
        if tunnel is not None:
            await tunnel.abandon()
        self._unwanted.clear()
        await self.try_open()

    # ---- peers

    async def install(self, peer: PeerSpec, *, instead_of: bytes | None) -> Installed:
        """Put the PSK in place: change it, add the peer, or replace another by it.

        Several peers at a time: they share the dumps before and after. Raises TunError, also when
        the backend takes too long: then the PSK may be set all the same.
        """
        self._installing.add(peer.public_key)
        try:
            with trio.move_on_after(CHANGE_SECONDS) as scope:
                return await self._install(peer, instead_of)
        finally:
            self._installing.discard(peer.public_key)
        if scope.cancelled_caught:
            raise TunError(f"{self.spec.interface}: the key was not set within {CHANGE_SECONDS} s")
        raise AssertionError("unreachable")

    async def _install(self, peer: PeerSpec, instead_of: bytes | None) -> Installed:
        tunnel = self._live()
        given_up = self._unwanted.get(peer.public_key, math.inf) <= boottime()
        if instead_of != peer.public_key and given_up:
            # Nothing of what it had for another link, prefixes and session, may become this one's
            async with self._changing:
                await self._remove(peer.public_key)
        # A renewal does not look first: among many peers it is the looks that take time
        if instead_of == peer.public_key or await tunnel.peer(peer.public_key) is not None:
            try:
                stamp = await tunnel.set_psk(peer.public_key, peer.psk)
                before = Installed(was_present=True, stamp_before=stamp)
            except PeerMissing:
                # Deleted behind our back just now; with its PSK it may come back
                await self._add(tunnel, peer, None)
                before = Installed(was_present=False, stamp_before=None)
            if instead_of not in (None, peer.public_key):
                self.discard(instead_of)
        else:
            await self._add(tunnel, peer, instead_of)
            before = Installed(was_present=False, stamp_before=None)
        self._unwanted.pop(peer.public_key, None)
        return before

    @staticmethod
    async def _add(tunnel: Tunnel, peer: PeerSpec, instead_of: bytes | None) -> None:
        if instead_of is None or instead_of == peer.public_key:
            await tunnel.add_peer(peer)
        else:
            await tunnel.replace_peer(instead_of, peer)

    async def move_peer(self, public_key: bytes, endpoint: tuple[str, int]) -> None:
        """Tell WireGuard where the peer is now. Raises TunError."""
        async with self._changing:
            await self._live().update_peer(public_key, endpoint=endpoint)

    async def update_peer(
        self,
        public_key: bytes,
        *,
        allowed_ips: Iterable[Prefix],
        keepalive: int,
        endpoint: tuple[str, int] | None,
    ) -> None:
        """Change a peer that is on the interface, its endpoint where one is given; its session goes
        on. Raises TunError."""
        async with self._changing:
            await self._live().update_peer(
                public_key, allowed_ips=allowed_ips, keepalive=keepalive, endpoint=endpoint
            )

    def discard(self, public_key: bytes | None) -> None:
        """A peer has to go: now, and if that fails as soon as it can be done."""
        if public_key is not None:
            self._unwanted[public_key] = boottime()
            self.dumps.want()

    async def discard_now(self, public_key: bytes) -> None:
        """The same, and wait for it. Raises TunError; it is tried again all the same."""
        self.discard(public_key)
        async with self._changing:
            if public_key in self._unwanted:  # else another link has the peer by now
                await self._remove(public_key)

    async def _remove(self, public_key: bytes) -> None:
        if self._tunnel is not None:
            with suppress(InterfaceMissing):  # and the peer with it
                await self._tunnel.remove_peer(public_key)
        self._unwanted.pop(public_key, None)

    async def _remove_unwanted(self) -> None:
        in_use = {user.peer_key() for user in self.users}
        now = boottime()
        for key in [key for key, at in self._unwanted.items() if at <= now]:
            if key in in_use or key in self._installing:
                del self._unwanted[key]
                continue
            self._journal.record(
                "unwanted_peer_removed", tunnel=self.name, wireguard=key.hex()[:16]
            )
            try:
                async with self._changing:
                    if key not in self._installing:
                        await self._remove(key)
            except BackendErrors as error:
                self._trouble("tunnel_failed", error)

    # ---- routes

    async def set_routes(self) -> frozenset[Prefix]:
        """Routes into the interface for every peer that is on it, or comes next; those that had
        been set before and were gone."""
        prefixes = {prefix for user in self.users for prefix in user.routed()}
        async with self._changing:
            if self._tunnel is None:
                return frozenset()
            try:
                done = await self._tunnel.set_routes(prefixes)
            except BackendErrors as error:
                if str(error) != self._routes_error:
                    self._trouble("routes_failed", error)
                self._routes_error = str(error)
                return frozenset()
            self._routes_error = ""
            changed = self._note_faults(done.faults)
            gone, self._routes = done.missing & self._routes, frozenset(prefixes)
        if changed:
            await self.users.tell(lambda user: user.ways_changed())
        return gone

    async def add_routes(self, prefixes: Iterable[Prefix]) -> None:
        """Routes into the interface for a peer that comes next."""
        wanted = frozenset(prefixes)
        async with self._changing:
            if self._tunnel is None:
                return
            try:
                faults = await self._tunnel.add_routes(wanted)
            except BackendErrors as error:
                self._trouble("routes_failed", error)
                return
            if not faults:
                self._routes |= wanted
                return
        await self.set_routes()  # some stand already: all have to be looked at

    def _note_faults(self, faults: Mapping[Prefix, str]) -> bool:
        """Keep why routes could not be set, and record what is new; whether anything is."""
        before, self.ways.routes = self.ways.routes, faults
        for prefix, reason in faults.items():
            if before.get(prefix) != reason:
                self._journal.record(
                    "routes_failed", level="error", tunnel=self.name, reason=reason
                )
        interface = () if self._tunnel is None else self._tunnel.faults
        if self._restore_error:
            interface = (*interface, self._restore_error)
        changed = before != faults or self.ways.interface != interface
        self.ways.interface = interface
        return changed

    # ---- what somebody else changed

    async def restore(self) -> None:
        """Bring the interface and its routes back to what they should be, and tell of it."""
        async with self._changing:
            if self._tunnel is None:
                return None
            try:
                changed = await self._tunnel.restore()
            except InterfaceMissing:
                self._gone = self._tunnel
                return self.dumps.want()
            except BackendErrors as error:
                if str(error) == self._restore_error:
                    return None
                self._trouble("tunnel_failed", error)
                self._restore_error = str(error)
            else:
                self._restore_error = ""
            told = self._note_faults(self.ways.routes)
        if told:
            await self.users.tell(lambda user: user.ways_changed())
        if self._restore_error:
            return None
        gone = await self.set_routes()
        if gone:
            changed.append("routes missing: " + ", ".join(sorted(map(str, gone))))
        if changed:
            self._journal.record(
                "put_right",
                level="warning",
                tunnel=self.name,
                reason=f"{self.spec.interface}: " + "; ".join(changed),
            )
        return None

    async def _follow_mtu(self) -> None:
        """`mtu = "auto"`: bring the interface to what the ways to its peers allow."""
        tunnel = self._tunnel
        if tunnel is None or self.config.mtu != "auto":
            return
        hosts = {host for user in self.users if (host := user.wireguard_host()) is not None}
        try:
            mtu = await self._auto_mtu.wanted(hosts, boottime())
            if mtu is None or mtu == self.spec.mtu:
                return
            async with self._changing:
                self.spec = tunnel.spec = replace(self.spec, mtu=mtu)
                await tunnel.restore()
        except BackendErrors as error:
            self._trouble("tunnel_failed", error)
        else:
            self._journal.record("mtu_changed", tunnel=self.name, mtu=mtu)

    def look_up_mtu(self) -> None:
        """The ways to the peers may have changed."""
        self._auto_mtu.forget()
        self.dumps.want()

    async def delete(self) -> None:
        """Take the interface away, and what is on it; its task has ended. Raises TunError, OSError,
        FileFault."""
        tunnel, self._tunnel, self.error = self._tunnel, None, "removed"
        if tunnel is not None:
            await tunnel.delete()
        self._records.forget(self.name)

    async def aclose(self) -> None:
        """Close our sockets; the interface runs on."""
        if self._tunnel is not None:
            await self._tunnel.aclose()

    def _live(self) -> Tunnel:
        if self._tunnel is None:
            raise InterfaceMissing(f"{self.spec.interface}: {self.error}")
        return self._tunnel

    def _trouble(self, event: str, error: Exception) -> None:
        self._journal.record(event, level="error", tunnel=self.name, reason=str(error))


def _spec_of(config: TunnelConfig) -> TunnelSpec:
    return TunnelSpec(
        interface=config.interface,
        tunnel_name=config.name,
        listen_port=config.listen_port,
        addresses=config.addresses,
        mtu=None if config.mtu == "auto" else config.mtu,
        backend=config.backend,
        routes=config.routes,
        table=config.table,
        metric=config.metric,
        fwmark=config.fwmark,
        vrf=config.vrf,
        netns=config.netns,
    )

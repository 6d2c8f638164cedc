"""The tunnels of this node: opened, watched, and changed by one task at a time.

One dump of the interface tells all its links of their peers. An interface that is gone is made
anew, and the links are told that its key is another one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final, Protocol

import trio

from tun import (
    InterfaceMissing,
    PeerMissing,
    PeerSpec,
    PeerStatus,
    Prefix,
    PresharedKey,
    TunError,
    Tunnel,
    TunnelSpec,
    open_tunnel,
    set_guard_routes,
)
from tun.model import HandshakeStamp
from vpnd.clock import boottime
from vpnd.config_model import TunnelConfig
from vpnd.journal import Journal

RETRY_SECONDS: Final = 5.0
DUMP_WHEN_AWAITED: Final = 1.0
DUMP_WHEN_AWAITED_BY_MANY: Final = 5.0
DUMP_WHEN_IDLE: Final = 10.0
MANY_PEERS: Final = 50
CHANGE_SECONDS: Final = 6.0
"""A change that the backend has not made by then has failed."""


class TunnelUser(Protocol):
    """What a tunnel has to know of a link that uses it."""

    def peer_key(self) -> bytes | None:
        """The WireGuard public key of the peer that the link has on the interface."""

    def awaits_handshake(self) -> bool:
        """Whether a handshake is waited for, so that dumps come every second."""

    def observe(self, status: PeerStatus | None, now: float) -> None:
        """Take what a dump begun at `now` showed of the peer; None where it is gone."""

    def tunnel_changed(self) -> None:
        """The interface is a new one, with a new key and without peers; or none at all."""

    def routed_prefixes(self) -> Iterable[Prefix]:
        """What goes through the interface while the peer is on it."""


class ManagedTunnel:
    """One tunnel of the configuration, with or without its interface."""

    def __init__(self, config: TunnelConfig, journal: Journal) -> None:
        self.config = config
        self.spec = TunnelSpec(
            interface=config.interface,
            tunnel_name=config.name,
            listen_port=config.listen_port,
            addresses=config.addresses,
            mtu=config.mtu,
            backend=config.backend,
            routes=config.routes,
            table=config.table,
            metric=config.metric,
            fwmark=config.fwmark,
        )
        self._journal = journal
        self._tunnel: Tunnel | None = None
        self._lock = trio.Lock()
        self._wanted = trio.Event()
        self._orphans: dict[bytes, float] = {}
        self.users: list[TunnelUser] = []
        self.error: str | None = "not opened yet"

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def open(self) -> Tunnel | None:
        """The interface, if there is one."""
        return self._tunnel

    @property
    def public_key(self) -> bytes:
        """Of the interface, 32 bytes; zeros while there is none."""
        return bytes(32) if self._tunnel is None else self._tunnel.public_key

    async def try_open(self) -> None:
        """Open the interface; a failure is kept in `error`, and told once."""
        try:
            tunnel = await open_tunnel(self.spec)
        except TunError as error:
            if str(error) != self.error:
                self._journal.record(
                    "tunnel_failed", level="error", tunnel=self.name, reason=str(error)
                )
            self.error = str(error)
            return
        self._tunnel, self.error = tunnel, None
        self._journal.record(
            "tunnel_opened",
            tunnel=self.name,
            interface=self.spec.interface,
            backend=tunnel.backend,
            adopted=tunnel.adopted,
        )

    async def run(self) -> None:
        """Keep the interface there, and look at it as often as somebody waits for something."""
        while True:
            if self._tunnel is None:
                await trio.sleep(RETRY_SECONDS)
                await self._reopen()
            else:
                with trio.move_on_after(self._dump_interval()):
                    await self._wanted.wait()
                self._wanted = trio.Event()
                await self.look()

    def look_soon(self) -> None:
        """Something is waited for from now on: do not sleep out a long interval."""
        self._wanted.set()

    def _dump_interval(self) -> float:
        if not any(user.awaits_handshake() for user in self.users):
            return DUMP_WHEN_IDLE
        many = len(self.users) > MANY_PEERS
        return DUMP_WHEN_AWAITED_BY_MANY if many else DUMP_WHEN_AWAITED

    async def _reopen(self) -> None:
        await self.try_open()
        if self._tunnel is not None:
            self._tell_users(lambda user: user.tunnel_changed())
            await self.set_routes()

    async def look(self) -> None:
        """One dump, told to every link."""
        # Before the dump: what is changed while it runs may or may not be in it
        now = boottime()
        try:
            peers = await self.peers()
        except InterfaceMissing as error:
            await self._lost(str(error))
            return
        except TunError as error:
            self._journal.record(
                "tunnel_unreadable", level="warning", tunnel=self.name, reason=str(error)
            )
            return

        def show(user: TunnelUser) -> None:
            key = user.peer_key()
            if key is not None:
                user.observe(peers.get(key), now)

        self._tell_users(show)
        await self._remove_orphans(now)

    def _tell_users(self, tell: Callable[[TunnelUser], None]) -> None:
        for user in tuple(self.users):
            try:
                tell(user)
            except Exception as error:
                # A bug, met by one link: it must not stop the others
                self._journal.record(
                    "internal_error", tunnel=self.name, level="error", exc_info=error
                )

    async def _lost(self, reason: str) -> None:
        self._journal.record("tunnel_lost", level="error", tunnel=self.name, reason=reason)
        if self._tunnel is not None:
            await self._tunnel.aclose()
        self._tunnel, self.error = None, reason
        await self._reopen()
        if self._tunnel is None:
            self._tell_users(lambda user: user.tunnel_changed())

    # ---- peers

    async def peers(self) -> Mapping[bytes, PeerStatus]:
        """One dump. Raises TunError."""
        return await self._live().peers()

    async def stamp_of(self, public_key: bytes) -> tuple[bool, HandshakeStamp | None]:
        """Whether the peer is on the interface, and its handshake stamp. Raises TunError."""
        status = (await self.peers()).get(public_key)
        return status is not None, None if status is None else status.handshake_stamp

    async def install(self, old_key: bytes | None, peer: PeerSpec) -> None:
        """Put the PSK in place: change it, add the peer, or replace the old one by it.

        Raises TunError, also when the backend takes too long.
        """
        with trio.move_on_after(CHANGE_SECONDS) as scope:
            async with self._lock:
                await self._install(old_key, peer)
        if scope.cancelled_caught:
            raise TunError(f"{self.spec.interface}: the key was not set within {CHANGE_SECONDS} s")

    async def _install(self, old_key: bytes | None, peer: PeerSpec) -> None:
        tunnel = self._live()
        self._orphans.pop(peer.public_key, None)
        if old_key == peer.public_key:
            try:
                await tunnel.set_psk(peer.public_key, peer.psk)
            except PeerMissing:
                # Deleted behind our back; with its PSK it may come back
                await tunnel.add_peer(peer)
        elif old_key is not None:
            await tunnel.replace_peer(old_key, peer)
        else:
            await tunnel.add_peer(peer)

    async def has_psk(self, public_key: bytes, psk: PresharedKey) -> bool:
        """Whether the interface holds this PSK. Raises TunError."""
        return await self._live().preshared_key_matches(public_key, psk)

    async def remove_peer(self, public_key: bytes) -> None:
        """Take a peer off the interface. Raises TunError."""
        async with self._lock:
            if self._tunnel is not None:
                await self._tunnel.remove_peer(public_key)

    def give_grace(self, public_key: bytes, seconds: float) -> None:
        """A peer that nobody has a record of: it goes after that, unless an exchange names it."""
        self._orphans[public_key] = boottime() + seconds

    async def _remove_orphans(self, now: float) -> None:
        claimed = {user.peer_key() for user in self.users}
        for key in [key for key, until in self._orphans.items() if until <= now]:
            del self._orphans[key]
            if key in claimed:
                continue
            self._journal.record(
                "peer_without_record_removed",
                level="warning",
                tunnel=self.name,
                wireguard=key.hex(),
            )
            try:
                await self.remove_peer(key)
            except TunError as error:
                self._journal.record(
                    "tunnel_failed", level="error", tunnel=self.name, reason=str(error)
                )

    # ---- routes

    async def set_routes(self) -> None:
        """Routes into the interface for every peer that is on it."""
        prefixes = {prefix for user in self.users for prefix in user.routed_prefixes()}
        async with self._lock:
            if self._tunnel is None:
                return
            try:
                await self._tunnel.set_routes(sorted(prefixes, key=str))
            except TunError as error:
                self._journal.record(
                    "routes_failed", level="error", tunnel=self.name, reason=str(error)
                )

    async def set_guards(self, prefixes: Iterable[Prefix]) -> None:
        """Guard routes for these prefixes, in the tunnel's table. Raises TunError."""
        await set_guard_routes(prefixes, table=self.config.table)

    async def aclose(self) -> None:
        """Close our sockets; the interface runs on."""
        if self._tunnel is not None:
            await self._tunnel.aclose()

    def _live(self) -> Tunnel:
        if self._tunnel is None:
            raise InterfaceMissing(f"{self.spec.interface}: {self.error}")
        return self._tunnel

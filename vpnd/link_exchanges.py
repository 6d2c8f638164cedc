"""A link's part in the key exchange: it joins with an interface, and asks for exchanges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from kex.address import Address
from kex.events import IdentityLearned, KeyEstablished, StartReason
from kex.identity import Fingerprint
from kex.link import Link
from kex.link_config import LinkConfig
from kex.link_state import NotPossible
from kex.payload import Traffic
from vpnd.config_model import PeerConfig
from vpnd.deliveries import Trouble
from vpnd.engine import Engine, Handler
from vpnd.file_trust import FileFault
from vpnd.identity_store import PeerKeyCache
from vpnd.journal import Journal
from vpnd.link_external import Asked, LinkExternal
from vpnd.link_record import LinkRecord
from vpnd.resolver import PeerAddresses
from vpnd.tunnels import ManagedTunnel

UNHEARD: Final = 3
"""Answered exchanges in a row after each of which the peer began again: that many come of no
restart, and of no hurry of an operator's."""


class LinkExchanges:
    """What the key exchange knows of a link, and is asked to do."""

    def __init__(
        self,
        peer: PeerConfig,
        own: tuple[Fingerprint, ...],
        *,
        tunnel: ManagedTunnel,
        external: LinkExternal,
        engine: Engine,
        peer_keys: PeerKeyCache,
        journal: Journal,
    ) -> None:
        self._peer = peer
        self._own = own
        self._tunnel = tunnel
        self._external = external
        self._engine = engine
        self._peer_keys = peer_keys
        self._journal = journal
        self.addresses = PeerAddresses(peer.endpoint)
        """Where the peer's key exchange is."""
        self._learned: list[IdentityLearned] = []
        self._wireguard_key = b""
        """Of the interface that the link joined with."""
        self.joined = False
        """Whether the link takes part: it needs an interface for that."""

    @property
    def state(self) -> Link | None:
        """As it stands, to read at once; None while the link takes no part."""
        return self._engine.endpoint.look_at(self._peer.name) if self.joined else None

    @property
    def given_up(self) -> str:
        """In words: the address that is not asked any more, because the peer does not answer
        there; empty where there is none."""
        at = None if self.state is None else self.state.given_up
        if at is None:
            return ""
        if at.proved:
            return (
                f"the address {at.address}, learnt from the peer's last exchange, "
                "does not answer any more"
            )
        return f"the address {at.address}, learnt from the peer's last exchange, never answered"

    def joined_with(self, wireguard_key: bytes) -> bool:
        return self.joined and wireguard_key == self._wireguard_key

    def join(self, wireguard_key: bytes, handler: Handler) -> None:
        """Take part, with the interface that has this public key. Raises ValueError."""
        with self._engine.driving() as (endpoint, now):
            for fingerprint in self._peer.identity:
                public_key = self._peer_keys.load(fingerprint)
                if public_key is not None:
                    endpoint.know_public_key(fingerprint, public_key)
            config = self._config_of(self._peer, self._own, self.addresses.current, wireguard_key)
            at = now if config.address is None else self._engine.start_at()
            endpoint.add_link(config, now, start_at=at)
            self._engine.handle_events(self._peer.name, handler)
            self.joined, self._wireguard_key = True, wireguard_key
        self.count(Traffic(0, 0))  # there is no peer on the interface yet

    def adopt(self, record: LinkRecord, *, proved: bool) -> None:
        """Go on with the key that an earlier run has set; `proved` if WireGuard has made a
        handshake with the peer."""
        with self._engine.driving() as (endpoint, _):
            endpoint.adopt(
                self._peer.name,
                record.key_id,
                wireguard_key=bytes.fromhex(record.wireguard_key),
                installed_at=record.installed_at,
                expires_at=record.expires_at,
                proved=proved,
            )

    def leave(self) -> None:
        """Take no part any more."""
        if self.joined:
            self.joined = False
            self._engine.forget(self._peer.name)
            self._engine.deliveries.forget(self._peer.name)
            with self._engine.driving() as (endpoint, _):
                endpoint.remove_link(self._peer.name)

    # ---- what is configured

    def config_with(self, peer: PeerConfig, own: tuple[Fingerprint, ...]) -> LinkConfig | None:
        """What the key exchange would have to know; None while the link takes no part in it.

        Raises ValueError.
        """
        if not self.joined:
            return None
        same = peer.endpoint == self._peer.endpoint
        addresses = self.addresses if same else PeerAddresses(peer.endpoint)
        return self._config_of(peer, own, addresses.current, self._wireguard_key)

    def take(self, peer: PeerConfig, own: tuple[Fingerprint, ...]) -> None:
        """Go by a changed configuration, which the endpoint has taken already."""
        before, self._peer, self._own = self._peer, peer, own
        if peer.endpoint != before.endpoint:
            self.addresses = PeerAddresses(peer.endpoint)

    def update(self) -> bool:
        """Tell what has come to be otherwise: the peer's address, the mode for external keys;
        whether anything has."""
        config, state = self.config_with(self._peer, self._own), self.state
        if config is None or state is None or state.config == config:
            return False
        with self._engine.driving() as (endpoint, now):
            endpoint.update_link(config, now)
        return True

    def _config_of(
        self,
        peer: PeerConfig,
        own: tuple[Fingerprint, ...],
        address: Address | None,
        wireguard_key: bytes,
    ) -> LinkConfig:
        return LinkConfig(
            name=peer.name,
            locals=own,
            remotes=peer.identity,
            wireguard_key=wireguard_key,
            wireguard_port=self._tunnel.config.listen_port,
            address=address,
            prefixes=self._tunnel.config.announced,
            allows=peer.allowed_ips,
            external_mode=self._external.mode_of(peer),
            external_at_least=peer.external_keys.minimum,
            interval=peer.rekey_interval,
            lifetime=peer.key_lifetime,
            peer_wireguard_key=peer.pinned_wireguard_key,
        )

    # ---- exchanges that are wanted

    def begin(self) -> bool:
        """Start an exchange now; whether that was needed, or one was under way already. It follows
        one that may end without a key because the one in use is good enough.

        Raises NotPossible.
        """
        name, state = self._peer.name, self.state
        if state is None:
            raise NotPossible(f"{name}: there is no interface: {self._tunnel.error}")
        own = state.exchange
        if (own is not None and not own.ends_fallback) or state.responding is not None:
            return False
        with self._engine.driving() as (endpoint, now):
            endpoint.request_exchange(name, StartReason.REQUESTED, now)
        return True

    def begin_with(self, source: str) -> Asked | None:
        """Start an exchange that gives no key without one of this source, and follow it; None
        where one is under way already. Raises NotPossible."""
        if (self.state is not None and self.state.exchange is not None) or not self.begin():
            return None
        exchange = None if self.state is None else self.state.exchange
        return None if exchange is None else self._external.demand(exchange.exchange_id, source)

    def want(self, reason: StartReason = StartReason.REQUESTED) -> None:
        """Start an exchange where this end can begin one."""
        if not self.joined:
            return
        with self._engine.driving() as (endpoint, now):
            try:
                endpoint.request_exchange(self._peer.name, reason, now)
            except NotPossible:
                return  # the peer comes to us

    # ---- what does not arrive

    def begun(self, address: Address, changed: Callable[[], None]) -> None:
        """An exchange has begun; `changed` is told of what becomes of its datagrams."""
        self._engine.deliveries.watch(self._peer.name, address, changed)

    def trouble(self) -> Trouble | None:
        """Why the exchange under way may not get an answer, where that is known."""
        return self._engine.deliveries.trouble(self._peer.name)

    def nothing_heard(self) -> Trouble:
        """Why the exchange that has just ended got no answer, as far as is known."""
        return self._engine.deliveries.nothing_heard(self._peer.name)

    # ---- the key

    def installed(self, event: KeyEstablished) -> None:
        with self._engine.driving() as (endpoint, now):
            endpoint.key_installed(self._peer.name, event.token, now)

    def install_failed(self, event: KeyEstablished) -> None:
        with self._engine.driving() as (endpoint, now):
            # Only that it failed: what the backend said is not the peer's business
            endpoint.install_failed(self._peer.name, event.token, "install failed", now)

    def session_started(self, at: float | None, now: float) -> None:
        """WireGuard's session is one that began `at`, if there is one."""
        if at is not None:
            with self._engine.driving() as (endpoint, _):
                endpoint.session_started(self._peer.name, at, now)

    def key_taken_up(self, wireguard_key: bytes | None) -> None:
        """A WireGuard handshake with the peer that has this key took up a key of the link."""
        if self.joined and wireguard_key is not None:
            with self._engine.driving() as (endpoint, _):
                endpoint.key_taken_up(self._peer.name, wireguard_key)

    @property
    def unheard(self) -> bool:
        """Whether the peer begins again after each answer that it gets from here."""
        return self.state is not None and self.state.unheard >= UNHEARD

    def count(self, traffic: Traffic | None) -> None:
        """What WireGuard has counted here, for the other end to compare with its own counters; None
        where that cannot be read: old counts would look like a loss."""
        if self.joined:
            self._engine.count_traffic(self._peer.name, traffic)

    def end_key(self, at: float) -> None:
        """Let the key live until `at` at the latest, and have another one."""
        with self._engine.driving() as (endpoint, now):
            endpoint.end_key(self._peer.name, at, now)

    # ---- identities

    def learned(self, event: IdentityLearned) -> None:
        """Keep the public key of an identity for `cache_learned`."""
        self._learned.append(event)

    async def cache_learned(self) -> None:
        """Store the public keys that were learned, for the next start."""
        while self._learned:
            event = self._learned.pop(0)
            try:
                await trio.to_thread.run_sync(
                    self._peer_keys.store, event.fingerprint, event.public_key
                )
            except FileFault as fault:
                # It is fetched again after the next start; nothing else depends on it
                self._journal.record(
                    "cache_not_written", peer=self._peer.name, level="warning", reason=str(fault)
                )

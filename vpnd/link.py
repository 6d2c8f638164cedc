"""A link at work: takes what the key exchange hands out, installs it, and watches that it took.

KeyEstablished ──▶ record ──▶ tunnel ──▶ key_installed ──▶ handshake seen ──▶ active
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

import trio

from kex.endpoint import Endpoint
from kex.events import (
    Event,
    ExchangeFailed,
    ExchangeStarted,
    ExternalKeysWanted,
    FailureCode,
    IdentityLearned,
    KeyConfirmed,
    KeyEstablished,
    LinkExpired,
    RejectSent,
    StartReason,
)
from kex.identity import Fingerprint
from kex.link_config import LinkConfig
from kex.link_state import NotPossible
from tun import PeerSpec, PeerStatus, Prefix, PresharedKey, TunError
from vpnd.api import LinkState
from vpnd.clock import boottime, wall
from vpnd.config_model import PeerConfig
from vpnd.engine import Engine
from vpnd.file_trust import FileFault
from vpnd.handshake import HandshakeWatch, KeyInForce, WatchedKey
from vpnd.identity_store import PeerKeyCache
from vpnd.journal import Journal
from vpnd.link_record import LinkRecord, LinkRecords
from vpnd.resolver import PeerAddresses
from vpnd.tunnels import ManagedTunnel

RESTART_SECONDS: Final = 5.0
"""Before a link's task that met a bug of ours is started again."""
UNKNOWN_PEER_SECONDS: Final = 180.0
"""What a peer without a record gets after a restart: the life of a WireGuard session."""


@dataclass(frozen=True, slots=True)
class Problem:
    """The last thing that went wrong."""

    code: str
    message: str
    at_wall: float


class ManagedLink:
    """One link of the configuration."""

    def __init__(
        self,
        peer: PeerConfig,
        tunnel: ManagedTunnel,
        *,
        own: tuple[Fingerprint, ...],
        engine: Engine,
        records: LinkRecords,
        peer_keys: PeerKeyCache,
        journal: Journal,
    ) -> None:
        self.peer = peer
        self.tunnel = tunnel
        self._own = own
        self._engine = engine
        self._records = records
        self._peer_keys = peer_keys
        self._journal = journal
        self._addresses = PeerAddresses(peer.endpoint)
        self._resolve = trio.Event()
        self._to_install: KeyEstablished | None = None
        self._to_close = False
        self._work = trio.Event()
        self._changed_at = 0.0
        """When the interface was last changed: dumps begun before that say nothing."""
        self._being_set: bytes | None = None
        self._ended = trio.Event()
        self.joined = False
        """Whether the link takes part in the key exchange: it needs an interface for that."""
        self.watch = HandshakeWatch()
        self.status: PeerStatus | None = None
        self.wireguard_key: bytes | None = None
        """The peer's, as it is on the interface."""
        self.established: KeyEstablished | None = None
        self.expires_at: float | None = None
        self.adopted = False
        self.closed_reason = ""
        self.renewal_problem = ""
        self.waiting_reason = ""
        self.fault = ""
        """A bug of ours or a backend that failed: the link does not work until it is over."""
        self.problem: Problem | None = None
        self.warnings: tuple[str, ...] = ()
        self.state = LinkState.DOWN
        self.reason = "starting"
        self.since_wall = wall()

    @property
    def name(self) -> str:
        return self.peer.name

    # ---- life

    def start(self, *, start_at: float | None = None) -> None:
        """Take part in the key exchange, as soon as there is an interface. Raises ValueError where
        the configuration forbids it."""
        if self.tunnel.open is not None:
            self._join(start_at)
        self.tunnel.users.append(self)
        self.refresh()

    def _join(self, start_at: float | None = None) -> None:
        with self._engine.driving() as (endpoint, now):
            for fingerprint in self.peer.identity:
                public_key = self._peer_keys.load(fingerprint)
                if public_key is not None:
                    endpoint.know_public_key(fingerprint, public_key)
            endpoint.add_link(self._config(), now, start_at=start_at)
            self._engine.handle_events(self.name, self._handle)
            self.joined = True
            record = self._adoptable()
            if record is not None:
                self._adopt(endpoint, record)

    def _leave(self) -> None:
        """Take no part in the key exchange any more."""
        if not self.joined:
            return
        self.joined = False
        self._to_install = None
        self._engine.forget(self.name)
        with self._engine.driving() as (endpoint, _):
            endpoint.remove_link(self.name)

    async def run(self) -> None:
        """The link's task: a bug in it affects this link alone."""
        try:
            while True:
                try:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._keep_address)
                        nursery.start_soon(self._install_keys)
                except Exception as error:
                    self._journal.record(
                        "internal_error", peer=self.name, level="error", exc_info=error
                    )
                    self.fault = "an internal error stopped this link's task; see the log"
                    if self._to_install is not None:
                        self._install_failed(self._to_install, "internal error")
                    self.refresh()
                    await trio.sleep(RESTART_SECONDS)
                    self.fault = ""
                    self._work.set()
        finally:
            self._ended.set()

    async def remove(self) -> None:
        """The link is no longer configured: nothing of it stays. Its task was cancelled.

        Raises TunError, FileFault.
        """
        await self._ended.wait()
        self._leave()
        if self in self.tunnel.users:
            self.tunnel.users.remove(self)
        keys = {key for key in (self.wireguard_key, self._being_set) if key is not None}
        self.wireguard_key = None
        for key in keys:
            await self.tunnel.remove_peer(key)
        await self.tunnel.set_routes()
        self._records.forget(self.name)

    def rekey(self) -> None:
        """Start an exchange now. Raises NotPossible."""
        if not self.joined:
            raise NotPossible(f"{self.name}: there is no interface: {self.tunnel.error}")
        with self._engine.driving() as (endpoint, now):
            endpoint.request_exchange(self.name, StartReason.REQUESTED, now)

    def busy(self) -> bool:
        """Whether a stop now could leave the two ends with different keys."""
        if not self.joined:
            return False
        link = self._engine.endpoint.link(self.name)
        return link.awaits_resp_conf or link.responding is not None or self._to_install is not None

    def _config(self) -> LinkConfig:
        return LinkConfig(
            name=self.name,
            locals=tuple(
                own for own in self._own if any(own.suite == p.suite for p in self.peer.identity)
            ),
            remotes=self.peer.identity,
            wireguard_key=self.tunnel.public_key,
            wireguard_port=self.tunnel.config.listen_port,
            address=self._addresses.current,
            prefixes=self.tunnel.config.announced,
            interval=self.peer.rekey_interval,
            lifetime=self.peer.key_lifetime,
        )

    # ---- a restart

    def _adoptable(self) -> LinkRecord | None:
        record = self._records.load(self.name)
        if record is None or record.tunnel != self.tunnel.name:
            return None
        return record if self.tunnel.open is not None and self.tunnel.open.adopted else None

    def _adopt(self, endpoint: Endpoint, record: LinkRecord) -> None:
        """Take over what an earlier run installed; the first dump tells whether it is there."""
        self.wireguard_key = bytes.fromhex(record.wireguard_key)
        self.expires_at = record.expires_at
        self.adopted = True
        if record.pending_key_id:
            self.warnings = (
                "the daemon ended while a key was being set: the key in force is the one shown or "
                f"{record.pending_key_id}, until the next exchange",
            )
        self.watch.waiting = WatchedKey(record.key_id, record.installed_at, None, replaces=True)
        if record.in_force_since:
            self.watch.in_force = KeyInForce(
                record.in_force_key_id, record.in_force_installed_at, record.in_force_since
            )
            if record.in_force_key_id == record.key_id:
                self.watch.waiting = None
        endpoint.adopt(
            self.name,
            record.key_id,
            installed_at=record.installed_at,
            expires_at=record.expires_at,
        )

    def adopt_session(self, status: PeerStatus | None) -> None:
        """The first dump after a start, for a link that was adopted."""
        if status is None:
            self._forget_peer()
            self.adopted = False
        else:
            self.status = status
            self.watch.adopt(status.handshake_stamp, boottime(), wall())
            if self.watch.waiting is not None:
                waiting = self.watch.waiting
                self.watch.installed(
                    waiting.key_id, status.handshake_stamp, waiting.installed_at, replaces=True
                )
            self._tell_session(boottime())
            self._journal.record("link_adopted", peer=self.name, key_id=self._known_key_id())
        self.refresh()

    def _known_key_id(self) -> str:
        key = self.watch.waiting or self.watch.in_force
        return "" if key is None else key.key_id

    # ---- what the key exchange says; nothing here blocks

    def _handle(self, event: Event) -> None:
        match event:
            case KeyEstablished():
                self._to_install = event
                self._work.set()
            case KeyConfirmed():
                self._confirmed(event)
            case ExchangeStarted():
                self._journal.record(
                    "exchange_started",
                    peer=self.name,
                    reason=event.reason.value,
                    exchange=event.exchange_id.hex(),
                    to=str(event.address),
                    attempt=event.attempt,
                )
            case ExchangeFailed():
                self._failed(event)
            case RejectSent():
                self._trouble(f"refused_{event.code.name.lower()}", f"refused: {event.detail}")
            case IdentityLearned():
                self._learn(event)
            case ExternalKeysWanted():
                # No source can be configured yet: the other end asks for what is not here
                with self._engine.driving() as (endpoint, now):
                    endpoint.external_keys_failed(
                        self.name, event.token, "no key source at this end", now
                    )
            case LinkExpired():
                self.closed_reason = "the key's lifetime is over, and no exchange gave a new one"
                self._journal.record(
                    "link_closed",
                    peer=self.name,
                    level="error",
                    key_id=event.key_id,
                    reason=self.closed_reason,
                )
                self._to_close = True
                self._work.set()
        self.refresh()

    def _failed(self, event: ExchangeFailed) -> None:
        told = "info" if event.code is FailureCode.CROSSED else "warning"
        self._journal.record(
            "exchange_failed",
            peer=self.name,
            level=told,
            reason=event.detail,
            code=event.code.value,
            exchange=event.exchange_id.hex(),
        )
        if event.code in (FailureCode.CROSSED, FailureCode.ABANDONED):
            return
        self.problem = Problem(event.code.value, event.detail, wall())
        self.renewal_problem = f"last exchange: {event.detail}"
        self.waiting_reason = event.detail
        if event.code in (FailureCode.NO_ANSWER, FailureCode.INIT_CONF_UNANSWERED):
            # The name may have moved, or the other family may get through
            self._resolve.set()

    def _trouble(self, code: str, message: str) -> None:
        self.problem = Problem(code, message, wall())
        self._journal.record(
            "exchange_refused", peer=self.name, level="warning", code=code, reason=message
        )

    def _learn(self, event: IdentityLearned) -> None:
        try:
            self._peer_keys.store(event.fingerprint, event.public_key)
        except FileFault as fault:
            # It is fetched again after the next start; nothing else depends on it
            self._journal.record(
                "cache_not_written", peer=self.name, level="warning", reason=str(fault)
            )

    def _confirmed(self, event: KeyConfirmed) -> None:
        self.expires_at = event.expires_at
        self.adopted = self._to_close = False
        self.closed_reason = self.renewal_problem = self.waiting_reason = ""
        self.problem = None
        established = self.established
        self._journal.record(
            "key_installed",
            peer=self.name,
            key_id=event.key_id,
            role=event.role.value,
            suite=0 if established is None else established.suite,
        )

    # ---- installing

    async def _install_keys(self) -> None:
        while True:
            await self._work.wait()
            self._work = trio.Event()
            if self._to_close:
                self._to_close = False
                await self._close()
            if self._to_install is not None:
                await self._install(self._to_install)

    async def _install(self, event: KeyEstablished) -> None:
        """Set the PSK, read it back, tell the key exchange."""
        try:
            await self._set_psk(event)
        except (TunError, FileFault, ValueError) as error:
            self._install_failed(event, str(error))
            self._store_record()
            self.refresh()
            return
        self._to_install = None
        self.established = event
        self.warnings = tuple(self._compare(event))
        with self._engine.driving() as (endpoint, now):
            endpoint.key_installed(self.name, event.token, now)
        self._store_record()
        await self.tunnel.set_routes()
        self.tunnel.look_soon()
        self.refresh()

    def _install_failed(self, event: KeyEstablished, reason: str) -> None:
        self._to_install = None
        self.problem = Problem("install_failed", reason, wall())
        self._journal.record(
            "install_failed", peer=self.name, level="error", key_id=event.key_id, reason=reason
        )
        with self._engine.driving() as (endpoint, now):
            # Only that it failed: what the backend said is not the peer's business
            endpoint.install_failed(self.name, event.token, "install failed", now)

    async def _set_psk(self, event: KeyEstablished) -> None:
        key = event.peer.wireguard_key
        present, stamp = await self.tunnel.stamp_of(key)
        # The record comes first: a daemon that dies in between knows which peer is its own
        now = boottime()
        self._store_pending(event, now)
        spec = PeerSpec(
            public_key=key,
            psk=PresharedKey(event.psk.expose()),
            allowed_ips=self.peer.allowed_ips,
            endpoint=self._wireguard_endpoint(event),
            keepalive=self.peer.keepalive,
        )
        self._being_set = key
        await self.tunnel.install(key if present else self.wireguard_key, spec)
        if not present:
            self.watch.reset()
        self.wireguard_key, self._being_set = key, None
        self._changed_at = boottime()
        self.watch.installed(event.key_id, stamp if present else None, now, replaces=present)

    def _wireguard_endpoint(self, event: KeyEstablished) -> tuple[str, int] | None:
        """Where WireGuard finds the peer: where the exchange did, at the port it announced."""
        if event.peer.wireguard_port == 0:
            return None
        return (event.address.host, event.peer.wireguard_port)

    def _record(self) -> LinkRecord | None:
        """The link as it is on the interface now."""
        in_force, waiting = self.watch.in_force, self.watch.waiting
        installed = waiting or in_force
        if installed is None or self.wireguard_key is None or self.expires_at is None:
            return None
        return LinkRecord(
            tunnel=self.tunnel.name,
            wireguard_key=self.wireguard_key.hex(),
            key_id=installed.key_id,
            installed_at=installed.installed_at,
            expires_at=self.expires_at,
            in_force_key_id="" if in_force is None else in_force.key_id,
            in_force_since=0.0 if in_force is None else in_force.since,
            in_force_installed_at=0.0 if in_force is None else in_force.installed_at,
        )

    def _store_pending(self, event: KeyEstablished, now: float) -> None:
        """Before a PSK is set: which peer it is, and until when at the most. Raises FileFault."""
        expires_at = now + self.peer.key_lifetime
        record = self._record()
        if record is None or event.peer.wireguard_key != self.wireguard_key:
            # A first key, or a peer with a new WireGuard key
            record = LinkRecord(
                tunnel=self.tunnel.name,
                wireguard_key=event.peer.wireguard_key.hex(),
                key_id=event.key_id,
                installed_at=now,
                expires_at=expires_at,
                in_force_key_id="",
                in_force_since=0.0,
                in_force_installed_at=0.0,
            )
        else:
            record = replace(record, pending_key_id=event.key_id)
        self._records.store(self.name, record)

    def _store_record(self) -> None:
        """After a change; that it cannot be written matters at the next start only."""
        record = self._record()
        if record is None:
            return
        try:
            self._records.store(self.name, record)
        except FileFault as fault:
            self._journal.record(
                "record_not_written", peer=self.name, level="warning", reason=str(fault)
            )

    def _compare(self, event: KeyEstablished) -> Iterable[str]:
        """What the two ends say differently; none of it stops the link."""
        for prefix in event.peer.prefixes:
            inside = (
                prefix.version == own.version and prefix.subnet_of(own)  # type: ignore[arg-type]
                for own in self.peer.allowed_ips
            )
            if not any(inside):
                yield f"the peer announces {prefix}, which is not in allowed_ips here"
        if event.peer.mode != 0:
            yield f"external keys: off here, {event.peer.mode.name.lower()} at the peer"
        if event.peer_identity != self.peer.identity[0]:
            yield "the peer used another identity than the first one pinned here"

    async def _close(self) -> None:
        """The lifetime is over: the peer goes; guard routes keep its traffic in."""
        key = self.wireguard_key
        self._forget_peer()
        if key is None:
            return
        try:
            await self.tunnel.remove_peer(key)
        except TunError as error:
            self._journal.record("close_failed", peer=self.name, level="error", reason=str(error))
        await self.tunnel.set_routes()
        self._records.forget(self.name)
        self.refresh()

    def _forget_peer(self) -> None:
        self.wireguard_key = self.expires_at = self.status = self.established = None
        self.watch.reset()

    # ---- what a dump shows (TunnelUser)

    def peer_key(self) -> bytes | None:
        return self.wireguard_key

    def awaits_handshake(self) -> bool:
        return self.watch.waiting is not None

    def routed_prefixes(self) -> Iterable[Prefix]:
        return self.peer.allowed_ips if self.wireguard_key is not None else ()

    def observe(self, status: PeerStatus | None, now: float) -> None:
        if self._to_install is not None or now < self._changed_at:
            return  # the dump may be older than what was done to the interface
        if status is None:
            self._peer_vanished()
            return
        self.status = status
        before = self.watch.in_force
        if self.watch.observe(status.handshake_stamp, status.tx_bytes, now):
            self._tell_session(now)
        if self.watch.in_force is not None and self.watch.in_force != before:
            self._taken_up(self.watch.in_force)
        if self.watch.waiting is not None and self.watch.overdue(self.peer.keepalive, now):
            self._request(StartReason.HANDSHAKE_OVERDUE)
        self.refresh()

    def _taken_up(self, key: KeyInForce) -> None:
        self._journal.record("key_in_force", peer=self.name, key_id=key.key_id)
        self._store_record()

    def _tell_session(self, now: float) -> None:
        if self.watch.session_at is not None:
            with self._engine.driving() as (endpoint, _):
                endpoint.session_started(self.name, self.watch.session_at, now)

    def _peer_vanished(self) -> None:
        """The peer was taken off the interface behind our back: a new key puts it there again."""
        self._journal.record(
            "peer_missing", peer=self.name, level="warning", reason="deleted from the interface"
        )
        self._forget_peer()
        self._request(StartReason.REQUESTED)
        self.refresh()

    def tunnel_changed(self) -> None:
        self._forget_peer()
        if self.tunnel.open is None:
            self._leave()
        elif not self.joined:
            self._join()
        else:
            with self._engine.driving() as (endpoint, now):
                endpoint.update_link(self._config(), now)
        self.refresh()

    def _request(self, reason: StartReason) -> None:
        with self._engine.driving() as (endpoint, now):
            try:
                endpoint.request_exchange(self.name, reason, now)
            except NotPossible:
                return  # the peer comes to us

    # ---- where the peer is

    async def _keep_address(self) -> None:
        """Look the peer's name up at the start, and again when an exchange got no answer."""
        while self.peer.endpoint is not None:
            self._resolve = trio.Event()
            problem = await self._addresses.advance()
            if problem:
                self.waiting_reason = problem
                self.problem = Problem("name_not_resolved", problem, wall())
                self.refresh()
                self._resolve.set()
                await trio.sleep(RESTART_SECONDS)
            self._use_address()
            await self._resolve.wait()

    def _use_address(self) -> None:
        if not self.joined:
            return
        config = self._config()
        if self._engine.endpoint.link(self.name).config.address == config.address:
            return
        with self._engine.driving() as (endpoint, now):
            endpoint.update_link(config, now)
        self.refresh()

    # ---- state

    def refresh(self) -> None:
        """Work the state out anew, and record it where it changed."""
        state, reason = self._judge()
        if state is self.state and reason == self.reason:
            return
        changed, before = state is not self.state, self.state
        self.state, self.reason = state, reason
        if changed:
            self.since_wall = wall()
            self._journal.record(
                "state_changed",
                peer=self.name,
                level="info" if state.protected else "warning",
                state=state.value,
                before=before.value,
                reason=reason,
                key_id=self._known_key_id(),
            )

    def _judge(self) -> tuple[LinkState, str]:
        if self.fault:
            return LinkState.DOWN, self.fault
        if self.tunnel.error is not None:
            return LinkState.DOWN, f"tunnel {self.tunnel.name}: {self.tunnel.error}"
        if not self.joined:
            return LinkState.DOWN, "not started"
        if self.wireguard_key is None:
            return self._judge_without_key()
        if self.watch.in_force is None:
            return LinkState.INSTALLED, "waits for WireGuard's first handshake"
        if self.watch.dead(self.peer.keepalive, boottime()):
            age = round(self.watch.session_age(boottime()) or 0)
            # No number that changes with every look: a reason is told when it changes
            minutes = max(1, age // 60)
            return LinkState.DOWN, f"no WireGuard handshake for {minutes} min or more"
        if self.renewal_problem:
            return LinkState.DEGRADED, self.renewal_problem
        if self.established is not None and (
            self.established.peer_identity != self.peer.identity[0]
        ):
            return LinkState.DEGRADED, "the peer used its second identity"
        if self.adopted:
            return LinkState.ACTIVE, "adopted after a restart"
        return LinkState.ACTIVE, ""

    def _judge_without_key(self) -> tuple[LinkState, str]:
        link = self._engine.endpoint.link(self.name)
        if self.closed_reason:
            return LinkState.CLOSED, self.closed_reason
        if link.exchange_due and link.address is not None:
            told = f"{self.waiting_reason} so far" if self.waiting_reason else "first exchange"
            return LinkState.EXCHANGING, told
        if link.responding is not None:
            return LinkState.EXCHANGING, "the peer's exchange"
        if self.peer.endpoint is None:
            return LinkState.DOWN, "waits for the peer, which has no endpoint here"
        return LinkState.DOWN, self.waiting_reason or "no exchange yet"

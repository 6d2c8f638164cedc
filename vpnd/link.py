"""A link at work: takes what the key exchange hands out, has it installed, and says how it is.

KeyEstablished ──▶ record ──▶ tunnel ──▶ key_installed ──▶ handshake seen ──▶ active
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import trio

from kex.address import Address
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
    RejectCode,
    RejectSent,
    Role,
    StartReason,
)
from kex.identity import Fingerprint
from kex.link_config import LinkConfig
from kex.link_state import NotPossible
from tun import PeerStatus, Prefix, TunError
from vpnd.api import LinkState
from vpnd.clock import boottime, wall
from vpnd.config_model import PeerConfig
from vpnd.engine import Engine
from vpnd.external_policy import modes_differ
from vpnd.external_record import ExternalRecords
from vpnd.fallback_watch import FallbackWatch
from vpnd.file_trust import FileFault
from vpnd.identity_store import PeerKeyCache
from vpnd.journal import Journal
from vpnd.link_external import Asked, LinkExternal
from vpnd.link_judge import Facts, judge
from vpnd.link_peer import Superseded, WireGuardPeer
from vpnd.link_record import LinkRecords
from vpnd.listed_keys import SourceFinder
from vpnd.resolver import PeerAddresses
from vpnd.tunnels import ManagedTunnel

RESTART_SECONDS: Final = 5.0
"""Before a link's task that met a bug of ours is started again, and between look-ups that fail."""
UNPINNED_SECONDS: Final = 30.0
"""What a key lives on after the identity that it was agreed with was taken out of the peer's list:
time for an exchange under another identity of the list, and for a second one if that gets lost."""
UNPINNED: Final = (
    "the identity that the key was agreed with is no longer the peer's, and no exchange gave a new "
    "one"
)
LIFETIME_OVER: Final = "the key's lifetime is over, and no exchange gave a new one"
CLOSED_WHILE_AWAY: Final = "the key's lifetime is over: it ended while no daemon ran here"
OTHER_IDENTITY: Final = "the peer used another identity than the first one pinned here"


@dataclass(frozen=True, slots=True)
class Problem:
    """The last thing that went wrong."""

    code: str
    message: str
    at_wall: float


@dataclass(frozen=True, slots=True)
class LastExchange:
    """What is to be shown of the last exchange that gave a key."""

    role: Role
    suite: int
    identity: Fingerprint


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
        external_records: ExternalRecords,
        find_source: SourceFinder,
        peer_keys: PeerKeyCache,
        journal: Journal,
    ) -> None:
        self.peer = peer
        self.tunnel = tunnel
        self.wireguard = WireGuardPeer(peer, tunnel, records, journal)
        self._own = own
        self._engine = engine
        self._peer_keys = peer_keys
        self._journal = journal
        self.external = LinkExternal(
            peer,
            engine=engine,
            find=find_source,
            watch=FallbackWatch(
                peer.name, peer.external_keys, external_records, journal, self.update_config
            ),
            journal=journal,
        )
        self._addresses = PeerAddresses(peer.endpoint)
        self._resolve = trio.Event()
        self._work = trio.Event()
        self._to_install: KeyEstablished | None = None
        self._setting = False
        """Whether the interface is being changed just now."""
        self._observed = trio.Event()
        self._peer_comes = False
        """Whether the peer is about to be set on the interface for the first time."""
        self._to_close = False
        self._to_cache: list[IdentityLearned] = []
        self._ended = trio.Event()
        self._public_key = b""
        """Of the interface that the link joined with."""
        self.joined = False
        """Whether the link takes part in the key exchange: it needs an interface for that."""
        self.last: LastExchange | None = None
        self.adopted = False
        self.closed_reason = ""
        self._end_reason = ""
        """Why the key's end was brought forward, if it was."""
        self.renewal_problem = ""
        self.waiting_reason = ""
        self.fault = ""
        self.problem: Problem | None = None
        self.warnings: tuple[str, ...] = ()
        self.state = LinkState.DOWN
        self.reason = "starting"
        self.since_wall = wall()

    @property
    def name(self) -> str:
        return self.peer.name

    # ---- life

    def start(self) -> None:
        """Take part in the key exchange as soon as there is an interface.

        Raises ValueError where the configuration does not allow it.
        """
        self.tunnel.users.append(self)
        if self.tunnel.open is not None:
            # A link that is added to a running tunnel has nothing to adopt
            self.wireguard.forget_record()
            try:
                self._join()
            except ValueError:
                self.tunnel.users.remove(self)
                raise
        self.refresh()

    def _join(self) -> None:
        tunnel = self.tunnel.open
        if tunnel is None:
            return
        with self._engine.driving() as (endpoint, now):
            for fingerprint in self.peer.identity:
                public_key = self._peer_keys.load(fingerprint)
                if public_key is not None:
                    endpoint.know_public_key(fingerprint, public_key)
            config = self._config(tunnel.public_key)
            at = now if config.address is None else self._engine.start_at()
            endpoint.add_link(config, now, start_at=at)
            self._engine.handle_events(self.name, self._handle)
            self.joined, self._public_key = True, tunnel.public_key

    def _leave(self) -> None:
        """Take no part in the key exchange any more; what was to be installed is void."""
        self._to_install = None
        if self.joined:
            self.joined = False
            self._engine.forget(self.name)
            with self._engine.driving() as (endpoint, _):
                endpoint.remove_link(self.name)

    async def run(self) -> None:
        """The link's tasks."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._guarded, self._keep_address)
                nursery.start_soon(self._guarded, self._work_off)
                nursery.start_soon(self._guarded, self.external.run)
        finally:
            self._ended.set()

    async def _guarded(self, task: Callable[[], Awaitable[None]]) -> None:
        """Run a task of the link; a bug in it affects this link alone."""
        while True:
            try:
                await task()
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
                self.refresh()
            else:
                return

    async def remove(self) -> None:
        """The link is no longer configured: nothing of it stays. Its task was cancelled."""
        await self._ended.wait()
        self._leave()
        if self in self.tunnel.users:
            self.tunnel.users.remove(self)
        await self.wireguard.take_off()
        self.external.watch.forget()

    def rekey(self) -> bool:
        """Start an exchange now; whether that was needed, or one was under way already.

        Raises NotPossible.
        """
        if not self.joined:
            raise NotPossible(f"{self.name}: there is no interface: {self.tunnel.error}")
        link = self._engine.endpoint.link(self.name)
        if link.exchange is not None or link.responding is not None:
            return False
        with self._engine.driving() as (endpoint, now):
            endpoint.request_exchange(self.name, StartReason.REQUESTED, now)
        return True

    def exchange_with(self, source: str) -> Asked | None:
        """Start an exchange that gives no key without one of this source, and follow it; None
        where one is under way already. Raises NotPossible."""
        if not self.rekey():
            return None
        exchange = self._engine.endpoint.link(self.name).exchange
        return None if exchange is None else self.external.demand(exchange.exchange_id, source)

    def extend_fallback(self, seconds: int, reason: str, *, uid: int) -> None:
        """Let a fallback go on for longer. Raises NotExtensible."""
        self.external.watch.extend(seconds, reason, uid=uid)
        self.update_config()
        if self.joined:
            self._request(StartReason.REQUESTED)
        self.refresh()

    def busy(self) -> bool:
        """Whether a stop now could leave the two ends with different keys."""
        if not self.joined:
            return False
        link = self._engine.endpoint.link(self.name)
        return link.awaits_resp_conf or link.responding is not None or self._to_install is not None

    def _config(self, wireguard_key: bytes) -> LinkConfig:
        return self._config_of(self.peer, self._own, self._addresses.current, wireguard_key)

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
            wireguard_port=self.tunnel.config.listen_port,
            address=address,
            prefixes=self.tunnel.config.announced,
            external_mode=self.external.mode_of(peer),
            external_at_least=peer.external_keys.minimum,
            interval=peer.rekey_interval,
            lifetime=peer.key_lifetime,
        )

    # ---- a changed configuration

    def config_with(self, peer: PeerConfig, own: tuple[Fingerprint, ...]) -> LinkConfig | None:
        """What the key exchange would have to know; None while the link takes no part in it.

        Raises ValueError.
        """
        if not self.joined:
            return None
        same = peer.endpoint == self.peer.endpoint
        addresses = self._addresses if same else PeerAddresses(peer.endpoint)
        return self._config_of(peer, own, addresses.current, self._public_key)

    def take(self, peer: PeerConfig, own: tuple[Fingerprint, ...]) -> None:
        """Go by a changed configuration, which the key exchange has taken already. The tunnel is
        the same. `bring_up_to_date` takes it to the interface."""
        before, self.peer, self._own = self.peer, peer, own
        elsewhere = (peer.endpoint, peer.wireguard_endpoint)
        self.wireguard.take(peer)
        if elsewhere != (before.endpoint, before.wireguard_endpoint):
            if peer.endpoint != before.endpoint:
                self._addresses = PeerAddresses(peer.endpoint)
            self.waiting_reason = ""
            self._resolve.set()
            if self.joined:
                self._request(StartReason.REQUESTED)
        if self.external.take(peer) and self.joined:
            self._request(StartReason.REQUESTED)  # the key in use is one of another policy
        self.warnings = tuple(warning for warning in self.warnings if warning != OTHER_IDENTITY)
        self._end_unpinned(at_once=not set(peer.identity) & set(before.identity))
        self.refresh()

    def _end_unpinned(self, *, at_once: bool) -> None:
        """A key that was agreed with an identity which is not the peer's any more has to go."""
        pinned = {fingerprint.text() for fingerprint in self.peer.identity}
        if not self.joined or self.wireguard.identity is None or self.wireguard.identity in pinned:
            return
        self._end_reason = UNPINNED
        with self._engine.driving() as (endpoint, now):
            endpoint.end_key(self.name, now if at_once else now + UNPINNED_SECONDS, now)
            self.wireguard.expires_at = now if at_once else now + UNPINNED_SECONDS

    async def bring_up_to_date(self) -> str:
        """Bring the peer on the interface to what is configured; what went wrong, or ''. It is
        tried again with every look at the interface."""
        try:
            await self.wireguard.bring_up_to_date()
        except (TunError, OSError) as error:
            self.problem = Problem("not_updated", str(error), wall())
            self._journal.record("update_failed", peer=self.name, level="error", reason=str(error))
            return str(error)
        return ""

    # ---- the interface (TunnelUser)

    def tunnel_opened(self, peers: Mapping[bytes, PeerStatus]) -> None:
        """Join with this interface, and take over what an earlier run put there.

        An interface that was only out of reach for a moment is the same one: nothing changes.
        """
        tunnel = self.tunnel.open
        if tunnel is None:
            return
        if self.joined and tunnel.public_key == self._public_key:
            key = self.wireguard.public_key
            if key is not None and key not in peers:
                self._peer_vanished()
            return
        self._leave()
        self.wireguard.forget()
        self._join()
        if tunnel.adopted:
            self._adopt(peers)
        self.refresh()

    def _adopt(self, peers: Mapping[bytes, PeerStatus]) -> None:
        record = self.wireguard.adopt(peers)
        if record is None:
            if self.wireguard.closed_while_away:
                self.closed_reason = CLOSED_WHILE_AWAY
                self._journal.record(
                    "link_closed", peer=self.name, level="error", reason=self.closed_reason
                )
            return
        self.adopted = True
        self.external.watch.adopted(record.key_id)
        with self._engine.driving() as (endpoint, _):
            endpoint.adopt(
                self.name,
                record.key_id,
                wireguard_key=bytes.fromhex(record.wireguard_key),
                installed_at=record.installed_at,
                expires_at=record.expires_at,
            )
        self._tell_session(boottime())
        self._journal.record("link_adopted", peer=self.name, key_id=self._known_key_id())

    def tunnel_lost(self) -> None:
        self._leave()
        self.wireguard.forget()
        self.refresh()

    def peer_key(self) -> bytes | None:
        return self.wireguard.public_key

    def awaits_handshake(self) -> bool:
        return self.wireguard.watch.waiting is not None

    def wireguard_host(self) -> str | None:
        status = self.wireguard.status
        return None if status is None or status.endpoint is None else status.endpoint[0]

    def wanted(self) -> tuple[tuple[Prefix, ...], int]:
        return self.peer.allowed_ips, self.peer.keepalive

    def routed(self) -> tuple[Prefix, ...]:
        there = self._peer_comes or self.wireguard.public_key is not None
        return self.peer.allowed_ips if there else ()

    def observe(self, status: PeerStatus | None, now: float) -> None:
        if self._setting or not self.wireguard.is_news(now):
            return  # the dump may be older than what was done to the interface
        if status is None:
            self._peer_vanished()
            return
        self._check_untouched(status)
        fresh, taken_up = self.wireguard.observe(status, now)
        self._observed.set()
        if self.wireguard.is_due():
            self._work.set()
        if fresh:
            self._tell_session(now)
        if taken_up is not None:
            self._journal.record("key_in_force", peer=self.name, key_id=taken_up.key_id)
        if self.wireguard.watch.overdue(self.peer.keepalive, now):
            self._request(StartReason.HANDSHAKE_OVERDUE)
        self.refresh()

    def _check_untouched(self, status: PeerStatus) -> None:
        """What somebody else changed of the peer on the interface is put right."""
        changed = self.wireguard.altered(status)
        if changed:
            self._journal.record("peer_altered", peer=self.name, level="warning", reason=changed)
        if self.wireguard.key_altered(status):
            self.renewal_problem = "the key on the interface was changed by another hand"
            self._journal.record(
                "key_altered", peer=self.name, level="error", reason=self.renewal_problem
            )
            self._request(StartReason.REQUESTED)

    def _tell_session(self, now: float) -> None:
        at = self.wireguard.watch.session_at
        if at is not None:
            with self._engine.driving() as (endpoint, _):
                endpoint.session_started(self.name, at, now)

    def _peer_vanished(self) -> None:
        """The peer was taken off the interface behind our back: a new key puts it there again."""
        self._journal.record(
            "peer_missing", peer=self.name, level="warning", reason="deleted from the interface"
        )
        self.wireguard.forget()
        self._request(StartReason.REQUESTED)
        self.refresh()

    def _request(self, reason: StartReason) -> None:
        with self._engine.driving() as (endpoint, now):
            try:
                endpoint.request_exchange(self.name, reason, now)
            except NotPossible:
                return  # the peer comes to us

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
                self._refused(event)
            case IdentityLearned():
                self._to_cache.append(event)
                self._work.set()
            case ExternalKeysWanted():
                self.external.wanted(event)
            case LinkExpired():
                self._expired(event)
        self.refresh()

    def _failed(self, event: ExchangeFailed) -> None:
        # The peer's own words are quoted as such: they prove nothing
        refused = event.code is FailureCode.REFUSED
        reason = f'refused, the peer says "{event.detail}"' if refused else event.detail
        expected = event.code in (FailureCode.CROSSED, FailureCode.ABANDONED)
        self._journal.record(
            "exchange_failed",
            peer=self.name,
            level="info" if expected else "warning",
            reason=reason,
            code=event.code.value,
            exchange=event.exchange_id.hex(),
        )
        self.external.failed(event)
        if expected:
            return
        if event.reject == RejectCode.KEY_MISMATCH:
            self._keys_differ(event.detail)
        elif event.reject == RejectCode.POLICY:
            self._warn((*self.warnings, event.detail))
        self.problem = Problem(event.code.value, reason, wall())
        self.renewal_problem = f"last exchange: {reason}"
        self.waiting_reason = reason
        if event.code in (FailureCode.NO_ANSWER, FailureCode.INIT_CONF_UNANSWERED):
            # The name may have moved, or the other family may get through
            self._resolve.set()

    def _refused(self, event: RejectSent) -> None:
        code = f"refused_{event.code.name.lower()}"
        self.problem = Problem(code, f"refused the peer's exchange: {event.detail}", wall())
        self._journal.record(
            "exchange_refused", peer=self.name, level="warning", code=code, reason=event.detail
        )
        self.external.refused(event)
        if event.code is RejectCode.KEY_MISMATCH:
            self._keys_differ(event.detail)
        elif event.code is RejectCode.POLICY:
            self._warn((*self.warnings, event.detail))

    def _keys_differ(self, detail: str) -> None:
        """The two ends hold different external keys: never a reason to go on without."""
        closes = self.peer.external_keys.on_mismatch == "close"
        self._journal.record(
            "key_mismatch",
            peer=self.name,
            level="error",
            reason=detail,
            on_mismatch=self.peer.external_keys.on_mismatch,
        )
        self.renewal_problem = detail
        if closes and self.joined:
            self._end_reason = f'{detail}; on_mismatch = "close"'
            with self._engine.driving() as (endpoint, now):
                endpoint.end_key(self.name, now, now)

    def _confirmed(self, event: KeyConfirmed) -> None:
        self.wireguard.expires_at = event.expires_at
        self.adopted = self._to_close = False
        self._end_reason = self.closed_reason = self.renewal_problem = self.waiting_reason = ""
        self.problem = None
        self._journal.record(
            "key_installed",
            peer=self.name,
            key_id=event.key_id,
            role=event.role.value,
            **self.external.watch.sources_of(event.key_id),
        )

    def _expired(self, event: LinkExpired) -> None:
        self.closed_reason = self._end_reason or LIFETIME_OVER
        if self.external.watch.over:
            self.closed_reason += f"; {self.external.watch.standing}"
        self.external.watch.forget_keys()
        self._journal.record(
            "link_closed",
            peer=self.name,
            level="error",
            key_id=event.key_id,
            reason=self.closed_reason,
        )
        self._to_close = True
        self._work.set()

    # ---- what takes time

    async def _work_off(self) -> None:
        """Do what the handlers have left to be done, in the order that is safe."""
        while True:
            await self._work.wait()
            self._work = trio.Event()
            if self._to_close:
                self._to_close = False
                await self.wireguard.take_off()
            if self._to_install is not None:
                await self._install(self._to_install)
            if self.wireguard.is_due() and await self.bring_up_to_date() == "":
                await self.tunnel.set_routes()
            while self._to_cache:
                await self._cache(self._to_cache.pop(0))
            self.refresh()

    async def _install(self, event: KeyEstablished) -> None:
        if event.peer.wireguard_key == self.wireguard.public_key:
            await self._let_shake_hands()
        if self._to_install is not event:
            return  # nobody wants it any more
        self._setting = True
        try:
            await self._set(event)
        finally:
            self._setting = False

    async def _let_shake_hands(self) -> None:
        """After a start two exchanges often come one right after the other. A first handshake that
        the second key falls into fails, and WireGuard begins the next one after 5 s."""
        while (left := self.wireguard.shakes_hands_until() - boottime()) > 0:
            self._observed = trio.Event()
            with trio.move_on_after(left):
                await self._observed.wait()

    async def _set(self, event: KeyEstablished) -> None:
        before, in_force_before = self.wireguard.public_key, self.wireguard.watch.in_force
        if not await self._put_on(event):
            return
        if self._to_install is not event:
            # The link left the key exchange meanwhile: nobody would end this key's life
            await self.wireguard.take_off()
            return
        # A session that was first seen just before the PSK was set
        self._tell_session(boottime())
        self._to_install = None
        self.last = LastExchange(event.role, event.suite, event.peer_identity)
        self._warn(tuple(self._compare(event)))
        in_force = self.wireguard.watch.in_force
        if in_force is not None and in_force != in_force_before:
            # Between the last dump and the new key WireGuard had shaken hands
            self._journal.record("key_in_force", peer=self.name, key_id=in_force.key_id)
        self.external.established(event, "" if in_force is None else in_force.key_id)
        with self._engine.driving() as (endpoint, now):
            endpoint.key_installed(self.name, event.token, now)
        self.update_config()  # a fallback may be over
        if self.external.wants_another:
            self._request(StartReason.REQUESTED)
        self._end_unpinned(at_once=True)  # the list may have changed while it was installed
        try:
            await self.wireguard.follow(event)
        except (TunError, OSError) as error:
            self.problem = Problem("endpoint_not_moved", str(error), wall())
        self.tunnel.look_soon(at_first=before != self.wireguard.public_key)

    async def _put_on(self, event: KeyEstablished) -> bool:
        """Set the key on the interface. Whether that was done, and was wanted to its end."""
        new = self.wireguard.public_key is None
        self._peer_comes = new
        try:
            if new:
                # WireGuard shakes hands as soon as it has the peer, and what comes then is
                # answered: the answers need a way by then. A renewal leaves routes alone
                await self.tunnel.add_routes(self.peer.allowed_ips)
            await self.wireguard.install(event)
        except Superseded:
            pass
        except (TunError, FileFault, OSError, ValueError) as error:
            if self._to_install is event:
                self._install_failed(event, str(error))
        else:
            return True
        finally:
            self._peer_comes = False
        if new:
            await self.tunnel.set_routes()
        return False

    def _install_failed(self, event: KeyEstablished, reason: str) -> None:
        self._to_install = None
        self.problem = Problem("install_failed", reason, wall())
        self._journal.record(
            "install_failed", peer=self.name, level="error", key_id=event.key_id, reason=reason
        )
        with self._engine.driving() as (endpoint, now):
            # Only that it failed: what the backend said is not the peer's business
            endpoint.install_failed(self.name, event.token, "install failed", now)

    def _compare(self, event: KeyEstablished) -> Iterable[str]:
        """What the two ends say differently; none of it stops the link."""
        for prefix in event.peer.prefixes:
            inside = (
                prefix.version == own.version and prefix.subnet_of(own)  # type: ignore[arg-type]
                for own in self.peer.allowed_ips
            )
            if not any(inside):
                yield f"the peer announces {prefix}, which is not in allowed_ips here"
        differ = modes_differ(self.external.mode_of(self.peer), event.peer.mode)
        if differ:
            yield differ
        if event.peer_identity != self.peer.identity[0]:
            yield OTHER_IDENTITY

    def _warn(self, warnings: tuple[str, ...]) -> None:
        for warning in warnings:
            if warning not in self.warnings:
                self._journal.record("ends_differ", peer=self.name, level="warning", reason=warning)
        self.warnings = tuple(dict.fromkeys(warnings))

    async def _cache(self, event: IdentityLearned) -> None:
        try:
            await trio.to_thread.run_sync(
                self._peer_keys.store, event.fingerprint, event.public_key
            )
        except FileFault as fault:
            # It is fetched again after the next start; nothing else depends on it
            self._journal.record(
                "cache_not_written", peer=self.name, level="warning", reason=str(fault)
            )

    # ---- where the peer is

    async def _keep_address(self) -> None:
        """Look the peer's names up at the start, and again when an exchange got no answer."""
        while True:
            self._resolve = trio.Event()
            problems = [await self._addresses.advance(), await self.wireguard.addresses.advance()]
            problem = "; ".join(filter(None, problems))
            if problem:
                self.waiting_reason = problem
                self.problem = Problem("name_not_resolved", problem, wall())
                self.refresh()
            self.update_config()
            with trio.move_on_after(RESTART_SECONDS if problem else math.inf):
                await self._resolve.wait()

    def update_config(self) -> None:
        """Let the key exchange know what has come to be otherwise: the peer's address, the mode
        for external keys."""
        if not self.joined:
            return
        config = self._config(self._public_key)
        if self._engine.endpoint.link(self.name).config == config:
            return
        with self._engine.driving() as (endpoint, now):
            endpoint.update_link(config, now)
        self.refresh()

    # ---- state

    def refresh(self) -> None:
        """Work the state out anew, and record it where it changed."""
        before = self.state
        state, reason = judge(self._facts())
        if state is before and reason == self.reason:
            return
        self.state, self.reason = state, reason
        if state is not before:
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

    def _facts(self) -> Facts:
        watch, now = self.wireguard.watch, boottime()
        link = self._engine.endpoint.look_at(self.name) if self.joined else None
        error = self.tunnel.error
        return Facts(
            fault=self.fault,
            tunnel_error="" if error is None else f"tunnel {self.tunnel.name}: {error}",
            joined=self.joined,
            has_key=self.wireguard.public_key is not None,
            in_force=watch.in_force is not None,
            doubtful=watch.doubtful,
            dead=watch.dead(self.peer.keepalive, now),
            minutes_silent=max(3, round((watch.session_age(now) or 0) // 60)),
            closed_reason=self.closed_reason,
            exchanging=link is not None and link.exchange_due and link.address is not None,
            answering=link is not None and link.responding is not None,
            has_endpoint=self.peer.endpoint is not None,
            waiting_reason=self.waiting_reason,
            renewal_problem=self.renewal_problem,
            external=self.external.watch.standing,
            second_identity=self.last is not None and self.last.identity != self.peer.identity[0],
            adopted=self.adopted,
        )

    def _known_key_id(self) -> str:
        key = self.wireguard.watch.waiting or self.wireguard.watch.in_force
        return "" if key is None else key.key_id

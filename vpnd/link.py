"""A link at work: takes what the key exchange hands out, and has it installed.

KeyEstablished ──▶ record ──▶ tunnel ──▶ key_installed ──▶ handshake seen ──▶ active

Its parts: vpnd.link_exchanges, vpnd.link_peer, vpnd.link_external, vpnd.link_report.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import trio

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
    StartReason,
    WireGuardKeyContested,
    WireGuardKeyYielded,
)
from kex.identity import Fingerprint
from tun import PeerStatus, Prefix, TunError
from vpnd.clock import boottime
from vpnd.config_model import PeerConfig, protected_within
from vpnd.engine import Engine
from vpnd.external_record import ExternalRecords
from vpnd.fallback_watch import FallbackWatch
from vpnd.file_trust import FileFault
from vpnd.identity_store import PeerKeyCache
from vpnd.journal import Journal
from vpnd.link_exchanges import LinkExchanges
from vpnd.link_external import LinkExternal
from vpnd.link_peer import Superseded, WireGuardPeer
from vpnd.link_record import LinkRecords
from vpnd.link_report import EXPECTED, LinkReport
from vpnd.listed_keys import SourceFinder
from vpnd.missing_keys import MissingKeys
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

OTHER_WIREGUARD_KEY: Final = (
    "the peer had another WireGuard key than the one that is pinned, and no exchange gave a new one"
)


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
        self._journal = journal
        self.external = LinkExternal(
            peer,
            engine=engine,
            find=find_source,
            watch=FallbackWatch(
                peer.name, peer.external_keys, external_records, journal, self._fallback_is_over
            ),
            journal=journal,
        )
        self.exchanges = LinkExchanges(
            peer,
            own,
            tunnel=tunnel,
            external=self.external,
            engine=engine,
            peer_keys=peer_keys,
            journal=journal,
        )
        self.missing_keys = MissingKeys(self.external, self.exchanges)
        self.report = LinkReport(
            peer,
            tunnel=tunnel,
            wireguard=self.wireguard,
            external=self.external,
            exchanges=self.exchanges,
            journal=journal,
        )
        self._resolve = trio.Event()
        self._work = trio.Event()
        self._to_install: KeyEstablished | None = None
        self._setting = False
        """Whether the interface is being changed just now."""
        self._to_close = False
        self._ended = trio.Event()

    @property
    def name(self) -> str:
        return self.peer.name

    # ---- life

    def start(self) -> None:
        """Take part in the key exchange as soon as there is an interface.

        Raises ValueError where the configuration does not allow it.
        """
        self.tunnel.users.add(self)
        tunnel = self.tunnel.open
        if tunnel is not None:
            # A link that is added to a running tunnel has nothing to adopt
            self.wireguard.forget_record()
            try:
                self.exchanges.join(tunnel.public_key, self._handle)
            except ValueError:
                self.tunnel.users.discard(self)
                raise
        self.report.refresh()

    def _leave(self) -> None:
        """Take no part in the key exchange any more; what was to be installed is void."""
        self._to_install = None
        self.exchanges.leave()

    async def run(self) -> None:
        """The link's tasks."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._guarded, self._keep_address)
                nursery.start_soon(self._guarded, self._work_off)
                nursery.start_soon(self._guarded, self.external.run)
                nursery.start_soon(self._guarded, self.missing_keys.run)
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
                self.report.fault = "an internal error stopped this link's task; see the log"
                if self._to_install is not None:
                    self._install_failed(self._to_install, "internal error")
                self.report.refresh()
                await trio.sleep(RESTART_SECONDS)
                self.report.fault = ""
                self._work.set()
                self.report.refresh()
            else:
                return

    async def remove(self) -> None:
        """The link is no longer configured: nothing of it stays. Its task was cancelled."""
        await self._ended.wait()
        self._leave()
        self.tunnel.users.discard(self)
        await self.wireguard.take_off()
        self.external.watch.forget()

    def extend_fallback(self, seconds: int, reason: str, *, uid: int) -> None:
        """Let a fallback go on for longer. Raises NotExtensible."""
        self.external.watch.extend(seconds, reason, uid=uid)
        self._update_exchanges()
        self.exchanges.want()
        self.report.refresh()

    def _fallback_is_over(self) -> None:
        """The limit is reached: as with `require` from now on, which tries until there is a key."""
        self._update_exchanges()
        self.exchanges.want()
        self.report.refresh()

    def busy(self) -> bool:
        """Whether a stop now could leave the two ends with different keys."""
        state = self.exchanges.state
        if state is None:
            return False
        return (
            state.awaits_resp_conf or state.responding is not None or self._to_install is not None
        )

    # ---- a changed configuration

    def take(self, peer: PeerConfig, own: tuple[Fingerprint, ...]) -> None:
        """Go by a changed configuration, which the key exchange has taken already. The tunnel is
        the same. `bring_up_to_date` takes it to the interface."""
        before, self.peer = self.peer, peer
        elsewhere = (peer.endpoint, peer.wireguard_endpoint)
        self.wireguard.take(peer)
        self.exchanges.take(peer, own)
        self.report.take(peer)
        if elsewhere != (before.endpoint, before.wireguard_endpoint):
            self._resolve.set()
            self.exchanges.want()
        if peer.wireguard_key != before.wireguard_key:
            self.exchanges.want()  # the one before may have been what was refused
        if self.external.take(peer):
            self.exchanges.want()  # the key in use is one of another policy
        self._end_unpinned(at_once=not set(peer.identity) & set(before.identity))
        self.report.refresh()

    def _end_unpinned(self, *, at_once: bool) -> None:
        """A key that was agreed with an identity which is not the peer's any more has to go, and so
        has one for another WireGuard key than the pinned one."""
        identity = self.wireguard.identity
        if not self.exchanges.joined or identity is None:
            return
        pinned, key = self.peer.pinned_wireguard_key, self.wireguard.public_key
        if pinned is not None and pinned != key:
            at_once, self.report.end_reason = True, OTHER_WIREGUARD_KEY
        elif identity in {fingerprint.text() for fingerprint in self.peer.identity}:
            return
        else:
            self.report.end_reason = UNPINNED
        self.wireguard.expires_at = boottime() + (0 if at_once else UNPINNED_SECONDS)
        self.exchanges.end_key(self.wireguard.expires_at)

    async def bring_up_to_date(self) -> str:
        """Bring the peer on the interface to what is configured; what went wrong, or ''. It is
        tried again with every look at the interface."""
        try:
            await self.wireguard.bring_up_to_date()
        except (TunError, OSError) as error:
            self.report.not_updated(str(error))
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
        if self.exchanges.joined_with(tunnel.public_key):
            key = self.wireguard.public_key
            if key is not None and key not in peers:
                self._peer_vanished()
            return
        self._leave()
        self.wireguard.forget()
        self.exchanges.join(tunnel.public_key, self._handle)
        if tunnel.adopted:
            self._adopt(peers)
        self.report.refresh()

    def _adopt(self, peers: Mapping[bytes, PeerStatus]) -> None:
        record = self.wireguard.adopt(peers)
        if record is None:
            if self.wireguard.closed_while_away:
                self.report.expired_while_away()
            return
        self.report.adopted = True
        self.external.watch.adopted(record.key_id)
        self.exchanges.adopt(record, proved=self.wireguard.watch.stamp is not None)
        if self.wireguard.public_key is None:
            return  # another link pins the peer's WireGuard key
        self.exchanges.count(self.wireguard.flow.traffic)
        self.exchanges.session_started(self.wireguard.watch.session_at, boottime())
        self._journal.record("link_adopted", peer=self.name, key_id=self.wireguard.watch.newest_id)

    def tunnel_lost(self) -> None:
        self._leave()
        self.wireguard.forget()
        self.report.refresh()

    def peer_key(self) -> bytes | None:
        return self.wireguard.public_key

    def awaits_handshake(self) -> bool:
        return self.wireguard.watch.waiting is not None

    def ways_changed(self) -> None:
        self.report.refresh()

    def wireguard_host(self) -> str | None:
        status = self.wireguard.status
        return None if status is None or status.endpoint is None else status.endpoint[0]

    def wanted(self) -> tuple[tuple[Prefix, ...], int]:
        return self.peer.allowed_ips, self.peer.keepalive

    def routed(self) -> tuple[Prefix, ...]:
        there = self.wireguard.comes or self.wireguard.public_key is not None
        return (*self.peer.allowed_ips, *protected_within(self.peer)) if there else ()

    def observe(self, status: PeerStatus | None, now: float) -> None:
        if self._setting or not self.wireguard.is_news(now):
            return  # the dump may be older than what was done to the interface
        if status is None:
            self._peer_vanished()
            return
        self._check_untouched(status)
        fresh, taken_up = self.wireguard.observe(status, now)
        if self.wireguard.is_due():
            self._work.set()
        self.exchanges.count(self.wireguard.flow.traffic)
        if fresh:
            self.exchanges.session_started(self.wireguard.watch.session_at, now)
        if taken_up is not None:
            self._journal.record("key_in_force", peer=self.name, key_id=taken_up.key_id)
            self.exchanges.key_taken_up(self.wireguard.public_key)
        if self.wireguard.watch.overdue(self.peer.keepalive, now):
            self.exchanges.want(StartReason.HANDSHAKE_OVERDUE)
        elif self.wireguard.flow.wants_comparison(now):
            self.exchanges.want()
        self.report.refresh()

    def counters_unknown(self) -> None:
        self.exchanges.count(None)

    def interface_passes(self, *, withheld: bool, not_taken: bool) -> None:
        flow = self.wireguard.flow
        if (flow.withheld, flow.not_taken) != (withheld, not_taken):
            flow.withheld, flow.not_taken = withheld, not_taken
            self.report.refresh()

    def _check_untouched(self, status: PeerStatus) -> None:
        """What somebody else changed of the peer on the interface is put right."""
        changed = self.wireguard.altered(status)
        if changed:
            self._journal.record("peer_altered", peer=self.name, level="warning", reason=changed)
        if self.wireguard.key_altered(status):
            self.report.key_altered()
            self.exchanges.want()

    def _peer_vanished(self) -> None:
        """The peer was taken off the interface behind our back: a new key puts it there again."""
        self._journal.record(
            "peer_missing", peer=self.name, level="warning", reason="deleted from the interface"
        )
        self.wireguard.forget()
        self.exchanges.want()
        self.report.refresh()

    # ---- what the key exchange says; nothing here blocks

    def _handle(self, event: Event) -> None:
        match event:
            case KeyEstablished():
                self._to_install = event
                self._work.set()
            case KeyConfirmed():
                self.wireguard.expires_at = event.expires_at
                self._to_close = False
                self.report.confirmed(event)
            case ExchangeStarted():
                self.report.started(event)
            case ExchangeFailed():
                self._failed(event)
            case RejectSent():
                self.report.refused(event)
                self.external.refused(event)
                self._objected(event.code, event.detail)
            case IdentityLearned():
                self.exchanges.learned(event)
                self._work.set()
            case ExternalKeysWanted():
                self.external.wanted(event)
            case WireGuardKeyContested():
                self.report.key_contested(event)
            case WireGuardKeyYielded():
                self.report.key_yielded(event)
                self.external.watch.forget_keys()
                self.wireguard.give_up()
                self._to_close = True
                self._work.set()
            case LinkExpired():
                self.report.expired(event)
                self.external.watch.forget_keys()
                self._to_close = True
                self._work.set()
        self.report.refresh()

    def _failed(self, event: ExchangeFailed) -> None:
        self.report.failed(event)
        self.external.failed(event)
        if event.code in EXPECTED:
            return
        self._objected(event.reject, event.detail)
        self.missing_keys.exchange_failed()
        if self.external.gives_better_or_none(event):
            return  # the link is as it was, and what it lacks is told
        self.report.gave_no_key(event)
        if event.code in (FailureCode.NO_ANSWER, FailureCode.INIT_CONF_UNANSWERED):
            # The name may have moved, or the other family may get through
            self._resolve.set()
            self.wireguard.flow.interrupted()

    def _objected(self, code: RejectCode | int | None, detail: str) -> None:
        """One end has refused an exchange of the other's: for what of its external keys?"""
        if code == RejectCode.KEY_MISMATCH:
            # Never a reason to go on without
            self.report.keys_differ(detail)
            if self.peer.external_keys.on_mismatch == "close" and self.exchanges.joined:
                self.report.end_reason = f'{detail}; on_mismatch = "close"'
                self.exchanges.end_key(boottime())
        elif code == RejectCode.POLICY:
            self.report.policies_differ(detail)

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
            await self.exchanges.cache_learned()
            self.report.refresh()

    async def _install(self, event: KeyEstablished) -> None:
        if event.peer.wireguard_key == self.wireguard.public_key:
            await self.wireguard.wait_shaken_hands()
        if self._to_install is not event:
            return  # nobody wants it any more
        self._setting = True
        try:
            await self._set(event)
        finally:
            self._setting = False

    async def _set(self, event: KeyEstablished) -> None:
        before, in_force_before = self.wireguard.public_key, self.wireguard.watch.in_force
        if not await self._put_on(event):
            return
        if self._to_install is not event:
            # The link left the key exchange meanwhile: nobody would end this key's life
            await self.wireguard.take_off()
            return
        # A session that was first seen just before the PSK was set
        self.exchanges.session_started(self.wireguard.watch.session_at, boottime())
        self._to_install = None
        self.report.gave_key(event)
        self.wireguard.flow.heard(event.peer.traffic, boottime())
        in_force = self.wireguard.watch.in_force
        if in_force is not None and in_force != in_force_before:
            # Between the last dump and the new key WireGuard had shaken hands
            self._journal.record("key_in_force", peer=self.name, key_id=in_force.key_id)
            if before == self.wireguard.public_key:
                self.exchanges.key_taken_up(before)
        self.external.established(event, "" if in_force is None else in_force.key_id)
        self.exchanges.installed(event)
        self.missing_keys.key_set(event.role)
        self._update_exchanges()  # a fallback may be over
        if self.external.wants_another:
            self.exchanges.want()
        if self.exchanges.unheard:
            # One begun here may get through, or is told what the peer does not accept
            self.exchanges.want(StartReason.HANDSHAKE_OVERDUE)
        self._end_unpinned(at_once=True)  # the list may have changed while it was installed
        try:
            await self.wireguard.follow(event)
        except (TunError, OSError) as error:
            self.report.endpoint_not_moved(str(error))
        self.tunnel.dumps.want(at_first=before != self.wireguard.public_key)

    async def _put_on(self, event: KeyEstablished) -> bool:
        """Set the key on the interface. Whether that was done, and was wanted to its end."""
        new = self.wireguard.public_key is None
        try:
            await self.wireguard.install(event)
        except Superseded:
            pass
        except (TunError, FileFault, OSError, ValueError) as error:
            if self._to_install is event:
                self._install_failed(event, str(error))
        else:
            return True
        if new:
            await self.tunnel.set_routes()
        return False

    def _install_failed(self, event: KeyEstablished, reason: str) -> None:
        self._to_install = None
        self.report.install_failed(event, reason)
        self.exchanges.install_failed(event)

    # ---- where the peer is

    async def _keep_address(self) -> None:
        """Look the peer's names up at the start, and again when an exchange got no answer."""
        while True:
            self._resolve = trio.Event()
            problems = [
                await self.exchanges.addresses.advance(),
                await self.wireguard.addresses.advance(),
            ]
            problem = "; ".join(filter(None, problems))
            if problem:
                self.report.name_not_resolved(problem)
                self.report.refresh()
            self._update_exchanges()
            with trio.move_on_after(RESTART_SECONDS if problem else math.inf):
                await self._resolve.wait()

    def _update_exchanges(self) -> None:
        """The peer's address may be another one, or the mode for external keys."""
        if self.exchanges.update():
            self.report.refresh()

"""The WireGuard peer of a link: set on the interface, remembered for a restart, and watched."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import trio

from kex.events import KeyEstablished, Role
from tun import PeerSpec, PeerStatus, Prefix, PresharedKey, TunError, psk_mark
from vpnd.clock import boottime, wall
from vpnd.config_model import PeerConfig, protected_within
from vpnd.file_trust import FileFault
from vpnd.handshake import (
    ANSWER_MARGIN,
    SESSION_RENEWS,
    EitherKey,
    HandshakeWatch,
    KeyInForce,
    WatchedKey,
)
from vpnd.journal import Journal
from vpnd.link_flow import FlowWatch
from vpnd.link_record import LinkRecord, LinkRecords, stamp_of, stamp_text
from vpnd.resolver import PeerAddresses
from vpnd.tunnels import ManagedTunnel

FIRST_HANDSHAKE_SECONDS: Final = 1.0
"""What WireGuard's first handshake with a peer is given: it takes one and a half times the way to
it and back."""
UNCERTAIN: Final = (
    "a key was being set when the daemon ended or the backend failed: which of two keys is in "
    "force shows after the next exchange"
)


class Superseded(Exception):
    """What was to be installed is no longer wanted: the interface is another one meanwhile."""


class WireGuardPeer:
    """What of a link is on the interface. Keys pass through here and are not kept."""

    def __init__(
        self, peer: PeerConfig, tunnel: ManagedTunnel, records: LinkRecords, journal: Journal
    ) -> None:
        self._peer = peer
        self._tunnel = tunnel
        self._records = records
        self._journal = journal
        self._changed_at = 0.0
        """When the interface was last changed: dumps begun before that say nothing."""
        self._generation = 0
        self._observed = trio.Event()
        self._record: LinkRecord | None = None
        self.addresses = PeerAddresses(peer.wireguard_endpoint)
        """Where the peer's WireGuard is, if that is configured."""
        self.watch = HandshakeWatch()
        self.flow = FlowWatch()
        self.status: PeerStatus | None = None
        self.public_key: bytes | None = None
        """The peer's, 32 bytes, as it is on the interface."""
        self.comes = False
        """Whether the peer is about to be set on the interface for the first time."""
        self.expires_at: float | None = None
        self.outdated = False
        """Whether allowed IPs and keepalive on the interface may be others than configured."""
        self._held_back: tuple[str, int] | None = None
        """Where the peer is, while WireGuard has not been told."""
        self._seen_prefixes: tuple[Prefix, ...] | None = None
        """As a dump shows them, and as configured: to compare a tuple is cheap."""
        self._psk_mark: bytes | None = None
        """Of the PSK on the interface, as it was set; None where that is not known."""
        self._configured_anew = False
        """Whether somebody changed where the peer is, and no exchange was completed since."""
        self.closed_while_away = False
        """Whether `adopt` found a key whose lifetime was over."""
        self._given_up = False
        """Whether another link got the peer's WireGuard key, and the routes are still there."""
        self.record_fault = ""
        """Why the record on disk is not the one it should be; it is tried again."""

    # ---- what is configured

    @property
    def identity(self) -> str | None:
        """The peer's fingerprint, as text, that the key on the interface was agreed with."""
        return None if self._record is None else self._record.identity

    @property
    def endpoint_text(self) -> str:
        """Where WireGuard sends to, or '' where that is not known."""
        endpoint = None if self.status is None else self.status.endpoint
        if endpoint is None:
            return ""
        host, port = endpoint
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def take(self, peer: PeerConfig) -> None:
        """Go by this configuration from now on; `bring_up_to_date` takes it to the interface."""
        before, self._peer = self._peer, peer
        self._seen_prefixes = None
        if set(peer.allowed_ips) != set(before.allowed_ips) or peer.keepalive != before.keepalive:
            self.outdated = True
        where = (peer.endpoint, peer.wireguard_endpoint)
        if where != (before.endpoint, before.wireguard_endpoint):
            self._configured_anew = True
            if peer.wireguard_endpoint != before.wireguard_endpoint:
                self.addresses = PeerAddresses(peer.wireguard_endpoint)

    def is_due(self) -> bool:
        """Whether the peer on the interface is to be brought up to date now: one that was left to
        call first has done so, or has not for a while."""
        waits = self.shakes_hands_until() > boottime() and self._held_back is not None
        return self.outdated and not waits

    async def bring_up_to_date(self) -> None:
        """Bring the peer on the interface to what is configured, where there is one.

        Raises TunError, OSError.
        """
        while self.is_due():
            peer, key = self._peer, self.public_key
            if key is not None:
                known = self.status is not None and self.status.endpoint is not None
                await self._tunnel.update_peer(
                    key,
                    allowed_ips=peer.allowed_ips,
                    keepalive=peer.keepalive,
                    endpoint=None if known else self._held_back,
                )
                self._changed_at = boottime()
            if key == self.public_key:  # else another peer was set meanwhile: that one's turn
                self._held_back = None
                self.outdated = peer is not self._peer

    # ---- a restart

    def adopt(self, peers: Mapping[bytes, PeerStatus]) -> LinkRecord | None:
        """Take over what an earlier run put on the interface; its record if there is any.

        A peer whose identity or WireGuard key is not the one that is configured, or whose key's
        lifetime is over, has to go.
        """
        record = self._records.load(self._peer.name)
        if record is None or record.tunnel != self._tunnel.name:
            return None
        key = bytes.fromhex(record.wireguard_key)
        status = peers.get(key)
        if status is None:
            return None
        identities = [fingerprint.text() for fingerprint in self._peer.identity]
        self.closed_while_away = record.expires_at <= boottime()
        pinned = self._peer.pinned_wireguard_key
        stranger = record.identity not in identities or pinned not in (None, key)
        if stranger or self.closed_while_away:
            self._tunnel.discard(key)
            return None
        self._record, self.public_key, self.status = record, key, status
        self.expires_at = record.expires_at
        self._psk_mark = status.psk_mark
        in_force = None
        if record.in_force_since:
            in_force = KeyInForce(
                record.in_force_key_id, record.in_force_installed_at, record.in_force_since
            )
        waiting = WatchedKey(
            record.key_id, record.installed_at, stamp_of(record.stamp_before), record.replaces
        )
        taken_up = in_force is not None and in_force.key_id == record.key_id
        self.watch.adopt(
            status.handshake_stamp,
            status.rx_bytes,
            now=boottime(),
            wall=wall(),
            waiting=None if taken_up or record.pending_key_id else waiting,
            in_force=in_force,
            doubtful=bool(record.pending_key_id),
            either=_either_of(record),
            pending_id=record.pending_key_id or record.key_id,
        )
        self.flow.observe(status.tx_bytes, status.rx_bytes, boottime())
        return record

    # ---- setting a key

    async def install(self, event: KeyEstablished) -> None:
        """Set the PSK, and read it back.

        Raises TunError, OSError, ValueError; Superseded when the peer was forgotten meanwhile.
        """
        self.comes = self.public_key is None
        try:
            if self.comes:
                # WireGuard shakes hands as soon as it has the peer, and what comes then is
                # answered: the answers need a way by then. A renewal leaves routes alone
                await self._tunnel.add_routes(
                    (*self._peer.allowed_ips, *protected_within(self._peer))
                )
            await self._set(event)
        finally:
            self.comes = False

    async def _set(self, event: KeyEstablished) -> None:
        """The record comes first, so that a daemon that dies in between knows which peer is its
        own."""
        generation, peer = self._generation, self._peer
        endpoint = self._endpoint(event)
        # Who began the exchange calls first: of two first handshakes that cross, both fail, and
        # are repeated after 5 s, at about the same time again
        waits = event.role is Role.RESPONDER and endpoint is not None
        spec = PeerSpec(
            public_key=event.peer.wireguard_key,
            psk=PresharedKey(event.psk.expose()),
            allowed_ips=peer.allowed_ips,
            endpoint=None if waits else endpoint,
            keepalive=0 if waits else peer.keepalive,
        )
        if spec.public_key != self.public_key and any(
            user.peer_key() == spec.public_key for user in self._tunnel.users
        ):
            raise TunError("the peer's WireGuard key is the one of another link")
        started_at = boottime()
        self._remember_pending(event, started_at)
        try:
            before = await self._tunnel.install(spec, instead_of=self.public_key)
        except BaseException:
            # Nobody knows whether it was set
            self.watch.doubt(event.key_id)
            self._psk_mark = None
            if self._record is not None:
                self._record = replace(self._record, pending_key_id=event.key_id)
            if self.public_key != spec.public_key:
                self._tunnel.discard(spec.public_key)
            raise
        if generation != self._generation:
            raise Superseded
        if not before.was_present:
            self.watch.reset()
            self.flow.reset()
            self.status = None
            self._held_back = endpoint if waits else None
            self.outdated = self.outdated or waits
        self.public_key = spec.public_key
        self._psk_mark = psk_mark(event.psk.expose())
        self.outdated = self.outdated or peer is not self._peer
        self.expires_at = started_at + self._peer.key_lifetime
        self._changed_at = boottime()
        self.watch.installed(
            event.key_id, before.stamp_before, started_at, replaces=before.was_present
        )
        self._record = self._record_of(event, started_at)
        self.remember()

    async def wait_shaken_hands(self) -> None:
        """After a start two exchanges often come one right after the other. A first handshake that
        the second key falls into fails, and WireGuard begins the next one after 5 s."""
        while (left := self.shakes_hands_until() - boottime()) > 0:
            self._observed = trio.Event()
            with trio.move_on_after(left):
                await self._observed.wait()

    def shakes_hands_until(self) -> float:
        """Until when, on the boot clock, WireGuard may be busy with its first handshake with the
        peer; a time long ago where it is not."""
        key = self.watch.waiting
        if key is None or key.replaces or self.watch.stamp is not None:
            return -math.inf
        return key.installed_at + FIRST_HANDSHAKE_SECONDS

    def _endpoint(self, event: KeyEstablished) -> tuple[str, int] | None:
        """Where WireGuard finds the peer: where it is configured to be, else at the address of
        its key exchange (the configured one, if that is a number, else the one that answered)
        and at the port that it announced."""
        mapped = self.addresses.current
        if mapped is not None:
            return (mapped.host, mapped.port)
        if event.peer.wireguard_port == 0:
            return None
        configured = self._peer.endpoint
        fixed = configured is not None and configured.address is not None
        if configured is not None and fixed:
            return (configured.host, event.peer.wireguard_port)
        if event.address is None:
            # Nobody knows yet where the peer is: its WireGuard calls, and ours learns it from that
            return None
        return (event.address.host, event.peer.wireguard_port)

    async def follow(self, event: KeyEstablished) -> None:
        """Lead WireGuard to where the exchange just got an answer: where its own session is dead,
        and where somebody has just said that the peer is elsewhere. Raises TunError, OSError.

        While its session lives WireGuard knows best: it follows what it has authenticated.
        """
        configured_anew, self._configured_anew = self._configured_anew, False
        endpoint = self._endpoint(event)
        if endpoint is None or self.public_key is None or self.status is None:
            return
        if self.status.endpoint is None:
            moved = True
        elif self._peer.wireguard_endpoint is not None:
            moved = self.status.endpoint != endpoint
        else:
            moved = self.status.endpoint[0] != endpoint[0]
        if moved and (configured_anew or self._silent()):
            await self._tunnel.move_peer(self.public_key, endpoint)
            self._journal.record("endpoint_moved", peer=self._peer.name, to=endpoint[0])

    def _silent(self) -> bool:
        """Whether WireGuard should have made a handshake by now, and has not."""
        age = self.watch.session_age(boottime())
        if age is None:
            return self.status is not None and self.status.handshake_stamp is None
        return age > SESSION_RENEWS + self._peer.keepalive + ANSWER_MARGIN

    # ---- the record

    def _record_of(self, event: KeyEstablished, now: float) -> LinkRecord:
        watch = self.watch
        waiting = watch.waiting
        return LinkRecord(
            tunnel=self._tunnel.name,
            identity=event.peer_identity.text(),
            wireguard_key=event.peer.wireguard_key.hex(),
            key_id=event.key_id,
            installed_at=now,
            expires_at=now + self._peer.key_lifetime,
            stamp_before="" if waiting is None else stamp_text(waiting.stamp_before),
            replaces=waiting is not None and waiting.replaces,
            in_force_key_id="" if watch.in_force is None else watch.in_force.key_id,
            in_force_installed_at=0.0 if watch.in_force is None else watch.in_force.installed_at,
            in_force_since=0.0 if watch.in_force is None else watch.in_force.since,
            either_key_ids=_either_text(watch.either),
            either_until=_either_until(watch.either),
        )

    def _remember_pending(self, event: KeyEstablished, now: float) -> None:
        """Before a PSK is set. Where that cannot be written, the key is set all the same: a full
        disk must not keep it from being renewed. The record goes then, lest the next start
        believes an older one; it takes the peer for unknown, and begins an exchange.
        """
        if self._record is None or event.peer.wireguard_key != self.public_key:
            # A first key, or a peer with a new WireGuard key: there is just this one to be found
            fresh = replace(
                self._record_of(event, now),
                stamp_before="",
                replaces=False,
                in_force_key_id="",
                in_force_since=0.0,
                in_force_installed_at=0.0,
                either_key_ids="",
                either_until=0.0,
            )
        else:
            fresh = replace(self._record, pending_key_id=event.key_id)
        if not self._store(fresh):
            self.forget_record()

    def remember(self) -> None:
        """After a change; that it cannot be written matters at the next start only."""
        if self._record is None or self.public_key is None:
            return
        in_force, waiting = self.watch.in_force, self.watch.waiting
        if waiting is not None and waiting.key_id == self._record.key_id:
            # A handshake made with the key before moves it: the next start need not be in doubt
            self._record = replace(self._record, stamp_before=stamp_text(waiting.stamp_before))
        self._record = replace(
            self._record,
            in_force_key_id="" if in_force is None else in_force.key_id,
            in_force_installed_at=0.0 if in_force is None else in_force.installed_at,
            in_force_since=0.0 if in_force is None else in_force.since,
            either_key_ids=_either_text(self.watch.either),
            either_until=_either_until(self.watch.either),
        )
        self._store(self._record)

    def _store(self, record: LinkRecord) -> bool:
        """Write a record; whether it was written. What went wrong is told once."""
        try:
            self._records.store(self._peer.name, record)
        except FileFault as fault:
            self._not_written(fault)
            return False
        self.record_fault = ""
        return True

    def _not_written(self, fault: FileFault) -> None:
        if self.record_fault != str(fault):
            self.record_fault = str(fault)
            self._journal.record(
                "record_not_written", peer=self._peer.name, level="warning", reason=str(fault)
            )

    # ---- what a dump shows

    def is_news(self, now: float) -> bool:
        """Whether a dump begun at `now` can tell anything."""
        return now >= self._changed_at

    def observe(self, status: PeerStatus, now: float) -> tuple[bool, KeyInForce | None]:
        """Take a dump's reading: whether a new session was seen, and the key that it took up."""
        self.status = status
        self.flow.observe(status.tx_bytes, status.rx_bytes, now)
        before, waiting = self.watch.in_force, self.watch.waiting
        fresh = self.watch.observe(status.handshake_stamp, status.rx_bytes, status.tx_bytes, now)
        taken_up = self.watch.in_force if self.watch.in_force != before else None
        if taken_up is not None or self.watch.waiting != waiting or self.record_fault:
            self.remember()
        self._observed.set()
        return fresh, taken_up

    def altered(self, status: PeerStatus) -> str:
        """What of a dump's reading is not as configured, and will be: in words, or ''."""
        if self.outdated:
            return ""  # it is known, and being done
        found = []
        if status.allowed_ips != self._seen_prefixes:
            if set(status.allowed_ips) != set(self._peer.allowed_ips):
                shown = ", ".join(sorted(map(str, status.allowed_ips)))
                found.append(f"allowed IPs were {shown or 'none'}")
            else:
                self._seen_prefixes = status.allowed_ips
        if status.keepalive != self._peer.keepalive:
            found.append(f"keepalive was {status.keepalive} s")
        self.outdated = bool(found)
        return "; ".join(found)

    def key_altered(self, status: PeerStatus) -> bool:
        """Whether the PSK is another one than was set here; true once."""
        if self._psk_mark is None or status.psk_mark == self._psk_mark:
            return False
        self._psk_mark = None
        self.watch.doubt()
        return True

    # ---- the end

    def forget(self) -> None:
        """The peer is no longer on the interface."""
        self._generation += 1
        self.public_key = self.expires_at = self.status = self._record = self._psk_mark = None
        self._held_back = None
        self.record_fault = ""
        self.watch.reset()
        self.flow.reset()

    def give_up(self) -> None:
        """The peer's WireGuard key is another link's now: it is off the interface before that link
        sets it. `take_off` does the rest."""
        key = self.public_key
        self.forget()
        if key is not None:
            self._tunnel.discard(key)
            self._given_up = True

    async def take_off(self, *, with_routes: bool = True) -> None:
        """Take the peer off the interface, and the routes to it; what fails now is tried again."""
        key = self.public_key
        self.forget()
        if key is not None:
            try:
                await self._tunnel.discard_now(key)
            except (TunError, OSError) as error:
                self._journal.record(
                    "peer_not_removed", peer=self._peer.name, level="error", reason=str(error)
                )
        if with_routes and (key is not None or self._given_up):
            await self._tunnel.set_routes()
        self._given_up = False
        self.forget_record()

    def forget_record(self) -> None:
        try:
            self._records.forget(self._peer.name)
        except FileFault as fault:
            self._not_written(fault)


def _either_text(either: EitherKey | None) -> str:
    return "" if either is None or either.until is None else " ".join(either.key_ids)


def _either_until(either: EitherKey | None) -> float:
    return 0.0 if either is None or either.until is None else either.until


def _either_of(record: LinkRecord) -> EitherKey | None:
    ids = tuple(record.either_key_ids.split())
    return EitherKey(ids, record.either_until) if ids else None

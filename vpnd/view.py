"""The daemon's state as the control API shows it: values in, JSON types out."""

from __future__ import annotations

import base64

from kex.address import Address
from kex.link import Link
from tun import PeerStatus
from vpnd.api import (
    SCHEMA,
    ExternalKeysInfo,
    HeldPeerInfo,
    KeyInfo,
    KeysAlive,
    LastError,
    LinkState,
    LinkStatus,
    PeerInfo,
    TunnelStatus,
    WireGuardInfo,
)
from vpnd.clock import boottime, rfc3339, wall_of
from vpnd.config import HeldPeer
from vpnd.config_model import PeerConfig
from vpnd.handshake import KeyInForce, WatchedKey
from vpnd.link import ManagedLink
from vpnd.tunnels import ManagedTunnel
from vpnd.view_external import external_keys


def link_status(link: ManagedLink, counters: dict[str, int]) -> LinkStatus:
    """One link."""
    now = boottime()
    watch = link.wireguard.watch
    report, exchange = link.report, link.exchanges.state
    last = report.last
    either = watch.undecided(now)
    status = LinkStatus(
        schema=SCHEMA,
        peer=link.name,
        state=report.state.value,
        reason=report.reason,
        since=rfc3339(report.since_wall),
        adopted=report.adopted,
        identity=(link.peer.identity[0] if last is None else last.identity).text(),
        suite=link.peer.identity[0].suite if last is None else last.suite,
        tunnel=link.tunnel.name,
        # Also once those sessions are dead: what was in force before them is not any more
        key_in_force=_in_force(watch.in_force, now) if watch.either is None else None,
        keys_alive=None
        if either is None
        else KeysAlive(
            key_ids=list(either.key_ids),
            until=None if either.until is None else rfc3339(wall_of(either.until)),
        ),
        key_installed=_installed(watch.newest, watch.in_force, now),
        next_renewal_seconds=_seconds_until(_next_exchange(exchange), now),
        expires_seconds=_seconds_until(link.wireguard.expires_at, now),
        endpoint=None if exchange is None or exchange.address is None else str(exchange.address),
        wireguard=_wireguard(link, now),
        external_keys=external_keys(link),
        last_error=None
        if report.problem is None
        else LastError(
            code=report.problem.code,
            message=report.problem.message,
            at=rfc3339(report.problem.at_wall),
        ),
        counters=counters,
        allowed_ips=[str(prefix) for prefix in link.peer.allowed_ips],
        warnings=[
            *report.warnings,
            *link.tunnel.ways.warnings(link.peer),
            *filter(None, [link.wireguard.record_fault, link.external.watch.record_fault]),
        ],
    )
    if last is not None:
        status["role"] = last.role.value
    return status


def held_status(held: HeldPeer, since: str) -> LinkStatus:
    """A peer that does not run."""
    return LinkStatus(
        schema=SCHEMA,
        peer=held.name,
        state=LinkState.DOWN.value,
        reason=f"not started: {held.reason}",
        since=since,
        adopted=False,
        identity="",
        suite=0,
        tunnel="",
        key_in_force=None,
        key_installed=None,
        next_renewal_seconds=None,
        expires_seconds=None,
        endpoint=None,
        wireguard=WireGuardInfo(
            public_key="",
            peer_public_key=None,
            endpoint=None,
            last_handshake_seconds=None,
            rx_bytes=0,
            tx_bytes=0,
        ),
        external_keys=ExternalKeysInfo(mode="off", mixed=[]),
        last_error=None,
        counters={},
        allowed_ips=[],
        warnings=[],
    )


def held_info(held: HeldPeer) -> HeldPeerInfo:
    """The same with what is guarded."""
    prefixes = {prefix for each in held.guards for prefix in each.prefixes}
    return HeldPeerInfo(
        peer=held.name,
        file=str(held.file),
        reason=held.reason,
        guarded=[str(each) for each in sorted(prefixes, key=lambda one: (one.version, one))],
    )


def tunnel_status(tunnel: ManagedTunnel, fence: str) -> TunnelStatus:
    opened = tunnel.open
    return TunnelStatus(
        tunnel=tunnel.name,
        interface=tunnel.spec.interface,
        backend="" if opened is None else opened.backend,
        adopted=opened is not None and opened.adopted,
        public_key="" if opened is None else _base64(opened.public_key),
        listen_port=tunnel.config.listen_port,
        addresses=[str(address) for address in tunnel.config.addresses],
        mtu=tunnel.mtu,
        routes=tunnel.config.routes,
        netns=tunnel.config.netns,
        fence=fence,
        error=tunnel.error,
    )


def peer_info(peer: PeerConfig, on_stop: str) -> PeerInfo:
    """A peer as configured; `on_stop` is the node's."""
    return PeerInfo(
        schema=SCHEMA,
        name=peer.name,
        identities=[fingerprint.text() for fingerprint in peer.identity],
        endpoint=None if peer.endpoint is None else str(peer.endpoint),
        tunnel=peer.tunnel,
        allowed_ips=[str(prefix) for prefix in peer.allowed_ips],
        keepalive=peer.keepalive,
        rekey_interval=peer.rekey_interval,
        key_lifetime=peer.key_lifetime,
        protect=None if peer.protect is None else [str(prefix) for prefix in peer.protect],
        external_keys=peer.external_keys.mode,
        file=str(peer.file),
        local_identity=list(peer.local_identity),
        wireguard_endpoint=None
        if peer.wireguard_endpoint is None
        else str(peer.wireguard_endpoint),
        wireguard_key=peer.wireguard_key,
        on_stop=peer.on_stop or on_stop,
        key_sources=[str(use) for use in peer.external_keys.uses],
    )


def _next_exchange(exchange: Link | None) -> float | None:
    if exchange is None or (exchange.given_up is not None and exchange.address is None):
        return None  # what is due waits for the peer
    due = [at for at in (exchange.renew_at, exchange.retry_at) if at is not None]
    return min(due, default=None)


def _in_force(key: KeyInForce | None, now: float) -> KeyInfo | None:
    if key is None:
        return None
    return KeyInfo(
        key_id=key.key_id,
        installed_at=rfc3339(wall_of(key.installed_at)),
        in_force_since=rfc3339(wall_of(key.since)),
        age_seconds=round(now - key.installed_at, 1),
    )


def _installed(
    key: WatchedKey | KeyInForce | None, in_force: KeyInForce | None, now: float
) -> KeyInfo | None:
    if key is None:
        return None
    taken_up = in_force is not None and in_force.key_id == key.key_id
    return KeyInfo(
        key_id=key.key_id,
        installed_at=rfc3339(wall_of(key.installed_at)),
        in_force_since=rfc3339(wall_of(in_force.since)) if in_force and taken_up else None,
        age_seconds=round(now - key.installed_at, 1),
    )


def _wireguard(link: ManagedLink, now: float) -> WireGuardInfo:
    status: PeerStatus | None = link.wireguard.status
    opened = link.tunnel.open
    age = link.wireguard.watch.session_age(now)
    endpoint = None if status is None or status.endpoint is None else Address(*status.endpoint)
    return WireGuardInfo(
        public_key="" if opened is None else _base64(opened.public_key),
        peer_public_key=None
        if link.wireguard.public_key is None
        else _base64(link.wireguard.public_key),
        endpoint=None if endpoint is None else str(endpoint),
        last_handshake_seconds=None if age is None else round(age, 1),
        rx_bytes=0 if status is None else status.rx_bytes,
        tx_bytes=0 if status is None else status.tx_bytes,
    )


def _seconds_until(at: float | None, now: float) -> float | None:
    return None if at is None else round(max(0.0, at - now), 1)


def _base64(key: bytes) -> str:
    return base64.b64encode(key).decode("ascii")

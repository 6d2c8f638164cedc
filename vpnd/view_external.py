"""External keys as the control API shows them: sources, what is mixed, fallbacks. Never a key."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from vpnd.api import (
    SCHEMA,
    CertificateInfo,
    ExternalKeysInfo,
    FallbackInfo,
    KeySourceInfo,
    KeySourceUse,
    MixedKeyInfo,
    StockInfo,
)
from vpnd.clock import boottime, rfc3339, wall_of
from vpnd.config_model import PeerConfig
from vpnd.fallback import Fallback
from vpnd.keysource.base import SourceStatus
from vpnd.link import ManagedLink
from vpnd.mixed_key import MixedKey


def external_keys(link: ManagedLink) -> ExternalKeysInfo:
    """The external keys of a link."""
    watch, external = link.wireguard.watch, link.external.watch
    in_force = "" if watch.in_force is None else watch.in_force.key_id
    now = boottime()
    mixed = external.keys.get(in_force, ())
    return ExternalKeysInfo(
        mode=link.peer.external_keys.mode,
        mixed=[each.source for each in mixed],
        effective_mode=link.external.mode_of(link.peer).name.lower(),
        sources=[use.source for use in link.peer.external_keys.uses],
        in_force=_mixed(mixed, now),
        installed=_mixed(external.keys.get(watch.newest_id, ()), now),
        fallback=None if external.fallback is None else fallback(external.fallback),
        standing=external.standing,
    )


def _mixed(keys: Iterable[MixedKey], now: float) -> list[MixedKeyInfo]:
    return [
        MixedKeyInfo(
            source=key.source,
            type=key.source_type,
            key_manager=key.manager,
            key_ids=list(key.key_ids),
            bits=key.bits,
            age_seconds=round(now - key.at, 1),
        )
        for key in keys
    ]


def fallback(found: Fallback) -> FallbackInfo:
    now = boottime()
    return FallbackInfo(
        since=rfc3339(wall_of(found.started_at)),
        reason=found.reason,
        until=rfc3339(wall_of(found.deadline)),
        seconds_left=round(max(0.0, found.deadline - now), 1),
        over_limit=found.over(now),
        extended_seconds=found.extended_by,
        extension_reason=found.extension_reason,
        extension_uid=found.extension_uid if found.extended else None,
    )


def key_source(status: SourceStatus, peers: Mapping[str, PeerConfig]) -> KeySourceInfo:
    """One source, as it is known now, and the links that use it."""
    return KeySourceInfo(
        schema=SCHEMA,
        name=status.name,
        type=status.source_type.value,
        address=status.address,
        identity=status.identity,
        available=status.available,
        code=None if status.fault is None else status.fault.value,
        reason=status.reason,
        hint=status.hint,
        since=rfc3339(status.since_wall) if status.since_wall else None,
        stock=[
            StockInfo(
                peer_id=level.peer_id,
                stored=level.stored,
                capacity=level.capacity,
                key_bits=level.key_bits,
                at=rfc3339(level.at_wall),
                used_per_day=round(level.used_per_day, 1),
                days_left=None if level.days_left is None else round(level.days_left, 1),
                low=level.low,
            )
            for level in status.stock
        ],
        certificates=[
            CertificateInfo(
                what=each.what,
                subject=each.subject,
                not_after=rfc3339(each.not_after),
                sha256=each.sha256,
            )
            for each in status.certificates
        ],
        warnings=list(status.warnings),
        prefetched=status.prefetched,
        counters=dict(status.counters),
        links=uses_of(status.name, peers.values()),
    )


def uses_of(source: str, peers: Iterable[PeerConfig]) -> list[KeySourceUse]:
    """The links that use a source."""
    return [
        KeySourceUse(peer=peer.name, peer_sae=use.peer_sae, mode=peer.external_keys.mode)
        for peer in peers
        for use in peer.external_keys.uses
        if use.source == source
    ]


def source_warnings(statuses: Sequence[SourceStatus]) -> list[str]:
    """What of the sources an operator has to know."""
    found = []
    for status in statuses:
        if not status.available:
            found.append(f"key source {status.name}: {status.reason}")
        found += [f"key source {status.name}: {warning}" for warning in status.warnings]
    return found

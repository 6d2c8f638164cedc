"""The two payloads: P_i in InitConf, P_r in RespConf (docs/protocol.md §5).

A payload is a 2-byte length, CBOR, and zeros up to a fixed length. Keys that are not known are
ignored, so that a later minor version can add some; kex.cbor reads the others strictly.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cbor2

from kex.cbor import decode_map_untrusted
from kex.errors import PacketRejected
from kex.external import (
    MAX_EXTERNAL_KEYS,
    ExternalKey,
    ExternalKeyReference,
    ExternalMode,
    check_bits,
    check_reference,
)

MINOR_VERSION = 0
MAX_MINOR_VERSION = 0xFFFF
WIREGUARD_KEY_LENGTH = 32
MAX_PREFIXES = 16
MAX_INTERVAL = 24 * 3600
"""Seconds."""
MAX_DETAIL_LENGTH = 200
"""Bytes of a Reject's detail."""
_ANNOUNCED = frozenset(
    {"minor", "wg", "port", "prefixes", "allows", "mode", "interval", "starts", "tx", "rx"}
)
_P_I = _ANNOUNCED | {"keys"}
_P_R = _ANNOUNCED | {"mixed", "suite"}
_REASON = frozenset({"code", "detail", "failed"})

MAX_COUNT = 2**64 - 1
"""Bytes."""

Prefix = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Traffic:
    """What WireGuard has counted of the link at one end, since the peer is on its interface."""

    sent: int
    """Bytes."""
    received: int
    """Bytes, of which none is withheld from the interface."""


@dataclass(frozen=True, slots=True)
class Announcement:
    """What each end says of itself, in both payloads."""

    wireguard_key: bytes
    wireguard_port: int
    prefixes: tuple[Prefix, ...]
    mode: ExternalMode
    interval: int
    """Seconds between renewals."""
    can_start: bool
    """Whether this end knows an address at which it can reach the other."""
    minor: int = MINOR_VERSION
    traffic: Traffic | None = None
    """None where it is not told: older versions do not, and it gives way where room is short."""
    allows: tuple[Prefix, ...] | None = None
    """What this end takes from the other, for comparison alone; None where it does not say."""


@dataclass(frozen=True, slots=True)
class ExternalListing:
    """One external key as P_i lists it: the reference and whether it is mixed."""

    reference: ExternalKeyReference
    present: bool


@dataclass(frozen=True, slots=True)
class InitiatorPayload:
    """P_i."""

    announcement: Announcement
    external: tuple[ExternalListing, ...]


@dataclass(frozen=True, slots=True)
class ResponderPayload:
    """P_r."""

    announcement: Announcement
    mixed: int
    """How many external keys the responder mixed."""
    suite: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a Reject says."""

    code: int
    detail: str
    failed: tuple[int, ...] = ()
    """Which entries of P_i's list of external keys the responder could not have, from 0."""


def listing(keys: tuple[ExternalKey, ...]) -> tuple[ExternalListing, ...]:
    return tuple(ExternalListing(external.reference, external.present) for external in keys)


def encode_initiator(payload: InitiatorPayload, length: int) -> bytes:
    """P_i, `length` bytes, without what this end allows, and then without the counters, where they
    do not fit. Raises ValueError where the rest does not fit either."""
    fields = _announcement_fields(payload.announcement)
    fields["keys"] = [
        [r.source_type, r.source, r.sae, list(r.key_ids), r.bits, entry.present]
        for entry in payload.external
        for r in (entry.reference,)
    ]
    return _pad_what_fits(fields, payload.announcement, length)


def encode_responder(payload: ResponderPayload, length: int) -> bytes:
    """P_r, `length` bytes."""
    fields = _announcement_fields(payload.announcement)
    fields["mixed"] = payload.mixed
    fields["suite"] = payload.suite
    return _pad_what_fits(fields, payload.announcement, length)


def encode_refusal(refusal: Refusal, length: int) -> bytes:
    """The plaintext of Reject, `length` bytes; a long detail is cut."""
    detail = refusal.detail.encode()[:MAX_DETAIL_LENGTH].decode(errors="ignore")
    fields: dict[str, Any] = {"code": refusal.code, "detail": detail}
    if refusal.failed:
        fields["failed"] = list(refusal.failed)
    return _pad(fields, length)


def decode_initiator_untrusted(data: bytes) -> InitiatorPayload:
    """Raises PacketRejected."""
    fields = _unpad(data, _P_I)
    entries = _typed(fields, "keys", list)
    if len(entries) > MAX_EXTERNAL_KEYS:
        raise PacketRejected("payload: too many external keys")
    return InitiatorPayload(
        announcement=_announcement(fields), external=tuple(_listing(entry) for entry in entries)
    )


def decode_responder_untrusted(data: bytes) -> ResponderPayload:
    """Raises PacketRejected."""
    fields = _unpad(data, _P_R)
    return ResponderPayload(
        announcement=_announcement(fields),
        mixed=_integer(fields, "mixed", 0, MAX_EXTERNAL_KEYS),
        suite=_integer(fields, "suite", 0, 15),
    )


def decode_refusal_untrusted(data: bytes) -> Refusal:
    """Raises PacketRejected. The detail is printable text of the peer's: show it as a quotation."""
    fields = _unpad(data, _REASON)
    detail = _typed(fields, "detail", str)
    if len(detail.encode()) > MAX_DETAIL_LENGTH:
        raise PacketRejected("payload: detail")
    return Refusal(
        code=_integer(fields, "code", 0, 255),
        detail="".join(char if char.isprintable() else "?" for char in detail),
        failed=_failed(fields.get("failed", [])),
    )


def _failed(entries: object) -> tuple[int, ...]:
    """Indexes into a list of external keys, ascending."""
    if type(entries) is not list or len(entries) > MAX_EXTERNAL_KEYS:
        raise PacketRejected("payload: failed")
    if any(type(entry) is not int or not 0 <= entry < MAX_EXTERNAL_KEYS for entry in entries):
        raise PacketRejected("payload: failed")
    if entries != sorted(set(entries)):
        raise PacketRejected("payload: failed")
    return tuple(entries)


def _announcement_fields(announcement: Announcement) -> dict[str, Any]:
    return {
        "minor": announcement.minor,
        "wg": announcement.wireguard_key,
        "port": announcement.wireguard_port,
        "prefixes": _prefix_list(announcement.prefixes),
        "mode": int(announcement.mode),
        "interval": announcement.interval,
        "starts": announcement.can_start,
    }


def _prefix_list(prefixes: tuple[Prefix, ...]) -> list[list[int | bytes]]:
    return [[prefix.prefixlen, prefix.network_address.packed] for prefix in prefixes]


def _announcement(fields: Mapping[str, Any]) -> Announcement:
    key = _typed(fields, "wg", bytes)
    if len(key) != WIREGUARD_KEY_LENGTH:
        raise PacketRejected("payload: WireGuard key")
    return Announcement(
        minor=_integer(fields, "minor", 0, MAX_MINOR_VERSION),
        wireguard_key=key,
        wireguard_port=_integer(fields, "port", 0, 65535),
        prefixes=_prefixes(fields, "prefixes"),
        allows=_prefixes(fields, "allows") if "allows" in fields else None,
        mode=ExternalMode(_integer(fields, "mode", 0, max(ExternalMode))),
        interval=_integer(fields, "interval", 1, MAX_INTERVAL),
        can_start=_typed(fields, "starts", bool),
        traffic=_traffic(fields),
    )


def _traffic(fields: Mapping[str, Any]) -> Traffic | None:
    """Both counters, or none."""
    if "tx" not in fields and "rx" not in fields:
        return None
    return Traffic(
        sent=_integer(fields, "tx", 0, MAX_COUNT), received=_integer(fields, "rx", 0, MAX_COUNT)
    )


def _prefixes(fields: Mapping[str, Any], name: str) -> tuple[Prefix, ...]:
    entries = _typed(fields, name, list)
    if len(entries) > MAX_PREFIXES:
        raise PacketRejected("payload: too many prefixes")
    return tuple(_prefix(entry) for entry in entries)


def _prefix(entry: object) -> Prefix:
    if type(entry) is not list or len(entry) != 2 or type(entry[0]) is not int:
        raise PacketRejected("payload: prefix")
    length, packed = entry
    if type(packed) is not bytes or len(packed) not in (4, 16):
        raise PacketRejected("payload: prefix")
    try:
        return ipaddress.ip_network((packed, length))
    except ValueError as error:
        raise PacketRejected("payload: prefix") from error


def _listing(entry: object) -> ExternalListing:
    if type(entry) is not list or len(entry) != 6:
        raise PacketRejected("payload: external key")
    source_type, source, sae, key_ids, bits, present = entry
    texts = [source_type, source, sae, *(key_ids if type(key_ids) is list else [None])]
    if any(type(text) is not str for text in texts):
        raise PacketRejected("payload: external key")
    if type(bits) is not int or type(present) is not bool:
        raise PacketRejected("payload: external key")
    reference = ExternalKeyReference(source_type, source, sae, tuple(key_ids), bits)
    try:
        check_reference(reference)
        if present:
            check_bits(bits)
    except ValueError as error:
        raise PacketRejected("payload: external key") from error
    return ExternalListing(reference, present)


def _pad_what_fits(fields: Mapping[str, Any], announcement: Announcement, length: int) -> bytes:
    """With as much as there is room for of what the other end can do without."""
    counters: dict[str, Any] = {}
    if announcement.traffic is not None:
        counters = {"tx": announcement.traffic.sent, "rx": announcement.traffic.received}
    allows: dict[str, Any] = {}
    if announcement.allows is not None and len(announcement.allows) <= MAX_PREFIXES:
        allows = {"allows": _prefix_list(announcement.allows)}
    for extras in (counters | allows, counters):
        if len(cbor2.dumps({**fields, **extras})) + 2 <= length:
            return _pad({**fields, **extras}, length)
    return _pad(fields, length)


def _pad(fields: Mapping[str, Any], length: int) -> bytes:
    data: bytes = cbor2.dumps(fields)
    if len(data) + 2 > length:
        raise ValueError(
            f"the payload has {len(data)} bytes, {length - 2} fit: "
            "announce fewer prefixes, or name external key sources shorter"
        )
    return len(data).to_bytes(2, "big") + data + bytes(length - 2 - len(data))


def _unpad(data: bytes, known: frozenset[str]) -> dict[str, Any]:
    size = int.from_bytes(data[:2], "big")
    padding = data[2 + size :]
    if size > len(data) - 2 or padding != bytes(len(padding)):
        raise PacketRejected("payload: length")
    return decode_map_untrusted(data[2 : 2 + size], known)


def _typed(fields: Mapping[str, Any], name: str, wanted: type) -> Any:
    value = fields.get(name)
    if type(value) is not wanted:
        raise PacketRejected(f"payload: {name}")
    return value


def _integer(fields: Mapping[str, Any], name: str, low: int, high: int) -> int:
    value: int = _typed(fields, name, int)
    if not low <= value <= high:
        raise PacketRejected(f"payload: {name}")
    return value

"""What the key exchange tells the daemon, and the reasons it gives."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum

from kex.address import Address
from kex.external import ExternalKeyReference, ExternalMode
from kex.identity import Fingerprint
from kex.payload import Announcement, ExternalListing
from kex.secret import Secret


class Role(StrEnum):
    INITIATOR = "initiator"
    RESPONDER = "responder"


class StartReason(StrEnum):
    """Why an exchange is begun."""

    FIRST_KEY = "first key"
    RENEWAL = "renewal"
    UNANSWERED = "an earlier exchange got no answer"
    REFUSED = "an earlier exchange was refused"
    REQUESTED = "requested"
    HANDSHAKE_OVERDUE = "a WireGuard handshake is overdue"
    END_FALLBACK = "external keys are missing"
    """It gives a key with external keys or none: `prefer` goes on with the key that it has."""


class RejectCode(IntEnum):
    """What a Reject says; the numbers stand on the wire."""

    MALFORMED = 1
    POLICY = 2
    WIREGUARD_KEY = 3
    KEY_MANAGER = 4
    KEY_MISMATCH = 5
    INSTALL_FAILED = 6


class FailureCode(StrEnum):
    """Why an exchange of ours ended without a key."""

    NO_ANSWER = "no_answer"
    INIT_CONF_UNANSWERED = "init_conf_unanswered"
    REFUSED = "refused"
    BAD_ANSWER = "bad_answer"
    EXTERNAL_KEYS = "external_keys"
    INSTALL_FAILED = "install_failed"
    CROSSED = "crossed"
    ABANDONED = "abandoned"


@dataclass(frozen=True, slots=True)
class Event:
    """`link` is the name of the link it happened to."""

    link: str


@dataclass(frozen=True, slots=True)
class ExchangeStarted(Event):
    exchange_id: bytes
    reason: StartReason
    address: Address
    attempt: int


@dataclass(frozen=True, slots=True)
class ExchangeFailed(Event):
    """An exchange of ours is over and gave no key; the link goes on by itself."""

    exchange_id: bytes
    code: FailureCode
    detail: str
    reject: RejectCode | int | None = None
    failed: tuple[ExternalKeyReference, ...] = ()
    """With the Reject KEY_MANAGER: the external keys that the peer could not have, as far as it
    says so."""


@dataclass(frozen=True, slots=True)
class RejectSent(Event):
    """We refused the peer's exchange, and told it why."""

    exchange_id: bytes
    code: RejectCode
    detail: str


@dataclass(frozen=True, slots=True)
class IdentityLearned(Event):
    """The peer's whole public key, fetched and checked against its fingerprint: keep it."""

    fingerprint: Fingerprint
    public_key: bytes


@dataclass(frozen=True, slots=True)
class ExternalKeysWanted(Event):
    """Answer with external_keys() or external_keys_failed(), with the same token.

    The responder has the listing of the initiator and must give the keys that are `present` in
    it, in its order; the initiator chooses. `deadline` is in the endpoint's time, in seconds.
    `peer_mode` is the policy that an initiator has announced; None where this end is the
    initiator.
    """

    token: bytes
    role: Role
    deadline: float
    listing: tuple[ExternalListing, ...]
    peer_mode: ExternalMode | None = None
    ends_fallback: bool = False
    """Whether an exchange of our own is to give a key with external keys, or none."""

    @property
    def references(self) -> tuple[ExternalKeyReference, ...]:
        return tuple(entry.reference for entry in self.listing if entry.present)


@dataclass(frozen=True, slots=True)
class KeyEstablished(Event):
    """Both ends proved that they hold this key: install it, then answer with the token.

    Answer with key_installed(), or install_failed(reason). `address` is where the peer has proved
    to be, or is configured to be; None where neither is known.
    """

    token: bytes
    role: Role
    psk: Secret
    key_id: str
    suite: int
    peer_identity: Fingerprint
    local_identity: Fingerprint
    peer: Announcement
    address: Address | None
    external: tuple[ExternalListing, ...]


@dataclass(frozen=True, slots=True)
class KeyConfirmed(Event):
    """The key was installed here, and the exchange is complete at this end."""

    key_id: str
    role: Role
    expires_at: float


@dataclass(frozen=True, slots=True)
class WireGuardKeyContested(Event):
    """The link's peer announced a WireGuard key (32 bytes) that the link `other` keeps."""

    other: str
    wireguard_key: bytes
    detail: str


@dataclass(frozen=True, slots=True)
class WireGuardKeyYielded(Event):
    """The link had a WireGuard key (32 bytes) of its peer's that nothing proved, and the peer of
    `other` has announced it, or has it pinned: take the peer off the interface."""

    other: str
    wireguard_key: bytes


@dataclass(frozen=True, slots=True)
class LinkExpired(Event):
    """The key's lifetime is over and no other took its place: close the link."""

    key_id: str

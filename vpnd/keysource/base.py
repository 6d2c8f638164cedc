"""What every key source offers the links, and how it fails.

A source gives the initiator a key with its IDs (`obtain`), and the responder the same key by those
IDs (`retrieve`). What is mixed, and how equality is proved before anything is installed, is the key
exchange's business (docs/protocol.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Protocol

from kex.external import ExternalKey, ExternalKeyReference
from kex.secret import Secret

INITIATOR_SECONDS: Final = 30.0
"""All calls of an initiator together, before InitConf (docs/protocol.md, section 7)."""
RESPONDER_SECONDS: Final = 8.0
"""All calls of a responder together, from the arrival of InitConf."""


class SourceType(StrEnum):
    """Stands in the configuration, and on the wire."""

    QKD = "qkd"
    """ETSI GS QKD 014."""
    SKIP = "skip"
    """draft-cisco-skip."""
    FILE = "file"
    """A file with a static key."""


class SourceFault(StrEnum):
    """Stable codes of what goes wrong with a source: in events, in status, for programs."""

    UNREACHABLE = "source_unreachable"
    """No connection: refused, no route, a name that cannot be looked up."""
    TIMEOUT = "source_timeout"
    TLS = "source_tls"
    """No TLS connection, or one that was broken off: our certificate is not accepted, say."""
    CERTIFICATE = "source_certificate"
    """A certificate that cannot be used: expired, not valid yet, of another CA, of another name."""
    UNAUTHORIZED = "source_unauthorized"
    """401, 403: it does not know us."""
    REFUSED = "source_refused"
    """Any other HTTP status that is no success."""
    UNAVAILABLE = "source_unavailable"
    """503, 429: it says that it cannot now."""
    EMPTY = "source_empty"
    """It has no keys left."""
    BAD_ANSWER = "source_bad_answer"
    """Not JSON, not of the shape that the specification asks for, too long."""
    BAD_KEY = "source_bad_key"
    """A key that is not base64, not as long as asked for, or obviously none."""
    WRONG_KEY_ID = "source_wrong_key_id"
    """Another ID than asked for, one twice, one that was used before."""
    UNKNOWN_KEY = "source_unknown_key"
    """It has no key of that ID (yet, or any more)."""
    MISMATCH = "source_mismatch"
    """The two ends hold different keys under one ID. Never a reason to go on without."""
    LIMITED = "source_limited"
    """Our own limits: max_keys_per_minute, min_interval."""
    FILE = "source_file"
    """A file (key, certificate, static key) that is missing, unsafe or unusable."""


class SourceError(Exception):
    """No key can be had. The text names source, address, call, what was expected and what came.

    It never holds a key. `hint` says what to do.
    """

    def __init__(self, source: str, fault: SourceFault, reason: str, hint: str = "") -> None:
        super().__init__(f"{source}: {reason}")
        self.source = source
        self.fault = fault
        self.reason = reason
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Correspondent:
    """The far end as a source knows it."""

    link: str
    """Name of the link that asks: for limits, counters and messages."""
    peer_id: str = ""
    """Its SAE ID (qkd) or system ID (skip); empty for a file."""


@dataclass(frozen=True, slots=True)
class KeyFetchedAhead(ExternalKey):
    """A key that was had some time before the exchange: the key manager may have lost it since."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate that a source uses or was shown."""

    what: str
    """Whose: client, CA, server."""
    subject: str
    not_after: float
    """Wall clock, seconds since the epoch."""
    sha256: str
    """Of its DER, 64 hexadecimal digits."""


@dataclass(frozen=True, slots=True)
class StockLevel:
    """What a pair of key managers holds for one far end, as it last said."""

    peer_id: str
    stored: int
    """Keys."""
    capacity: int
    key_bits: int
    at_wall: float
    used_per_day: float
    """At the present rate; of this node."""
    days_left: float | None
    """None where nothing is used."""
    low: bool
    """At or below the low-water mark."""


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """A source as it is now, from what is known already: nothing is asked for it."""

    name: str
    source_type: SourceType
    address: str
    """Where it is asked just now: a URL, or a file."""
    identity: str
    """What it calls itself: KME ID, system ID; the hash of a file."""
    available: bool
    """Whether the last call succeeded, or none was made yet."""
    fault: SourceFault | None = None
    reason: str = ""
    hint: str = ""
    since_wall: float = 0.0
    stock: Sequence[StockLevel] = ()
    certificates: Sequence[Certificate] = ()
    warnings: Sequence[str] = ()
    """Such as a certificate that expires within 30 days."""
    prefetched: int = 0
    """Keys fetched ahead and not used yet."""
    counters: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ProbeStep:
    """One step of `vpnctl keysource test`."""

    step: str
    """connect, tls, certificate, status, key …"""
    done: bool
    detail: str
    hint: str = ""


class KeySource(Protocol):
    """One configured source. Many tasks may use it; a slow one delays only who waits for it."""

    @property
    def name(self) -> str:
        """As in [key_sources.NAME]."""

    @property
    def source_type(self) -> SourceType: ...

    async def obtain(self, far: Correspondent, *, fresh: bool = False) -> ExternalKey:
        """IC1: a new key for an exchange with this far end, with the reference for the wire. One
        that was fetched ahead is a KeyFetchedAhead; with `fresh` none such is given.

        Raises SourceError. Bounded by the source's own time-outs; the caller bounds all sources
        together (INITIATOR_SECONDS). A key that was handed out is never handed out again.
        """
        ...

    async def retrieve(self, far: Correspondent, reference: ExternalKeyReference) -> Secret:
        """RC1: the key that the far end's reference names.

        Raises SourceError. A key that is not there *yet* is asked for again until the caller's
        deadline (RESPONDER_SECONDS) cancels it; a key that was delivered is never asked for again.
        """
        ...

    def serves(self, far: Correspondent, reference: ExternalKeyReference) -> bool:
        """Whether this source is the one that a far end's reference means."""
        ...

    def status(self) -> SourceStatus: ...

    async def refresh_status(self) -> None:
        """Ask for the stock now. Raises SourceError."""
        ...

    async def probe(self, far: Correspondent | None) -> Sequence[ProbeStep]:
        """TLS, certificate, status, one after the other; consumes no key."""
        ...

    async def run(self) -> None:
        """The source's own tasks: fetching ahead, watching stock and certificates. Until cancelled;
        keys fetched ahead are thrown away then."""
        ...


class SourceListener(Protocol):
    """Who is told of what happens to sources: the daemon's journal."""

    def source_event(
        self, event: str, source: str, *, level: str, reason: str, code: str, link: str = ""
    ) -> None:
        """`event` is a stable slug: source_failed, source_back, source_stock_low,
        source_stock_back, source_certificate_expires, source_certificate_renewed,
        source_certificate_unusable, source_file_changed."""

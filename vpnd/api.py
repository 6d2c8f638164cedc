"""The control API's types: what the daemon answers and what its clients may rely on.

Types and constants only, standard library only: `vpnctl` imports this module on every start.
The API is HTTP over the Unix socket, JSON bodies, paths under `/v1`:

    GET    /v1/status                -> NodeStatus
    GET    /v1/links/{peer}          -> LinkStatus
    GET    /v1/peers                 -> list[PeerInfo]
    POST   /v1/peers  PeerRequest    -> 201 LinkStatus
    PATCH  /v1/peers/{name} PeerChange -> LinkStatus
    DELETE /v1/peers/{name}          -> PeerRemoved
    POST   /v1/peers/{name}/rekey    -> RekeyStarted
    POST   /v1/peers/{name}/fallback FallbackExtension -> LinkStatus
    GET    /v1/keysources            -> list[KeySourceInfo]
    GET    /v1/keysources/{name}     -> KeySourceInfo
    POST   /v1/keysources/{name}/test KeySourceTestRequest -> KeySourceTest
    POST   /v1/reload  ReloadRequest -> ReloadResult
    GET    /v1/events                -> Event, one JSON object a line (application/x-ndjson)

Any answer from 400 on carries an `ErrorBody`. Clients ignore fields they do not know: within one
`schema` number fields are only ever added.
"""

from enum import IntEnum, StrEnum
from typing import Any, Final, NotRequired, TypedDict

SCHEMA: Final = 1

DEFAULT_CONFIG_PATH: Final = "/etc/vpnd/vpnd.toml"
DEFAULT_RUNTIME_DIR: Final = "/run/vpnd"
CONTROL_SOCKET_NAME: Final = "control.sock"
DEFAULT_CONTROL_SOCKET: Final = f"{DEFAULT_RUNTIME_DIR}/{CONTROL_SOCKET_NAME}"
CONTROL_SOCKET_ENVIRONMENT: Final = "VPND_SOCKET"

MAX_REQUEST_BYTES: Final = 64 * 1024
"""A longer request body is refused with `ErrorCode.TOO_LARGE`."""

MIN_FALLBACK_EXTENSION: Final = 60
MAX_FALLBACK_EXTENSION: Final = 7 * 24 * 3600
"""Seconds; more is a matter of the configuration."""
MAX_REASON_LENGTH: Final = 200
"""Characters of the reason that an extension is given for."""

CONTENT_TYPE_JSON: Final = "application/json"
CONTENT_TYPE_EVENTS: Final = "application/x-ndjson"


class LinkState(StrEnum):
    """What every tool shows of a link."""

    DOWN = "down"
    EXCHANGING = "exchanging"
    INSTALLED = "installed"
    """A first key is on the interface, no WireGuard handshake has used it yet."""
    ACTIVE = "active"
    DEGRADED = "degraded"
    """Protected, but a named thing is not as configured."""
    CLOSED = "closed"
    """Lifetime over, or policy: nothing passes."""

    @property
    def protected(self) -> bool:
        """True while traffic passes under a key in force."""
        return self in (LinkState.ACTIVE, LinkState.DEGRADED)


class ExitCode(IntEnum):
    """Exit codes of `vpnctl` and `vpnd`."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    """Wrong usage or configuration."""
    UNREACHABLE = 3
    """The daemon does not answer."""
    NOT_PROTECTED = 4


class ErrorCode(StrEnum):
    """Stable slugs in `ErrorBody`; the HTTP status that goes with each stands beside it."""

    BAD_REQUEST = "bad_request"  # 400: not JSON, not an object, a wrong content type
    NOT_ALLOWED = "not_allowed"  # 403: the caller's uid may not do this
    NO_SUCH_ROUTE = "no_such_route"  # 404
    NO_SUCH_PEER = "no_such_peer"  # 404
    NO_SUCH_SOURCE = "no_such_source"  # 404
    METHOD_NOT_ALLOWED = "method_not_allowed"  # 405
    PEER_EXISTS = "peer_exists"  # 409
    CONFLICT = "conflict"  # 409: a prefix, an identity or a file is in use elsewhere
    TOO_LARGE = "too_large"  # 413
    INVALID = "invalid"  # 422: well-formed, but values are wrong; `details` names each
    INTERNAL = "internal"  # 500: a bug, or a failure nobody foresaw
    BACKEND_FAILED = "backend_failed"  # 500: WireGuard, netlink or the file system refused
    UNAVAILABLE = "unavailable"  # 503: starting, stopping, or too many requests


class ErrorDetail(TypedDict):
    """One thing that is wrong."""

    file: NotRequired[str]
    line: NotRequired[int]
    key: NotRequired[str]
    """Dotted, as in `tunnels.backbone.mtu`."""
    reason: str
    hint: NotRequired[str]


class ErrorInfo(TypedDict):
    code: str
    """One of `ErrorCode`; a client treats one that it does not know by the HTTP status."""
    message: str
    hint: str
    """What to do; may be empty."""
    details: list[ErrorDetail]


class ErrorBody(TypedDict):
    error: ErrorInfo


class IdentityInfo(TypedDict):
    suite: int
    text: str
    """The fingerprint's text form, `vpnd1…`."""
    name: NotRequired[str]
    """What it is called here; the first of several is the one in use."""
    in_use: NotRequired[bool]
    """Whether own exchanges use it, unless a peer's file names another one (`local_identity`)."""


class KeyInfo(TypedDict):
    key_id: str
    """8 hex digits, the same at both ends. It finds a mismatch and authenticates nothing."""
    installed_at: str
    """RFC 3339, UTC."""
    in_force_since: str | None
    age_seconds: float


class KeysAlive(TypedDict):
    """Keys of which it is not known which one WireGuard's session was made with."""

    key_ids: list[str]
    """The oldest first."""
    until: str | None
    """RFC 3339, UTC: when such a session is dead at the latest; null: the next exchange decides."""


class WireGuardInfo(TypedDict):
    public_key: str
    """Base64, of this node's interface; empty while there is none."""
    peer_public_key: str | None
    endpoint: str | None
    last_handshake_seconds: float | None
    """How long ago; None for never."""
    rx_bytes: int
    tx_bytes: int


class MixedKeyInfo(TypedDict):
    """A key from outside that is mixed into a link's key: names and IDs, which are not secret."""

    source: str
    """As [key_sources] calls it here."""
    type: str
    """qkd, skip or file."""
    key_manager: str
    """What the initiator's key manager calls itself; empty for a file."""
    key_ids: list[str]
    """The same at both ends."""
    bits: int
    age_seconds: float


class FallbackInfo(TypedDict):
    """A link in `prefer` without the external keys that are needed."""

    since: str
    reason: str
    until: str
    """The limit; after it the link behaves as with `require`."""
    seconds_left: float
    over_limit: bool
    extended_seconds: int
    """0 where nobody has extended it."""
    extension_reason: str
    extension_uid: int | None


class ExternalKeysInfo(TypedDict):
    mode: str
    """off, prefer or require."""
    mixed: list[str]
    """Names of the sources whose keys are in the key in force."""
    effective_mode: NotRequired[str]
    """What exchanges go by: `prefer` is `require` once a fallback is over its limit."""
    sources: NotRequired[list[str]]
    """All that are configured for the link."""
    in_force: NotRequired[list[MixedKeyInfo]]
    """What is mixed into the key in force."""
    installed: NotRequired[list[MixedKeyInfo]]
    """… and into the key that was installed last."""
    fallback: NotRequired[FallbackInfo | None]
    standing: NotRequired[str]
    """What is not as configured, in words; empty if nothing is."""


class LastError(TypedDict):
    code: str
    message: str
    at: str
    """RFC 3339, UTC."""
    hint: NotRequired[str]
    """What to do; may be empty."""


class LinkStatus(TypedDict):
    schema: int
    peer: str
    state: str
    """One of `LinkState`."""
    reason: str
    since: str
    """RFC 3339, UTC."""
    adopted: bool
    """Found on the interface at the daemon's start, and no exchange completed since."""
    identity: str
    """The peer's fingerprint in use."""
    suite: int
    tunnel: str
    role: NotRequired[str]
    """In the last exchange: initiator or responder."""
    key_in_force: KeyInfo | None
    """Null where there is none, and where it is not known which one is: see `keys_alive`."""
    keys_alive: NotRequired[KeysAlive | None]
    key_installed: KeyInfo | None
    next_renewal_seconds: float | None
    expires_seconds: float | None
    endpoint: str | None
    """Where the key exchange is sent to."""
    wireguard: WireGuardInfo
    external_keys: ExternalKeysInfo
    last_error: LastError | None
    counters: dict[str, int]
    allowed_ips: list[str]
    warnings: list[str]


class TunnelStatus(TypedDict):
    tunnel: str
    interface: str
    backend: str
    """kernel or userspace; empty while the interface could not be made."""
    adopted: bool
    public_key: str
    listen_port: int
    addresses: list[str]
    mtu: int
    routes: str
    netns: str | None
    """The network namespace that the interface is in; null is the daemon's."""
    fence: str
    """`nftables`, `off`, or why there is none."""
    error: str | None
    """Why there is no interface, with what to do."""


class HeldPeerInfo(TypedDict):
    """A peer that does not run, since something is wrong with its file."""

    peer: str
    file: str
    reason: str
    guarded: list[str]
    """Prefixes of it that are kept from leaving in the clear."""


class ConfigurationStatus(TypedDict):
    """What is on disk, beside what runs."""

    state: str
    """`current`: they are the same; `differs`: a reload or a restart would change something;
    `errors`: something on disk is wrong, and `errors` says what."""
    errors: list[ErrorDetail]
    error_count: int
    """`errors` may be cut short."""
    main_is_last_good: bool
    """Whether the vpnd.toml that ran last runs, since the one on disk had errors at the start."""
    held: list[HeldPeerInfo]
    restart: list[str]
    """What a restart would do, in words; empty if nothing would change."""
    at: str
    """When it was looked at; RFC 3339, UTC."""


class CallerInfo(TypedDict):
    """Somebody who calls this node and is not answered. Nothing of it is proved."""

    address: str
    """The source of the last call."""
    identity: str | None
    """The fingerprint that it claims to have; null where it asks for an identity that is not this
    node's."""
    called: str | None
    """This node's identity that it asks for."""
    calls: int
    """Exchanges that it has begun, while it kept calling."""
    first_at: str
    last_at: str
    """RFC 3339, UTC."""
    reason: str
    hint: str


class NodeStatus(TypedDict):
    schema: int
    node: str
    version: str
    identities: list[IdentityInfo]
    pid: int
    uptime_seconds: float
    longest_pause_ms: float
    """The longest time since the start in which the event loop took nothing in."""
    longest_pause_cpu_ms: float
    """The same in CPU time of the daemon: without what other programs on the machine took."""
    listen: list[str]
    tunnels: list[TunnelStatus]
    links: list[LinkStatus]
    counters: dict[str, int]
    warnings: list[str]
    configuration: NotRequired[ConfigurationStatus]
    callers: NotRequired[list[CallerInfo]]
    """Who called in the last 10 minutes and is not answered: 64 at most, the most frequent
    first."""


class PeerInfo(TypedDict):
    """A peer as it is configured."""

    schema: int
    name: str
    identities: list[str]
    """The first is the one that this node starts exchanges with."""
    endpoint: str | None
    tunnel: str
    allowed_ips: list[str]
    keepalive: int
    rekey_interval: int
    key_lifetime: int
    protect: list[str] | None
    external_keys: str
    """The mode."""
    file: str
    key_sources: NotRequired[list[str]]
    """The sources of the link, each with what it calls the far end."""
    local_identity: NotRequired[list[str]]
    """Names of this node's identities for this link; empty where none are named."""
    wireguard_endpoint: NotRequired[str | None]
    wireguard_key: NotRequired[str | None]
    """The one WireGuard public key that the peer may announce; null: any."""
    on_stop: NotRequired[str]
    """keep or close."""


class PeerRequest(TypedDict):
    """A peer to be added; what is left out gets the default of the peer file."""

    name: str
    identity: str | list[str]
    allowed_ips: list[str]
    endpoint: NotRequired[str | None]
    """`host:port`, `[v6]:port` or `name:port`; absent or null: the peer comes to us."""
    tunnel: NotRequired[str | None]
    """May be left out on a node with exactly one tunnel."""
    keepalive: NotRequired[int]
    rekey_interval: NotRequired[int]
    key_lifetime: NotRequired[int | None]
    protect: NotRequired[list[str] | None]
    local_identity: NotRequired[str | list[str]]
    wireguard_endpoint: NotRequired[str | None]
    wireguard_key: NotRequired[str | None]
    on_stop: NotRequired[str | None]
    external_keys: NotRequired[dict[str, Any]]
    """The table [external_keys], whole."""


class PeerChange(TypedDict, total=False):
    """What is to change of a peer; what is left out stays, and null takes a key out of its file."""

    identity: str | list[str]
    allowed_ips: list[str]
    endpoint: str | None
    tunnel: str
    keepalive: int | None
    rekey_interval: int | None
    key_lifetime: int | None
    protect: list[str] | None
    local_identity: str | list[str] | None
    wireguard_endpoint: str | None
    wireguard_key: str | None
    on_stop: str | None
    external_keys: dict[str, Any] | None
    """The table [external_keys], whole."""


class ReloadRequest(TypedDict):
    dry_run: NotRequired[bool]
    """Only say what would change."""
    remove_all_peers: NotRequired[bool]
    """That no peer's file is left is meant so, and no mistake."""


class KeyChange(TypedDict):
    key: str
    before: str | None
    """As text; None where nothing was set."""
    after: str | None


class ConfigChange(TypedDict):
    what: str
    """node, tunnel, peer, key source or identity."""
    name: str
    change: str
    """added, removed or changed."""
    keys: list[KeyChange]


class ReloadResult(TypedDict):
    schema: int
    dry_run: bool
    changes: list[ConfigChange]
    restart: list[str]
    """Keys that only a restart can change: with any of these nothing is applied."""
    problems: list[str]
    """What was applied and did not succeed at once; it is tried again."""


class PeerRemoved(TypedDict):
    schema: int
    peer: str
    removed: bool


class RekeyStarted(TypedDict):
    schema: int
    peer: str
    started: bool


class FallbackExtension(TypedDict):
    """Once in a fallback."""

    seconds: int
    reason: str


class KeySourceUse(TypedDict):
    peer: str
    peer_sae: str | None
    """The far end's SAE ID or system ID."""
    mode: str


class StockInfo(TypedDict):
    """What a pair of key managers holds for one far end, as it last said."""

    peer_id: str
    stored: int
    capacity: int
    key_bits: int
    at: str
    used_per_day: float
    days_left: float | None
    low: bool


class CertificateInfo(TypedDict):
    what: str
    subject: str
    not_after: str
    sha256: str


class KeySourceInfo(TypedDict):
    schema: int
    name: str
    type: str
    address: str
    identity: str
    available: bool
    code: str | None
    """What is wrong, one of the codes in docs/operations.md."""
    reason: str
    hint: str
    since: str | None
    stock: list[StockInfo]
    certificates: list[CertificateInfo]
    warnings: list[str]
    prefetched: int
    counters: dict[str, int]
    links: list[KeySourceUse]


class KeySourceTestRequest(TypedDict):
    peer: NotRequired[str | None]
    """The link that it is tested for; needed to consume a key."""
    consume_one: NotRequired[bool]
    """Begin an exchange on that link which gives no key without one of this source."""
    deep: NotRequired[bool]
    """That, and before it take some keys as a link would, and as it might: they are thrown away."""


class TestStep(TypedDict):
    step: str
    done: bool
    detail: str
    hint: str


class KeySourceTest(TypedDict):
    schema: int
    source: str
    peer: str | None
    done: bool
    """Whether every step was."""
    steps: list[TestStep]
    key_id: str | None
    """Of the link's new key, which both ends have proved to hold."""
    key_ids: list[str]
    """Of the key of this source that is mixed into it."""


class Event(TypedDict):
    """One line of `/v1/events`."""

    schema: int
    at: str
    """RFC 3339, UTC."""
    event: str
    """What happened, a stable slug such as `state_changed` or `key_installed`."""
    peer: NotRequired[str]
    tunnel: NotRequired[str]
    state: NotRequired[str]
    reason: NotRequired[str]
    key_id: NotRequired[str]
    role: NotRequired[str]
    dropped: NotRequired[int]
    """Only with the event `events_dropped`: lines this reader was too slow for."""
    fields: NotRequired[dict[str, str | int | float | bool | None]]
    """Whatever else the record carries; for people, not for programs."""

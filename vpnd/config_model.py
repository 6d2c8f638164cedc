"""The configuration's tables: which keys there are, what each may hold, and its default.

The parsers in `config_fields` judge the values; pydantic finds missing and unknown keys and
collects every error of a table at once.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainValidator,
    ValidationError,
)

from kex.external import MAX_EXTERNAL_KEYS
from kex.identity import Fingerprint
from vpnd import config_fields as fields
from vpnd.config_errors import ConfigErrors, Location, kind_of
from vpnd.config_fields import Endpoint, FieldError, InterfaceAddress, ListenAddress, Prefix
from vpnd.config_source import Source
from vpnd.source_use import SourceUse, read_peer_sae, source_uses

MIN_REKEY_INTERVAL: Final = 120
"""Seconds: WireGuard renews its session no sooner, and a PSK counts from a renewal on."""
MAX_REKEY_INTERVAL: Final = 24 * 3600
MAX_KEY_LIFETIME: Final = 2 * MAX_REKEY_INTERVAL
MIN_LIFETIME_MARGIN: Final = 300
"""Seconds that a key has to live on after its renewal was due."""
MAIN_TABLE: Final = 254
MIN_AUTO_MTU: Final = 1280
"""Bytes: IPv6 takes no less (RFC 8200, section 5)."""
MAX_ANNOUNCED_PREFIXES: Final = 16
MAX_IDENTITIES: Final = 8
MAX_FALLBACK_LIMIT: Final = 30 * 24 * 3600
MAX_MIN_INTERVAL: Final = 24 * 3600
MIN_DATAGRAM: Final = 532  # docs/protocol.md, fragments: a chunk of 500 bytes, 32 around it
MAX_DATAGRAM: Final = 1232

_Item = TypeVar("_Item")
TableT = TypeVar("TableT", bound="Table")


def _at_most(limit: int) -> Any:
    def check(items: tuple[_Item, ...]) -> tuple[_Item, ...]:
        if len(items) > limit:
            raise FieldError(f"has {len(items)} entries", f"at most {limit}")
        return items

    return AfterValidator(check)


def _one_or_more(items: tuple[_Item, ...]) -> tuple[_Item, ...]:
    if not items:
        raise FieldError("is empty", "at least one entry is needed")
    return items


def _list_of_one(value: object) -> object:
    return [value] if isinstance(value, str) else value


Name = Annotated[str, PlainValidator(fields.name)]
AbsolutePath = Annotated[Path, PlainValidator(fields.absolute_path)]
PrefixItem = Annotated[Prefix, PlainValidator(fields.prefix)]
Prefixes = Annotated[tuple[PrefixItem, ...], _at_most(4096)]
Interval = Annotated[
    int,
    PlainValidator(fields.whole_number(MIN_REKEY_INTERVAL, MAX_REKEY_INTERVAL, "seconds")),
]
Lifetime = Annotated[
    int,
    PlainValidator(
        fields.whole_number(MIN_REKEY_INTERVAL + MIN_LIFETIME_MARGIN, MAX_KEY_LIFETIME, "seconds")
    ),
]
OnStop = Annotated[Literal["keep", "close"], PlainValidator(fields.choice("keep", "close"))]
OnMismatch = Annotated[Literal["keep", "close"], PlainValidator(fields.choice("keep", "close"))]
Keepalive = Annotated[int, PlainValidator(fields.whole_number(0, 65535, "seconds, 0 for none"))]


class Table(BaseModel):
    """A table of the configuration: immutable, and without keys that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class NodeConfig(Table):
    """`[node]`: this host."""

    name: Name
    listen: Annotated[
        tuple[Annotated[ListenAddress, PlainValidator(fields.listen_address)], ...],
        AfterValidator(_one_or_more),
        _at_most(16),
    ] = (ListenAddress("::", fields.DEFAULT_EXCHANGE_PORT),)
    """UDP sockets of the key exchange."""
    state_dir: AbsolutePath = Path("/var/lib/vpnd")
    """Identities and the cache of the peers' public keys."""
    runtime_dir: AbsolutePath = Path("/run/vpnd")
    peers_dir: AbsolutePath
    """Default: `peers.d` beside the file."""
    control_socket: Annotated[Path, PlainValidator(fields.socket_path)]
    """Default: `control.sock` in `runtime_dir`."""
    max_datagram: Annotated[
        int, PlainValidator(fields.whole_number(MIN_DATAGRAM, MAX_DATAGRAM, "bytes"))
    ] = MAX_DATAGRAM
    """Bytes of UDP payload that this node sends at once."""
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        PlainValidator(fields.choice("debug", "info", "warning", "error")),
    ] = "info"
    log_format: Annotated[
        Literal["auto", "text", "json"], PlainValidator(fields.choice("auto", "text", "json"))
    ] = "auto"
    """Lines for people or JSON objects; `auto` goes by where stderr leads."""
    on_stop: OnStop = "keep"
    """What a clean stop does with the links: leave them running, or take them down."""


class Defaults(Table):
    """`[defaults]`: what a peer gets whose own file does not say."""

    keepalive: Keepalive | None = None
    rekey_interval: Interval | None = None
    key_lifetime: Lifetime | None = None


class CryptoConfig(Table):
    """`[crypto]`: implementations, not algorithms; the other end does not notice."""

    ml_kem: Annotated[
        Literal["openssl", "liboqs"], PlainValidator(fields.choice("openssl", "liboqs"))
    ] = "openssl"


class TunnelSettings(Table):
    """`[tunnels.NAME]`: a WireGuard interface."""

    interface: Annotated[str, PlainValidator(fields.interface_name)]
    listen_port: Annotated[int, PlainValidator(fields.whole_number(1, 65535))]
    addresses: Annotated[
        tuple[Annotated[InterfaceAddress, PlainValidator(fields.interface_address)], ...],
        _at_most(64),
    ] = ()
    backend: Annotated[
        Literal["auto", "kernel", "userspace"],
        PlainValidator(fields.choice("auto", "kernel", "userspace")),
    ] = "auto"
    routes: Annotated[
        Literal["allowed-ips", "none"], PlainValidator(fields.choice("allowed-ips", "none"))
    ] = "allowed-ips"
    mtu: Annotated[int | Literal["auto"], PlainValidator(fields.mtu)] = 1420
    table: Annotated[int, PlainValidator(fields.whole_number(1, 2**32 - 1))] | None = None
    """Routing table of the tunnel's routes and guards; None is the main one."""
    # The two worst metrics stay free: the guard routes have one of them (docs/operations.md)
    metric: Annotated[int, PlainValidator(fields.whole_number(0, 2**32 - 3))] | None = None
    fwmark: Annotated[int, PlainValidator(fields.whole_number(1, 2**32 - 1))] | None = None
    vrf: Annotated[str, PlainValidator(fields.device_name)] | None = None
    """The VRF device that the interface is made a part of; its table has the routes and guards."""
    netns: Name | None = None
    """Network namespace (below /run/netns) that interface, routes and guards are in; None is the
    daemon's. WireGuard's UDP socket is in the daemon's."""
    fence: (
        Annotated[Literal["nftables", "off"], PlainValidator(fields.choice("nftables", "off"))]
        | None
    ) = None
    """Whether nftables, too, hold what is guarded; None: where the routes are in the main table
    and the kernel has nftables."""
    announce: Prefixes = ()
    """Prefixes behind this node, told to the peers of the tunnel for comparison only."""


class TunnelConfig(TunnelSettings):
    """A tunnel with its name."""

    name: str

    @property
    def least_mtu(self) -> int:
        """Bytes: what the interface has at the least."""
        return MIN_AUTO_MTU if self.mtu == "auto" else self.mtu

    @property
    def routing_table(self) -> int | str:
        """The table of routes and guards, by its number, or by its VRF's name."""
        return (self.vrf or MAIN_TABLE) if self.table is None else self.table

    @property
    def announced(self) -> tuple[Prefix, ...]:
        """All that the peers are told: this node's addresses in the tunnel, and `announce`."""
        own = (ip_network(address.ip) for address in self.addresses)
        return tuple(dict.fromkeys([*own, *self.announce]))


class ExternalKeys(Table):
    """`[external_keys]` of a peer: keys from outside that are mixed in."""

    mode: Annotated[
        Literal["off", "prefer", "require"],
        PlainValidator(fields.choice("off", "prefer", "require")),
    ] = "off"
    source: Name | None = None
    """One of [key_sources]; `sources` names several."""
    peer_sae: Annotated[str, PlainValidator(read_peer_sae)] | None = None
    sources: Annotated[tuple[SourceUse, ...], PlainValidator(source_uses)] = ()
    require: Annotated[tuple[Name, ...], AfterValidator(_one_or_more), _at_most(4)] = ()
    """Sources that every key needs; with `prefer`, those without which it is a fallback."""
    at_least: (
        Annotated[int, PlainValidator(fields.whole_number(1, MAX_EXTERNAL_KEYS, "sources"))] | None
    ) = None
    """… or how many of them."""
    fallback_limit: Annotated[
        int, PlainValidator(fields.whole_number(0, MAX_FALLBACK_LIMIT, "seconds"))
    ] = 3600
    """Seconds that `prefer` may go on without."""
    on_mismatch: OnMismatch = "keep"
    min_interval: Annotated[
        int, PlainValidator(fields.whole_number(0, MAX_MIN_INTERVAL, "seconds, 0 for none"))
    ] = 5
    """Seconds between two uses of its sources by this link's own exchanges."""

    @property
    def uses(self) -> tuple[SourceUse, ...]:
        """The sources that are used, however they are written down; none with mode "off"."""
        if self.mode == "off":
            return ()
        return self.sources or (
            () if self.source is None else (SourceUse(self.source, self.peer_sae),)
        )

    @property
    def minimum(self) -> int:
        """How many of the sources a key needs so as not to be a fallback: with "require" all,
        with "prefer" one, unless something else is said."""
        if self.require or self.at_least is not None:
            return max(len(self.require), self.at_least or 0)
        return max(1, len(self.uses)) if self.mode == "require" else 1


class _PeerTable(Table):
    identity: Annotated[
        tuple[Annotated[Fingerprint, PlainValidator(fields.fingerprint)], ...],
        BeforeValidator(_list_of_one),
        AfterValidator(_one_or_more),
        _at_most(MAX_IDENTITIES),
    ]
    """The first is the one that exchanges are started with; one or more, in a rotation."""
    endpoint: Annotated[Endpoint, PlainValidator(fields.endpoint)] | None = None
    """Where the peer's key exchange listens; None: the peer comes to us."""
    wireguard_endpoint: Annotated[Endpoint, PlainValidator(fields.endpoint)] | None = None
    """Where the peer's WireGuard is; None: at the address of its key exchange, at the port that
    it announces. For a firewall that maps ports."""
    wireguard_key: Annotated[str, PlainValidator(fields.wireguard_key)] | None = None
    """The one WireGuard public key that the peer may announce, in base64; None: any."""
    local_identity: Annotated[
        tuple[Name, ...],
        BeforeValidator(_list_of_one),
        AfterValidator(_one_or_more),
        _at_most(MAX_IDENTITIES),
    ] = ()
    """Names of this node's identities for this link, the first for own exchanges; empty: those
    that no other link names."""
    allowed_ips: Annotated[Prefixes, AfterValidator(_one_or_more)]
    keepalive: Keepalive = 25
    """Seconds; 0 is off."""
    rekey_interval: Interval = MIN_REKEY_INTERVAL
    """Seconds."""
    protect: Prefixes | None = None
    """What must never leave in the clear where no guard routes follow from `allowed_ips`."""
    external_keys: ExternalKeys = ExternalKeys()
    on_stop: OnStop | None = None
    """What a clean stop of the daemon does with the link; None: as `[node]` says."""


class PeerSettings(_PeerTable):
    """A peer's file, `peers.d/NAME.toml`."""

    tunnel: Name | None = None
    """May be left out where there is exactly one."""
    key_lifetime: Lifetime | None = None
    """Seconds."""


class PeerRequest(PeerSettings):
    """What a client of the control socket sends to add a peer: its name and its file's content."""

    name: Name


class PeerConfig(_PeerTable):
    """A peer with all that its file may leave out."""

    name: str
    file: Path
    tunnel: str
    key_lifetime: int

    @property
    def pinned_wireguard_key(self) -> bytes | None:
        """`wireguard_key` as 32 bytes."""
        return None if self.wireguard_key is None else b64decode(self.wireguard_key)

    @property
    def fingerprint(self) -> Fingerprint:
        """The identity that this node's own exchanges are for."""
        return self.identity[0]


def protected_within(peer: PeerConfig) -> tuple[Prefix, ...]:
    """The protected prefixes of a peer that lie within its allowed IPs and are none of them: their
    guard routes are more specific than its routes, so that they need routes of their own."""
    return tuple(
        prefix
        for prefix in peer.protect or ()
        if prefix not in peer.allowed_ips
        and any(
            prefix.version == wider.version and prefix.subnet_of(wider)  # type: ignore[arg-type]  # the same version
            for wider in peer.allowed_ips
        )
    )


def default_lifetime(rekey_interval: int) -> int:
    """Seconds that a key lives: 10 min, or 8 min more than the interval."""
    return max(600, rekey_interval + 480)


_NEVER: Final = ("preshared_key", "psk", "private_key", "public_key")


def unknown_key(key: str, known: list[str]) -> tuple[str, str]:
    """Reason and hint for a key that is not known."""
    if key.lower() in _NEVER:
        return "unknown key", "take it out: vpnd makes WireGuard's keys itself, and keeps no copy"
    return "unknown key", fields.did_you_mean(key, known) + "known here: " + ", ".join(known)


def validate(model: type[TableT], values: object, source: Source, at: Location = ()) -> TableT:
    """The table that `values` make; ConfigErrors with all that is wrong, each with its place."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = []
        for found in error.errors(include_url=False):
            reason, hint = _reason(found, _model_at(model, found["loc"]))
            location = (*at, *_as_written(found["loc"], values))
            problems.append(source.problem(location, reason, hint, value=found["input"]))
        # Without its cause: pydantic's text quotes the values
        raise ConfigErrors(problems) from None


def _as_written(location: Location, values: object) -> Location:
    """Without the index that a single string got where a list may stand, too."""
    if len(location) == 2 and isinstance(values, dict) and isinstance(values[location[0]], str):
        return location[:1]
    return location


def _model_at(model: type[Table], location: Location) -> type[Table]:
    return ExternalKeys if location[:1] == ("external_keys",) and location[1:] else model


def _reason(found: Any, model: type[Table]) -> tuple[str, str]:
    """One of pydantic's errors in our words; none of its own messages quotes a value to a user."""
    match found["type"]:
        case "value_error" if isinstance(found["ctx"]["error"], FieldError):
            error = found["ctx"]["error"]
            return error.reason, error.hint
        case "missing":
            return "is missing", _MISSING.get(found["loc"][-1], "")
        case "extra_forbidden":
            key = str(found["loc"][-1])
            return _SPECIAL.get((model, key)) or unknown_key(key, list(model.model_fields))
        case "tuple_type":
            return f"must be a list, is {kind_of(found['input'])}", 'such as ["…", "…"]'
        case "model_type" | "dict_type" | "model_attributes_type":
            return f"must be a table, is {kind_of(found['input'])}", ""
        case _:
            return "is not valid", ""


_MISSING: Final[Mapping[str | int, str]] = {
    "identity": "the line that `vpnctl id` prints on the other node",
    "allowed_ips": "the prefixes behind the peer, and its address in the tunnel",
    "interface": "the name of the interface, such as wg-backbone",
    "listen_port": "WireGuard's UDP port, such as 51820",
    "name": "letters, digits, '.', '_' and '-', such as fra1",
}

_SPECIAL: Final[Mapping[tuple[type[Table], str], tuple[str, str]]] = {
    (TunnelSettings, "name"): ("unknown key", "a tunnel's name is its table's: [tunnels.NAME]"),
    (PeerSettings, "name"): ("unknown key", "a peer's name is its file's: peers.d/NAME.toml"),
}

"""What a tunnel and its peers are, as values: no I/O, no backend.

Public keys are ``bytes`` of length 32; the only secret that passes through here is the
preshared key (PSK), and it is a type of its own.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network, ip_address
from typing import Literal, NoReturn

__all__ = [
    "ALIAS_PREFIX",
    "DEFAULT_MTU",
    "KEY_LENGTH",
    "BackendChoice",
    "BackendName",
    "Endpoint",
    "HandshakeStamp",
    "InterfaceAddress",
    "PacketCounts",
    "PeerSpec",
    "PeerStatus",
    "Prefix",
    "PresharedKey",
    "RoutePolicy",
    "TunnelSpec",
    "psk_mark",
]

KEY_LENGTH = 32
"""Bytes in a WireGuard private, public or preshared key."""

DEFAULT_MTU = 1420
"""Bytes: of an underlay of 1,500, less IPv6, UDP and WireGuard around a packet."""

ALIAS_PREFIX = "vpnd:"
"""An interface is ours if its alias is this prefix and the name of its tunnel."""

BackendName = Literal["kernel", "userspace"]
BackendChoice = Literal["auto", "kernel", "userspace"]
RoutePolicy = Literal["allowed-ips", "none"]

Prefix = IPv4Network | IPv6Network
InterfaceAddress = IPv4Interface | IPv6Interface

Endpoint = tuple[str, int]
"""Numeric IP address as `ipaddress` writes it (a link-local one with ``%index``), UDP port."""

HandshakeStamp = tuple[int, int]
"""Seconds and nanoseconds of the data plane's wall clock: to compare for change, no more."""

_INTERFACE_NAME = re.compile(r"[A-Za-z0-9_=+.-]{1,15}", re.ASCII)  # IFNAMSIZ - 1
# A file below /run/netns. `ip netns` takes more; what could be a path, or hidden, is left out.
_NAMESPACE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_MAX_U32 = 2**32 - 1
# Linux keeps 256 bytes for an alias; the prefix takes some of them.
_MAX_TUNNEL_NAME = 128


class PresharedKey:
    """A WireGuard PSK of 32 bytes that shows itself nowhere; it leaves by ``expose()`` only."""

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        """Take over 32 bytes; raises ValueError for another length and for all zeros (= none)."""
        if len(key) != KEY_LENGTH:
            raise ValueError(f"a preshared key has {KEY_LENGTH} bytes, not {len(key)}")
        if hmac.compare_digest(key, bytes(KEY_LENGTH)):
            raise ValueError("a preshared key of all zeros means to WireGuard that there is none")
        self._key = bytes(key)

    def expose(self) -> bytes:
        """The 32 bytes themselves, for handing to a backend."""
        return self._key

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PresharedKey):
            return NotImplemented
        return hmac.compare_digest(self._key, other._key)

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return "<PresharedKey redacted>"

    def __format__(self, format_spec: str) -> str:
        return repr(self)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a preshared key is not to be pickled")

    def __copy__(self) -> PresharedKey:
        return self

    def __deepcopy__(self, memo: object) -> PresharedKey:
        return self


_mark_key = secrets.token_bytes(32)


def psk_mark(key: bytes | bytearray | memoryview) -> bytes:
    """16 bytes by which to see whether a PSK is still the one that was set, without keeping it.

    Empty for all zeros, which is none. It means nothing to another process.
    """
    if hmac.compare_digest(key, bytes(KEY_LENGTH)):
        return b""
    return hashlib.blake2b(key, digest_size=16, key=_mark_key).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelSpec:
    """A WireGuard interface as it is wanted; raises ValueError for what cannot be."""

    interface: str
    tunnel_name: str
    listen_port: int
    """UDP port of WireGuard."""
    addresses: tuple[InterfaceAddress, ...] = ()
    mtu: int | None = DEFAULT_MTU
    """Bytes; None leaves the MTU of an interface that is found as it is."""
    backend: BackendChoice = "auto"
    routes: RoutePolicy = "allowed-ips"
    table: int | None = None
    """Routing table of the tunnel's routes; None is the main table."""
    metric: int | None = None
    """Metric of the tunnel's routes; None is the kernel's default."""
    fwmark: int | None = None
    vrf: str | None = None
    """The VRF device that the interface is to be part of; routes go to its table."""
    netns: str | None = None
    """Name of the network namespace that the interface lives in; None is this process's. Its UDP
    socket is this process's in either case."""

    def __post_init__(self) -> None:
        if not _INTERFACE_NAME.fullmatch(self.interface) or self.interface in (".", ".."):
            raise ValueError(
                f"interface name {self.interface!r}: 1 to 15 letters, digits, or any of _=+.-"
            )
        if not 1 <= len(self.tunnel_name) <= _MAX_TUNNEL_NAME or not self.tunnel_name.isprintable():
            raise ValueError(
                f"tunnel name {self.tunnel_name!r}: 1 to {_MAX_TUNNEL_NAME} printable characters"
            )
        _check_range("listen_port", self.listen_port, 1, 65535)
        if self.mtu is not None:
            _check_range("mtu", self.mtu, 576, 65535)
            if self.mtu < 1280 and any(address.version == 6 for address in self.addresses):
                raise ValueError(f"mtu {self.mtu}: IPv6 needs at least 1280")
        if self.netns is not None and not is_namespace_name(self.netns):
            raise ValueError(
                f"network namespace {self.netns!r}: 1 to 64 letters, digits, or any of ._-, with a "
                "letter or a digit at the front"
            )
        if self.table is not None:
            _check_range("table", self.table, 1, _MAX_U32)
        if self.metric is not None:
            # The worst two metrics stay free: the guard routes have one of them.
            _check_range("metric", self.metric, 0, _MAX_U32 - 2)
        if self.fwmark is not None:
            _check_range("fwmark", self.fwmark, 0, _MAX_U32)

    @property
    def alias(self) -> str:
        """The alias that marks the interface as made for this tunnel."""
        return ALIAS_PREFIX + self.tunnel_name


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerSpec:
    """A WireGuard peer as it is wanted; there is none without a PSK."""

    public_key: bytes
    psk: PresharedKey
    allowed_ips: tuple[Prefix, ...]
    endpoint: Endpoint | None = None
    keepalive: int = 25
    """Seconds; 0 is off."""

    def __post_init__(self) -> None:
        check_public_key(self.public_key)
        check_keepalive(self.keepalive)
        if self.endpoint is not None:
            check_endpoint(self.endpoint)


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerStatus:
    """A peer as one dump of the interface showed it."""

    public_key: bytes
    endpoint: Endpoint | None
    handshake_stamp: HandshakeStamp | None
    """None while there was no handshake yet."""
    rx_bytes: int
    tx_bytes: int
    allowed_ips: tuple[Prefix, ...]
    keepalive: int
    psk: PresharedKey | None = field(default=None)
    """Only filled where keys were asked for; None also when the peer has none."""
    psk_mark: bytes = b""
    """What `psk_mark` makes of the PSK; empty where the peer has none."""


@dataclass(frozen=True, slots=True)
class PacketCounts:
    """Packets that the kernel has counted at an interface since it was made."""

    went_in: int
    """Into the tunnel. With wireguard-go, whether it has sent them or not."""
    came_out: int


def is_namespace_name(name: str) -> bool:
    """Whether a network namespace can have this name here."""
    return bool(_NAMESPACE_NAME.fullmatch(name))


def check_public_key(public_key: bytes) -> None:
    """Raise ValueError unless it has the length of a WireGuard public key."""
    if len(public_key) != KEY_LENGTH:
        raise ValueError(f"a WireGuard public key has {KEY_LENGTH} bytes, not {len(public_key)}")


def check_keepalive(keepalive: int) -> None:
    """Raise ValueError unless it is a number of seconds that WireGuard can hold."""
    _check_range("keepalive", keepalive, 0, 65535)


def check_endpoint(endpoint: Endpoint) -> None:
    """Raise ValueError unless it is a numeric address and a port."""
    host, port = endpoint
    address, _, zone = host.partition("%")
    ip_address(address)
    # A zone is free text to `ipaddress`; a line break in one would be a line of UAPI.
    if zone and not (zone.isascii() and zone.isdigit() and ":" in address):
        raise ValueError(f"endpoint {host!r}: a zone is the number of an interface, for IPv6 only")
    _check_range("endpoint port", port, 1, 65535)


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} {value}: must be between {low} and {high}")

"""What the values of a configuration may look like, one function for each kind of value.

Each takes whatever TOML or JSON held and returns the value as the daemon uses it, or raises
FieldError. Standard library and `kex.identity` only, so that a command line can use them too.
"""

from __future__ import annotations

import base64
import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)
from pathlib import Path
from typing import Final, Literal

from kex.errors import InvalidIdentity
from kex.identity import Fingerprint
from vpnd.config_errors import kind_of, shown
from vpnd.odd_characters import named

Address = IPv4Address | IPv6Address
Prefix = IPv4Network | IPv6Network
InterfaceAddress = IPv4Interface | IPv6Interface

MAX_NAME_BYTES: Final = 64
DEFAULT_EXCHANGE_PORT: Final = 51821
MAX_SOCKET_PATH_BYTES: Final = 107  # sockaddr_un.sun_path with its terminating zero

WIREGUARD_KEY_LENGTH: Final = 32
_WIREGUARD_KEY_HINT: Final = (
    "44 characters, as `wg show INTERFACE public-key` prints on the other node; `vpnctl status` "
    "there shows it, too"
)
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)
_INTERFACE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_=+.-]{0,14}", re.ASCII)  # IFNAMSIZ - 1
_MAX_DEVICE_BYTES: Final = 15  # IFNAMSIZ - 1
_HOST_LABEL: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?", re.ASCII)
_SPECIAL_INTERFACES: Final = ("all", "default", "lo")  # names of /proc/sys/net, and loopback


class FieldError(ValueError):
    """A value that cannot be used: why, and what to do."""

    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a UDP socket is: a numeric host (IPv6 without brackets) or a name, and a port."""

    host: str
    port: int

    @property
    def address(self) -> Address | None:
        """The numeric address; None for a name, which may resolve anew at any time."""
        try:
            return ip_address(self.host)
        except ValueError:
            return None

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class ListenAddress(Endpoint):
    """Where a socket of ours is; on one device (a VRF, say) or on all."""

    device: str = ""

    def __str__(self) -> str:
        at = Endpoint.__str__(self)
        return f"{at} on {self.device}" if self.device else at


def text(value: object) -> str:
    """A string without control characters."""
    if not isinstance(value, str):
        raise FieldError(f"must be a string, is {kind_of(value)}", "write it in quotes")
    for position, character in enumerate(value, 1):
        if not character.isprintable():
            raise FieldError(
                f"holds the character {named(character)} at position {position}",
                "remove control characters, line breaks and invisible characters",
            )
    return value


def name(value: object) -> str:
    """The name of a node, a tunnel, a peer or a key source: also a file name and a log word."""
    found = text(value)
    if len(found.encode()) > MAX_NAME_BYTES:
        raise FieldError(f"is longer than {MAX_NAME_BYTES} bytes", "choose a shorter name")
    if not _NAME.fullmatch(found):
        raise FieldError(
            f"{shown(found)} cannot be a name",
            "letters, digits, '.', '_' and '-', with a letter or a digit at the front",
        )
    return found


def fits_name(value: str) -> bool:
    """Whether `name` takes it."""
    return bool(_NAME.fullmatch(value)) and len(value) <= MAX_NAME_BYTES


def interface_name(value: object) -> str:
    """The name of a network interface that vpnd makes."""
    found = text(value)
    if not _INTERFACE.fullmatch(found):
        raise FieldError(
            f"{shown(found)} cannot be the name of an interface",
            "1 to 15 letters, digits or any of _=+.- with a letter or a digit at the front",
        )
    if found in _SPECIAL_INTERFACES:
        raise FieldError(f'"{found}" has a meaning of its own in Linux', "choose another name")
    return found


def whole_number(low: int, high: int, unit: str = "", hint: str = "") -> Callable[[object], int]:
    """A parser of whole numbers from `low` to `high`."""

    def parse(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise FieldError(f"must be a whole number, is {kind_of(value)}", hint)
        if not low <= value <= high:
            raise FieldError(
                f"{shown(value)} is out of range",
                hint or f"{low} to {high} {unit}".rstrip(),
            )
        return value

    return parse


def mtu(value: object) -> int | Literal["auto"]:
    """Bytes of a packet in the tunnel, or "auto"."""
    if value == "auto":
        return "auto"
    hint = '576 to 65535 bytes, or "auto": what the way to the peers allows'
    if isinstance(value, str):
        raise FieldError(f"{shown(value)} is not known", hint)
    return whole_number(576, 65535, "bytes", hint)(value)


def choice(*options: str) -> Callable[[object], str]:
    """A parser of one of a few words."""

    def parse(value: object) -> str:
        found = text(value)
        if found in options:
            return found
        quoted = ", ".join(f'"{option}"' for option in options)
        hint = f"{did_you_mean(found, options)}known here: {quoted}"
        raise FieldError(f"{shown(found)} is not known", hint)

    return parse


def did_you_mean(found: str, known: Sequence[str]) -> str:
    """`did you mean "…"? ` for the nearest of the known words, or nothing."""
    close = difflib.get_close_matches(found[:MAX_NAME_BYTES].lower(), known, n=1)
    return f'did you mean "{close[0]}"? ' if close else ""


def absolute_path(value: object) -> Path:
    """A path from the root."""
    found = Path(text(value))
    if not found.is_absolute():
        raise FieldError("is not a path from the root", "begin it with /")
    if ".." in found.parts or len(bytes(found)) > 4000:
        raise FieldError("is not a plain path", "write it without .. and shorter than 4,000 bytes")
    return found


def socket_path(value: object) -> Path:
    """A path that a Unix socket can have."""
    found = absolute_path(value)
    if len(bytes(found)) > MAX_SOCKET_PATH_BYTES:
        raise FieldError(
            f"has {len(bytes(found))} bytes; a Unix socket's path has at most "
            f"{MAX_SOCKET_PATH_BYTES}",
            "set a shorter runtime_dir or control_socket",
        )
    return found


def fingerprint(value: object) -> Fingerprint:
    """A peer's identity; its text is never quoted, for it could be a secret in the wrong place."""
    found = text(value)
    if "vpnd-identity" in found:
        raise FieldError(
            "this is the secret of an identity file, not the fingerprint of a peer",
            "take it out, keep it secret, and write what `vpnctl id` prints on the other node",
        )
    try:
        return Fingerprint.parse(found)
    except InvalidIdentity as error:
        raise FieldError(f"is not a fingerprint: {error}", error.hint) from None


def wireguard_key(value: object) -> str:
    """A WireGuard public key, as `wg` writes it: 44 characters of base64."""
    found = text(value)
    try:
        key = base64.b64decode(found, validate=True)
    except ValueError:
        key = b""
    # One way to write a key, so that two that are the same look the same; a public one is a number
    # below 2^255 (RFC 7748)
    plain = len(key) == WIREGUARD_KEY_LENGTH and key[-1] < 0x80
    if not plain or base64.b64encode(key).decode() != found:
        raise FieldError("is not a WireGuard public key", _WIREGUARD_KEY_HINT)
    if not any(key):
        raise FieldError("is no key: all of its bits are zero", _WIREGUARD_KEY_HINT)
    return found


def prefix(value: object) -> Prefix:
    """An IPv4 or IPv6 prefix without host bits."""
    found = text(value)
    address, _ = _address_and_length(found, "prefix")
    try:
        return ip_network(found)
    except ValueError:
        pass
    try:
        without = ip_network(found, strict=False)
    except ValueError:
        raise FieldError(f"{shown(found)} is not a prefix", _PREFIX_HINT) from None
    raise FieldError(
        f"{shown(found)} has host bits set",
        f'"{without}" is the network, "{address}/{address.max_prefixlen}" the one address',
    )


def interface_address(value: object) -> InterfaceAddress:
    """An address of this node with the length of its network, `10.255.0.1/24`."""
    found = text(value)
    address, _ = _address_and_length(found, "address with a prefix length")
    try:
        interface = ip_interface(found)
    except ValueError:
        raise FieldError(f"{shown(found)} is not an address", _PREFIX_HINT) from None
    if address.is_multicast or address.is_unspecified or address.is_loopback:
        raise FieldError(f"{shown(found)} cannot be the address of a tunnel")
    network = interface.network
    hosts_only = network.max_prefixlen - network.prefixlen < 2
    if not hosts_only and address == network.network_address:
        raise FieldError(
            f"{shown(found)} is the network itself",
            f"an address in it: {network[1]}/{network.prefixlen}",
        )
    if not hosts_only and interface.version == 4 and address == network.broadcast_address:
        raise FieldError(f"{shown(found)} is the broadcast address of its network")
    return interface


def endpoint(value: object) -> Endpoint:
    """Where a peer is: `192.0.2.1:51821`, `[2001:db8::1]:51821` or `name.example:51821`."""
    found = _host_and_port(value)
    address = found.address
    if address is None:
        _check_host_name(found.host)
        return found
    if address.is_link_local:  # first: with a zone it would be refused as well
        raise FieldError(
            f"{shown(str(found))} is a link-local address, which means nothing beyond one cable",
            "give the peer an address of its own, such as one of fd00::/8",
        )
    _check_one_host(found, address)
    if address.is_unspecified:
        raise FieldError(f"{shown(str(found))} is every address of a host, not one")
    return found


def listen_address(value: object) -> ListenAddress:
    """A numeric address of this node, or `[::]` or `0.0.0.0` for all of them, and a port; or a
    table of such an `address` and a `device`."""
    device = ""
    if isinstance(value, dict):
        value, written = _listen_table(value)
        device = device_name(written)
    found = _host_and_port(value)
    address = found.address
    if address is None:
        raise FieldError(
            f"{shown(found.host)} is not a numeric address",
            f'"[::]:{found.port}" listens on every address, IPv4 too',
        )
    _check_one_host(found, address)
    return ListenAddress(found.host, found.port, device)


def _listen_table(table: dict[str, object]) -> tuple[object, object]:
    hint = f'{{ address = "[::]:{DEFAULT_EXCHANGE_PORT}", device = "eth0" }}'
    for key in table:
        if key not in ("address", "device"):
            raise FieldError(f"has an unknown key {shown(key)}", hint)
    for key in ("address", "device"):
        if key not in table:
            raise FieldError(f"has no {key}", hint)
    return table["address"], table["device"]


def device_name(value: object) -> str:
    """The name of a network device of this host, whoever made it (dev_valid_name in Linux)."""
    found = text(value)
    if (
        not 0 < len(found.encode()) <= _MAX_DEVICE_BYTES
        or found in (".", "..")
        or any(character in "/:" or character.isspace() for character in found)
    ):
        raise FieldError(f"{shown(found)} cannot be the name of a device", "such as eth0")
    return found


_PREFIX_HINT: Final = "such as 10.20.0.0/16 or fd00:20::/48"


def _address_and_length(found: str, noun: str) -> tuple[Address, int]:
    """The two halves, so that netmasks (`/255.0.0.0`) and bare addresses get an answer."""
    host, slash, length = found.partition("/")
    try:
        address = ip_address(host)
    except ValueError:
        raise FieldError(
            f"{shown(found)} is not an {noun}".replace("an p", "a p"), _PREFIX_HINT
        ) from None
    if not slash:
        raise FieldError(
            f"{shown(found)} has no prefix length",
            f'"{host}/{address.max_prefixlen}" for the one address',
        )
    if not (length.isascii() and length.isdigit() and int(length[:4]) <= address.max_prefixlen):
        raise FieldError(
            f"{shown(found)} has no valid prefix length", f"/0 to /{address.max_prefixlen}"
        )
    if isinstance(address, IPv6Address) and (address.scope_id or address.ipv4_mapped):
        raise FieldError(
            f"{shown(found)} cannot be used here", "write it without %zone, or as IPv4"
        )
    return address, int(length)


def _host_and_port(value: object) -> Endpoint:
    found = text(value)
    hint = f"host:port, such as 192.0.2.1:{DEFAULT_EXCHANGE_PORT}"
    if found.startswith("["):
        host, closing, port = found[1:].partition("]:")
        if not closing:
            raise FieldError(f"{shown(found)} has no port", f"[address]:{DEFAULT_EXCHANGE_PORT}")
        try:
            IPv6Address(host)
        except ValueError:
            raise FieldError(f"{shown(found)} has no IPv6 address in its brackets", hint) from None
    else:
        host, colon, port = found.rpartition(":")
        if ":" in host:
            raise FieldError(
                f"{shown(found)}: an IPv6 address stands in brackets",
                f"[address]:port, such as [2001:db8::1]:{DEFAULT_EXCHANGE_PORT}",
            )
        if not colon:
            raise FieldError(f"{shown(found)} has no port", f"add :{DEFAULT_EXCHANGE_PORT}")
    if not host:
        raise FieldError(f"{shown(found)} has no host", hint)
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65535):
        raise FieldError(f"{shown(found)} has no valid port", "a number from 1 to 65535")
    address = Endpoint(host, int(port)).address
    # One way to write an address, so that two endpoints are equal when they mean the same
    return Endpoint(host if address is None else str(address), int(port))


def _check_one_host(found: Endpoint, address: Address) -> None:
    quoted = shown(str(found))
    if address.is_multicast or address == IPv4Address("255.255.255.255"):
        raise FieldError(f"{quoted} is an address of many hosts", "the address of one host")
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            raise FieldError(f"{quoted} is an IPv4 address", f"{address.ipv4_mapped}:{found.port}")
        if address.is_link_local and not address.scope_id:
            raise FieldError(
                f"{quoted} does not say on which interface", f"[{address}%eth0]:{found.port}"
            )


def _check_host_name(host: str) -> None:
    if not host.isascii():
        raise FieldError(f"{shown(host)} is not ASCII", "write the name's xn-- form")
    labels = host.removesuffix(".").split(".")
    if len(host) > 253 or not all(_HOST_LABEL.fullmatch(label) for label in labels):
        raise FieldError(f"{shown(host)} is not a host name", "letters, digits, '-' and '.'")
    if labels[-1].isdigit():
        raise FieldError(f"{shown(host)} is not a valid IPv4 address", "four numbers up to 255")

"""nftables over netlink: a table replaced in one transaction, read back, and deleted.

Blocking, on sockets that ``Netlink.netfilter_socket`` opens, so that it works in every network
namespace that `tun` has a way into. Why not the program `nft`: it would have to be started inside
the namespace, which takes CAP_SYS_ADMIN. Numbers are from linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Final

from tun.errors import MalformedAnswer
from tun.model import Prefix

__all__ = [
    "ACCEPT",
    "DROP",
    "FORWARD",
    "POSTROUTING",
    "REJECT",
    "Chain",
    "Expression",
    "NamedSet",
    "Table",
    "delete_table",
    "destination_in",
    "destination_in_set",
    "from_this_host",
    "leaves_by",
    "leaves_by_any",
    "read_table",
    "replace_table",
    "table_names",
    "udp_source_port",
]

_HEADER: Final = struct.Struct("=IHHII")  # length, type, flags, sequence number, port
_NFGEN: Final = struct.Struct("=BBH")  # family, version, resource
_ATTRIBUTE: Final = struct.Struct("=HH")
_NESTED: Final = 0x8000
_TYPE_MASK: Final = 0x3FFF

_F_REQUEST: Final = 0x01
_F_ACK: Final = 0x04
_F_DUMP: Final = 0x300
_F_DUMP_INTERRUPTED: Final = 0x10
_F_CREATE: Final = 0x400
_F_APPEND: Final = 0x800
_ERROR_MESSAGE: Final = 2
_DONE: Final = 3

_SUBSYSTEM: Final = 10
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_NEW_TABLE, _GET_TABLE, _DELETE_TABLE = 0, 1, 2
_NEW_CHAIN, _GET_CHAIN = 3, 4
_NEW_RULE, _GET_RULE = 6, 7
_NEW_SET, _GET_SET = 9, 10
_NEW_ELEMENTS, _GET_ELEMENTS = 12, 13
_INET: Final = 1  # NFPROTO_INET
_IPV4: Final = 2
_IPV6: Final = 10

FORWARD: Final = 2
POSTROUTING: Final = 4

_INTERVAL: Final = 4  # NFT_SET_INTERVAL
_INTERVAL_END: Final = 1
_TYPE_IPV4, _TYPE_IPV6 = 7, 8
_ELEMENTS_AT_ONCE: Final = 500
"""In one message: the length of an attribute has 16 bits."""

_PATIENCE: Final = 10.0  # seconds; the kernel answers at once, or something is very wrong
_TRIES: Final = 5  # of a dump that somebody else's changes interrupt

Expression = bytes
"""One statement of a rule, encoded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A base chain that accepts what none of its rules drops."""

    name: str
    hook: int
    priority: int
    rules: tuple[tuple[Expression, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedSet:
    """A set of address ranges of one family (4 or 6)."""

    name: str
    version: int
    prefixes: frozenset[Prefix]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table of the family inet."""

    name: str
    sets: tuple[NamedSet, ...]
    chains: tuple[Chain, ...]


# ---- expressions


def leaves_by(interface: str) -> tuple[Expression, ...]:
    """The packet leaves by the interface of this name."""
    return (_meta(7), _equals(interface.encode().ljust(16, b"\0")))


def leaves_by_any(interfaces: Iterable[str]) -> list[tuple[Expression, ...]]:
    """The same for each of them, one rule's match each."""
    return [leaves_by(interface) for interface in sorted(interfaces)]


def destination_in(prefix: Prefix) -> tuple[Expression, ...]:
    """The packet's destination is within a prefix."""
    network = ip_network(prefix)
    mask = network.netmask.packed
    bitwise = _expression(
        "bitwise",
        _u32(1, 1)
        + _u32(2, 1)
        + _u32(3, len(mask))
        + _nested(4, _attribute(1, mask))
        + _nested(5, _attribute(1, bytes(len(mask)))),
    )
    return (*_destination(prefix.version), bitwise, _equals(network.network_address.packed))


def destination_in_set(name: str, version: int) -> tuple[Expression, ...]:
    """The packet's destination is in a named set of the table."""
    lookup = _expression("lookup", _text(1, name) + _u32(2, 1))
    return (*_destination(version), lookup)


def from_this_host() -> tuple[Expression, ...]:
    """The packet's source is an address of this host."""
    fib = _expression("fib", _u32(1, 1) + _u32(2, 3) + _u32(3, 1))  # type of the source address
    return (fib, _equals(struct.pack("=I", 2)))  # RTN_LOCAL


def udp_source_port(port: int) -> tuple[Expression, ...]:
    """It is UDP from this port."""
    payload = _expression("payload", _u32(1, 1) + _u32(2, 2) + _u32(3, 0) + _u32(4, 2))
    return (_meta(16), _equals(bytes([17])), payload, _equals(struct.pack(">H", port)))


def _destination(version: int) -> tuple[Expression, ...]:
    family, offset, length = (_IPV4, 16, 4) if version == 4 else (_IPV6, 24, 16)
    payload = _expression("payload", _u32(1, 1) + _u32(2, 1) + _u32(3, offset) + _u32(4, length))
    return (_meta(15), _equals(bytes([family])), payload)


def _meta(key: int) -> Expression:
    return _expression("meta", _u32(1, 1) + _u32(2, key))


def _equals(value: bytes) -> Expression:
    return _expression("cmp", _u32(1, 1) + _u32(2, 0) + _nested(3, _attribute(1, value)))


def _verdict(code: int) -> Expression:
    return _expression("immediate", _u32(1, 0) + _nested(2, _nested(2, _u32(1, code))))


def _expression(name: str, data: bytes) -> Expression:
    return _nested(1, _text(1, name) + _nested(2, data))


def _attribute(kind: int, value: bytes) -> bytes:
    padding = bytes(-len(value) % 4)
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + padding


def _nested(kind: int, value: bytes) -> bytes:
    return _attribute(kind | _NESTED, value)


def _text(kind: int, value: str) -> bytes:
    return _attribute(kind, value.encode() + b"\0")


def _u32(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack(">I", value & 0xFFFFFFFF))


ACCEPT: Final[Expression] = _verdict(1)
DROP: Final[Expression] = _verdict(0)
REJECT: Final[Expression] = _expression("reject", _u32(1, 2) + _attribute(2, bytes([3])))
"""ICMP or ICMPv6: administratively prohibited. In the hook FORWARD only."""


# ---- what is asked of the kernel


def replace_table(opened: socket.socket, table: Table) -> None:
    """Put a table there, in one step, in place of the one of that name. Raises OSError."""
    name = _text(1, table.name)
    messages = [
        (_NEW_TABLE, _F_CREATE, name),  # so that there is one to delete
        (_DELETE_TABLE, 0, name),
        (_NEW_TABLE, _F_CREATE, name),
    ]
    for number, each in enumerate(table.sets, 1):
        messages += _set_messages(table.name, each, number)
    for chain in table.chains:
        messages += _chain_messages(table.name, chain)
    _transact(opened, messages)


def delete_table(opened: socket.socket, name: str) -> None:
    """Delete a table; one that is not there is no error. Raises OSError."""
    _transact(opened, [(_NEW_TABLE, _F_CREATE, _text(1, name)), (_DELETE_TABLE, 0, _text(1, name))])


def read_table(opened: socket.socket, name: str) -> tuple[bytes, ...]:
    """All that is in a table, as the kernel tells it: to be compared with what was read before.
    Empty where there is no such table. Raises OSError."""
    in_table = _text(1, name)
    found: list[bytes] = []
    for kind in (_GET_TABLE, _GET_CHAIN, _GET_RULE):
        found += _dump(opened, kind, in_table)
    sets = _dump(opened, _GET_SET, in_table)
    found += sets
    of_table = [each for each in found if _first_text(each, 1) == name]
    for each in sets:
        set_name = _first_text(each, 2)
        if _first_text(each, 1) == name and set_name is not None:
            of_table += _dump(opened, _GET_ELEMENTS, in_table + _text(2, set_name))
    return tuple(sorted(of_table))


def table_names(opened: socket.socket) -> list[str]:
    """The tables of the family inet. Raises OSError."""
    names = (_first_text(each, 1) for each in _dump(opened, _GET_TABLE, b""))
    return [name for name in names if name is not None]


_Message = tuple[int, int, bytes]
"""What it is, its flags, its attributes."""


def _set_messages(table: str, each: NamedSet, number: int) -> list[_Message]:
    kind, length = (_TYPE_IPV4, 4) if each.version == 4 else (_TYPE_IPV6, 16)
    head = _text(1, table) + _text(2, each.name)
    attributes = head + _u32(3, _INTERVAL) + _u32(4, kind) + _u32(5, length) + _u32(10, number)
    messages = [(_NEW_SET, _F_CREATE, attributes)]
    elements = [element for span in _ranges(each) for element in _elements(*span, length)]
    for start in range(0, len(elements), _ELEMENTS_AT_ONCE):
        some = b"".join(elements[start : start + _ELEMENTS_AT_ONCE])
        messages.append((_NEW_ELEMENTS, _F_CREATE, head + _u32(4, number) + _nested(3, some)))
    return messages


def _ranges(each: NamedSet) -> list[tuple[int, int]]:
    """First address and the one behind the last, without overlaps and neighbours."""
    merged: list[tuple[int, int]] = []
    spans = sorted(
        (int(prefix.network_address), int(prefix.broadcast_address) + 1) for prefix in each.prefixes
    )
    for start, end in spans:
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _elements(start: int, end: int, length: int) -> Sequence[bytes]:
    first = _nested(1, _nested(1, _attribute(1, start.to_bytes(length, "big"))))
    if end >> (8 * length):
        return (first,)  # up to the last address that there is
    key = _nested(1, _attribute(1, end.to_bytes(length, "big")))
    return first, _nested(1, key + _u32(3, _INTERVAL_END))


def _chain_messages(table: str, chain: Chain) -> list[_Message]:
    hook = _nested(4, _u32(1, chain.hook) + _u32(2, chain.priority))
    head = _text(1, table) + _text(3, chain.name)
    messages = [(_NEW_CHAIN, _F_CREATE, head + hook + _u32(5, 1) + _text(7, "filter"))]
    of_chain = _text(1, table) + _text(2, chain.name)
    for rule in chain.rules:
        attributes = of_chain + _nested(4, b"".join(rule))
        messages.append((_NEW_RULE, _F_CREATE | _F_APPEND, attributes))
    return messages


def _transact(opened: socket.socket, messages: Sequence[_Message]) -> None:
    """All of it or nothing."""
    before = int.from_bytes(os.urandom(3), "big")  # the socket may have been used before
    subsystem = _NFGEN.pack(0, 0, socket.htons(_SUBSYSTEM))
    batch = bytearray(_packed(_BATCH_BEGIN, _F_REQUEST, before, subsystem))
    last = len(messages)
    for number, (kind, flags, attributes) in enumerate(messages, 1):
        flags |= _F_REQUEST | (_F_ACK if number == last else 0)
        body = _NFGEN.pack(_INET, 0, 0) + attributes
        batch += _packed(_SUBSYSTEM << 8 | kind, flags, before + number, body)
    batch += _packed(_BATCH_END, _F_REQUEST, before + last + 1, subsystem)
    opened.settimeout(_PATIENCE)
    _make_room(opened, len(batch))
    opened.sendto(batch, (0, 0))
    while True:
        for kind, sequence, _, body in _received(opened):
            if kind == _ERROR_MESSAGE and before <= sequence <= before + last + 1:
                _raise_error(body)
                if sequence == before + last:
                    return


def _make_room(opened: socket.socket, length: int) -> None:
    if opened.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) < 2 * length + 4096:
        so_sndbufforce = 32
        opened.setsockopt(socket.SOL_SOCKET, so_sndbufforce, 2 * length + 4096)


def _dump(opened: socket.socket, kind: int, attributes: bytes) -> list[bytes]:
    """The attributes of each message of a dump; none where the table is not there."""
    opened.settimeout(_PATIENCE)
    before = int.from_bytes(os.urandom(3), "big")
    for attempt in range(before, before + _TRIES):
        body = _NFGEN.pack(_INET, 0, 0) + attributes
        opened.sendto(_packed(_SUBSYSTEM << 8 | kind, _F_REQUEST | _F_DUMP, attempt, body), (0, 0))
        try:
            return _dumped(opened, attempt)
        except InterruptedError:
            continue
        except FileNotFoundError:
            return []
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))


def _dumped(opened: socket.socket, attempt: int) -> list[bytes]:
    found: list[bytes] = []
    interrupted = False
    while True:
        for kind, sequence, flags, body in _received(opened):
            if sequence != attempt:
                continue
            interrupted |= bool(flags & _F_DUMP_INTERRUPTED)
            if kind in (_ERROR_MESSAGE, _DONE):
                _raise_error(body)
                if interrupted:
                    raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR))
                return found
            found.append(body[_NFGEN.size :])


def _packed(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, sequence, 0) + body


def _received(opened: socket.socket) -> list[tuple[int, int, int, bytes]]:
    """Kind, sequence number, flags and body of each message of one datagram of the kernel's."""
    datagram, _, flags, sender = opened.recvmsg(1 << 18)
    if flags & socket.MSG_TRUNC:
        raise MalformedAnswer("the kernel's answer does not fit the buffer")
    if sender[0] != 0:
        return []  # another process; only the kernel (port 0) may answer
    found, position = [], 0
    while position + _HEADER.size <= len(datagram):
        length, kind, message_flags, sequence, _ = _HEADER.unpack_from(datagram, position)
        if length < _HEADER.size or position + length > len(datagram):
            raise MalformedAnswer("the kernel's answer has a message of a wrong length")
        body = datagram[position + _HEADER.size : position + length]
        found.append((kind, sequence, message_flags, body))
        position += (length + 3) & ~3
    return found


def _raise_error(body: bytes) -> None:
    if len(body) < 4:
        return  # the end of a dump
    (code,) = struct.unpack_from("=i", body)
    if code:
        raise OSError(-code, os.strerror(-code))


def _first_text(attributes: bytes, wanted: int) -> str | None:
    position = 0
    while position + _ATTRIBUTE.size <= len(attributes):
        length, kind = _ATTRIBUTE.unpack_from(attributes, position)
        if kind & _TYPE_MASK == wanted:
            value = attributes[position + _ATTRIBUTE.size : position + length]
            return value.rstrip(b"\0").decode("utf-8", "replace")
        position += max((length + 3) & ~3, _ATTRIBUTE.size)
    return None

"""What a packet is, for a capture: key exchange, WireGuard, the neighbours' talk, anything else.

Pure functions over what an AF_PACKET socket of the type SOCK_DGRAM gives: an EtherType, and the
packet from its network header on. Standard library only.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["exchange", "wireguard", "neighbour", "unreachable", "other"]
KINDS: tuple[Kind, ...] = ("exchange", "wireguard", "neighbour", "unreachable", "other")

# <linux/if_ether.h>
_ETH_IPV4, _ETH_ARP, _ETH_IPV6 = 0x0800, 0x0806, 0x86DD
# IANA's protocol numbers; the last four are IPv6 extension headers (RFC 8200 §4).
_ICMP, _IGMP, _UDP, _ICMPV6 = 1, 2, 17, 58
_HOP_BY_HOP, _ROUTING, _FRAGMENT, _DESTINATION_OPTIONS = 0, 43, 44, 60
_NAMES = {_ICMP: "ICMP", 6: "TCP", _UDP: "UDP", _ICMPV6: "ICMPv6", 89: "OSPF"}
# Errors quote the packet that they are about (RFC 792, RFC 4443 §2.1).
_ICMP_ERRORS = {3: "unreachable", 5: "redirect", 11: "time exceeded", 12: "parameter problem"}
_ICMPV6_ERRORS = {1: "unreachable", 2: "too big", 3: "time exceeded", 4: "parameter problem"}
# Multicast listeners (RFC 2710, RFC 3810) and neighbour discovery (RFC 4861): never forwarded.
_ICMPV6_NEIGHBOUR = {130, 131, 132, 133, 134, 135, 136, 137, 143}
# docs/protocol.md §3.1: 33 to 1,232 bytes, version 1 in the upper half of the first byte.
_EXCHANGE_SIZES = range(33, 1233)
# WireGuard's messages: initiation, response, cookie, and data in blocks of 16 bytes.
_WIREGUARD_SIZES = {1: 148, 2: 92, 3: 64}
_WIREGUARD_DATA, _WIREGUARD_DATA_MIN = 4, 32


@dataclass(frozen=True, slots=True)
class Ports:
    """The UDP ports by which the two kinds of wanted traffic are known."""

    exchange: frozenset[int]
    wireguard: frozenset[int]


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet. `words` says what it is to a person, without addresses; `addresses` are source
    and destination as (version, integer), with those of the packet that an ICMP error quotes."""

    kind: Kind
    words: str
    addresses: tuple[tuple[int, int], ...]


class Prefixes:
    """A set of prefixes, asked for one address after another."""

    def __init__(self, prefixes: Iterable[str]) -> None:
        """Raises ValueError for what is not a prefix."""
        self._of: dict[int, list[tuple[int, int]]] = {4: [], 6: []}
        for text in prefixes:
            network = ipaddress.ip_network(text)
            pair = (int(network.network_address), int(network.netmask))
            self._of[network.version].append(pair)

    def __contains__(self, address: tuple[int, int]) -> bool:
        version, number = address
        return any(number & mask == start for start, mask in self._of[version])


def read_untrusted(ether_type: int, data: bytes, ports: Ports) -> Packet:
    """What a packet is; one that is cut short or malformed is `other`."""
    try:
        if ether_type == _ETH_ARP:
            return Packet("neighbour", "ARP", ())
        if ether_type == _ETH_IPV4:
            return _ipv4(data, ports)
        if ether_type == _ETH_IPV6:
            return _ipv6(data, ports)
    except IndexError:
        return Packet("other", f"malformed, EtherType {ether_type:#06x}", ())
    return Packet("other", f"EtherType {ether_type:#06x}", ())


def _ipv4(data: bytes, ports: Ports) -> Packet:
    header = (data[0] & 15) * 4
    addresses = ((4, _number(data, 12, 4)), (4, _number(data, 16, 4)))
    protocol = data[9]
    if _number(data, 6, 2) & 0x1FFF:
        return Packet("other", f"later fragment of {_named(protocol)}", addresses)
    # What an ICMP error quotes is cut short; what is longer is padding.
    return _transport(protocol, data[header : _number(data, 2, 2)], addresses, ports)


def _ipv6(data: bytes, ports: Ports) -> Packet:
    addresses = ((6, _number(data, 8, 16)), (6, _number(data, 24, 16)))
    protocol, position = data[6], 40
    data = data[: 40 + _number(data, 4, 2)]
    while protocol in (_HOP_BY_HOP, _ROUTING, _FRAGMENT, _DESTINATION_OPTIONS):
        if protocol == _FRAGMENT and _number(data, position + 2, 2) & 0xFFF8:
            return Packet("other", f"later fragment of {_named(data[position])}", addresses)
        length = 8 if protocol == _FRAGMENT else (data[position + 1] + 1) * 8
        protocol, position = data[position], position + length
    return _transport(protocol, data[position:], addresses, ports)


def _transport(
    protocol: int, data: bytes, addresses: tuple[tuple[int, int], ...], ports: Ports
) -> Packet:
    if protocol == _UDP:
        return _udp(data, addresses, ports)
    if protocol == _IGMP:
        return Packet("neighbour", "IGMP", addresses)
    if protocol == _ICMP:
        if data[0] in _ICMP_ERRORS:
            about = _ipv4(data[8:], ports)
            return _icmp_error("ICMP", _ICMP_ERRORS[data[0]], about, addresses)
        return Packet("other", f"ICMP type {data[0]}", addresses)
    if protocol == _ICMPV6:
        if data[0] in _ICMPV6_ERRORS:
            about = _ipv6(data[8:], ports)
            return _icmp_error("ICMPv6", _ICMPV6_ERRORS[data[0]], about, addresses)
        if data[0] in _ICMPV6_NEIGHBOUR:
            return Packet("neighbour", "neighbour discovery", addresses)
        return Packet("other", f"ICMPv6 type {data[0]}", addresses)
    return Packet("other", _named(protocol), addresses)


def _udp(data: bytes, addresses: tuple[tuple[int, int], ...], ports: Ports) -> Packet:
    source, target, payload = _number(data, 0, 2), _number(data, 2, 2), data[8:]
    # From the header: a quotation has less, and large datagrams may pass in one piece (UDP GSO).
    size = _number(data, 4, 2) - 8
    used = {source, target}
    if used & ports.exchange and size in _EXCHANGE_SIZES and payload[:1] and payload[0] >> 4 == 1:
        return Packet("exchange", "key exchange", addresses)
    if used & ports.wireguard and _is_wireguard(payload, max(size, len(payload))):
        return Packet("wireguard", "WireGuard", addresses)
    return Packet("other", f"UDP {source} to {target}", addresses)


def _is_wireguard(payload: bytes, size: int) -> bool:
    if payload[1:4] != b"\0\0\0":
        return False
    if payload[0] == _WIREGUARD_DATA:
        return size >= _WIREGUARD_DATA_MIN and size % 16 == 0
    return _WIREGUARD_SIZES.get(payload[0]) == size


def _icmp_error(
    family: str, what: str, about: Packet, addresses: tuple[tuple[int, int], ...]
) -> Packet:
    kind: Kind = "unreachable" if what == "unreachable" else "other"
    return Packet(kind, f"{family} {what} about {about.words}", addresses + about.addresses)


def _named(protocol: int) -> str:
    return _NAMES.get(protocol, f"IP protocol {protocol}")


def _number(data: bytes, start: int, length: int) -> int:
    """Raises IndexError where there are not so many bytes."""
    part = data[start : start + length]
    if len(part) < length:
        raise IndexError
    return int.from_bytes(part, "big")

"""What a capture takes a packet for: packets written here byte by byte."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpnd_lab.packets import KINDS, Ports, Prefixes, read_untrusted
from vpnd_lab.traffic import encode, holds_datagram

PORTS = Ports(exchange=frozenset({51821}), wireguard=frozenset({51820}))
IPV4, ARP, IPV6 = 0x0800, 0x0806, 0x86DD
EXCHANGE = bytes([0x11, 0x01]) + bytes(98)
DATA = b"\4\0\0\0" + bytes(60)


def udp(source: int, target: int, payload: bytes) -> bytes:
    return struct.pack("!HHHH", source, target, 8 + len(payload), 0) + payload


def ipv4(
    protocol: int,
    payload: bytes,
    *,
    source: str = "198.18.0.2",
    target: str = "198.18.1.2",
    offset: int = 0,
) -> bytes:
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, offset, 64, protocol, 0)
    return head + ip_address(source).packed + ip_address(target).packed + payload


def ipv6(
    protocol: int, payload: bytes, *, source: str = "2001:db8::2", target: str = "2001:db8:1::2"
) -> bytes:
    head = struct.pack("!IHBB", 6 << 28, len(payload), protocol, 64)
    return head + ip_address(source).packed + ip_address(target).packed + payload


@pytest.mark.parametrize(
    ("datagram", "kind"),
    [
        (udp(51821, 51821, EXCHANGE), "exchange"),
        (udp(4000, 51821, EXCHANGE), "exchange"),
        (udp(51821, 4000, EXCHANGE), "exchange"),
        (udp(4000, 4001, EXCHANGE), "other"),
        (udp(51821, 51821, b"\x21" + EXCHANGE[1:]), "other"),
        (udp(51821, 51821, EXCHANGE[:32]), "other"),
        (udp(51821, 51821, EXCHANGE.ljust(1233, b"\0")), "other"),
        (udp(51820, 51820, DATA), "wireguard"),
        (udp(51820, 51820, DATA[:32]), "wireguard"),
        (udp(51820, 51820, DATA[:16]), "other"),
        (udp(51820, 51820, DATA + b"\0"), "other"),
        (udp(51820, 51820, b"\1\0\0\0" + bytes(144)), "wireguard"),
        (udp(51820, 51820, b"\2\0\0\0" + bytes(88)), "wireguard"),
        (udp(51820, 51820, b"\3\0\0\0" + bytes(60)), "wireguard"),
        (udp(51820, 51820, b"\1\0\0\0" + bytes(60)), "other"),
        (udp(51820, 51820, b"\5\0\0\0" + bytes(60)), "other"),
        (udp(51820, 51820, b"\4\0\1\0" + bytes(60)), "other"),
        (udp(51820, 51820, encode(1, 2, 200)), "other"),
    ],
)
def test_udp_is_known_by_port_and_content(datagram: bytes, kind: str) -> None:
    for ether_type, packet in ((IPV4, ipv4(17, datagram)), (IPV6, ipv6(17, datagram))):
        assert read_untrusted(ether_type, packet, PORTS).kind == kind


def test_neighbours_talk() -> None:
    assert read_untrusted(ARP, bytes(28), PORTS).kind == "neighbour"
    assert read_untrusted(IPV6, ipv6(58, bytes([135]) + bytes(23)), PORTS).kind == "neighbour"
    # A multicast listener report comes behind a hop-by-hop option (RFC 3810 §5)
    report = bytes([58, 0, 5, 2, 0, 0, 1, 0]) + bytes([143]) + bytes(27)
    assert read_untrusted(IPV6, ipv6(0, report), PORTS).kind == "neighbour"
    assert read_untrusted(IPV6, ipv6(58, bytes([128]) + bytes(7)), PORTS).kind == "other"


def test_an_error_is_told_with_what_it_is_about() -> None:
    inner = ipv4(17, udp(5, 6, bytes(100)), source="10.1.0.2", target="10.2.0.2")
    seen = read_untrusted(IPV4, ipv4(1, bytes([3, 1, 0, 0, 0, 0, 0, 0]) + inner[:28]), PORTS)
    assert (seen.kind, seen.words) == ("unreachable", "ICMP unreachable about UDP 5 to 6")
    assert (4, int(ip_address("10.2.0.2"))) in seen.addresses
    inner = ipv6(17, udp(51821, 51821, EXCHANGE))
    seen = read_untrusted(IPV6, ipv6(58, bytes([1, 4, 0, 0, 0, 0, 0, 0]) + inner), PORTS)
    assert (seen.kind, seen.words) == ("unreachable", "ICMPv6 unreachable about key exchange")
    seen = read_untrusted(IPV6, ipv6(58, bytes([2, 0, 0, 0, 0, 0, 5, 0]) + inner), PORTS)
    assert (seen.kind, seen.words) == ("other", "ICMPv6 too big about key exchange")


def test_a_later_fragment_has_no_ports_and_keeps_its_addresses() -> None:
    seen = read_untrusted(IPV4, ipv4(17, udp(51820, 51820, DATA), offset=185), PORTS)
    assert (seen.kind, len(seen.addresses)) == ("other", 2)
    fragment = bytes([17, 0, 0, 8, 0, 0, 0, 1]) + DATA
    assert read_untrusted(IPV6, ipv6(44, fragment), PORTS).words == "later fragment of UDP"


def test_anything_else_is_other() -> None:
    assert read_untrusted(IPV4, ipv4(6, bytes(20)), PORTS).words == "TCP"
    assert read_untrusted(IPV4, ipv4(99, b""), PORTS).words == "IP protocol 99"
    assert read_untrusted(0x88CC, b"", PORTS).words == "EtherType 0x88cc"


@given(st.sampled_from([IPV4, ARP, IPV6, 0x88CC]), st.binary(max_size=120))
def test_no_bytes_are_too_strange(ether_type: int, data: bytes) -> None:
    assert read_untrusted(ether_type, data, PORTS).kind in KINDS


def test_prefixes() -> None:
    protected = Prefixes(["10.2.0.0/16", "fd00:2::/48"])
    for text, inside in (
        ("10.2.255.255", True), ("10.3.0.0", False), ("fd00:2::5", True), ("fd00:3::5", False),
    ):  # fmt: skip
        address = ip_address(text)
        assert ((address.version, int(address)) in protected) is inside
    with pytest.raises(ValueError, match="host bits"):
        Prefixes(["10.2.0.1/16"])


def test_a_datagram_of_the_meter_is_found_anywhere() -> None:
    datagram = encode(2**62, 7, 24)
    assert holds_datagram(datagram)
    assert holds_datagram(b"vlab" + bytes(30) + b"vlab" + datagram + b"behind")
    assert not holds_datagram(datagram[:19])
    assert not holds_datagram(b"vlab" + b"\xfe" * 40)

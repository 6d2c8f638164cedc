"""WireGuard's netlink messages: built in pieces that fit, merged again, hostile ones refused."""

from __future__ import annotations

import contextlib
import struct
from ipaddress import IPv4Network, ip_network

import pytest
from hypothesis import given, settings

from tests.tun.samples import device_changes
from tun.device import DeviceChange, DeviceState, PeerChange
from tun.errors import MalformedAnswer
from tun.keys import PrivateKey
from tun.model import PresharedKey
from tun.wgmessage import DeviceReader, build_get, build_set

PEER_A = bytes([0xAA]) * 32
PEER_B = bytes([0xBB]) * 32
PSK = bytes(range(1, 33))
OWN_PUBLIC = bytes([0xCC]) * 32
OWN_PRIVATE = bytes([0xDD]) * 32


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def nested(kind: int, *values: bytes) -> bytes:
    return attribute(0x8000 | kind, b"".join(values))


def allowed(address: bytes, mask: int) -> bytes:
    family = 2 if len(address) == 4 else 10
    return nested(
        0,
        attribute(1, struct.pack("=H", family)),
        attribute(2, address),
        attribute(3, bytes([mask])),
    )


# As the kernel dumps a device of two peers in two messages, the first peer spread over both.
FIRST = b"".join(
    [
        attribute(6, struct.pack("=H", 51820)),
        attribute(7, struct.pack("=I", 7)),
        attribute(1, struct.pack("=I", 3)),
        attribute(2, b"wg0\0"),
        attribute(3, OWN_PRIVATE),
        attribute(4, OWN_PUBLIC),
        nested(
            8,
            nested(
                0,
                attribute(1, PEER_A),
                attribute(2, PSK),
                attribute(6, struct.pack("=qq", 1700000000, 5)),
                attribute(5, struct.pack("=H", 25)),
                attribute(8, struct.pack("=Q", 2**64 - 1)),
                attribute(7, struct.pack("=Q", 4)),
                attribute(10, struct.pack("=I", 1)),
                attribute(4, struct.pack("=H", 2) + b"\xca\x6d\xc0\x00\x02\x02" + bytes(8)),
                nested(9, allowed(bytes([10, 0, 0, 2]), 32)),
            ),
        ),
    ]
)
SECOND = nested(
    8,
    nested(0, attribute(1, PEER_A), nested(9, allowed(b"\xfd" + bytes(15), 48))),
    nested(
        0,
        attribute(1, PEER_B),
        attribute(2, bytes(32)),
        attribute(6, bytes(16)),
        attribute(
            4, struct.pack("=H", 10) + b"\xca\x6e" + bytes(4) + b"\xfe\x80" + bytes(13) + b"\1"
            + struct.pack("=I", 3),
        ),
    ),
)  # fmt: skip


def read(*messages: bytes, only: bytes | None = None, keys: bool = False) -> DeviceState:
    reader = DeviceReader(only=only, keys=keys)
    for message in messages:
        reader.feed(memoryview(message))
    return reader.state()


def test_a_dump_in_parts_is_merged() -> None:
    state = read(FIRST, SECOND, keys=True)
    assert (state.public_key, state.listen_port, state.fwmark) == (OWN_PUBLIC, 51820, 7)
    assert list(state.peers) == [PEER_A, PEER_B]
    a, b = state.peers.values()
    assert a.allowed_ips == (ip_network("10.0.0.2/32"), ip_network("fd00::/48"))
    assert a.psk == PresharedKey(PSK)
    assert a.endpoint == ("192.0.2.2", 51821)
    assert a.handshake_stamp == (1700000000, 5)
    assert (a.rx_bytes, a.tx_bytes, a.keepalive) == (4, 2**64 - 1, 25)
    assert b.psk is None
    assert b.handshake_stamp is None
    assert b.endpoint == ("fe80::1%3", 51822)


def test_keys_are_dropped_unless_asked_for() -> None:
    assert read(FIRST, SECOND).peers[PEER_A].psk is None


def test_one_peer_alone_is_read() -> None:
    assert list(read(FIRST, SECOND, only=PEER_B).peers) == [PEER_B]
    assert read(FIRST, SECOND, only=PEER_A).peers[PEER_A].allowed_ips[1].prefixlen == 48


def test_a_device_without_a_key_has_none() -> None:
    assert read(attribute(6, struct.pack("=H", 0))).public_key is None


@pytest.mark.parametrize("message", [FIRST, SECOND], ids=["first", "second"])
def test_truncated_and_changed_messages_are_refused_or_harmless(message: bytes) -> None:
    """Whatever the bytes: an error of ours or a state, never another exception."""
    for length in range(len(message)):
        with contextlib.suppress(MalformedAnswer):
            read(message[:length], keys=True)
    for position in range(len(message)):
        for change in (0x01, 0x80, 0xFF):
            changed = bytearray(message)
            changed[position] ^= change
            with contextlib.suppress(MalformedAnswer):
                read(bytes(changed), keys=True)
    assert len(read(FIRST, SECOND).peers) == 2


@pytest.mark.parametrize(
    "message",
    [
        b"\x01",
        struct.pack("=HH", 3, 1),  # shorter than its own header
        struct.pack("=HH", 0, 1),
        struct.pack("=HH", 9, 4) + bytes(4),  # longer than what there is
        attribute(4, bytes(31)),
        attribute(6, bytes(4)),
        attribute(7, bytes(2)),
        nested(8, nested(0, attribute(2, PSK))),  # a peer without a public key
        nested(8, nested(0, attribute(1, PEER_A[:-1]))),
        nested(8, nested(0, attribute(1, PEER_A), attribute(4, bytes(16)))),
        nested(8, nested(0, attribute(1, PEER_A), attribute(4, bytes(20)))),
        nested(8, nested(0, attribute(1, PEER_A), attribute(7, bytes(4)))),
        nested(8, nested(0, attribute(1, PEER_A), nested(9, allowed(bytes(4), 33)))),
        nested(8, nested(0, attribute(1, PEER_A), nested(9, allowed(bytes(16), 129)))),
        nested(8, nested(0, attribute(1, PEER_A), nested(9, allowed(bytes(5), 8)))),
        nested(8, nested(0, attribute(1, PEER_A), nested(9, nested(0)))),
    ],
)
def test_nonsense_is_refused(message: bytes) -> None:
    with pytest.raises(MalformedAnswer):
        read(message, keys=True)


def test_an_update_of_a_preshared_key_says_nothing_else() -> None:
    change = PeerChange(public_key=PEER_A, psk=PresharedKey(PSK), update_only=True)
    assert build_set(3, DeviceChange(peers=(change,))) == [
        attribute(1, struct.pack("=I", 3))
        + nested(
            8,
            nested(0, attribute(1, PEER_A), attribute(3, struct.pack("=I", 4)), attribute(2, PSK)),
        )
    ]


def test_replacing_a_peer_is_one_message_that_adds_before_it_removes() -> None:
    added = PeerChange(public_key=PEER_A, psk=PresharedKey(PSK), replace_allowed_ips=True)
    removed = PeerChange(public_key=PEER_B, remove=True)
    (message,) = build_set(3, DeviceChange(peers=(added, removed)))
    assert message.index(PEER_A) < message.index(PSK) < message.index(PEER_B)
    assert message.endswith(attribute(1, PEER_B) + attribute(3, struct.pack("=I", 1)))


def test_a_new_device_gets_key_port_and_mark() -> None:
    key = PrivateKey(bytearray(OWN_PRIVATE))
    assert build_set(3, DeviceChange(private_key=key, listen_port=51820, fwmark=0)) == [
        attribute(1, struct.pack("=I", 3))
        + attribute(3, OWN_PRIVATE)
        + attribute(6, struct.pack("=H", 51820))
        + attribute(7, bytes(4))
    ]


def test_reading_names_the_interface_only() -> None:
    assert build_get(3) == attribute(1, struct.pack("=I", 3))


@settings(deadline=None)
@given(device_changes)
def test_what_is_set_is_read_back(change: DeviceChange) -> None:
    """A dump has the attributes of a change."""
    state = read(*(bytes(message) for message in build_set(3, change)), keys=True)
    assert set(state.peers) == {peer.public_key for peer in change.peers}
    for peer in change.peers:
        status = state.peers[peer.public_key]
        assert status.psk == peer.psk
        assert status.endpoint == peer.endpoint
        assert status.allowed_ips == peer.allowed_ips


def test_many_peers_and_prefixes_are_cut_into_messages_that_fit() -> None:
    many = tuple(IPv4Network((number << 8, 24)) for number in range(2500))
    peers = tuple(
        PeerChange(
            public_key=number.to_bytes(32, "big"),
            psk=PresharedKey(PSK),
            allowed_ips=many if number == 500 else many[:2],
            replace_allowed_ips=True,
        )
        for number in range(1, 1001)
    )
    messages = build_set(3, DeviceChange(peers=peers))
    assert all(len(message) < 65536 for message in messages)
    assert len(messages) < 20
    state = read(*(bytes(message) for message in messages), keys=True)
    assert len(state.peers) == 1000
    for peer in peers:
        assert state.peers[peer.public_key].allowed_ips == peer.allowed_ips
        assert state.peers[peer.public_key].psk == peer.psk
    # A peer's PSK comes in its first piece; what follows can only add to a peer that is there.
    pieces = [
        message[message.index(key) :]
        for message in messages
        if (key := (500).to_bytes(32, "big")) in message
    ]
    assert len(pieces) > 1
    assert pieces[0].index(PSK) < 64
    for piece in pieces[1:]:
        assert piece[32:].startswith(attribute(3, struct.pack("=I", 4)))

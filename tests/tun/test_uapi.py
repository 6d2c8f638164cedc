"""wireguard-go's protocol: what is asked, what is understood, and what is refused."""

from __future__ import annotations

import errno
from ipaddress import ip_network
from itertools import pairwise

import pytest
from hypothesis import given, settings

from tests.tun.samples import device_changes
from tun.device import DeviceChange, PeerChange
from tun.errors import MalformedAnswer
from tun.keys import PrivateKey, public_key_of
from tun.model import PresharedKey
from tun.uapi import UapiRefused, build_set, parse_get, parse_set

OWN = bytes(range(32))
PEER_A = bytes([0xAA]) * 32
PEER_B = bytes([0xBB]) * 32
PSK = bytes(range(1, 33))

ANSWER = bytearray(
    f"""private_key={OWN.hex()}
listen_port=51820
fwmark=7
public_key={PEER_A.hex()}
preshared_key={PSK.hex()}
protocol_version=1
endpoint=192.0.2.2:51821
last_handshake_time_sec=1700000000
last_handshake_time_nsec=123456789
tx_bytes=18446744073709551615
rx_bytes=4
persistent_keepalive_interval=25
allowed_ip=10.0.0.2/32
allowed_ip=fd00::/48
public_key={PEER_B.hex()}
preshared_key={bytes(32).hex()}
protocol_version=1
endpoint=[2001:db8::2]:51822
last_handshake_time_sec=0
last_handshake_time_nsec=0
tx_bytes=0
rx_bytes=0
persistent_keepalive_interval=0
errno=0

""".encode()
)


def test_a_dump_is_read() -> None:
    state = parse_get(ANSWER, keys=True)
    assert state.public_key == public_key_of(OWN)
    assert (state.listen_port, state.fwmark) == (51820, 7)
    assert list(state.peers) == [PEER_A, PEER_B]
    a, b = state.peers.values()
    assert a.psk == PresharedKey(PSK)
    assert a.endpoint == ("192.0.2.2", 51821)
    assert a.handshake_stamp == (1700000000, 123456789)
    assert (a.rx_bytes, a.tx_bytes, a.keepalive) == (4, 2**64 - 1, 25)
    assert a.allowed_ips == (ip_network("10.0.0.2/32"), ip_network("fd00::/48"))
    assert b.psk is None
    assert b.endpoint == ("2001:db8::2", 51822)
    assert b.handshake_stamp is None


def test_keys_are_dropped_unless_asked_for() -> None:
    assert parse_get(ANSWER).peers[PEER_A].psk is None


def test_one_peer_alone_is_read() -> None:
    state = parse_get(ANSWER, only=PEER_B, keys=True)
    assert list(state.peers) == [PEER_B]
    assert state.public_key is not None
    assert parse_get(ANSWER, only=OWN).peers == {}


def test_a_device_without_a_key_has_none() -> None:
    assert parse_get(bytearray(b"listen_port=0\nerrno=0\n\n")).public_key is None


def test_a_refusal_is_an_error_with_its_number() -> None:
    for text in (b"errno=98\n\n", b"errno=-98\n\n"):
        with pytest.raises(UapiRefused) as caught:
            parse_set(bytearray(text))
        assert caught.value.errno == errno.EADDRINUSE
        assert caught.value.strerror


def test_what_later_versions_add_is_skipped() -> None:
    longer = ANSWER.replace(b"protocol_version=1", b"something_new=a=b")
    assert parse_get(longer) == parse_get(ANSWER)


def test_every_truncation_is_refused() -> None:
    for length in range(len(ANSWER)):
        with pytest.raises(MalformedAnswer):
            parse_get(ANSWER[:length])
    parse_get(ANSWER)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"listen_port=51820", b"listen_port=65536"),
        (b"listen_port=51820", b"listen_port=-1"),
        (b"listen_port=51820", b"listen_port="),
        (b"listen_port=51820", b"listen_port=" + b"9" * 100_000),
        (b"listen_port=51820", b"listen_port"),
        (b"listen_port=51820", b"\nlisten_port=51820"),
        (b"fwmark=7", b"fwmark=0x7"),
        (b"fwmark=7", "fwmark=\u0667".encode()),
        (b"errno=0\n", b""),
        (b"errno=0\n", b"errno=\n"),
        (b"errno=0\n", b"errno=0\nfwmark=7\n"),
        (b"192.0.2.2:51821", b"192.0.2.2"),
        (b"192.0.2.2:51821", b"192.0.2.2:0"),
        (b"192.0.2.2:51821", b"192.0.2.2:65536"),
        (b"192.0.2.2:51821", b"192.0.2.256:51821"),
        (b"192.0.2.2:51821", b"\xff:51821"),
        (b"10.0.0.2/32", b"10.0.0.2/33"),
        (b"10.0.0.2/32", b""),
        (PEER_A.hex().encode(), PEER_A.hex()[2:].encode()),
        (PEER_A.hex().encode(), PEER_A.hex().encode() + b"00"),
        (PEER_A.hex().encode(), b"zz" * 32),
        (PEER_A.hex().encode(), PEER_B.hex().encode()),
        (PSK.hex().encode(), PSK.hex()[2:].encode()),
        (PSK.hex().encode(), b"xy" + PSK.hex()[2:].encode()),
        (OWN.hex().encode(), b"xy" + OWN.hex()[2:].encode()),
        (b"rx_bytes=4", b"rx_bytes=18446744073709551616"),
        (b"time_nsec=123456789", b"time_nsec=4294967296"),
    ],
)
def test_nonsense_is_refused_and_shows_no_key(old: bytes, new: bytes) -> None:
    assert old in ANSWER
    with pytest.raises(MalformedAnswer) as caught:
        parse_get(ANSWER.replace(old, new), keys=True)
    error: BaseException | None = caught.value
    assert PSK.hex()[2:] not in str(error)
    assert OWN.hex()[2:] not in str(error)
    while error is not None:  # nor does any frame of the traceback hold one
        traceback = error.__traceback__
        while traceback is not None:
            if traceback.tb_frame.f_code.co_filename.endswith("tun/uapi.py"):
                for name, value in traceback.tb_frame.f_locals.items():
                    if name != "answer":
                        assert PSK.hex()[2:] not in repr(value)
            traceback = traceback.tb_next
        error = error.__context__
    parse_get(ANSWER)


def test_an_update_of_a_preshared_key_says_nothing_else() -> None:
    change = PeerChange(public_key=PEER_A, psk=PresharedKey(PSK), update_only=True)
    assert (
        build_set(DeviceChange(peers=(change,)))
        == (
            f"set=1\npublic_key={PEER_A.hex()}\nupdate_only=true\npreshared_key={PSK.hex()}\n\n"
        ).encode()
    )


def test_replacing_a_peer_adds_before_it_removes() -> None:
    added = PeerChange(
        public_key=PEER_A,
        psk=PresharedKey(PSK),
        endpoint=("2001:db8::2", 51820),
        keepalive=25,
        allowed_ips=(ip_network("10.0.0.0/24"), ip_network("::/0")),
        replace_allowed_ips=True,
    )
    change = DeviceChange(peers=(added, PeerChange(public_key=PEER_B, remove=True)))
    assert (
        build_set(change)
        == (
            f"set=1\npublic_key={PEER_A.hex()}\npreshared_key={PSK.hex()}\n"
            "endpoint=[2001:db8::2]:51820\npersistent_keepalive_interval=25\n"
            "replace_allowed_ips=true\nallowed_ip=10.0.0.0/24\nallowed_ip=::/0\n"
            f"public_key={PEER_B.hex()}\nremove=true\n\n"
        ).encode()
    )


def test_a_new_device_gets_key_port_and_mark() -> None:
    change = DeviceChange(private_key=PrivateKey(bytearray(OWN)), listen_port=51820, fwmark=0)
    assert build_set(change) == (
        f"set=1\nprivate_key={OWN.hex()}\nlisten_port=51820\nfwmark=0\n\n".encode()
    )


@settings(deadline=None)
@given(device_changes)
def test_requests_are_lines_and_no_refused_line_is_followed_by_a_key(change: DeviceChange) -> None:
    """wireguard-go writes the line after one that it refuses to its log."""
    request = build_set(change)
    assert request.endswith(b"\n\n")
    assert request.count(b"\n\n") == 1
    names = [line.partition("=")[0] for line in request.decode().splitlines()[:-1]]
    for before, name in pairwise(names):
        if name == "preshared_key":
            assert before in ("public_key", "update_only")


@settings(deadline=None)
@given(device_changes)
def test_what_is_set_is_read_back(change: DeviceChange) -> None:
    """A request has the lines of an answer, save for its first one and the flags."""
    request = build_set(change)
    answer = request.removeprefix(b"set=1\n")[:-1] + b"errno=0\n\n"
    state = parse_get(bytearray(answer), keys=True)
    for peer in change.peers:
        status = state.peers[peer.public_key]
        assert status.psk == peer.psk
        assert status.endpoint == peer.endpoint
        assert status.allowed_ips == peer.allowed_ips

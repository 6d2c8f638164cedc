"""Values of `tun`: what cannot be is refused, and a secret shows itself nowhere."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from ipaddress import ip_interface, ip_network

import pytest

from tun import PeerSpec, PresharedKey, TunnelSpec, generate_keypair
from tun.keys import public_key_of

KEY = bytes(range(1, 33))
SHOWN = (KEY.hex(), repr(KEY), "0102030405", r"\x01\x02\x03")


def spec(**changes: object) -> TunnelSpec:
    return TunnelSpec(interface="wg0", tunnel_name="t", listen_port=51820, **changes)  # type: ignore[arg-type]


def peer(**changes: object) -> PeerSpec:
    values = {
        "public_key": bytes(32),
        "psk": PresharedKey(KEY),
        "allowed_ips": (ip_network("10.0.0.2/32"),),
    }
    return PeerSpec(**(values | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "shown",
    [
        repr(PresharedKey(KEY)),
        str(PresharedKey(KEY)),
        f"{PresharedKey(KEY):>40}",
        repr(peer()),
        repr([{"psk": PresharedKey(KEY)}]),
    ],
)
def test_a_preshared_key_shows_itself_nowhere(shown: str) -> None:
    assert "redacted" in shown
    assert not any(part in shown for part in SHOWN)


def test_a_preshared_key_leaves_by_expose_only() -> None:
    psk = PresharedKey(KEY)
    assert psk.expose() == KEY
    assert psk == PresharedKey(KEY)
    assert psk != PresharedKey(bytes(reversed(KEY)))
    assert psk != KEY
    assert hash(psk) == hash(PresharedKey(KEY))
    assert copy.deepcopy(psk) is psk
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(psk)


@pytest.mark.parametrize("key", [b"", KEY[:-1], KEY + b"\0", bytes(32)])
def test_what_is_no_preshared_key_is_refused(key: bytes) -> None:
    with pytest.raises(ValueError, match="preshared key"):
        PresharedKey(key)


def test_a_private_key_is_redacted_and_overwritten() -> None:
    keys = generate_keypair()
    assert keys.public_key == public_key_of(keys.private_key.expose())
    assert keys.private_key.expose().hex() not in repr(keys)
    assert bytes(keys.private_key.expose()) not in repr(keys).encode("latin-1")
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(keys)
    keys.private_key.wipe()
    assert keys.private_key.expose() == bytes(32)


def test_private_keys_are_clamped_and_differ() -> None:
    keys = [generate_keypair() for _ in range(16)]
    assert len({pair.public_key for pair in keys}) == len(keys)
    for pair in keys:
        buffer = pair.private_key.expose()
        assert (buffer[0] & 7, buffer[31] >> 6) == (0, 1)


def test_public_key_is_that_of_rfc_7748() -> None:
    # RFC 7748 §6.1, Alice's
    private = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    public = bytes.fromhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
    assert public_key_of(private) == public


@pytest.mark.parametrize(
    "changes",
    [
        {"interface": ""},
        {"interface": "a" * 16},
        {"interface": "wg 0"},
        {"interface": "wg/0"},
        {"interface": "wg\n0"},
        {"interface": "wgé"},
        {"interface": ".."},
        {"tunnel_name": ""},
        {"tunnel_name": "a\nb"},
        {"tunnel_name": "a" * 129},
        {"listen_port": 0},
        {"listen_port": 65536},
        {"mtu": 575},
        {"mtu": 65536},
        {"mtu": 1279, "addresses": (ip_interface("fd00::1/64"),)},
        {"table": 0},
        {"table": 2**32},
        {"metric": 2**32 - 2},  # the guard routes'
        {"metric": -1},
        {"fwmark": 2**32},
    ],
)
def test_what_cannot_be_a_tunnel_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"name|listen_port|mtu|table|metric|fwmark"):
        replace(spec(), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {"public_key": KEY[:-1]},
        {"keepalive": -1},
        {"keepalive": 65536},
        {"endpoint": ("192.0.2.1", 0)},
        {"endpoint": ("192.0.2.1", 65536)},
        {"endpoint": ("gateway.example.net", 51820)},
        {"endpoint": ("fe80::1%eth0", 51820)},
        {"endpoint": ("fe80::1%\npublic_key=00", 51820)},
        {"endpoint": ("192.0.2.1%2", 51820)},
    ],
)
def test_what_cannot_be_a_peer_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"public key|keepalive|endpoint|address"):
        peer(**changes)


def test_values_are_frozen_and_comparable() -> None:
    assert peer() == peer()
    assert hash(peer()) == hash(peer())
    assert spec().alias == "vpnd:t"
    assert spec().mtu == 1420

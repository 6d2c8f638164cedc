"""From the end of the handshake to the PSK: every input counts, and every output is another."""

from __future__ import annotations

import hashlib
import hmac
import itertools
from typing import Any

import pytest

from kex import labels, schedule
from kex.external import ExternalKey
from kex.schedule import Exporter, Root
from kex.secret import Secret
from kex.suites import Suite
from kex.suites import suite as make_suite

from .harness import SUITES, absent, external_key, pair, run_exchange
from .reference import SeededBytes

HASHES = {1: "sha256", 2: "sha384"}


@pytest.fixture(params=SUITES, ids=["suite 1", "suite 2"])
def suite(request: pytest.FixtureRequest) -> Suite:
    return make_suite(request.param, random=SeededBytes(b"suite"))


def exporter(suite: Suite, ck: bytes = b"c", h: bytes = b"h") -> Exporter:
    size = suite.hash_length
    return schedule.export(suite, Secret(ck * size), h * size)


def root(suite: Suite, external: tuple[ExternalKey, ...] = (), **changes: Any) -> Root:
    inputs = {"h": b"h" * suite.hash_length, "exchange_id": b"exchange", "biscuit": b"biscuit"}
    h3 = schedule.transcript3(suite, **(inputs | {"c_i": b"c_i"} | changes))
    return schedule.mix_root(suite, exporter(suite), h3, external)


def expand(name: str, prk: bytes, info: bytes, length: int) -> bytes:
    """HKDF-Expand for at most two blocks (RFC 5869 §2.3)."""
    first = hmac.digest(prk, info + b"\x01", name)
    return (first + hmac.digest(prk, first + info + b"\x02", name))[:length]


def test_against_the_standard_library(suite: Suite) -> None:
    """The whole way, written once more."""
    name, size = HASHES[suite.number], suite.hash_length
    ck, h = b"c" * size, b"h" * size
    keys = (external_key("a"), absent(external_key("b")))
    exported = hmac.digest(ck, b"vpnd exporter" + h, name)
    h3 = hashlib.new(name, h + b"exchange" + b"biscuit" + b"c_i").digest()
    key = external_key("a").key
    assert key is not None
    mixed = b"\x01\x00\x20" + key.expose() + b"\x00\x00\x00"
    prk = hmac.digest(exported, h3 + mixed, name)
    h4 = hashlib.new(name, h3 + b"c_r").digest()
    psk_root = expand(name, prk, b"vpnd psk root", size)

    got = exporter(suite)
    assert got.exporter == Secret(exported)
    assert got.k_rej == Secret(expand(name, exported, b"vpnd key reject", 32))
    assert got.h == h
    made = root(suite, keys)
    assert made.h3 == h3
    assert made.root == Secret(prk)
    assert made.conf_i == Secret(expand(name, prk, b"vpnd confirmation initiator", size))
    assert made.k_resp == Secret(expand(name, prk, b"vpnd key resp", 32))
    assert made.psk_root == Secret(psk_root)
    assert schedule.confirmation(suite, made) == hmac.digest(made.conf_i.expose(), h3, name)
    key_out = schedule.session_key(suite, made, b"c_r")
    assert key_out.h4 == h4
    assert key_out.psk == Secret(expand(name, psk_root, b"wireguard psk" + h4, 32))
    assert key_out.key_id == hashlib.new(name, b"vpnd key id" + h4).hexdigest()[:8]


def test_every_input_changes_the_psk(suite: Suite) -> None:
    size = suite.hash_length
    roots = [
        root(suite),
        root(suite, h=b"x" * size),
        root(suite, exchange_id=b"another!"),
        root(suite, biscuit=b"another"),
        root(suite, c_i=b"another"),
        root(suite, (external_key("a"),)),
        root(suite, (external_key("b"),)),
        root(suite, (absent(external_key("a")),)),
        root(suite, (external_key("a"), external_key("b"))),
        root(suite, (external_key("b"), external_key("a"))),
    ]
    psks = {
        schedule.session_key(suite, made, c_r).psk for made in roots for c_r in (b"one", b"two")
    }
    assert len(psks) == 2 * len(roots)
    h3 = roots[0].h3
    for other in (exporter(suite, ck=b"x"), exporter(suite, h=b"x")):
        assert schedule.mix_root(suite, other, h3, ()).root != roots[0].root


def test_every_output_is_another(suite: Suite) -> None:
    made, exported = root(suite), exporter(suite)
    key = schedule.session_key(suite, made, b"c_r")
    secrets = [exported.exporter, exported.k_rej, made.root, made.conf_i, made.k_resp]
    secrets += [made.psk_root, key.psk, Secret(schedule.confirmation(suite, made))]
    for one, other in itertools.combinations(secrets, 2):
        assert one.expose()[:16] != other.expose()[:16]
    public = key.key_id + key.h4.hex() + made.h3.hex()
    assert not any(secret.expose().hex()[:16] in public for secret in secrets)


def test_lengths(suite: Suite) -> None:
    size = {1: 32, 2: 48}[suite.number]
    made, exported = root(suite), exporter(suite)
    key = schedule.session_key(suite, made, b"c_r")
    assert len(made.k_resp) == len(exported.k_rej) == len(key.psk) == 32
    assert {len(s) for s in (exported.exporter, made.root, made.conf_i, made.psk_root)} == {size}
    assert len(made.h3) == len(key.h4) == size
    assert len(key.key_id) == 8
    assert set(key.key_id) <= set("0123456789abcdef")


def test_both_wireguard_keys_are_in_the_psk() -> None:
    """They stand in P_i and P_r, so in h4: who is told another key of the peer's gets another
    PSK."""
    network = pair()
    run_exchange(network)
    keys = [network[name].installed[-1] for name in ("left", "right")]
    assert keys[0].peer.wireguard_key != keys[1].peer.wireguard_key
    assert keys[0].peer.wireguard_key.startswith(b"right")
    assert keys[0].psk == keys[1].psk


def test_key_ids_of_many_exchanges_differ() -> None:
    network = pair()
    assert len({run_exchange(network) for _ in range(20)}) == 20


def test_no_secret_is_shown(suite: Suite) -> None:
    made, exported = root(suite), exporter(suite)
    for shown in (repr(made), repr(exported), repr(schedule.session_key(suite, made, b"c_r"))):
        for secret in (made.root, made.psk_root, made.conf_i, exported.exporter):
            assert secret.expose().hex() not in shown
            assert repr(secret.expose())[2:-1] not in shown


def test_labels_of_the_schedule() -> None:
    assert len({labels.EXPORTER, labels.CONF_I, labels.K_RESP, labels.K_REJ, labels.PSK_ROOT}) == 5

"""docs/vectors: made again they are the same, and a second implementation finds every value."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from . import make_exchange_vectors as maker
from . import second_implementation as second
from .second_implementation import SUITES, Noise

FOLDER = Path(__file__).parent.parent.parent / "docs" / "vectors"
TYPES = {
    "INIT_HELLO": 1,
    "RESP_HELLO": 2,
    "INIT_CONF": 3,
    "RESP_CONF": 4,
    "COOKIE_REPLY": 5,
    "IDENTITY_QUERY": 6,
    "IDENTITY_REPLY": 7,
    "REJECT": 8,
}
FROM_RESPONDER = {2, 4, 5, 7, 8}


@cache
def published(number: int) -> list[dict[str, Any]]:
    vectors: list[dict[str, Any]] = json.loads(
        (FOLDER / f"exchange-suite{number}.json").read_text()
    )
    return vectors


ALL = [(number, n) for number in (1, 2) for n in range(len(published(number)))]
each = pytest.mark.parametrize(
    "place", ALL, ids=[f"suite {s}: {published(s)[n]['name']}" for s, n in ALL]
)


@pytest.fixture
def v(place: tuple[int, int]) -> dict[str, Any]:
    return published(place[0])[place[1]]


def h(text: str) -> bytes:
    return bytes.fromhex(text)


@pytest.mark.parametrize("number", [1, 2])
def test_made_again_they_are_the_same(number: int) -> None:
    assert maker.text(number) == maker.path(number).read_text()


@pytest.mark.parametrize("number", [1, 2])
def test_what_is_there(number: int) -> None:
    vectors = published(number)
    mixed = [sum(k["present"] for k in v["external_keys"]) for v in vectors]
    assert {0, 1, 2} <= set(mixed)
    assert any(len(v["external_keys"]) > m > 0 for v, m in zip(vectors, mixed, strict=True))
    assert {d["type"] for v in vectors for d in v["datagrams"]} == set(TYPES)
    assert len({v["exchange_id"] for v in vectors}) == len(vectors)


@each
def test_identities(v: dict[str, Any]) -> None:
    suite = SUITES[v["suite"]]
    for role in ("initiator", "responder"):
        static, name = v[f"{role}_static"], v[f"{role}_fingerprint"]
        assert suite.key_pair(h(static["seed"]))[0] == h(static["public"])
        assert second.fingerprint(suite.number, h(static["public"])) == h(name["digest"])
        text = second.bech32m("vpnd", bytes([suite.number]) + h(name["digest"]))
        assert (text, len(text)) == (name["text"], 64)


@each
def test_handshake(v: dict[str, Any]) -> None:
    suite = SUITES[v["suite"]]
    assert (suite.name.decode(), h(v["prologue"])) == (v["protocol_name"], b"vpnd key exchange v1")
    ephemeral = suite.key_pair(h(v["initiator_ephemeral"]["seed"]))[0]
    assert ephemeral == h(v["initiator_ephemeral"]["public"])
    kems = {}
    for name in ("message1_skem", "message2_ekem", "message2_skem"):
        kem = v[name]
        kems[name] = suite.encapsulate(h(v[kem["to"]]["public"]), h(kem["eseed"]))
        assert kems[name] == (h(kem["ciphertext"]), h(kem["shared_secret"]))
        # and the other end finds the same secret
        found = suite.decapsulate(h(v[kem["to"]]["seed"]), h(kem["ciphertext"]))
        assert found == h(kem["shared_secret"])
    noise = Noise(suite, h(v["responder_static"]["public"]))
    static = h(v["initiator_static"]["public"])
    assert noise.message1(kems["message1_skem"], ephemeral, static) == h(v["message1"])
    assert (noise.ck, noise.h) == (h(v["ck_after_message1"]), h(v["h_after_message1"]))
    assert noise.message2(kems["message2_ekem"], kems["message2_skem"]) == h(v["message2"])
    assert (noise.ck, noise.h) == (h(v["ck"]), h(v["h"]))
    assert noise.split() == (h(v["k_i2r"]), h(v["k_r2i"]))
    assert [v["message1_length"], v["message2_length"]] == {1: [3584, 2272], 2: [5027, 3362]}[
        suite.number
    ]
    assert (v["payload1"], v["payload2"]) == ("", "")
    for key, probe in ((v["k_i2r"], v["probe_i2r"]), (v["k_r2i"], v["probe_r2i"])):
        assert suite.seal(h(key), 0, b"", bytes(16)) == h(probe)


@each
def test_biscuit(v: dict[str, Any]) -> None:
    suite = SUITES[v["suite"]]
    digests = [h(v[f"{role}_fingerprint"]["digest"]) for role in ("initiator", "responder")]
    assert h(v["ck"]) + h(v["h"]) + digests[0] == h(v["biscuit_plaintext"])
    ad = b"vpnd biscuit" + h(v["biscuit_key_id"]) + h(v["exchange_id"]) + digests[1]
    assert ad == h(v["biscuit_associated_data"])
    made = second.biscuit(
        suite,
        key_id=h(v["biscuit_key_id"]),
        key=h(v["biscuit_key"]),
        number=v["biscuit_number"],
        ad=ad,
        plaintext=h(v["biscuit_plaintext"]),
    )
    assert made == h(v["biscuit"])
    assert len(made) == suite.biscuit_length


@each
def test_key_schedule(v: dict[str, Any]) -> None:
    suite = SUITES[v["suite"]]
    size = suite.hash_length
    k_i2r, h_noise, biscuit = h(v["k_i2r"]), h(v["h"]), h(v["biscuit"])
    exporter = suite.mac(h(v["ck"]), b"vpnd exporter" + h_noise)
    assert exporter == h(v["exporter"])
    assert suite.expand(exporter, b"vpnd key reject", 32) == h(v["k_rej"])
    c_i = suite.seal(k_i2r, 0, h_noise + biscuit, h(v["p_i"]))
    assert c_i == h(v["c_i"])
    h3 = suite.digest(h_noise + h(v["exchange_id"]) + biscuit + c_i)
    assert h3 == h(v["h3"])
    keys = [None if k["key"] is None else h(k["key"]) for k in v["external_keys"]]
    assert second.root_input(keys) == h(v["root_input"])
    root = suite.mac(exporter, h3 + second.root_input(keys))
    assert root == h(v["root"])
    assert suite.expand(root, b"vpnd confirmation initiator", size) == h(v["conf_i"])
    assert suite.expand(root, b"vpnd key resp", 32) == h(v["k_resp"])
    assert suite.expand(root, b"vpnd psk root", size) == h(v["psk_root"])
    confirm_i = suite.mac(h(v["conf_i"]), h3)
    assert confirm_i == h(v["confirm_i"])
    assert suite.seal(k_i2r, 1, h3, confirm_i) == h(v["confirm_i_sealed"])
    if "reject" in v:
        sealed = suite.seal(h(v["k_rej"]), 0, h3, h(v["reject_reason"]))
        assert sealed == h(v["reject"])
        others = [h(k["key"]) for k in v["responder_external_keys"]]
        assert suite.mac(exporter, h3 + second.root_input(list(others))) != root
        return
    c_r = suite.seal(h(v["k_resp"]), 0, h3, h(v["p_r"]))
    assert c_r == h(v["c_r"])
    h4 = suite.digest(h3 + c_r)
    assert h4 == h(v["h4"])
    assert suite.expand(h(v["psk_root"]), b"wireguard psk" + h4, 32) == h(v["psk"])
    assert suite.digest(b"vpnd key id" + h4)[:4].hex() == v["key_id"]


@each
def test_payloads(v: dict[str, Any]) -> None:
    p_i = h(v["p_i"])
    assert len(p_i) == {1: 1008, 2: 960}[v["suite"]]
    assert second.payload_fields(p_i) == v["p_i_fields"]
    listed = [
        [k["source_type"], k["source"], k["sae"], k["key_ids"], k["bits"], k["present"]]
        for k in v["external_keys"]
    ]
    assert v["p_i_fields"]["keys"] == listed
    assert listed == sorted(listed)
    for k in v["external_keys"]:
        assert k["present"] is (k["key"] is not None)
        assert not k["present"] or len(h(k["key"])) * 8 == k["bits"]
    if "reject" in v:
        assert len(h(v["reject_reason"])) == 240
        assert second.payload_fields(h(v["reject_reason"])) == v["reject_fields"]
        assert v["reject_fields"]["code"] == 5
        return
    assert len(h(v["p_r"])) == 1000
    fields = second.payload_fields(h(v["p_r"]))
    assert fields == v["p_r_fields"]
    assert fields["suite"] == v["suite"]
    assert fields["mixed"] == sum(k["present"] for k in v["external_keys"])


@each
def test_cookies(v: dict[str, Any]) -> None:
    if "cookies" not in v:
        assert "COOKIE_REPLY" not in {d["type"] for d in v["datagrams"]}
        return
    told, digest = v["cookies"], h(v["responder_fingerprint"]["digest"])
    assert second.cookie(h(told["secret"]), told["address"]) == h(told["cookie"])
    assert second.cookie_reply_key(v["suite"], digest) == h(told["key"])
    for reply in told["replies"]:
        sealed = second.xchacha20_poly1305(
            h(told["key"]), h(reply["nonce"]), h(told["cookie"]), h(reply["answers_mac1"])
        )
        assert h(reply["nonce"]) + sealed == h(reply["body"])


@each
def test_every_datagram(v: dict[str, Any]) -> None:
    """The list, in its order, out of the messages."""
    suite = v["suite"]
    asked = h(v["responder_fingerprint"]["digest"])
    exchange_id = h(v["exchange_id"])

    def key(kind: int) -> bytes:
        return second.mac1_key(kind, suite, asked)

    for name, value in v["mac1_keys"].items():
        assert key(TYPES[name]) == h(value)
    assert set(v["mac1_keys"]) == {d["type"] for d in v["datagrams"]}

    cookie = h(v["cookies"]["cookie"]) if "cookies" in v else b""
    public_key = h(v["responder_static"]["public"])
    hello, conf = h(v["message1"]), h(v["biscuit"]) + h(v["c_i"]) + h(v["confirm_i_sealed"])
    assert len(conf) == 1200

    def sent(kind: int, body: bytes, cookie: bytes = b"") -> list[tuple[int, bytes]]:
        return [(kind, d) for d in second.cut(kind, suite, exchange_id, body, key(kind), cookie)]

    expected = []
    if "IDENTITY_QUERY" in v["mac1_keys"]:
        expected += sent(6, bytes(len(public_key))) + sent(7, public_key)
    expected += sent(1, hello)
    if cookie:
        for reply in v["cookies"]["replies"]:
            expected += sent(5, h(reply["body"]))
        expected += sent(1, hello, cookie)
    expected += sent(2, h(v["message2"]) + h(v["biscuit"]))
    expected += sent(3, conf, cookie)
    expected += sent(8, h(v["reject"])) if "reject" in v else sent(4, h(v["c_r"]))

    # Answers may overtake questions that are still on their way: each direction has its order
    for direction in ("initiator to responder", "responder to initiator"):
        from_responder = direction.startswith("responder")
        listed = [
            (TYPES[d["type"]], h(d["data"])) for d in v["datagrams"] if d["direction"] == direction
        ]
        assert listed == [e for e in expected if (e[0] in FROM_RESPONDER) is from_responder]
    assert max(len(h(d["data"])) for d in v["datagrams"]) == 1232

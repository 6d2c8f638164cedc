"""Each fault that a key manager can be told shows on the wire as told, and ends when it ends."""

from __future__ import annotations

import base64
import http.client
import json
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import trio

from tests.lab.kme_caller import Caller, both
from vpnd_lab.kme.certificates import CertificateKind
from vpnd_lab.kme.faults import KINDS, Fault, FaultBook, FaultError

pytestmark = pytest.mark.slow

NEW = "/api/v1/keys/sae-b/enc_keys"
STATUS = "/api/v1/keys/sae-b/status"


def _bits(key: Any) -> int:
    return len(base64.b64decode(key["key"], validate=True)) * 8


def _is_json(body: bytes) -> bool:
    try:
        json.loads(body)
    except ValueError:
        return False
    return True


def _not_base64(key: Any) -> bool:
    try:
        base64.b64decode(key["key"], validate=True)
    except ValueError:
        return True
    return False


# What comes of a request for one key of 256 bits.
DOCUMENTS: dict[str, Callable[[Any], bool]] = {
    "wrong-shape": lambda got: isinstance(got, list),
    "nulls": lambda got: got == {"keys": [{"key_ID": None, "key": None}]},
    "unknown-fields": lambda got: len(got) > 1 and _bits(got["keys"][0]) == 256,
    "keys-none": lambda got: got == {"keys": []},
    "keys-extra": lambda got: len({key["key_ID"] for key in got["keys"]}) == 2,
    "key-short": lambda got: _bits(got["keys"][0]) == 248,
    "key-long": lambda got: _bits(got["keys"][0]) == 264,
    "key-not-encoded": lambda got: _not_base64(got["keys"][0]),
    "id-missing": lambda got: list(got["keys"][0]) == ["key"],
    "id-doubled": lambda got: got["keys"][0] == got["keys"][1],
    "bytes-for-bits": lambda got: _bits(got["keys"][0]) == 2048,
}


@pytest.mark.parametrize("kind", DOCUMENTS)
async def test_documents_are_wrong_as_told(tmp_path: Path, kind: str) -> None:
    async with both(tmp_path) as (near, far):
        near.fault(kind, calls=["enc_keys"], times=1)
        assert (await near.call("GET", STATUS)).document["key_size"] == 256
        got = await near.call("POST", NEW, {"size": 256})
        assert (got.status, DOCUMENTS[kind](got.document)) == (200, True)
        await works(near, far)


async def works(near: Caller, far: Caller) -> None:
    """A real key, at both ends."""
    (key,) = await near.keys("sae-b", {"size": 256})
    assert (await far.fetch("sae-a", key["key_ID"])).document == {"keys": [key]}


@pytest.mark.parametrize(("kind", "field"), [("key-differs", "key"), ("id-other", "key_ID")])
async def test_the_far_end_gets_another_key_or_id(tmp_path: Path, kind: str, field: str) -> None:
    async with both(tmp_path) as (near, far):
        far.fault(kind, calls=["dec_keys"], times=1)
        (key,) = await near.keys("sae-b")
        (got,) = (await far.fetch("sae-a", key["key_ID"])).document["keys"]
        assert {name for name in key if key[name] != got[name]} == {field}
        assert _bits(got) == 256
        await works(near, far)


@pytest.mark.parametrize("status", [400, 401, 404, 422, 500, 503])
@pytest.mark.parametrize("body", ["json", "html", "empty"])
async def test_statuses_with_each_kind_of_body(tmp_path: Path, status: int, body: str) -> None:
    async with both(tmp_path) as (near, far):
        near.fault("status", status=status, body=body, times=2)
        for method, path in (("GET", STATUS), ("POST", NEW)):
            got = await near.call(method, path)
            assert got.status == status
            assert _is_json(got.body) == (body == "json")
            assert (got.body == b"") == (body == "empty")
            assert ("html" in got.content_type) == (body == "html")
        assert near.kme.network.key_counts()["made"] == 0
        await works(near, far)


@pytest.mark.parametrize(
    ("fault", "status", "says"),
    [
        ({"kind": "status", "status": 422, "body": "fields"}, 422, b'"loc": ["body", "size"]'),
        ({"kind": "status", "status": 400, "body": "certificate"}, 400, b"SSL certificate error"),
        ({"kind": "message-only"}, 200, b'"message"'),
        ({"kind": "no-post"}, 405, b"Method Not Allowed"),
    ],
)
async def test_answers_as_others_give_them(
    tmp_path: Path, fault: dict[str, Any], status: int, says: bytes
) -> None:
    async with both(tmp_path) as (near, far):
        near.fault(**fault, times=1, calls=["enc_keys"])
        got = await near.call("POST", NEW)
        assert got.status == status
        assert says in got.body
        assert near.kme.network.key_counts()["made"] == 0
        near.fault("no-post", calls=["status"], times=1)
        assert (await near.call("GET", STATUS)).status == 200
        await works(near, far)


async def test_answers_that_end_too_early(tmp_path: Path) -> None:
    async with both(tmp_path) as (near, far):
        near.fault("json-cut", calls="enc_keys", times=1)
        got = await near.call("POST", NEW)
        assert (got.status, _is_json(got.body)) == (200, False)
        near.fault("connection-cut", calls="enc_keys", times=1)
        with pytest.raises(http.client.IncompleteRead):
            await near.call("POST", NEW)
        near.fault("answer-lost", calls="enc_keys", times=1)
        with pytest.raises((http.client.RemoteDisconnected, ssl.SSLEOFError)):
            await near.call("POST", NEW)
        # All three keys are gone all the same
        assert near.kme.network.key_counts()["made"] == 3
        await works(near, far)


async def test_a_lost_answer_at_the_far_end_is_a_lost_key(tmp_path: Path) -> None:
    async with both(tmp_path) as (near, far):
        (key,) = await near.keys("sae-b")
        far.fault("answer-lost", calls="dec_keys", times=1)
        with pytest.raises((http.client.RemoteDisconnected, ssl.SSLEOFError)):
            await far.fetch("sae-a", key["key_ID"])
        assert (await far.fetch("sae-a", key["key_ID"])).status == 400


async def test_huge_answers(tmp_path: Path) -> None:
    async with both(tmp_path) as (near, far):
        near.fault("huge", times=1, size=5_000_000)
        got = await near.call("GET", STATUS)
        assert len(got.body) > 5_000_000
        assert got.document["key_size"] == 256
        await works(near, far)


async def test_slow_answers(tmp_path: Path) -> None:
    async with both(tmp_path) as (near, far):
        near.fault("slow", calls="enc_keys", times=1, seconds=0.3)
        began = trio.current_time()
        await near.call("POST", NEW)
        assert trio.current_time() - began >= 0.3
        near.fault("drip", calls="status", times=1, rate=1000)
        began = trio.current_time()
        got = await near.call("GET", STATUS)
        assert trio.current_time() - began >= len(got.body) / 1000
        near.fault("silent", calls="status", times=1)
        with pytest.raises(TimeoutError):
            await near.call("GET", STATUS, seconds=0.3)
        await works(near, far)


async def test_an_empty_pool_that_is_not(tmp_path: Path) -> None:
    async with both(tmp_path) as (near, far):
        near.fault("pool-empty", calls="enc_keys", times=1)
        assert (await near.call("POST", NEW)).status == 503
        await works(near, far)


async def test_names_are_exchanged(tmp_path: Path) -> None:
    async with both(tmp_path) as (near, far):
        near.fault("sae-exchanged", times=2)
        status = (await near.call("GET", STATUS)).document
        assert (status["master_SAE_ID"], status["slave_SAE_ID"]) == ("sae-b", "sae-a")
        (key,) = await near.keys("sae-b")
        assert (await far.fetch("sae-a", key["key_ID"])).status == 401
        await works(near, far)


async def test_sizes_are_told_in_bytes(tmp_path: Path) -> None:
    async with both(tmp_path) as (near, _):
        near.fault("bytes-for-bits", times=2)
        assert (await near.call("GET", STATUS)).document["key_size"] == 32
        (key,) = await near.keys("sae-b")
        assert _bits(key) == 256


@pytest.mark.parametrize("kind", [k for k in get_args(CertificateKind) if k != "good"])
async def test_wrong_certificates_are_shown(tmp_path: Path, kind: CertificateKind) -> None:
    async with both(tmp_path) as (near, far):
        near.kme.show_certificate(kind)
        with pytest.raises(ssl.SSLCertVerificationError):
            await near.call("GET", STATUS)
        near.kme.show_certificate("good")
        await works(near, far)


async def test_a_listener_is_down_or_silent(tmp_path: Path) -> None:
    async with both(tmp_path) as (near, far):
        await works(near, far)
        await near.kme.listen("down")
        with pytest.raises(ConnectionRefusedError):
            await near.call("GET", STATUS)
        await near.kme.listen("silent")
        with pytest.raises(TimeoutError):
            await near.call("GET", STATUS, seconds=0.3)
        await near.kme.listen("up")
        await works(near, far)


async def test_faults_of_skip(tmp_path: Path) -> None:
    async with both(tmp_path) as (near, _):
        path = "/key?remoteSystemID=kme-b"
        near.fault("key-short", calls="key", times=1)
        assert len(bytes.fromhex((await near.call("GET", path, api="skip")).document["key"])) == 31
        near.fault("id-missing", calls="key", times=1)
        assert list((await near.call("GET", path, api="skip")).document) == ["key"]
        near.fault("status", calls="key", status=500, body="html", times=1)
        assert (await near.call("GET", path, api="skip")).status == 500
        assert (await near.call("GET", path, api="skip")).status == 200


def test_a_fault_hits_its_calls_and_ends() -> None:
    book = FaultBook()
    book.add(Fault.parse({"kind": "slow", "calls": ["status"], "times": 2}))
    book.add(Fault.parse({"kind": "nulls", "sae": "sae-a"}))
    assert [f.kind for f in book.take("status", "sae-b")] == ["slow"]
    assert [f.kind for f in book.take("enc_keys", "sae-b")] == []
    assert [f.kind for f in book.take("status", "sae-a")] == ["slow", "nulls"]
    assert [f.kind for f in book.take("status", "sae-a")] == ["nulls"]
    book.clear()
    assert book.take("status", "sae-a") == []
    assert book.listed() == []


@pytest.mark.parametrize(
    ("order", "said"),
    [
        ({}, "kind is missing"),
        ({"kind": "slwo"}, "no fault 'slwo'"),
        ({"kind": "slow", "calls": ["stats"]}, "no call 'stats'"),
        ({"kind": "slow", "calls": []}, "calls is empty"),
        ({"kind": "slow", "calls": 7}, "not a list"),
        ({"kind": "slow", "second": 1}, "'second' is no part"),
        ({"kind": "slow", "seconds": -1}, "seconds = -1"),
        ({"kind": "slow", "times": 0}, "times = 0"),
        ({"kind": "slow", "times": "2"}, "times = '2'"),
        ({"kind": "status", "body": "xml"}, "body = 'xml'"),
    ],
)
def test_orders_that_cannot_be_followed(order: dict[str, Any], said: str) -> None:
    with pytest.raises(FaultError, match=said):
        Fault.parse(order)


def test_every_fault_is_tried_here() -> None:
    tried = Path(__file__).read_text(encoding="utf-8")
    assert [kind for kind in KINDS if f'"{kind}"' not in tried] == []


async def test_a_status_that_counts_nothing(tmp_path: Path) -> None:
    async with both(tmp_path) as (near, far):
        near.fault("counts-nothing")
        got = (await near.call("GET", STATUS)).document
        numbers = ("stored_key_count", "max_key_count", "key_size", "min_key_size", "max_key_size")
        assert [got[name] for name in numbers] == [0] * 5
        await works(near, far)


async def test_one_key_a_request(tmp_path: Path) -> None:
    async with both(tmp_path) as (near, far):
        near.fault("one-a-request")
        assert (await near.call("GET", STATUS)).document["max_key_per_request"] == 1
        assert (await near.call("POST", NEW, {"number": 2})).status == 400
        await works(near, far)


async def test_a_refusal_in_other_words(tmp_path: Path) -> None:
    async with both(tmp_path) as (near, far):
        far.fault("other-words", times=1)
        got = await far.fetch("sae-a", "bc490419-7d60-487f-adc1-4ddcc177c139")
        assert (got.status, got.document) == (400, {"message": "the request was rejected"})
        await works(near, far)


async def test_keys_that_wait_are_lost(tmp_path: Path) -> None:
    async with both(tmp_path) as (near, far):
        (key,) = await near.keys("sae-b", {"size": 256})
        far.fault("keys-lost", times=1)
        assert (await far.fetch("sae-a", key["key_ID"])).status == 400
        assert (await far.fetch("sae-a", key["key_ID"])).status == 400
        await works(near, far)

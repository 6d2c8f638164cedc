"""ETSI GS QKD 014 V1.1.1 as the lab's key managers speak it: its tables, row by row, over TLS.

Table 1 (methods), 9 (Status), 11 (Key request), 12 (Key container), 13 (Key IDs), 14 (Error).
"""

from __future__ import annotations

import base64
import ssl
import uuid
from pathlib import Path
from typing import Any, get_args

import pytest

from tests.lab.kme_caller import both
from vpnd_lab.kme.certificates import CertificateKind

NEW = "/api/v1/keys/sae-b/enc_keys"
FETCH = "/api/v1/keys/sae-a/dec_keys"
STATUS = "/api/v1/keys/sae-b/status"
STATUS_FIELDS = {
    "source_KME_ID": str,
    "target_KME_ID": str,
    "master_SAE_ID": str,
    "slave_SAE_ID": str,
    "key_size": int,
    "stored_key_count": int,
    "max_key_count": int,
    "max_key_per_request": int,
    "max_key_size": int,
    "min_key_size": int,
    "max_SAE_ID_count": int,
}


async def test_status_has_every_field(tmp_path: Path) -> None:
    async with both(tmp_path, rate=0, pool=2560) as (near, _):
        await near.keys("sae-b", {"number": 3})
        status = (await near.call("GET", STATUS)).document
        assert {name: type(value) for name, value in status.items()} == STATUS_FIELDS
        assert (status["source_KME_ID"], status["target_KME_ID"]) == ("kme-a", "kme-b")
        assert (status["master_SAE_ID"], status["slave_SAE_ID"]) == ("sae-a", "sae-b")
        assert (status["key_size"], status["stored_key_count"], status["max_key_count"]) == (
            *(256, 7, 10),
        )


@pytest.mark.parametrize(
    ("method", "query", "body", "number", "bits"),
    [
        ("POST", "", {}, 1, 256),
        ("POST", "", None, 1, 256),
        ("POST", "", {"number": 3, "size": 1024}, 3, 1024),
        ("POST", "", {"number": 20, "size": 512}, 20, 512),
        ("POST", "", {"extension_optional": [{"abc_route_type": "direct"}]}, 1, 256),
        ("GET", "", None, 1, 256),
        ("GET", "?number=3&size=1024", None, 3, 1024),
    ],
)
async def test_keys_are_delivered_at_both_ends(
    tmp_path: Path, method: str, query: str, body: Any, number: int, bits: int
) -> None:
    async with both(tmp_path) as (near, far):
        got = await near.call(method, NEW + query, body)
        assert (got.status, got.content_type) == (200, "application/json")
        keys = got.document["keys"]
        assert len({key["key_ID"] for key in keys}) == number
        for key in keys:
            assert str(uuid.UUID(key["key_ID"])) == key["key_ID"]
            assert len(base64.b64decode(key["key"], validate=True)) * 8 == bits
        fetched = await far.fetch("sae-a", *(key["key_ID"] for key in keys))
        assert fetched.document == {"keys": keys}


async def test_one_key_is_fetched_with_get(tmp_path: Path) -> None:
    async with both(tmp_path) as (near, far):
        (key,) = await near.keys("sae-b")
        got = await far.call("GET", f"{FETCH}?key_ID={key['key_ID']}")
        assert got.document == {"keys": [key]}


@pytest.mark.parametrize("spelling", ["{{{}}}", "urn:uuid:{}", "..", "{}\r\n", "x"])
async def test_a_key_id_is_a_uuid(tmp_path: Path, spelling: str) -> None:
    async with both(tmp_path) as (near, far):
        (key,) = await near.keys("sae-b")
        refused = await far.fetch("sae-a", spelling.format(key["key_ID"]))
        assert refused.status == 400
        assert "is not a UUID" in refused.document["message"]
        assert (await far.fetch("sae-a", key["key_ID"].upper())).status == 200


async def test_a_delivered_key_is_gone(tmp_path: Path) -> None:
    async with both(tmp_path) as (near, far):
        (key,) = await near.keys("sae-b")
        assert (await far.fetch("sae-a", key["key_ID"])).status == 200
        again = await far.fetch("sae-a", key["key_ID"])
        assert again.status == 400
        assert again.document["details"] == [{"key_ID": key["key_ID"]}]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"number": 0}, "number"),
        ({"number": "1"}, "number"),
        ({"number": 129}, "number shall be at most 128"),
        ({"size": 257}, "size shall be a multiple of 8"),
        ({"size": 8}, "size shall be between"),
        ({"size": 10**6}, "size shall be between"),
        ({"size": True}, "size"),
        ({"additional_slave_SAE_IDs": ["sae-c"]}, "max_SAE_ID_count"),
        ({"extension_mandatory": [{"abc": 1}]}, "not all extension_mandatory parameters"),
        ({"extension_mandatory": 1}, "not an array"),
        (["number"], "not a JSON object"),
        (b'{"number": 1', "not JSON"),
    ],
)
async def test_requests_that_cannot_be_met_take_no_key(
    tmp_path: Path, body: Any, said: str
) -> None:
    async with both(tmp_path) as (near, _):
        got = await near.call("POST", NEW, body)
        assert got.status == 400
        assert said in got.document["message"]
        assert isinstance(got.document.get("details", []), list)
        assert near.kme.network.key_counts()["made"] == 0
        await near.keys("sae-b")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "key_IDs"),
        ({"key_IDs": []}, "ask for 1 to 128"),
        ({"key_IDs": ["a"]}, "no object"),
        ({"key_IDs": [{"key_ID": "a"}]}, "is not a UUID"),
        ({"key_IDs": [{"key_ID": str(uuid.UUID(int=7))}]}, "are not found on KME"),
    ],
)
async def test_key_ids_that_cannot_be_met(tmp_path: Path, body: Any, said: str) -> None:
    async with both(tmp_path) as (near, far):
        (key,) = await near.keys("sae-b")
        got = await far.call("POST", FETCH, body)
        assert got.status == 400
        assert said in got.document["message"]
        assert (await far.fetch("sae-a", key["key_ID"])).document == {"keys": [key]}


async def test_an_empty_pool_is_an_error_on_the_servers_side(tmp_path: Path) -> None:
    async with both(tmp_path, rate=0, pool=512) as (near, _):
        assert (await near.call("POST", NEW, {"number": 3})).status == 503
        await near.keys("sae-b", {"number": 2})
        got = await near.call("POST", NEW)
        assert (got.status, list(got.document)) == (503, ["message"])


async def test_a_key_is_for_the_two_that_it_was_made_for(tmp_path: Path) -> None:
    async with both(tmp_path) as (near, far):
        (key,) = await near.keys("sae-c")
        assert (await far.fetch("sae-a", key["key_ID"])).status == 401
        far.sae = "sae-c"
        assert (await far.fetch("sae-a", key["key_ID"])).document == {"keys": [key]}


async def test_applications_are_known_by_their_certificates(tmp_path: Path) -> None:
    async with both(tmp_path) as (near, _):
        assert (await near.call("GET", "/api/v1/keys/sae-x/status")).status == 400
        near.sae = "sae-x"
        for method, path in (("GET", STATUS), ("POST", NEW), ("POST", FETCH)):
            got = await near.call(method, path)
            assert (got.status, list(got.document)) == (401, ["message"])
        near.sae = "sae-a"
        del near.kme.homes["sae-a"]
        assert (await near.call("GET", STATUS)).status == 401


async def test_ids_are_encoded_in_the_path(tmp_path: Path) -> None:
    async with both(tmp_path) as (near, _):
        near.kme.homes["dc 1/ä"] = "kme-b"
        status = await near.call("GET", "/api/v1/keys/dc%201%2F%C3%A4/status")
        assert status.document["slave_SAE_ID"] == "dc 1/ä"


@pytest.mark.parametrize(
    "kind", [k for k in get_args(CertificateKind) if k not in {"good", "wrong-name", "no-names"}]
)
async def test_wrong_client_certificates_are_refused(tmp_path: Path, kind: CertificateKind) -> None:
    async with both(tmp_path) as (near, _):
        with pytest.raises(ssl.SSLError):
            await near.call("GET", STATUS, context=near.context(kind))
        (failed,) = near.kme.network.calls("kme-a")
        assert failed["kind"] == "tls-failed"
        assert (await near.call("GET", STATUS)).status == 200


async def test_a_certificate_is_a_must_and_tls_1_2_the_least(tmp_path: Path) -> None:
    async with both(tmp_path) as (near, _):
        nobody = ssl.create_default_context(cafile=str(near.authority.ca_file))
        with pytest.raises(ssl.SSLError):
            await near.call("GET", STATUS, context=nobody)
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context = near.context()
            context.minimum_version = context.maximum_version = version
            assert (await near.call("GET", STATUS, context=context)).status == 200


async def test_other_paths_and_verbs(tmp_path: Path) -> None:
    async with both(tmp_path) as (near, _):
        assert (await near.call("POST", STATUS, {})).status == 405
        for path in ("/", "/api/v1/keys/sae-b", "/api/v2/keys/sae-b/status", "/key"):
            assert (await near.call("GET", path)).status == 404


async def test_every_call_is_written_down(tmp_path: Path) -> None:
    async with both(tmp_path) as (near, far):
        (key,) = await near.keys("sae-b")
        await far.fetch("sae-a", key["key_ID"])
        (call,) = near.kme.network.calls("kme-a")
        assert (call["kind"], call["sae"], call["other"]) == ("enc_keys", "sae-a", "sae-b")
        assert (call["status"], call["method"]) == (200, "POST")
        (other,) = far.kme.network.calls("kme-b")
        assert other["key_ids"] == call["key_ids"] == [key["key_ID"]]
        assert other["at"] >= call["at"]
        assert key["key"] not in str(other)

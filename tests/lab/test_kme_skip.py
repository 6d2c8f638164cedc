"""Cisco SKIP (draft-cisco-skip-02) as the lab's key managers speak it, over TLS."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.kme_caller import Caller, Got, both


async def get(caller: Caller, path: str) -> Got:
    return await caller.call("GET", path, api="skip")


async def test_capabilities(tmp_path: Path) -> None:
    async with both(tmp_path) as (near, _):
        document = (await get(near, "/capabilities")).document
        assert document == {
            "entropy": True,
            "key": True,
            "algorithm": "lab-qkd",
            "localSystemID": "kme-a",
            "remoteSystemID": ["kme-b"],
        }


@pytest.mark.parametrize(("query", "bits"), [("", 256), ("&size=128", 128), ("&size=512", 512)])
async def test_both_ends_get_the_same_key_once(tmp_path: Path, query: str, bits: int) -> None:
    async with both(tmp_path) as (near, far):
        key = (await get(near, f"/key?remoteSystemID=kme-b{query}")).document
        assert set(key) == {"keyId", "key"}
        assert len(bytes.fromhex(key["keyId"])) == 16
        assert len(bytes.fromhex(key["key"])) * 8 == bits
        path = f"/key/{key['keyId']}?remoteSystemID=kme-a"
        assert (await get(far, path)).document == key
        assert (await get(far, path)).status == 400


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/key", 400),
        ("/key?remoteSystemID=kme-x", 400),
        ("/key?remoteSystemID=kme-b&size=x", 400),
        ("/key?remoteSystemID=kme-b&size=129", 400),
        ("/key/00ff?remoteSystemID=kme-b", 400),
        (f"/key/{'ab' * 16}?remoteSystemID=kme-b", 400),
        ("/entropy?minentropy=0", 400),
        ("/keys", 404),
    ],
)
async def test_requests_that_cannot_be_met(tmp_path: Path, path: str, status: int) -> None:
    async with both(tmp_path) as (near, _):
        assert (await get(near, path)).status == status
        assert (await get(near, "/key?remoteSystemID=kme-b")).status == 200


async def test_other_verbs_and_an_empty_pool(tmp_path: Path) -> None:
    async with both(tmp_path, rate=0, pool=128) as (near, _):
        assert (await near.call("POST", "/key", {}, api="skip")).status == 405
        assert (await get(near, "/key?remoteSystemID=kme-b")).status == 503


async def test_entropy(tmp_path: Path) -> None:
    async with both(tmp_path) as (near, _):
        document = (await get(near, "/entropy?minentropy=512")).document
        assert document["minentropy"] == 512
        assert len(bytes.fromhex(document["randomStr"])) == 64


async def test_a_key_of_the_other_interface_is_not_delivered(tmp_path: Path) -> None:
    async with both(tmp_path) as (near, far):
        (key,) = await near.keys("sae-b")
        key_id = key["key_ID"].replace("-", "")
        assert (await get(far, f"/key/{key_id}?remoteSystemID=kme-a")).status == 400

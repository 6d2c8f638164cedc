"""What a QKD source asks a KME, as ETSI GS QKD 014 V1.1.1 has it, over real TLS."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Callable

import pytest

from kex.external import ExternalKeyReference
from tests.vpnd.keysource.conftest import (
    FAR,
    FAR_SAE,
    OWN_SAE,
    SPEC_KEYS,
    SPEC_STATUS,
    QkdConfig,
    Told,
)
from tests.vpnd.keysource.tls_server import TlsServer, http
from vpnd.keysource.base import Correspondent, SourceError, SourceFault
from vpnd.keysource.qkd_source import QkdSource

FIRST_ID = SPEC_KEYS[0]["key_ID"]
FIRST_KEY = base64.b64decode(SPEC_KEYS[0]["key"])


def reference(*ids: str, bits: int = 256) -> ExternalKeyReference:
    """What an initiator that is the far end sends."""
    return ExternalKeyReference("qkd", "KME-B", FAR_SAE, ids or (FIRST_ID,), bits)


async def test_the_initiator_gets_a_key(kme: TlsServer, qkd_config: QkdConfig, told: Told) -> None:
    kme.answers = [http(200, {"keys": SPEC_KEYS[:1]})]
    source = QkdSource("kme-fra", qkd_config(kme), told)
    found = await source.obtain(FAR)
    assert found.key is not None
    assert found.key.expose() == FIRST_KEY
    assert found.reference == ExternalKeyReference("qkd", "kme-fra", OWN_SAE, (FIRST_ID,), 256)
    (asked,) = kme.received
    assert (asked.method, asked.target) == ("POST", f"/api/v1/keys/{FAR_SAE}/enc_keys")
    assert asked.json == {"number": 1, "size": 256}
    assert asked.headers["content-type"] == "application/json"
    assert told.events == []


async def test_the_responder_gets_the_same_key(
    kme: TlsServer, qkd_config: QkdConfig, told: Told
) -> None:
    kme.answers = [http(200, {"keys": SPEC_KEYS[:1]})]
    source = QkdSource("kme-ams", qkd_config(kme), told)
    assert source.serves(FAR, reference())
    assert (await source.retrieve(FAR, reference())).expose() == FIRST_KEY
    (asked,) = kme.received
    assert (asked.method, asked.target) == ("POST", f"/api/v1/keys/{FAR_SAE}/dec_keys")
    assert asked.json == {"key_IDs": [{"key_ID": FIRST_ID}]}


async def test_with_get_where_the_kme_has_only_that(
    kme: TlsServer, qkd_config: QkdConfig, told: Told
) -> None:
    kme.answers = [http(200, {"keys": SPEC_KEYS[:1]}), http(200, {"keys": SPEC_KEYS[1:2]})]
    source = QkdSource("kme", qkd_config(kme, verbs="get"), told)
    await source.obtain(FAR)
    await source.retrieve(FAR, reference(SPEC_KEYS[1]["key_ID"]))
    assert [one.method for one in kme.received] == ["GET", "GET"]
    assert kme.targets == [
        f"/api/v1/keys/{FAR_SAE}/enc_keys?number=1&size=256",
        f"/api/v1/keys/{FAR_SAE}/dec_keys?key_ID={SPEC_KEYS[1]['key_ID']}",
    ]


async def test_an_sae_id_is_percent_encoded(
    kme: TlsServer, qkd_config: QkdConfig, told: Told
) -> None:
    kme.answers = [http(200, {"keys": SPEC_KEYS[:1]})]
    source = QkdSource("kme", qkd_config(kme), told)
    await source.obtain(Correspondent("ams1", "sae/1 ä?#"))
    assert kme.targets == ["/api/v1/keys/sae%2F1%20%C3%A4%3F%23/enc_keys"]


async def test_a_url_may_have_a_path(kme: TlsServer, qkd_config: QkdConfig, told: Told) -> None:
    kme.answers = [http(200, {"keys": SPEC_KEYS[:1]})]
    source = QkdSource("kme", qkd_config(urls=[f"{kme.url}/qkd/"]), told)
    await source.obtain(FAR)
    assert kme.targets == [f"/qkd/api/v1/keys/{FAR_SAE}/enc_keys"]


async def test_status_comes_first_and_names_the_kme(
    kme: TlsServer, qkd_config: QkdConfig, told: Told
) -> None:
    kme.answers = [http(200, SPEC_STATUS), http(200, {"keys": SPEC_KEYS[:1]})]
    source = QkdSource("kme", qkd_config(kme, quirks=[]), told)
    found = await source.obtain(FAR)
    assert (kme.received[0].method, kme.targets[0]) == ("GET", f"/api/v1/keys/{FAR_SAE}/status")
    assert found.reference.source == "AAAABBBBCCCCDDDD"
    status = source.status()
    assert status.identity == "AAAABBBBCCCCDDDD"
    (stock,) = status.stock
    assert (stock.stored, stock.capacity, stock.key_bits) == (25000, 100000, 352)
    assert stock.used_per_day > 0
    assert stock.days_left is not None
    assert not stock.low


async def test_a_key_longer_than_the_kme_has_is_made_of_several(
    kme: TlsServer, qkd_config: QkdConfig, told: Told
) -> None:
    status = SPEC_STATUS | {"max_key_size": 256}
    # In another order than asked for: it is the order of the IDs that counts
    kme.answers = [
        http(200, status),
        http(200, {"keys": SPEC_KEYS[:2]}),
        http(200, {"keys": SPEC_KEYS[3:1:-1]}),
    ]
    source = QkdSource("kme", qkd_config(kme, quirks=[], key_size=512), told)
    found = await source.obtain(FAR)
    assert kme.received[1].json == {"number": 2, "size": 256}
    assert found.reference.key_ids == tuple(one["key_ID"] for one in SPEC_KEYS[:2])
    assert found.reference.bits == 512
    parts = [base64.b64decode(one["key"]) for one in SPEC_KEYS]
    assert found.key is not None
    assert found.key.expose() == parts[0] + parts[1]
    ids = [one["key_ID"] for one in SPEC_KEYS[2:]]
    key = await source.retrieve(FAR, reference(*ids, bits=512))
    assert key.expose() == parts[2] + parts[3]


@pytest.mark.parametrize(("limit", "numbers"), [(1, [1, 1, 1, 1]), (3, [3, 1]), (0, [4])])
async def test_no_more_keys_are_asked_for_in_one_call_than_it_gives(
    kme: TlsServer, qkd_config: QkdConfig, told: Told, limit: int, numbers: list[int]
) -> None:
    status = SPEC_STATUS | {"max_key_size": 256, "max_key_per_request": limit}
    at = [sum(numbers[:n]) for n in range(len(numbers) + 1)]
    containers = [
        http(200, {"keys": SPEC_KEYS[begin:end]}) for begin, end in itertools.pairwise(at)
    ]
    kme.answers = [http(200, status), *containers]
    found = await QkdSource("kme", qkd_config(kme, quirks=[], key_size=1024), told).obtain(FAR)
    assert [one.json for one in kme.received[1:]] == [
        {"number": number, "size": 256} for number in numbers
    ]
    ids = [one["key_ID"] for one in SPEC_KEYS]
    assert list(found.reference.key_ids) == ids
    # By ID, too, by an end that has asked nothing before
    kme.received.clear()
    kme.answers = [http(200, status), *containers]
    source = QkdSource("kme", qkd_config(kme, quirks=[], key_size=1024), told)
    key = await source.retrieve(FAR, reference(*ids, bits=1024))
    assert key.expose() == b"".join(base64.b64decode(one["key"]) for one in SPEC_KEYS)
    assert [len(one.json["key_IDs"]) for one in kme.received[1:]] == numbers


async def test_parts_whose_key_never_came_whole_are_counted(
    kme: TlsServer, qkd_config: QkdConfig, told: Told
) -> None:
    status = SPEC_STATUS | {"max_key_size": 256, "max_key_per_request": 1}
    empty = http(503, {"message": "no keys left"})
    kme.answers = [http(200, status), http(200, {"keys": SPEC_KEYS[:1]}), empty]
    source = QkdSource("kme", qkd_config(kme, quirks=[], key_size=512), told)
    with pytest.raises(SourceError) as refused:
        await source.obtain(FAR)
    assert refused.value.fault is SourceFault.EMPTY
    assert source.status().counters["maybe_lost"] == 1


@pytest.mark.parametrize(
    ("status", "says"),
    [
        ({"min_key_size": 0, "max_key_size": 0, "key_size": 256}, ", 256 bits without a size"),
        ({"min_key_size": 0, "max_key_size": 0, "key_size": 0}, ", no lengths told"),
        ({"min_key_size": 0, "max_key_size": 512, "key_size": 0}, ", ? to 512 bits"),
    ],
)
async def test_a_test_of_a_source_shows_no_length_of_0_bits(
    kme: TlsServer, qkd_config: QkdConfig, told: Told, status: dict[str, int], says: str
) -> None:
    kme.answers = [http(200, SPEC_STATUS | status)]
    steps = await QkdSource("kme", qkd_config(kme, quirks=[]), told).probe(FAR)
    (step,) = (step for step in steps if step.step == "status")
    assert step.detail.endswith(says)


async def test_parts_that_were_delivered_are_not_asked_for_again(
    kme: TlsServer, qkd_config: QkdConfig, told: Told
) -> None:
    """A GET has one ID: the second may not be there yet when the first has left the pool."""
    kme.answers = [
        http(200, {"keys": SPEC_KEYS[:1]}),
        http(404, {"message": "not yet available"}),
        http(200, {"keys": SPEC_KEYS[1:2]}),
    ]
    source = QkdSource("kme", qkd_config(kme, verbs="get", key_size=512), told)
    ids = [one["key_ID"] for one in SPEC_KEYS[:2]]
    key = await source.retrieve(FAR, reference(*ids, bits=512))
    assert key.expose() == b"".join(base64.b64decode(one["key"]) for one in SPEC_KEYS[:2])
    asked = [target.rpartition("=")[2] for target in kme.targets]
    assert asked == [ids[0], ids[1], ids[1]]


@pytest.mark.parametrize("spelling", [str.upper, lambda one: one.replace("-", ""), "{{{}}}".format])
async def test_another_spelling_of_an_id_is_the_same_id(
    kme: TlsServer, qkd_config: QkdConfig, told: Told, spelling: Callable[[str], str]
) -> None:
    kme.answers = [http(200, {"keys": SPEC_KEYS[:1]})]
    source = QkdSource("kme", qkd_config(kme), told)
    await source.retrieve(FAR, reference(SPEC_KEYS[0]["key_ID"]))
    with pytest.raises(SourceError) as refused:
        await source.retrieve(FAR, reference(spelling(SPEC_KEYS[0]["key_ID"])))
    assert refused.value.fault is SourceFault.WRONG_KEY_ID
    assert len(kme.received) == 1


@pytest.mark.parametrize("verbs", ["post", "get"])
@pytest.mark.parametrize(
    "key_id", ["..", "../status", "key-1", "bc490419-7d60-487f-adc1-4ddcc177c139/..", "a&size=8"]
)
async def test_an_id_of_the_far_end_that_is_no_uuid_is_not_asked_for(
    kme: TlsServer, qkd_config: QkdConfig, told: Told, key_id: str, verbs: str
) -> None:
    kme.answers = [http(200, {"keys": SPEC_KEYS[:1]})]
    source = QkdSource("kme", qkd_config(kme, verbs=verbs), told)
    with pytest.raises(SourceError) as refused:
        await source.retrieve(FAR, reference(key_id))
    assert refused.value.fault is SourceFault.WRONG_KEY_ID
    assert "a key ID that is not a UUID" in refused.value.reason
    assert kme.received == []
    await source.retrieve(FAR, reference(FIRST_ID))


async def test_a_length_that_the_kme_cannot_give_is_told(
    kme: TlsServer, qkd_config: QkdConfig, told: Told
) -> None:
    kme.answers = [http(200, SPEC_STATUS | {"max_key_size": 32})]
    source = QkdSource("kme", qkd_config(kme, quirks=[]), told)
    with pytest.raises(SourceError) as refused:
        await source.obtain(FAR)
    assert refused.value.fault is SourceFault.REFUSED
    assert "expected keys of 256 bits; it has keys of 64 to 32 bits" in refused.value.reason


async def test_a_key_handed_out_is_never_handed_out_again(
    kme: TlsServer, qkd_config: QkdConfig, told: Told
) -> None:
    again_other_id = [SPEC_KEYS[0] | {"key_ID": SPEC_KEYS[1]["key_ID"]}]
    kme.answers = [
        http(200, {"keys": SPEC_KEYS[:1]}),
        http(200, {"keys": SPEC_KEYS[:1]}),
        http(200, {"keys": again_other_id}),
    ]
    source = QkdSource("kme", qkd_config(kme), told)
    await source.obtain(FAR)
    with pytest.raises(SourceError) as same_id:
        await source.obtain(FAR)
    assert same_id.value.fault is SourceFault.WRONG_KEY_ID
    with pytest.raises(SourceError) as same_key:
        await source.obtain(FAR)
    assert same_key.value.fault is SourceFault.BAD_KEY


async def test_the_quirk_sizes_in_bytes(kme: TlsServer, qkd_config: QkdConfig, told: Told) -> None:
    kme.answers = [http(200, {"keys": SPEC_KEYS[:1]})]
    config = qkd_config(kme, quirks=["size-in-bytes", "no-status"])
    await QkdSource("kme", config, told).obtain(FAR)
    assert kme.received[0].json == {"number": 1, "size": 32}


async def test_the_quirk_no_size(kme: TlsServer, qkd_config: QkdConfig, told: Told) -> None:
    kme.answers = [http(200, {"keys": SPEC_KEYS[:1]})]
    config = qkd_config(kme, quirks=["no-size", "no-status"])
    await QkdSource("kme", config, told).obtain(FAR)
    assert kme.received[0].json == {"number": 1}


@pytest.mark.parametrize(
    ("changed", "whose"), [("master_SAE_ID", "this end"), ("slave_SAE_ID", "the far end")]
)
async def test_exchanged_sae_names_are_told_before_a_key_is_asked_for(
    kme: TlsServer, qkd_config: QkdConfig, told: Told, changed: str, whose: str
) -> None:
    kme.answers = [http(200, SPEC_STATUS | {changed: "QQQQ"}), http(200, {"keys": SPEC_KEYS[:1]})]
    with pytest.raises(SourceError) as refused:
        await QkdSource("kme", qkd_config(kme, quirks=[]), told).obtain(FAR)
    assert refused.value.fault is SourceFault.UNAUTHORIZED
    assert f"expected {whose} to be SAE" in refused.value.reason
    assert len(kme.received) == 1
    # Another name of the same SAE: some KMEs have their own
    kme.answers = [http(200, SPEC_STATUS | {changed: "QQQQ"}), http(200, {"keys": SPEC_KEYS[:1]})]
    config = qkd_config(kme, quirks=["other-sae-names"])
    assert (await QkdSource("kme", config, told).obtain(FAR)).present


async def test_another_kme_than_configured_is_refused(
    kme: TlsServer, qkd_config: QkdConfig, told: Told
) -> None:
    kme.answers = [http(200, SPEC_STATUS)]
    config = qkd_config(kme, quirks=[], kme_id="KME-1")
    with pytest.raises(SourceError) as refused:
        await QkdSource("kme", config, told).obtain(FAR)
    assert refused.value.fault is SourceFault.CERTIFICATE
    assert 'expected KME KME-1; it calls itself "AAAABBBBCCCCDDDD"' in refused.value.reason

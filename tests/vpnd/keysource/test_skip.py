"""draft-cisco-skip: requests and answers, written from the draft, over real TLS."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kex.external import ExternalKeyReference
from tests.vpnd.keysource.conftest import SkipConfig, Told
from tests.vpnd.keysource.tls_server import TlsServer, http
from vpnd.keysource.base import Correspondent, SourceError, SourceFault
from vpnd.keysource.skip import matches_glob
from vpnd.keysource.skip_source import SkipSource

FAR = Correspondent("ams1", "KP_AMS_1")
CAPABILITIES = {
    "entropy": True,
    "key": True,
    "algorithm": "QKD",
    "localSystemID": "KP_FRA_1",
    "remoteSystemID": ["KP_AMS_*", "KP_LON_?"],
}
KEY_ID = "1726e9ae76234fb1dd1283d4dca1911e"
KEY = "ad229dfb8a276e74c1f3b6c09349a69fb2fed73c541270663f0e5cbbfb031670"
ANSWER = {"keyId": KEY_ID, "key": KEY}
REFERENCE = ExternalKeyReference("skip", "KP_AMS_1", "KP_AMS_1", (KEY_ID,), 256)


async def test_a_key_and_the_same_key_by_its_id(
    kme: TlsServer, skip_config: SkipConfig, told: Told
) -> None:
    kme.answers = [http(200, CAPABILITIES), http(200, ANSWER)]
    source = SkipSource("skip", skip_config(kme), told)
    found = await source.obtain(FAR)
    assert found.key is not None
    assert found.key.expose().hex() == KEY
    assert found.reference == ExternalKeyReference("skip", "KP_FRA_1", "KP_FRA_1", (KEY_ID,), 256)
    kme.answers = [http(200, CAPABILITIES), http(200, ANSWER)]
    responder = SkipSource("skip", skip_config(kme), told)
    assert responder.serves(FAR, REFERENCE)
    assert (await responder.retrieve(FAR, REFERENCE)).expose().hex() == KEY
    assert kme.targets == [
        "/capabilities",
        "/key?remoteSystemID=KP_AMS_1&size=256",
        "/capabilities",
        f"/key/{KEY_ID}?remoteSystemID=KP_AMS_1",
    ]
    assert {one.method for one in kme.received} == {"GET"}


@pytest.mark.parametrize(
    ("far", "local", "says"),
    [
        ("KP_PAR_1", "*", 'it has no keys with "KP_PAR_1"; it serves "KP_AMS_*", "KP_LON_?"'),
        ("KP_LON_12", "*", "it has no keys with"),
        ("KP_AMS_1", "KP_BER_*", 'expected a localSystemID like "KP_BER_*"; it is "KP_FRA_1"'),
    ],
)
async def test_system_ids_are_checked_before_a_key_is_asked_for(
    kme: TlsServer, skip_config: SkipConfig, told: Told, far: str, local: str, says: str
) -> None:
    kme.answers = [http(200, CAPABILITIES), http(200, ANSWER)]
    source = SkipSource("skip", skip_config(kme, local_system_id=local), told)
    with pytest.raises(SourceError) as refused:
        await source.obtain(Correspondent("x", far))
    assert says in refused.value.reason
    assert len(kme.received) == 1


BAD = [
    ("400", http(400, {"message": "bad"}), SourceFault.REFUSED),
    ("401", http(401), SourceFault.UNAUTHORIZED),
    ("404", http(404, b"<html>", "text/html"), SourceFault.REFUSED),
    ("405", http(405), SourceFault.REFUSED),
    ("500", http(500), SourceFault.UNAVAILABLE),
    ("503", http(503), SourceFault.UNAVAILABLE),
    ("no JSON", http(200, b"{"), SourceFault.BAD_ANSWER),
    ("no ID", http(200, {"key": KEY}), SourceFault.WRONG_KEY_ID),
    ("ID no hex", http(200, ANSWER | {"keyId": "xyz"}), SourceFault.WRONG_KEY_ID),
    ("ID too long", http(200, ANSWER | {"keyId": "ab" * 151}), SourceFault.WRONG_KEY_ID),
    ("no key", http(200, {"keyId": KEY_ID}), SourceFault.BAD_KEY),
    ("key null", http(200, ANSWER | {"key": None}), SourceFault.BAD_KEY),
    ("key no hex", http(200, ANSWER | {"key": "zz" * 32}), SourceFault.BAD_KEY),
    ("key short", http(200, ANSWER | {"key": KEY[:32]}), SourceFault.BAD_KEY),
    ("key long", http(200, ANSWER | {"key": KEY * 2}), SourceFault.BAD_KEY),
    ("key zero", http(200, ANSWER | {"key": "00" * 32}), SourceFault.BAD_KEY),
]


@pytest.mark.parametrize(("answer", "fault"), [one[1:] for one in BAD], ids=[one[0] for one in BAD])
async def test_an_answer_that_gives_no_key(
    kme: TlsServer, skip_config: SkipConfig, told: Told, answer: bytes, fault: SourceFault
) -> None:
    kme.answers = [http(200, CAPABILITIES), answer]
    source = SkipSource("skip", skip_config(kme), told)
    with pytest.raises(SourceError) as refused:
        await source.obtain(FAR)
    assert refused.value.fault is fault
    assert str(refused.value).startswith(f"skip: key provider KP_FRA_1, {kme.url}, key: expected")
    assert KEY[:12] not in str(refused.value)
    kme.answers = [http(200, ANSWER)]
    assert (await source.obtain(FAR)).present


@pytest.mark.parametrize("status", [400, 404, 503])
async def test_a_key_that_is_not_there_yet_is_asked_for_again(
    kme: TlsServer, skip_config: SkipConfig, told: Told, status: int
) -> None:
    kme.answers = [http(200, CAPABILITIES), http(status), http(status), http(200, ANSWER)]
    source = SkipSource("skip", skip_config(kme), told)
    assert (await source.retrieve(FAR, REFERENCE)).expose().hex() == KEY
    with pytest.raises(SourceError) as again:
        await source.retrieve(FAR, REFERENCE)
    assert again.value.fault is SourceFault.WRONG_KEY_ID


@pytest.mark.parametrize(
    "key_id",
    ["..", ".", "../entropy", "ab/../..", "%2e%2e", "ab?size=8", "ab#", "0x1f", "xyz", "١٢", "a b"],
)
async def test_an_id_of_the_far_end_that_is_no_key_id_is_not_asked_for(
    kme: TlsServer, skip_config: SkipConfig, told: Told, key_id: str
) -> None:
    kme.answers = [http(200, CAPABILITIES), http(200, ANSWER)]
    source = SkipSource("skip", skip_config(kme), told)
    with pytest.raises(SourceError) as refused:
        await source.retrieve(FAR, replace(REFERENCE, key_ids=(key_id,)))
    assert refused.value.fault is SourceFault.WRONG_KEY_ID
    assert "a key ID that is not hexadecimal digits" in refused.value.reason
    assert kme.received == []
    assert (await source.retrieve(FAR, REFERENCE)).expose().hex() == KEY


async def test_another_key_than_asked_for(
    kme: TlsServer, skip_config: SkipConfig, told: Told
) -> None:
    kme.answers = [http(200, CAPABILITIES), http(200, ANSWER | {"keyId": "ab" * 16})]
    with pytest.raises(SourceError) as refused:
        await SkipSource("skip", skip_config(kme), told).retrieve(FAR, REFERENCE)
    assert refused.value.fault is SourceFault.WRONG_KEY_ID


@pytest.mark.parametrize(
    "changed",
    [{"localSystemID": None}, {"localSystemID": "x" * 65}, {"remoteSystemID": [1]}, {"key": False}],
)
async def test_capabilities_that_cannot_be_used(
    kme: TlsServer, skip_config: SkipConfig, told: Told, changed: dict[str, object]
) -> None:
    kme.answers = [http(200, CAPABILITIES | changed), http(200, ANSWER)]
    with pytest.raises(SourceError):
        await SkipSource("skip", skip_config(kme), told).obtain(FAR)
    assert len(kme.received) == 1


@pytest.mark.parametrize(
    ("glob", "name", "fits"),
    [
        ("*", "", True),
        ("*", "abc", True),
        ("a*c", "abbbc", True),
        ("a*c", "abbb", False),
        ("a?c", "abc", True),
        ("a?c", "ac", False),
        ("[ab]", "a", False),
        ("[ab]", "[ab]", True),
        ("ABC", "abc", False),
        ("*a*b*c*", "xaxbxcx", True),
        ("*a" * 60, "a" * 59 + "b", False),
    ],
)
def test_globs(glob: str, name: str, fits: bool) -> None:
    assert matches_glob(glob, name) is fits


async def test_a_provider_that_tells_its_capabilities_means_the_key(
    kme: TlsServer, skip_config: SkipConfig, told: Told
) -> None:
    kme.answers = [http(200, CAPABILITIES), http(401), http(200, ANSWER)]
    source = SkipSource("skip", skip_config(kme), told)
    assert (await source.retrieve(FAR, REFERENCE)).expose().hex() == KEY

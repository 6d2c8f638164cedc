"""Key managers that want something else than a client certificate and the usual path."""

from __future__ import annotations

import logging
import os
import ssl
from pathlib import Path
from typing import Any

import pytest
import trio

from kex.external import ExternalKeyReference, check_reference
from tests.vpnd.config_files import Site, refusal
from tests.vpnd.keysource.authority import Authority
from tests.vpnd.keysource.conftest import (
    FAR,
    FAR_SAE,
    SPEC_KEYS,
    SPEC_STATUS,
    MakeServer,
    QkdConfig,
    Told,
)
from tests.vpnd.keysource.test_qkd_faults import keys
from tests.vpnd.keysource.tls_server import TlsServer, http
from vpnd.config import load_config
from vpnd.config_key_sources import SkipSourceConfig, key_source_config
from vpnd.config_source import Source
from vpnd.keysource.base import Correspondent, SourceError, SourceFault
from vpnd.keysource.psk import has_psk
from vpnd.keysource.qkd_source import QkdSource
from vpnd.keysource.skip_source import SkipSource

pytestmark = pytest.mark.slow

OTHER_IDS = ["no-status", "other-key-ids"]
TOKEN = "eyJhbGciOiJub25lIn0.c2FlLWZyYTE."


def secret(path: Path, content: bytes, mode: int = 0o600) -> str:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, mode), "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(content)
    return str(path)


async def failure(source: QkdSource) -> SourceError:
    with pytest.raises(SourceError) as refused:
        await source.obtain(FAR)
    return refused.value


async def test_a_token_and_headers_from_files(
    kme: TlsServer,
    qkd_config: QkdConfig,
    told: Told,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    kme.answers = [keys(one) for one in SPEC_KEYS]
    token = tmp_path / "token"
    config = qkd_config(
        kme,
        bearer_token=secret(token, TOKEN.encode() + b"\n"),
        headers={"X-Api-Key": secret(tmp_path / "api", b"very secret")},
    )
    source = QkdSource("kme", config, told)
    with caplog.at_level(logging.DEBUG):
        assert (await source.obtain(FAR)).present
    assert kme.received[0].headers["authorization"] == f"Bearer {TOKEN}"
    assert kme.received[0].headers["x-api-key"] == "very secret"
    credentials = await source._manager.files.current()
    for text in (repr(credentials), repr(source.status()), repr(config), caplog.text):
        assert TOKEN not in text
        assert "very secret" not in text
    # A token is renewed without a restart
    secret(token, b"another-one")
    assert (await source.obtain(FAR)).present
    assert kme.received[1].headers["authorization"] == "Bearer another-one"
    # ... and withdrawn
    token.unlink()
    assert (await failure(source)).fault is SourceFault.FILE
    assert len(kme.received) == 2


async def test_a_token_that_is_refused_is_told_nowhere(
    kme: TlsServer, qkd_config: QkdConfig, told: Told, tmp_path: Path
) -> None:
    kme.answers = [http(401, {"message": f"bad token {TOKEN}"})]
    config = qkd_config(kme, bearer_token=secret(tmp_path / "token", TOKEN.encode()))
    refused = await failure(QkdSource("kme", config, told))
    assert refused.fault is SourceFault.UNAUTHORIZED
    assert "bearer_token" in refused.hint
    assert TOKEN.split(".")[0] not in refused.reason


async def test_a_token_from_a_systemd_credential(
    kme: TlsServer,
    qkd_config: QkdConfig,
    told: Told,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kme.answers = [keys(SPEC_KEYS[0])]
    config = qkd_config(kme, bearer_token="credential:kme-token")
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    refused = await failure(QkdSource("kme", config, told))
    assert refused.fault is SourceFault.FILE
    assert "$CREDENTIALS_DIRECTORY is not set" in refused.reason
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    source = QkdSource("kme", config, told)
    assert "is not among the unit's credentials" in (await failure(source)).reason
    # As systemd makes it where the unit has a user of its own: readable by an access control list
    secret(tmp_path / "kme-token", TOKEN.encode(), mode=0o440)
    assert (await source.obtain(FAR)).present
    assert kme.received[0].headers["authorization"] == f"Bearer {TOKEN}"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "holds nothing that can be sent"),
        (b"two\nlines", "holds nothing that can be sent"),
        ("Schlüssel".encode(), "holds nothing that can be sent"),
        (b"Bearer x", "holds no bearer token"),
        (b"x" * 9000, "is longer than"),
    ],
    ids=["empty", "two lines", "no ASCII", "a word too many", "long"],
)
async def test_a_file_that_holds_no_token(
    kme: TlsServer, qkd_config: QkdConfig, told: Told, tmp_path: Path, content: bytes, says: str
) -> None:
    config = qkd_config(kme, bearer_token=secret(tmp_path / "token", content))
    refused = await failure(QkdSource("kme", config, told))
    assert refused.fault is SourceFault.FILE
    assert says in refused.reason
    assert kme.connections == 0


async def test_no_client_certificate(
    make_server: MakeServer, nursery: trio.Nursery, qkd_config: QkdConfig, told: Told
) -> None:
    def ask_for_none(context: ssl.SSLContext) -> None:
        context.verify_mode = ssl.CERT_NONE

    server = make_server(change_context=ask_for_none, answers=[keys(SPEC_KEYS[0])])
    strict = make_server(answers=[keys(SPEC_KEYS[0])])
    await server.start(nursery)
    await strict.start(nursery)
    source = QkdSource("kme", qkd_config(server, certificate=None, key=None), told)
    assert (await source.obtain(FAR)).present
    assert [one.what for one in source.status().certificates] == ["CA", "server"]
    refused = await failure(QkdSource("kme", qkd_config(strict, certificate=None, key=None), told))
    assert refused.fault is SourceFault.TLS
    assert strict.received == []


async def test_a_pin_in_the_place_of_the_name(
    authority: Authority,
    make_server: MakeServer,
    nursery: trio.Nursery,
    qkd_config: QkdConfig,
    told: Told,
) -> None:
    issued = authority.issue("KME 1 of Cologne")
    server = make_server(issued=issued, answers=[keys(SPEC_KEYS[0])])
    await server.start(nursery)
    refused = await failure(QkdSource("kme", qkd_config(server), told))
    assert "check_name = false" in refused.hint
    pinned = qkd_config(server, check_name=False, pin=f"sha256:{issued.sha256}")
    assert (await QkdSource("kme", pinned, told).obtain(FAR)).present
    other = qkd_config(server, check_name=False, pin="sha256:" + "0" * 64)
    assert "that `pin` names" in (await failure(QkdSource("kme", other, told))).reason
    # The CA counts as before
    stranger = make_server(
        issued=Authority("another CA").issue("KME 1 of Cologne"), answers=[keys(SPEC_KEYS[0])]
    )
    await stranger.start(nursery)
    pinned = qkd_config(stranger, check_name=False, pin=f"sha256:{stranger.issued.sha256}")
    assert "is not of the CA" in (await failure(QkdSource("kme", pinned, told))).reason
    assert len(server.received) == 1
    assert stranger.received == []


async def test_long_names_and_ids(kme: TlsServer, qkd_config: QkdConfig, told: Told) -> None:
    """An application with an ID of 291 characters, and a key whose ID is eight UUIDs."""
    long_sae, long_id = "s" * 291, "+".join([SPEC_KEYS[0]["key_ID"]] * 8)
    far = Correspondent("ams1", "f" * 291)
    kme.answers = [
        keys(SPEC_KEYS[0] | {"key_ID": long_id}),
        keys(SPEC_KEYS[1] | {"key_ID": long_id}),
    ]
    reference = (
        await QkdSource("kme", qkd_config(kme, sae=long_sae, quirks=OTHER_IDS), told).obtain(far)
    ).reference
    assert (reference.sae, reference.key_ids) == (long_sae, (long_id,))
    check_reference(reference)
    assert await QkdSource("kme", qkd_config(kme, quirks=OTHER_IDS), told).retrieve(far, reference)
    assert kme.received[1].json == {"key_IDs": [{"key_ID": long_id}]}
    kme.answers = [keys(SPEC_KEYS[2] | {"key_ID": "x" * 301})]
    refused = await failure(QkdSource("kme", qkd_config(kme, quirks=OTHER_IDS), told))
    assert refused.fault is SourceFault.WRONG_KEY_ID


@pytest.mark.parametrize("key_id", ["..", ".", "a/b", "a b", "a?b", "%2e%2e", "é", ".hidden", ""])
async def test_no_id_is_more_than_a_segment_of_a_path(
    kme: TlsServer, qkd_config: QkdConfig, told: Told, key_id: str
) -> None:
    """With the quirk that lets IDs be other than UUIDs, from the far end and from the KME."""
    far = Correspondent("ams1", "f")
    source = QkdSource("kme", qkd_config(kme, quirks=OTHER_IDS, verbs="get"), told)
    named = ExternalKeyReference("qkd", "KME", "f", (key_id,), 256)
    with pytest.raises(SourceError) as caught:
        await source.retrieve(far, named)
    assert caught.value.fault is SourceFault.WRONG_KEY_ID
    assert kme.received == []
    kme.answers = [keys(SPEC_KEYS[0] | {"key_ID": key_id})]
    refused = await failure(source)
    assert refused.fault is SourceFault.WRONG_KEY_ID


async def test_other_ids_need_the_quirk(kme: TlsServer, qkd_config: QkdConfig, told: Told) -> None:
    kme.answers = [keys(SPEC_KEYS[0] | {"key_ID": "key-1"})] * 2
    source = QkdSource("kme", qkd_config(kme, quirks=OTHER_IDS), told)
    assert (await source.obtain(Correspondent("ams1", "f"))).reference.key_ids == ("key-1",)
    refused = await failure(QkdSource("kme", qkd_config(kme), told))
    assert refused.fault is SourceFault.WRONG_KEY_ID
    assert "other-key-ids" in refused.hint


@pytest.mark.parametrize("verbs", ["post", "get"])
async def test_another_base_path(
    kme: TlsServer, qkd_config: QkdConfig, told: Told, verbs: str
) -> None:
    kme.answers = [http(200, SPEC_STATUS), keys(SPEC_KEYS[0]), keys(SPEC_KEYS[1])]
    config = qkd_config(kme, api_path="/qkd/v1", quirks=[], verbs=verbs)
    source = QkdSource("kme", config, told)
    reference = (await source.obtain(FAR)).reference
    other = type(reference)("qkd", "KME", FAR_SAE, (SPEC_KEYS[1]["key_ID"],), 256)
    assert await source.retrieve(FAR, other)
    assert [one.target.partition("?")[0] for one in kme.received] == [
        f"/qkd/v1/{FAR_SAE}/{call}" for call in ("status", "enc_keys", "dec_keys")
    ]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"key": None}, "has certificate without key"),
        ({"certificate": None}, "has key without certificate"),
        ({"check_name": False}, "has check_name = false without a pin"),
        ({"urls": ["https://kme1/api/v1/keys/"]}, "leave that out: vpnd adds api_path"),
        ({"api_path": "api"}, "is no path of an API"),
        ({"api_path": "/api/"}, "is no path of an API"),
        ({"api_path": "/a/../b"}, "is no path of an API"),
        ({"headers": {"Host": "/x"}}, "is no header that can be set"),
        ({"headers": {"X Y": "/x"}}, "is no header that can be set"),
        ({"headers": {"X": "secret"}}, "is not a path from the root"),
        ({"headers": ["X"]}, "must be a table"),
        ({"bearer_token": "credential:../x"}, "is no name of a credential"),
        ({"bearer_token": "/x", "headers": {"authorization": "/x"}}, "one of the two"),
        ({"bearer_token": "/no/such/file"}, "does not exist"),
    ],
)
def test_what_cannot_be_configured(
    tmp_path: Path, sae_files: dict[str, str], changed: dict[str, Any], says: str
) -> None:
    site = Site(tmp_path)
    table = {"type": "qkd", "urls": ["https://kme1"], "sae": "sae-1", **sae_files} | changed
    site.main["key_sources"] = {
        "kme": {key: value for key, value in table.items() if value is not None}
    }
    site.write()
    errors = refusal(site.path)
    assert errors is not None
    (problem,) = errors.problems
    assert says in problem.reason + problem.hint
    assert problem.key.startswith("key_sources.kme")


def test_a_credential_is_noted_where_it_cannot_be_looked_at(
    tmp_path: Path, sae_files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`vpnctl check` is not started by the unit: it says so, and refuses nothing."""
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    site = Site(tmp_path)
    table = {"type": "qkd", "urls": ["https://kme1"], "sae": "sae-1", **sae_files}
    site.main["key_sources"] = {"kme": table | {"bearer_token": "credential:token"}}
    site.write()
    (note,) = load_config(site.path).notes
    assert "$CREDENTIALS_DIRECTORY is not set" in note.reason


# ---- TLS with a pre-shared key

PSK = bytes(range(32))
needs_psk = pytest.mark.skipif(
    not has_psk(), reason="Python's ssl has TLS-PSK from 3.13 on; this one is older"
)


def with_psk(context: Any) -> None:
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("PSK")
    context.set_psk_server_callback(lambda name: PSK if name == "vpnd-fra1" else b"")


def psk_config(server: TlsServer, file: str, identity: str = "vpnd-fra1") -> SkipSourceConfig:
    values = {
        "type": "skip",
        "urls": [server.url],
        "psk": file,
        "psk_identity": identity,
        "prefetch": False,
    }
    found = key_source_config(values, Source(None), ("key_sources", "skip"))
    assert isinstance(found, SkipSourceConfig)
    return found


@needs_psk
async def test_skip_over_a_pre_shared_key(
    make_server: MakeServer, nursery: trio.Nursery, told: Told, tmp_path: Path
) -> None:
    server = make_server(change_context=with_psk)
    server.answers = [
        http(200, {"localSystemID": "KP_A", "remoteSystemID": ["KP_B"]}),
        http(200, {"keyId": "0a" * 16, "key": PSK[::-1].hex()}),
    ]
    await server.start(nursery)
    file = secret(tmp_path / "psk", PSK.hex().encode() + b"\n")
    far = Correspondent("ams1", "KP_B")
    source = SkipSource("skip", psk_config(server, file), told)
    steps = await source.probe(far)
    assert [(one.step, one.done) for one in steps] == [
        ("connect", True),
        ("tls", True),
        ("status", True),
    ]
    assert (await source.obtain(far)).present
    # Another key, or another name: nothing is asked
    asked = len(server.received)
    other = secret(tmp_path / "other", b"00" * 32)
    for config in (psk_config(server, other), psk_config(server, file, "somebody")):
        with pytest.raises(SourceError) as refused:
            await SkipSource("skip", config, told).obtain(far)
        assert refused.value.fault is SourceFault.TLS
    assert len(server.received) == asked


@needs_psk
async def test_a_server_with_a_certificate_is_not_believed_for_a_pre_shared_key(
    kme: TlsServer, told: Told, tmp_path: Path
) -> None:
    file = secret(tmp_path / "psk", PSK.hex().encode())
    with pytest.raises(SourceError) as refused:
        await SkipSource("skip", psk_config(kme, file), told).obtain(Correspondent("a", "KP_B"))
    assert refused.value.fault is SourceFault.TLS
    assert kme.received == []


@pytest.mark.skipif(has_psk(), reason="this Python's ssl has TLS-PSK")
def test_a_python_without_it_says_so_at_the_check(tmp_path: Path) -> None:
    site = Site(tmp_path)
    table = {"type": "skip", "urls": "https://kp", "psk": secret(tmp_path / "psk", b"0" * 64)}
    site.main["key_sources"] = {"skip": table | {"psk_identity": "vpnd-fra1"}}
    site.write()
    errors = refusal(site.path)
    assert errors is not None
    (problem,) = errors.problems
    assert problem.key == "key_sources.skip.psk"
    assert "this Python has no TLS with a pre-shared key" in problem.reason
    assert "3.13" in problem.hint


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"psk": "/x"}, "has one of psk and psk_identity"),
        ({"psk_identity": "x"}, "has one of psk and psk_identity"),
        ({}, "has neither ca nor psk"),
        ({"psk": "/x", "psk_identity": "x", "ca": "/x"}, "has psk and ca"),
        ({"psk": "/x", "psk_identity": "x" * 129}, "has 129 bytes"),
    ],
)
def test_what_cannot_be_configured_of_it(
    tmp_path: Path, changed: dict[str, Any], says: str
) -> None:
    site = Site(tmp_path)
    site.main["key_sources"] = {"skip": {"type": "skip", "urls": "https://kp"} | changed}
    site.write()
    errors = refusal(site.path)
    assert errors is not None
    assert says in errors.problems[0].reason

"""`vpnctl keysource test`: what is asked, on which connection, and what is told of it."""

from __future__ import annotations

import base64
import os
import uuid
from collections.abc import Sequence
from urllib.parse import parse_qs, urlsplit

import pytest
import trio

from tests.vpnd.keysource.authority import Authority
from tests.vpnd.keysource.conftest import (
    FAR,
    FAR_SAE,
    SPEC_KEYS,
    SPEC_STATUS,
    MakeServer,
    QkdConfig,
    SkipConfig,
    Told,
)
from tests.vpnd.keysource.test_qkd_faults import keys
from tests.vpnd.keysource.tls_server import Received, Stream, TlsServer, http
from vpnd.keysource.base import Correspondent, ProbeStep, SourceError
from vpnd.keysource.qkd_source import QkdSource
from vpnd.keysource.skip_source import SkipSource

pytestmark = pytest.mark.slow

STATUS = http(200, SPEC_STATUS)
UNKNOWN = http(400, {"message": "key not found"})
OPTIONS = b"HTTP/1.1 200 OK\r\nAllow: GET, POST, OPTIONS\r\nContent-Length: 0\r\n\r\n"


def outline(steps: Sequence[ProbeStep]) -> list[tuple[str, bool]]:
    return [(step.step, step.done) for step in steps]


async def test_status_is_asked_on_the_connection_that_was_opened(
    kme: TlsServer, qkd_config: QkdConfig, told: Told
) -> None:
    kme.answers = [STATUS, UNKNOWN, OPTIONS]
    steps = await QkdSource("kme", qkd_config(kme, quirks=[]), told).probe(FAR)
    assert outline(steps) == [
        ("connect", True),
        ("tls", True),
        ("certificate", True),
        ("status", True),
        ("dec_keys", True),
        ("enc_keys", True),
    ]
    # A connection without a request was seen to end a server
    assert kme.connections == len(kme.received) == 3
    assert [one.method for one in kme.received] == ["GET", "POST", "OPTIONS"]
    assert not any(one.target.endswith("enc_keys") for one in kme.received[:2])
    assert "25000 of 100000 keys" in steps[3].detail


async def test_without_a_link_or_a_status_the_true_reason_is_told(
    kme: TlsServer, qkd_config: QkdConfig, told: Told
) -> None:
    kme.answers = [http(404)]
    *_, status = await QkdSource("kme", qkd_config(kme, quirks=[]), told).probe(None)
    assert status == ProbeStep(
        "status",
        True,
        "HTTP answers (status 404); its keys are not asked for, since no link uses this source",
    )
    assert kme.connections == len(kme.received)
    kme.answers = [UNKNOWN, OPTIONS]
    *_, status = await QkdSource("kme", qkd_config(kme), told).probe(FAR)
    assert status == ProbeStep("status", True, 'not asked, by quirks = ["no-status"]')
    assert kme.connections == len(kme.received)


@pytest.mark.parametrize("verbs", ["post", "get"])
@pytest.mark.parametrize("where", ["dec_keys", "enc_keys"])
async def test_a_method_that_is_not_there_is_found(
    kme: TlsServer, qkd_config: QkdConfig, told: Told, verbs: str, where: str
) -> None:
    has, other = ("GET", "get") if verbs == "post" else ("POST", "post")

    async def one_method(request: Received, stream: Stream) -> None:
        answer = UNKNOWN
        if request.target.endswith("status"):
            answer = STATUS
        elif request.method == "OPTIONS":
            allow = has if where == "enc_keys" else "GET, POST"
            answer = f"HTTP/1.1 405 No\r\nAllow: {allow}\r\nContent-Length: 0\r\n\r\n".encode()
        elif where == "dec_keys" and request.method != has:
            answer = http(405)
        await stream.send_all(answer)
        await stream.aclose()

    kme.answers = [one_method]
    config = qkd_config(kme, quirks=[], verbs=verbs)
    steps = await QkdSource("kme", config, told).probe(FAR)
    (bad,) = (step for step in steps if not step.done)
    assert bad.step == where
    assert f'verbs = "{other}"' in bad.hint


async def test_a_made_up_id_has_no_key(kme: TlsServer, qkd_config: QkdConfig, told: Told) -> None:
    kme.answers = [STATUS, keys(SPEC_KEYS[0]), OPTIONS]
    steps = await QkdSource("kme", qkd_config(kme, quirks=[]), told).probe(FAR)
    assert outline(steps)[3:] == [("status", True), ("dec_keys", False), ("enc_keys", True)]


async def test_an_address_that_rests_is_tested_all_the_same(
    kme: TlsServer, qkd_config: QkdConfig, told: Told
) -> None:
    source = QkdSource("kme", qkd_config(kme, quirks=[]), told)
    kme.stop()
    await trio.testing.wait_all_tasks_blocked()
    with pytest.raises(SourceError):
        await source.obtain(FAR)
    steps = await source.probe(FAR)
    assert outline(steps) == [("connect", False)]
    assert "not asked for another" not in steps[0].detail
    assert "Connection refused" in steps[0].detail


@pytest.mark.parametrize(
    ("names", "has"),
    [
        (("kme7.example.net", "192.0.2.7"), "it has kme7.example.net, 192.0.2.7"),
        ((), "it has no subject alternative name, but the common name KME 7 of Cologne"),
    ],
    ids=["others", "none"],
)
async def test_names_that_the_certificate_has_are_told_once(
    authority: Authority,
    make_server: MakeServer,
    nursery: trio.Nursery,
    qkd_config: QkdConfig,
    told: Told,
    names: tuple[str, ...],
    has: str,
) -> None:
    server = make_server(issued=authority.issue("KME 7 of Cologne", names=names), answers=[STATUS])
    await server.start(nursery)
    source = QkdSource("kme", qkd_config(server, quirks=[]), told)
    steps = await source.probe(FAR)
    assert outline(steps) == [("connect", True), ("tls", True), ("certificate", False)] or outline(
        steps
    ) == [("connect", True), ("certificate", False)]
    assert has in steps[-1].detail
    with pytest.raises(SourceError) as refused:
        await source.obtain(FAR)
    assert has in refused.value.reason
    assert server.received == []


async def test_a_status_that_fails_is_the_last_of_an_address(
    kme: TlsServer,
    make_server: MakeServer,
    nursery: trio.Nursery,
    qkd_config: QkdConfig,
    told: Told,
) -> None:
    other = make_server(answers=[STATUS, UNKNOWN, OPTIONS])
    await other.start(nursery)
    kme.answers = [http(401, {"message": "who are you"})]
    steps = await QkdSource("kme", qkd_config(kme, other, quirks=[]), told).probe(FAR)
    assert outline(steps)[3] == ("status", False)
    assert outline(steps)[7:] == [("status", True), ("dec_keys", True), ("enc_keys", True)]
    assert len(kme.received) == 1


async def test_skip_is_asked_for_its_capabilities(
    kme: TlsServer, skip_config: SkipConfig, told: Told
) -> None:
    kme.answers = [http(200, {"localSystemID": "KP_A", "remoteSystemID": ["KP_B"]})]
    source = SkipSource("skip", skip_config(kme), told)
    assert outline(await source.probe(None))[-1] == ("status", True)
    steps = await source.probe(Correspondent("ams1", FAR_SAE))
    assert outline(steps)[-1] == ("status", False)
    assert f'it has no keys with "{FAR_SAE}"' in steps[-1].detail
    assert kme.connections == len(kme.received) == 2


# ---- a deep test


def key_of(bits: int) -> dict[str, str]:
    return {"key_ID": str(uuid.uuid4()), "key": base64.b64encode(os.urandom(bits // 8)).decode()}


@pytest.mark.parametrize("has", ["everything", "only what the link needs"])
async def test_a_deep_test_takes_keys_as_a_link_might(
    kme: TlsServer, qkd_config: QkdConfig, told: Told, has: str
) -> None:
    asked: list[tuple[str, int, int]] = []

    async def serve(request: Received, stream: Stream) -> None:
        parts = urlsplit(request.target)
        answer = STATUS
        if parts.path.endswith("enc_keys"):
            query = {name: found[0] for name, found in parse_qs(parts.query).items()}
            wanted = request.json if request.method == "POST" else query
            number, size = int(wanted["number"]), int(wanted["size"])
            asked.append((request.method, number, size))
            usual = (request.method, number, size) == ("POST", 1, 256)
            answer = keys(*(key_of(size) for _ in range(number)))
            if has != "everything" and not usual:
                answer = http(400, {"message": "one key of 256 bits, by POST"})
        await stream.send_all(answer)
        await stream.aclose()

    kme.answers = [serve]
    source = QkdSource("kme", qkd_config(kme, quirks=[]), told)
    steps = await source.try_out(FAR)
    assert outline(steps) == [
        (name, True) for name in ("key", "several keys", "other verb", "other sizes")
    ]
    assert asked == [
        ("POST", 1, 256),
        ("POST", 2, 256),
        ("GET", 1, 256),
        ("POST", 1, 128),
        ("POST", 1, 512),
    ]
    for step in steps[1:]:
        assert ("one key of 256 bits" in step.detail) == (has != "everything")
    assert source.status().prefetched == 0


async def test_a_deep_test_fails_where_a_link_would(
    kme: TlsServer, qkd_config: QkdConfig, told: Told
) -> None:
    """With keys of 128 bits at most, two make one: a key manager that gives one by one is none."""

    async def serve(request: Received, stream: Stream) -> None:
        answer = http(200, SPEC_STATUS | {"max_key_size": 128, "min_key_size": 128})
        if request.target.endswith("enc_keys"):
            number = request.json["number"]
            answer = keys(*(key_of(128) for _ in range(number)))
            if len(kme.received) > 2:
                answer = http(400, {"message": "one by one"})
        await stream.send_all(answer)
        await stream.aclose()

    kme.answers = [serve]
    steps = await QkdSource("kme", qkd_config(kme, quirks=[]), told).try_out(FAR)
    assert outline(steps)[:2] == [("key", True), ("several keys", False)]
    kme.answers = [http(405)]
    steps = await QkdSource("kme", qkd_config(kme), told).try_out(FAR)
    assert outline(steps) == [("key", False)]
    assert 'verbs = "get"' in steps[0].hint

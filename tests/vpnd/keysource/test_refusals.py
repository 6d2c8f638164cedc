"""What is made of a refusal: the fault, what to do about it, and what the server says itself."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from kex.external import ExternalKeyReference
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
from tests.vpnd.keysource.tls_server import TlsServer, http
from vpnd.keysource.base import Correspondent, SourceError, SourceFault
from vpnd.keysource.qkd_source import QkdSource
from vpnd.keysource.skip_source import SkipSource

pytestmark = pytest.mark.slow

NGINX = (
    b"<html>\r\n<head><title>400 The SSL certificate error</title></head>\r\n<body>\r\n"
    b"<center><h1>400 Bad Request</h1></center>\r\n<center>The SSL certificate error</center>"
)


async def refusal(source: QkdSource) -> SourceError:
    with pytest.raises(SourceError) as refused:
        await source.obtain(FAR)
    return refused.value


HINTS: list[tuple[str, dict[str, Any], bytes, SourceFault, str, str]] = [
    (
        "no POST",
        {},
        http(405, {"message": "Method Not Allowed"}),
        SourceFault.REFUSED,
        f"405 came to POST /api/v1/keys/{FAR_SAE}/enc_keys with",
        'verbs = "get"',
    ),
    ("no POST, 501", {}, http(501), SourceFault.REFUSED, "501 came", 'verbs = "get"'),
    (
        "no GET",
        {"verbs": "get"},
        http(405),
        SourceFault.REFUSED,
        f"405 came to GET /api/v1/keys/{FAR_SAE}/enc_keys with",
        'verbs = "post"',
    ),
    *(
        (
            f"{status}",
            {},
            http(status, b"<h1>Bad Gateway</h1>", "text/html"),
            SourceFault.UNAVAILABLE,
            f"{status} came with",
            "tried again by itself",
        )
        for status in (500, 502, 504, 599)
    ),
    (
        "nginx, another CA",
        {},
        http(400, NGINX, "text/html"),
        SourceFault.UNAUTHORIZED,
        "The SSL certificate error",
        "this end's client certificate is not believed there",
    ),
    (
        "nginx, none",
        {},
        http(400, b"<p>No required SSL certificate was sent</p>", "text/html"),
        SourceFault.UNAUTHORIZED,
        "No required SSL certificate was sent",
        "got none: set `certificate`",
    ),
    (
        "a path",
        {},
        http(404, b"<h1>Not Found</h1>", "text/html"),
        SourceFault.REFUSED,
        f"404 came to POST /api/v1/keys/{FAR_SAE}/enc_keys with",
        "",
    ),
    (
        "201",
        {},
        http(201, {"keys": [SPEC_KEYS[0]]}),
        SourceFault.REFUSED,
        "expected status 200; 201 came",
        "only 200 is success",
    ),
]


@pytest.mark.parametrize(
    ("changed", "answer", "fault", "says", "hint"),
    [one[1:] for one in HINTS],
    ids=[one[0] for one in HINTS],
)
async def test_the_hint_leads_the_right_way(
    kme: TlsServer,
    qkd_config: QkdConfig,
    told: Told,
    changed: dict[str, Any],
    answer: bytes,
    fault: SourceFault,
    says: str,
    hint: str,
) -> None:
    kme.answers = [answer]
    refused = await refusal(QkdSource("kme", qkd_config(kme, **changed), told))
    assert refused.fault is fault
    assert says in refused.reason
    assert hint in refused.hint
    assert "is not followed" not in refused.hint


async def test_trouble_of_one_address_with_the_status_is_none_of_the_next(
    kme: TlsServer,
    make_server: MakeServer,
    nursery: trio.Nursery,
    qkd_config: QkdConfig,
    told: Told,
) -> None:
    """A status hands nothing out: after a 502 the next address is asked, as after a 503."""
    other = make_server(answers=[http(200, SPEC_STATUS)])
    await other.start(nursery)
    kme.answers = [http(502), keys(SPEC_KEYS[0])]
    source = QkdSource("kme", qkd_config(kme, other, quirks=[]), told)
    assert (await source.obtain(FAR)).present
    assert len(other.received) == 1
    assert source.status().counters.get("maybe_lost", 0) == 0


# ---- what it says itself

SAID: list[tuple[str, bytes, list[str]]] = [
    (
        "details",
        http(400, {"message": "not found", "details": [{"key_ID": SPEC_KEYS[0]["key_ID"]}, "x"]}),
        ['"not found"', f'details: "key_ID: {SPEC_KEYS[0]["key_ID"]}; x"'],
    ),
    ("details alone", http(400, {"details": ["pool is locked"]}), ['"pool is locked"']),
    ("FastAPI", http(401, {"detail": "SAE is unknown"}), ['"SAE is unknown"']),
    (
        "FastAPI, fields",
        http(
            422,
            {
                "detail": [
                    {"loc": ["body", "size"], "msg": "must be 256", "input": 128},
                    {"loc": ["body", "number"], "msg": "too many", "type": "x"},
                ]
            },
        ),
        ["body.size: must be 256; body.number: too many"],
    ),
    ("nested", http(400, {"error": {"code": 7, "message": "no luck"}}), ['"no luck"']),
    ("a string", http(400, b'"just words"'), ['"just words"']),
    ("Chinese", http(400, {"message": "密钥不足"}), ["密钥不足"]),
    (
        "another character set",
        http(400, "<p>密钥不足</p>".encode("gbk"), "text/html; charset=gbk"),
        ["密钥不足"],
    ),
    ("200, a message", http(200, {"message": "密钥不足", "code": 3}), ["keys", '"密钥不足"']),
    ("200, a string", http(200, b'"no such SAE"'), ['"no such SAE"']),
    ("200, words", http(200, "Ключ не найден".encode(), "text/plain"), ['"Ключ не найден"']),
]


@pytest.mark.parametrize(
    ("answer", "parts"), [one[1:] for one in SAID], ids=[one[0] for one in SAID]
)
async def test_what_the_server_says_is_told(
    kme: TlsServer, qkd_config: QkdConfig, told: Told, answer: bytes, parts: list[str]
) -> None:
    kme.answers = [answer]
    reason = (await refusal(QkdSource("kme", qkd_config(kme), told))).reason
    for part in parts:
        assert part in reason
    assert reason.isprintable()


@pytest.mark.parametrize(
    "body",
    [
        {"message": "a\x1b[31m\n" * 500, "details": [{"b" * 90: "c d " * 900}] * 50},
        {"detail": [[[[[[["deep"]]]]]]] * 9},
        {"detail": {"msg": {"msg": {"msg": {"msg": {"msg": "deep"}}}}}},
        {"message": None, "details": None, "error": 5},
        {"message": SPEC_KEYS[0]["key"], "details": [{"key": SPEC_KEYS[0]["key"]}]},
    ],
    ids=["long", "lists", "objects", "nothing", "a key"],
)
@pytest.mark.parametrize("status", [200, 400])
async def test_what_it_says_is_bounded_and_printable(
    kme: TlsServer, qkd_config: QkdConfig, told: Told, body: object, status: int
) -> None:
    kme.answers = [http(status, body)]
    reason = (await refusal(QkdSource("kme", qkd_config(kme), told))).reason
    assert reason.isprintable()
    assert len(reason) < 600
    assert SPEC_KEYS[0]["key"][:16] not in reason


async def test_a_status_that_is_only_a_message(
    kme: TlsServer, qkd_config: QkdConfig, told: Told
) -> None:
    kme.answers = [http(200, {"message": "SAE未注册"})]
    refused = await refusal(QkdSource("kme", qkd_config(kme, quirks=[]), told))
    assert "SAE未注册" in refused.reason
    assert len(kme.received) == 1


async def test_skip_tells_it_too(kme: TlsServer, skip_config: SkipConfig, told: Told) -> None:
    known = http(200, {"localSystemID": "KP_A", "remoteSystemID": ["KP_B"]})
    far = Correspondent("ams1", "KP_B")
    for answer, says in (
        (http(200, {"message": "没有密钥"}), "没有密钥"),
        (http(400, {"message": "bad size", "details": ["256 only"]}), "256 only"),
        (http(502), "502 came"),
    ):
        kme.answers = [known, answer]
        source = SkipSource("skip", skip_config(kme), told)
        with pytest.raises(SourceError) as refused:
            await source.obtain(far)
        assert says in refused.value.reason
    assert refused.value.fault is SourceFault.UNAVAILABLE


async def test_a_path_that_stands_twice(kme: TlsServer, qkd_config: QkdConfig, told: Told) -> None:
    """FastAPI's 404 is JSON: by ID it would count as a key that is not there yet."""
    kme.answers = [http(404, {"detail": "Not Found"})]
    config = qkd_config(urls=[f"{kme.url}/x/api/v1/keys/y"])
    reference = ExternalKeyReference("qkd", "KME-A", FAR_SAE, (SPEC_KEYS[0]["key_ID"],), 256)
    with pytest.raises(SourceError) as refused:
        await QkdSource("kme", config, told).retrieve(FAR, reference)
    assert refused.value.fault is SourceFault.REFUSED
    assert "/x/api/v1/keys/y/api/v1/keys/" in refused.value.reason
    assert "vpnd adds it" in refused.value.hint
    assert len(kme.received) == 1

"""Everything that a KME can do wrong: each ends in a SourceError that says which, and no key."""

from __future__ import annotations

import base64
import gc
import logging
from typing import Any

import pytest
import trio

from tests.vpnd.keysource.conftest import (
    FAR,
    SPEC_KEYS,
    SPEC_STATUS,
    MakeServer,
    QkdConfig,
    Told,
)
from tests.vpnd.keysource.test_qkd_calls import FIRST_ID, FIRST_KEY, reference
from tests.vpnd.keysource.tls_server import Received, Stream, TlsServer, http
from vpnd.keysource.base import SourceError, SourceFault
from vpnd.keysource.qkd_source import QkdSource

pytestmark = pytest.mark.slow

KEY = SPEC_KEYS[0]
GOOD = http(200, {"keys": [KEY]})
HTML = b"<html><head><title>Error</title></head><body><h1>Bad Gateway</h1></body></html>"


def keys(*changed: dict[str, Any]) -> bytes:
    return http(200, {"keys": list(changed)})


def without(key: str) -> dict[str, str]:
    return {name: value for name, value in KEY.items() if name != key}


def key_of(data: bytes) -> dict[str, str]:
    return KEY | {"key": base64.b64encode(data).decode()}


ANSWERS: list[tuple[str, bytes, SourceFault, str]] = [
    # what, answer to enc_keys, fault, what the reason says
    ("400 JSON", http(400, {"message": "bad request"}), SourceFault.REFUSED, '"bad request"'),
    ("400 HTML", http(400, HTML, "text/html"), SourceFault.REFUSED, '"Error Bad Gateway"'),
    ("400 nothing", http(400), SourceFault.REFUSED, "400 came with no text"),
    ("401 JSON", http(401, {"message": "who?"}), SourceFault.UNAUTHORIZED, '401 came with "who?"'),
    ("401 HTML", http(401, HTML, "text/html"), SourceFault.UNAUTHORIZED, "401"),
    ("401 nothing", http(401), SourceFault.UNAUTHORIZED, "401"),
    ("404 JSON", http(404, {"message": "nothing"}), SourceFault.REFUSED, "404"),
    ("404 HTML", http(404, HTML, "text/html"), SourceFault.REFUSED, "404"),
    ("404 nothing", http(404), SourceFault.REFUSED, "404"),
    ("422 JSON", http(422, {"detail": [{"loc": ["size"]}]}), SourceFault.REFUSED, "422"),
    ("422 HTML", http(422, HTML, "text/html"), SourceFault.REFUSED, "422"),
    ("422 nothing", http(422), SourceFault.REFUSED, "422"),
    ("500 JSON", http(500, {"error": "boom"}), SourceFault.UNAVAILABLE, '500 came with "boom"'),
    ("500 HTML", http(500, HTML, "text/html"), SourceFault.UNAVAILABLE, "500"),
    ("500 nothing", http(500), SourceFault.UNAVAILABLE, "500"),
    ("503 JSON", http(503, {"message": "later"}), SourceFault.UNAVAILABLE, "503"),
    ("503 HTML", http(503, HTML, "text/html"), SourceFault.UNAVAILABLE, "503"),
    ("503 nothing", http(503), SourceFault.UNAVAILABLE, "503"),
    ("429", http(429), SourceFault.UNAVAILABLE, "429"),
    ("redirection", http(302), SourceFault.REFUSED, "302 came"),
    ("204", http(204), SourceFault.REFUSED, "204 came"),
    (
        "pool empty, told",
        http(503, {"message": "Not enough keys in the pool"}),
        SourceFault.EMPTY,
        "Not enough keys",
    ),
    ("pool empty, no keys", keys(), SourceFault.EMPTY, "array without keys"),
    ("JSON cut off", http(200, b'{"keys": [{"key_ID": "bc4'), SourceFault.BAD_ANSWER, "JSON"),
    ("no JSON", http(200, HTML, "text/html"), SourceFault.BAD_ANSWER, "text/html"),
    ("nothing at all", http(200), SourceFault.BAD_ANSWER, "0 bytes"),
    ("no UTF-8", http(200, b'{"keys": "\xff"}'), SourceFault.BAD_ANSWER, "no UTF-8 at byte 10"),
    ("an array", http(200, [KEY]), SourceFault.BAD_ANSWER, "an array came"),
    ("no keys field", http(200, {"Keys": [KEY]}), SourceFault.BAD_ANSWER, "none came"),
    ("keys null", http(200, {"keys": None}), SourceFault.BAD_ANSWER, "null came"),
    ("keys of another kind", http(200, {"keys": ["x"]}), SourceFault.BAD_ANSWER, "a string came"),
    ("twice in JSON", http(200, b'{"keys":[],"keys":[]}'), SourceFault.BAD_ANSWER, "stands twice"),
    ("nested", http(200, b"[" * 60_000), SourceFault.BAD_ANSWER, "nested too deeply"),
    ("a huge number", http(200, b'{"n":' + b"9" * 9000 + b"}"), SourceFault.BAD_ANSWER, "JSON"),
    ("NaN", http(200, b'{"n": NaN}'), SourceFault.BAD_ANSWER, "JSON"),
    ("key null", keys(KEY | {"key": None}), SourceFault.BAD_KEY, "null came"),
    ("no key", keys(without("key")), SourceFault.BAD_KEY, "none came"),
    ("key too short", keys(key_of(FIRST_KEY[:16])), SourceFault.BAD_KEY, "one of 128 bits came"),
    ("key too long", keys(key_of(FIRST_KEY * 2)), SourceFault.BAD_KEY, "one of 512 bits came"),
    ("bytes for bits", keys(key_of(FIRST_KEY * 8)), SourceFault.BAD_KEY, "2048 bits"),
    ("key not Base64", keys(KEY | {"key": "!" * 44}), SourceFault.BAD_KEY, "Base64"),
    ("key of zeros", keys(key_of(bytes(32))), SourceFault.BAD_KEY, "one byte over and over"),
    ("no ID", keys(without("key_ID")), SourceFault.WRONG_KEY_ID, "none came"),
    ("ID null", keys(KEY | {"key_ID": None}), SourceFault.WRONG_KEY_ID, "null came"),
    ("ID empty", keys(KEY | {"key_ID": ""}), SourceFault.WRONG_KEY_ID, "an empty one"),
    ("ID too long", keys(KEY | {"key_ID": "a" * 301}), SourceFault.WRONG_KEY_ID, "301 characters"),
    ("ID no UUID", keys(KEY | {"key_ID": ".."}), SourceFault.WRONG_KEY_ID, "expected a UUID"),
    ("ID of lines", keys(KEY | {"key_ID": "a\nb"}), SourceFault.WRONG_KEY_ID, "3 characters"),
    ("ID doubled", keys(KEY, KEY), SourceFault.WRONG_KEY_ID, "one ID came twice"),
    ("two keys", keys(*SPEC_KEYS[:2]), SourceFault.BAD_ANSWER, "expected one key; 2 keys came"),
    ("no HTTP", b"SSH-2.0-OpenSSH_9.2\r\n\r\n", SourceFault.BAD_ANSWER, "HTTP/1.1"),
    (
        "cut off by its length",
        GOOD[:-10],
        SourceFault.BAD_ANSWER,
        "expected a whole answer; it was cut off",
    ),
    (
        "packed",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nab",
        SourceFault.BAD_ANSWER,
        "it is packed (gzip)",
    ),
]


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        CHUNKED + GOOD.partition(b"\r\n\r\n")[2] + b"\r\n",
        GOOD.partition(b"\r\n\r\n")[2] + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + GOOD.partition(b"\r\n\r\n")[2] + b"\r\n\r\n",
    ],
    ids=["for a chunk's length", "for a status line", "for a header"],
)
async def test_a_key_at_a_place_of_http_is_quoted_nowhere(
    kme: TlsServer, qkd_config: QkdConfig, told: Told, answer: bytes
) -> None:
    kme.answers = [answer]
    source = QkdSource("kme", qkd_config(kme), told)
    with pytest.raises(SourceError) as refused:
        await source.obtain(FAR)
    assert refused.value.fault is SourceFault.BAD_ANSWER
    shown = f"{refused.value} {source.status()} {told.events}"
    assert KEY["key"] not in shown
    assert KEY["key"][:12] not in shown


@pytest.mark.parametrize(
    ("answer", "fault", "says"), [one[1:] for one in ANSWERS], ids=[one[0] for one in ANSWERS]
)
async def test_an_answer_that_gives_no_key(
    kme: TlsServer,
    qkd_config: QkdConfig,
    told: Told,
    answer: bytes,
    fault: SourceFault,
    says: str,
) -> None:
    kme.answers = [answer]
    source = QkdSource("kme", qkd_config(kme), told)
    with pytest.raises(SourceError) as refused:
        await source.obtain(FAR)
    assert refused.value.fault is fault
    assert says in refused.value.reason
    # Source, address, call, and what was expected
    assert str(refused.value).startswith(f"kme: {kme.url}, enc_keys: expected")
    status = source.status()
    assert (status.fault, status.available) == (fault, False)
    (event,) = told.events
    assert (event["event"], event["code"], event["link"]) == ("source_failed", fault.value, "ams1")
    for text in (str(refused.value), refused.value.hint, status.reason, event["reason"]):
        assert KEY["key"] not in text
        assert KEY["key"][:12] not in text
        assert text.isprintable()
        assert len(text) < 600
    # And then it works
    kme.answers = [keys(SPEC_KEYS[1])]
    assert (await source.obtain(FAR)).present
    assert told.names == ["source_failed", "source_back"]


TOLERATED: list[tuple[str, bytes]] = [
    ("unknown fields", http(200, {"keys": [KEY | {"x": [1]}], "y": {"z": None}})),
    (
        "extensions, null or not",
        http(200, {"keys": [KEY | {"key_extension": None}], "key_container_extension": {"a": 1}}),
    ),
    ("no padding", keys(KEY | {"key": KEY["key"].rstrip("=")})),
    (
        "the alphabet for URLs",
        keys(KEY | {"key": base64.urlsafe_b64encode(FIRST_KEY).decode()}),
    ),
    ("another type", http(200, {"keys": [KEY]}, "text/plain; charset=utf-8")),
    ("byte order mark", http(200, b"\xef\xbb\xbf" + GOOD.partition(b"\r\n\r\n")[2])),
    (
        "chunks",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n"
        % (len(GOOD.partition(b"\r\n\r\n")[2]), GOOD.partition(b"\r\n\r\n")[2]),
    ),
    ("no length", b"HTTP/1.1 200 OK\r\n\r\n" + GOOD.partition(b"\r\n\r\n")[2]),
    ("HTTP/1.0", b"HTTP/1.0 200 OK\r\n\r\n" + GOOD.partition(b"\r\n\r\n")[2]),
]


@pytest.mark.parametrize("answer", [one[1] for one in TOLERATED], ids=[one[0] for one in TOLERATED])
async def test_what_does_not_matter_is_let_pass(
    kme: TlsServer, qkd_config: QkdConfig, told: Told, answer: bytes
) -> None:
    kme.answers = [answer]
    found = await QkdSource("kme", qkd_config(kme), told).obtain(FAR)
    assert found.key is not None
    assert found.key.expose() == FIRST_KEY


@pytest.mark.parametrize(
    "status",
    [
        {},
        dict.fromkeys(SPEC_STATUS),
        SPEC_STATUS | {"stored_key_count": "25000", "status_extension": {"a": 1}},
        SPEC_STATUS | {"key_size": -1, "max_key_size": 1.5, "min_key_size": True},
        {"source_KME_ID": ["x"], "stored_key_count": 10**300},
    ],
    ids=["empty", "nulls", "number as text", "numbers that are none", "other types"],
)
async def test_a_status_that_says_little_keeps_nobody_from_a_key(
    kme: TlsServer, qkd_config: QkdConfig, told: Told, status: dict[str, Any]
) -> None:
    kme.answers = [http(200, status), GOOD]
    source = QkdSource("kme", qkd_config(kme, quirks=[]), told)
    assert (await source.obtain(FAR)).present
    assert source.status().fault is None


# ---- by ID: what is asked for again, and what is not

NOT_DELIVERED: list[tuple[str, bytes]] = [
    # Clause 5.4 of the specification, in its own words
    ("400", http(400, {"message": "one or more keys specified are not found on KME"})),
    ("400, other words", http(400, {"message": "Unknown key ID"})),
    ("404 JSON", http(404, {"message": "x"})),
    ("404 nothing", http(404)),
    ("422", http(422, {"detail": "key does not exist"})),
    ("an array without keys", keys()),
    ("503", http(503, {"message": "synchronising"})),
    ("429", http(429)),
]


@pytest.mark.parametrize(
    "answer", [one[1] for one in NOT_DELIVERED], ids=[one[0] for one in NOT_DELIVERED]
)
async def test_a_key_that_is_not_there_yet_is_asked_for_again(
    kme: TlsServer, qkd_config: QkdConfig, told: Told, answer: bytes
) -> None:
    kme.answers = [answer, answer, GOOD]
    source = QkdSource("kme", qkd_config(kme), told)
    assert (await source.retrieve(FAR, reference())).expose() == FIRST_KEY
    assert len(kme.received) == 3
    assert source.status().counters["asked_again"] == 2


OTHER_WORDS: list[tuple[str, bytes]] = [
    ("400 in other words", http(400, {"message": "Schlüssel liegt nicht vor"})),
    ("400 HTML", http(400, HTML, "text/html")),
    ("400 nothing", http(400)),
    ("401", http(401, {"message": "not authorised"})),
    ("404 HTML", http(404, HTML, "text/html")),
]


@pytest.mark.parametrize(
    "answer", [one[1] for one in OTHER_WORDS], ids=[one[0] for one in OTHER_WORDS]
)
async def test_a_kme_that_answers_a_status_means_the_key(
    kme: TlsServer, qkd_config: QkdConfig, told: Told, answer: bytes
) -> None:
    """Whatever its words are: it knows both ends, and the path is right."""
    kme.answers = [answer, http(200, SPEC_STATUS), answer, GOOD]
    source = QkdSource("kme", qkd_config(kme, quirks=[]), told)
    assert (await source.retrieve(FAR, reference())).expose() == FIRST_KEY
    calls = [target.rpartition("/")[2] for target in kme.targets]
    assert calls == ["dec_keys", "status", "dec_keys", "dec_keys"]
    assert told.events == []


@pytest.mark.parametrize(
    "status", [http(401), http(200, SPEC_STATUS | {"slave_SAE_ID": "QQQQ"})], ids=["401", "names"]
)
async def test_a_kme_that_answers_no_status_does_not_know_this_end(
    kme: TlsServer, qkd_config: QkdConfig, told: Told, status: bytes
) -> None:
    kme.answers = [http(401, {"message": "who?"}), status]
    with pytest.raises(SourceError) as refused:
        await QkdSource("kme", qkd_config(kme, quirks=[]), told).retrieve(FAR, reference())
    assert refused.value.fault is SourceFault.UNAUTHORIZED
    assert '"who?"' in refused.value.reason
    assert len(kme.received) == 2


async def test_a_key_that_is_not_here_may_be_at_the_next_address(
    kme: TlsServer,
    make_server: MakeServer,
    nursery: trio.Nursery,
    qkd_config: QkdConfig,
    told: Told,
) -> None:
    second = make_server(answers=[GOOD])
    await second.start(nursery)
    kme.answers = [http(400), http(200, SPEC_STATUS), http(400)]
    source = QkdSource("kme", qkd_config(kme, second, quirks=[]), told)
    assert (await source.retrieve(FAR, reference())).expose() == FIRST_KEY


@pytest.mark.parametrize(
    "words",
    [
        "0 keys remaining",
        "Requested more keys than available",
        "number exceeds the keys available in the store",
        "keys available: 0",
        "there are fewer keys than requested",
        "Only 0 of 5 available",
        "the key pool ran dry",
        "zero keys are left",
    ],
)
async def test_an_empty_pool_has_many_words(
    kme: TlsServer, qkd_config: QkdConfig, told: Told, words: str
) -> None:
    kme.answers = [http(400, {"message": words})]
    with pytest.raises(SourceError) as refused:
        await QkdSource("kme", qkd_config(kme), told).obtain(FAR)
    assert refused.value.fault is SourceFault.EMPTY


@pytest.mark.parametrize(
    "words",
    ["size exceeds max_key_size", "10 keys are more than max_key_per_request", "key size 100"],
)
async def test_what_is_no_empty_pool(
    kme: TlsServer, qkd_config: QkdConfig, told: Told, words: str
) -> None:
    kme.answers = [http(400, {"message": words})]
    with pytest.raises(SourceError) as refused:
        await QkdSource("kme", qkd_config(kme), told).obtain(FAR)
    assert refused.value.fault is SourceFault.REFUSED


MAYBE_DELIVERED: list[tuple[str, bytes, SourceFault]] = [
    ("500", http(500, {"message": "key not found"}), SourceFault.UNAVAILABLE),
    ("502", http(502), SourceFault.UNAVAILABLE),
    ("504", http(504), SourceFault.UNAVAILABLE),
    ("another ID", keys(SPEC_KEYS[1]), SourceFault.WRONG_KEY_ID),
    ("a short key", keys(key_of(FIRST_KEY[:16])), SourceFault.BAD_KEY),
    ("JSON cut off", http(200, b'{"keys": ['), SourceFault.BAD_ANSWER),
    ("answer lost", b"", SourceFault.TLS),
]


@pytest.mark.parametrize(
    ("answer", "fault"),
    [one[1:] for one in MAYBE_DELIVERED],
    ids=[one[0] for one in MAYBE_DELIVERED],
)
async def test_a_key_that_may_have_been_delivered_is_never_asked_for_again(
    kme: TlsServer,
    make_server: MakeServer,
    nursery: trio.Nursery,
    qkd_config: QkdConfig,
    told: Told,
    answer: bytes,
    fault: SourceFault,
) -> None:
    other = make_server(answers=[GOOD])
    await other.start(nursery)
    kme.answers = [answer]
    source = QkdSource("kme", qkd_config(kme, other), told)
    with pytest.raises(SourceError) as refused:
        await source.retrieve(FAR, reference())
    assert refused.value.fault is fault
    with pytest.raises(SourceError) as again:
        await source.retrieve(FAR, reference(FIRST_ID.upper()))
    assert again.value.fault is SourceFault.WRONG_KEY_ID
    assert len(kme.received) == 1
    assert other.received == []
    assert source.status().counters["maybe_lost"] == 1


async def test_a_delivered_key_is_not_asked_for_again(
    kme: TlsServer, qkd_config: QkdConfig, told: Told
) -> None:
    kme.answers = [GOOD]
    source = QkdSource("kme", qkd_config(kme), told)
    await source.retrieve(FAR, reference())
    with pytest.raises(SourceError) as again:
        await source.retrieve(FAR, reference())
    assert again.value.fault is SourceFault.WRONG_KEY_ID
    assert len(kme.received) == 1


async def test_a_refusal_by_id_ends_at_once(
    kme: TlsServer, qkd_config: QkdConfig, told: Told
) -> None:
    """SAE names exchanged, say: asking again changes nothing."""
    kme.answers = [http(401, {"message": "not for you"})]
    with pytest.raises(SourceError) as refused:
        await QkdSource("kme", qkd_config(kme), told).retrieve(FAR, reference())
    assert refused.value.fault is SourceFault.UNAUTHORIZED
    assert len(kme.received) == 1


async def test_a_key_that_never_comes_ends_with_its_reason(
    kme: TlsServer, qkd_config: QkdConfig, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vpnd.keysource.remote_source.RESPONDER_SECONDS", 2.0)
    kme.answers = [http(404)]
    with trio.fail_after(4), pytest.raises(SourceError) as refused:
        await QkdSource("kme", qkd_config(kme), told).retrieve(FAR, reference())
    assert refused.value.fault is SourceFault.UNKNOWN_KEY
    assert len(kme.received) > 1


async def test_what_it_said_counts_more_than_that_it_then_said_nothing(
    kme: TlsServer, qkd_config: QkdConfig, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vpnd.keysource.remote_source.RESPONDER_SECONDS", 2.0)

    async def silence(_: Received, __: Stream) -> None:
        await trio.sleep_forever()

    kme.answers = [http(404), silence]
    with trio.fail_after(4), pytest.raises(SourceError) as refused:
        await QkdSource("kme", qkd_config(kme), told).retrieve(FAR, reference())
    assert refused.value.fault is SourceFault.UNKNOWN_KEY
    assert len(kme.received) == 2


async def test_the_reason_comes_before_the_caller_stops_waiting(
    kme: TlsServer, qkd_config: QkdConfig, told: Told
) -> None:
    """A caller that has less time than a responder's 8 s, as where the machine was busy before."""
    kme.answers = [http(404)]
    with trio.fail_after(3), pytest.raises(SourceError) as refused:
        await QkdSource("kme", qkd_config(kme), told).retrieve(FAR, reference())
    assert refused.value.fault is SourceFault.UNKNOWN_KEY
    assert len(kme.received) > 1


@pytest.mark.parametrize(
    ("ids", "bits"),
    [((FIRST_ID, FIRST_ID), 512), (("",), 256), ((), 256), ((FIRST_ID,), 100), ((FIRST_ID,), 64)],
    ids=["twice", "empty", "none", "no bytes", "too short"],
)
async def test_a_reference_that_makes_no_sense_is_not_asked_for(
    kme: TlsServer, qkd_config: QkdConfig, told: Told, ids: tuple[str, ...], bits: int
) -> None:
    kme.answers = [GOOD]
    asked = reference(bits=bits)
    asked = type(asked)(asked.source_type, asked.source, asked.sae, ids, bits)
    with pytest.raises(SourceError) as refused:
        await QkdSource("kme", qkd_config(kme), told).retrieve(FAR, asked)
    assert refused.value.fault is SourceFault.WRONG_KEY_ID
    assert kme.received == []


# ---- slow, endless, gone


async def test_a_hundred_megabytes_are_not_read(
    kme: TlsServer, qkd_config: QkdConfig, told: Told
) -> None:
    sent = 0

    async def flood(_: Received, stream: Stream) -> None:
        nonlocal sent
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 104857600\r\n\r\n")
        for _number in range(1600):
            await stream.send_all(b'"' * 65536)
            sent += 65536

    kme.answers = [flood]
    with trio.fail_after(20), pytest.raises(SourceError) as refused:
        await QkdSource("kme", qkd_config(kme), told).obtain(FAR)
    assert refused.value.fault is SourceFault.BAD_ANSWER
    assert "expected at most 65536 bytes" in refused.value.reason
    assert sent < 20_000_000  # what the sockets' buffers take


async def test_one_byte_at_a_time_has_an_end(
    kme: TlsServer, qkd_config: QkdConfig, told: Told
) -> None:
    async def drip(_: Received, stream: Stream) -> None:
        for byte in GOOD:
            await stream.send_all(bytes((byte,)))
            await trio.sleep(0.1)

    kme.answers = [drip]
    config = qkd_config(kme, call_timeout=0.6, read_timeout=0.5)
    with trio.fail_after(10), pytest.raises(SourceError) as refused:
        await QkdSource("kme", config, told).obtain(FAR)
    assert refused.value.fault is SourceFault.TIMEOUT
    assert "no whole answer within 0.6 s" in refused.value.reason


async def silence(_: Received, stream: Stream) -> None:
    await trio.sleep_forever()


async def test_a_kme_that_says_nothing(kme: TlsServer, qkd_config: QkdConfig, told: Told) -> None:
    kme.answers = [silence]
    source = QkdSource("kme", qkd_config(kme, read_timeout=0.3), told)
    with trio.fail_after(10), pytest.raises(SourceError) as refused:
        await source.retrieve(FAR, reference())
    assert refused.value.fault is SourceFault.TIMEOUT
    assert "not a byte came for 0.3 s" in refused.value.reason
    kme.answers = [GOOD]
    with pytest.raises(SourceError) as again:
        await source.retrieve(FAR, reference())
    assert again.value.fault is SourceFault.WRONG_KEY_ID


async def test_who_is_cancelled_while_he_waits_has_used_the_key(
    kme: TlsServer, qkd_config: QkdConfig, told: Told
) -> None:
    asked = trio.Event()

    async def silence_after_telling(_: Received, stream: Stream) -> None:
        asked.set()
        await trio.sleep_forever()

    kme.answers = [silence_after_telling]
    source = QkdSource("kme", qkd_config(kme), told)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.retrieve, FAR, reference())
        await asked.wait()
        nursery.cancel_scope.cancel()
    with pytest.raises(SourceError) as again:
        await source.retrieve(FAR, reference())
    assert again.value.fault is SourceFault.WRONG_KEY_ID
    gc.collect()  # a socket that was left open would warn here


async def test_a_port_where_nobody_listens(
    kme: TlsServer, qkd_config: QkdConfig, told: Told
) -> None:
    kme.stop()
    await trio.testing.wait_all_tasks_blocked()
    with pytest.raises(SourceError) as refused:
        await QkdSource("kme", qkd_config(kme), told).obtain(FAR)
    assert refused.value.fault is SourceFault.UNREACHABLE
    assert "no TCP connection: Connection refused" in refused.value.reason


async def test_a_name_that_nobody_knows(qkd_config: QkdConfig, told: Told) -> None:
    config = qkd_config(urls=["https://kme.invalid:8443"])
    with pytest.raises(SourceError) as refused:
        await QkdSource("kme", config, told).obtain(FAR)
    assert refused.value.fault is SourceFault.UNREACHABLE


async def test_a_port_that_takes_connections_and_says_nothing(
    qkd_config: QkdConfig, told: Told
) -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    async with listener:
        config = qkd_config(urls=[f"https://127.0.0.1:{port}"], connect_timeout=0.3)
        with trio.fail_after(10), pytest.raises(SourceError) as refused:
            await QkdSource("kme", config, told).obtain(FAR)
    assert refused.value.fault is SourceFault.TIMEOUT
    assert "no TLS connection within 0.3 s" in refused.value.reason


async def test_no_library_logs_what_goes_over_the_wire(
    kme: TlsServer, qkd_config: QkdConfig, told: Told, caplog: pytest.LogCaptureFixture
) -> None:
    kme.answers = [GOOD]
    with caplog.at_level(logging.DEBUG):
        found = await QkdSource("kme", qkd_config(kme), told).obtain(FAR)
    assert not [record for record in caplog.records if record.name.startswith("httpcore")]
    assert KEY["key"] not in repr(found) + str(found)
    assert FIRST_KEY.hex() not in repr(found)

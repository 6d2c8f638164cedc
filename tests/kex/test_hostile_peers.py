"""Nonsense by chance: from strangers, from who knows fingerprints, from an authenticated peer.

Whatever arrives, an endpoint raises PacketRejected and nothing else, or answers with a final
Reject: a bad peer must not stop the daemon.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import cbor2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kex import wire
from kex.endpoint import Endpoint
from kex.errors import PacketRejected
from kex.events import (
    ExchangeFailed,
    ExternalKeysWanted,
    FailureCode,
    KeyEstablished,
    RejectCode,
    RejectSent,
    Role,
)
from kex.exchange import initiator_payload_length
from kex.external import ExternalKey
from kex.identity import Fingerprint
from kex.suites import Suite
from kex.wire import Fragment, MessageType
from tests.examples import examples

from . import forging
from .harness import (
    ADDRESSES,
    PREFER,
    REQUIRE,
    SUITES,
    Moment,
    Network,
    agreeing,
    captured,
    external_key,
    finish,
    identity,
    never_loaded,
    pair,
    refused,
)

QUICK = settings(
    max_examples=examples(200),
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
SUITE_NUMBERS = st.sampled_from(SUITES)


def nothing_but_rejected(endpoint: Endpoint, datagram: bytes, moment: Moment) -> bool:
    """Whether the datagram was taken; any exception but PacketRejected passes through."""
    try:
        endpoint.receive_datagram(datagram, moment.flying.source, moment.network.now)
    except PacketRejected:
        return False
    return True


# ---- strangers


@QUICK
@given(data=st.binary(max_size=1300), at=st.data())
def test_random_bytes(data: bytes, at: st.DataObject) -> None:
    moment = at.draw(st.sampled_from(captured(1)))
    refused(moment.receiver, data, moment.flying.source, moment.network.now)


@QUICK
@given(
    kind=st.integers(0, 15),
    suite=st.integers(0, 15),
    index=st.integers(0, 255),
    count=st.integers(0, 255),
    rest=st.binary(min_size=12, max_size=1300),
    at=st.data(),
)
def test_random_bytes_behind_a_likely_header(
    kind: int, suite: int, index: int, count: int, rest: bytes, at: st.DataObject
) -> None:
    data = bytes((wire.VERSION << 4 | kind, suite, index, count)) + rest
    moment = at.draw(st.sampled_from(captured(1)))
    refused(moment.receiver, data, moment.flying.source, moment.network.now)


# ---- who knows the fingerprints


@st.composite
def fragments(draw: st.DrawFn, moment: Moment) -> Fragment:
    """Any fragment, with the exchange id and the length of the genuine one more often than not."""
    genuine = wire.parse_untrusted(moment.data)
    count = draw(st.one_of(st.just(genuine.count), st.integers(1, 255)))
    length = draw(st.one_of(st.just(len(genuine.chunk)), st.integers(1, wire.MAX_CHUNK_LENGTH)))
    filling = draw(st.binary(min_size=1, max_size=64))
    return Fragment(
        type=draw(st.sampled_from(MessageType)),
        suite=draw(st.one_of(st.just(genuine.suite), st.integers(0, 15))),
        index=draw(st.one_of(st.just(min(genuine.index, count - 1)), st.integers(0, count - 1))),
        count=count,
        tag=draw(st.one_of(st.just(genuine.tag), st.binary(min_size=4, max_size=4))),
        exchange_id=draw(
            st.one_of(st.just(genuine.exchange_id), st.binary(min_size=8, max_size=8))
        ),
        chunk=(filling * (length // len(filling) + 1))[:length],
        mac1=wire.NO_MAC,
        mac2=wire.NO_MAC,
    )


@QUICK
@given(number=SUITE_NUMBERS, at=st.data())
def test_random_fragments_with_a_valid_mac1(number: int, at: st.DataObject) -> None:
    moment = at.draw(st.sampled_from(captured(number)))
    fragment = at.draw(fragments(moment))
    who = forging.fingerprint_for(
        fragment.type, number, sender=moment.flying.sender, receiver=moment.receiver.name
    )
    key = wire.mac_key(fragment.type, Fingerprint(fragment.suite, who.digest))
    datagram = wire.seal_fragment(fragment, key).datagram()
    endpoint = moment.receiver.endpoint.copy()
    before = endpoint.state(with_times=False)
    taken = nothing_but_rejected(endpoint, datagram, moment)
    out = endpoint.datagrams_to_send()
    assert endpoint.state(with_times=False) == before
    assert endpoint.next_event() is None
    if fragment.type is MessageType.IDENTITY_QUERY:
        assert len(out) == taken
        assert all(len(data) == len(datagram) for data, _ in out)
    else:
        assert not out
        assert not taken or endpoint.statistics().reassembly_messages


@QUICK
@given(number=SUITE_NUMBERS, at=st.data())
def test_random_changes_of_a_message_with_valid_macs(number: int, at: st.DataObject) -> None:
    """Bytes overwritten, cut out or put in; tag, MACs and cut are right for what comes of it."""
    moment = at.draw(st.sampled_from([m for m in captured(number) if m.data[2] == 0]))
    kind = moment.type
    if kind is MessageType.IDENTITY_QUERY:
        return
    body = bytearray(body_of(number, kind))
    for _ in range(at.draw(st.integers(1, 3))):
        # The biscuit at the end of a RespHello is the responder's, who finds it: left alone here
        end = len(body) - (160 if kind is MessageType.RESP_HELLO else 0)
        place = at.draw(st.integers(0, end))
        body[place : place + at.draw(st.integers(0, 64))] = at.draw(st.binary(max_size=64))
    if bytes(body) == body_of(number, kind) or not body:
        return
    chunk_length = at.draw(st.integers(wire.MIN_CHUNK_LENGTH, wire.MAX_CHUNK_LENGTH))
    endpoint = moment.receiver.endpoint.copy()
    before = endpoint.state(with_times=False)
    for datagram in forging.message(moment, bytes(body), chunk_length=chunk_length):
        nothing_but_rejected(endpoint, datagram, moment)
    assert endpoint.state(with_times=False) == before
    assert not endpoint.datagrams_to_send()
    assert endpoint.next_event() is None


@functools.cache
def body_of(number: int, kind: MessageType) -> bytes:
    """The genuine message of a type among the captured ones."""
    moment = next(m for m in captured(number) if m.type is kind)
    network = moment.network.copy()
    network.settle()
    return forging.body_of(moment, network)


# ---- an authenticated peer


def any_cbor() -> st.SearchStrategy[Any]:
    leaves = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**64), 2**64 - 1),
        st.floats(),
        st.binary(max_size=40),
        st.text(max_size=70),
        st.builds(cbor2.CBORTag, st.integers(0, 60), st.integers() | st.binary(max_size=9)),
    )
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=6), st.dictionaries(st.text(max_size=8), inner, max_size=4)
        ),
        max_leaves=12,
    )


GOOD: dict[str, Any] = {
    "minor": 0,
    "wg": b"w" * 32,
    "port": 51820,
    "prefixes": [[24, bytes([10, 0, 0, 0])], [64, b"\xfd" + bytes(15)]],
    "mode": int(PREFER),
    "interval": 120,
    "starts": True,
}
FOR_P_I = GOOD | {"keys": [["qkd", "kme", "sae", ["id"], 256, True]]}
FOR_P_R = GOOD | {"mixed": 1, "suite": 1}
FOR_REJECT = {"code": 2, "detail": "no"}


def fields_like(good: dict[str, Any]) -> st.SearchStrategy[dict[Any, Any]]:
    """The map of a payload with one to three fields changed, missing or new."""
    change = st.tuples(
        st.one_of(st.sampled_from(sorted(good)), st.text(max_size=10)), any_cbor() | st.just("gone")
    )

    def changed(changes: list[tuple[str, Any]]) -> dict[Any, Any]:
        fields = dict(good)
        for name, value in changes:
            if value == "gone":
                fields.pop(name, None)
            else:
                fields[name] = value
        return fields

    return st.lists(change, min_size=1, max_size=3).map(changed)


def padded(encoded: bytes, length: int, announced: int | None = None) -> bytes:
    size = len(encoded) if announced is None else announced
    return (size.to_bytes(2, "big") + encoded)[:length].ljust(length, b"\0")


def payloads(good: dict[str, Any], length: int) -> st.SearchStrategy[bytes]:
    """Plaintexts of the right length: nonsense, nonsense CBOR, and near misses."""
    right = cbor2.dumps(good)
    return st.one_of(
        st.binary(min_size=length, max_size=length),
        st.binary(max_size=length - 2).map(lambda data: padded(data, length)),
        any_cbor().map(lambda value: padded(cbor2.dumps(value), length)),
        fields_like(good).map(lambda fields: padded(cbor2.dumps(fields), length)),
        st.integers(0, 65535).map(lambda size: padded(right, length, size)),
        st.integers(0, len(right) - 1).map(lambda end: padded(right[:end], length)),
        st.tuples(st.integers(0, len(right) - 1), st.integers(1, 255)).map(
            lambda c: padded(
                bytes(b ^ (c[1] if i == c[0] else 0) for i, b in enumerate(right)), length
            )
        ),
    )


@functools.cache
def before_init_conf(number: int) -> Network:
    """`left` has its RespHello and waits for external keys: it holds k_i2r."""
    network = pair(
        number,
        ends={"right": {"load": never_loaded()}},
        links={name: {"external_mode": PREFER} for name in ("left", "right")},
    )
    network.start()
    network.settle()
    assert network["left"].exchange("right").session is not None
    return network


def suite_of(network: Network, number: int) -> Suite:
    return network["left"].endpoint._node.suites[number]


def whatever_is_named(wanted: ExternalKeysWanted) -> tuple[ExternalKey, ...]:
    """Key managers that have a key of 256 bits under every name."""
    key = external_key("kme").key
    return tuple(ExternalKey(e.reference, key if e.present else None) for e in wanted.listing)


@QUICK
@given(number=SUITE_NUMBERS, at=st.data())
def test_any_p_i_has_one_final_outcome(number: int, at: st.DataObject) -> None:
    network = before_init_conf(number).copy()
    suite = suite_of(network, number)
    p_i = at.draw(payloads(FOR_P_I, initiator_payload_length(suite)))
    mixed = at.draw(st.sampled_from([(), (external_key("kme"),)]))
    left, right = network["left"], network["right"]
    (datagram,) = forging.init_conf(suite, left.exchange("right"), p_i, external=mixed)
    right.endpoint.receive_datagram(datagram, left.address, network.now)
    right.source = whatever_is_named
    right.take_events(network.now)
    answer = [data for data, _ in right.endpoint.datagrams_to_send()]
    outcome = [event for event in right.events if isinstance(event, RejectSent | KeyEstablished)]
    assert len(outcome) == 1
    # Final: the same InitConf again has the same answer, and a later one is late
    right.endpoint.receive_datagram(datagram, left.address, network.now)
    assert [data for data, _ in right.endpoint.datagrams_to_send()] == answer
    assert len(b"".join(answer)) <= len(datagram)
    (later,) = forging.init_conf(suite, left.exchange("right"), b"\xff" * len(p_i))
    refused(right, later, left.address, network.now)


@pytest.mark.parametrize("number", SUITES)
def test_a_malformed_p_i_is_rejected_as_malformed(number: int) -> None:
    network = before_init_conf(number).copy()
    left, right = network["left"], network["right"]
    suite = suite_of(network, number)
    p_i = bytes(initiator_payload_length(suite))
    (datagram,) = forging.init_conf(suite, left.exchange("right"), p_i)
    right.endpoint.receive_datagram(datagram, left.address, network.now)
    network.collect()
    (told,) = right.events_of(RejectSent)
    assert told.code is RejectCode.MALFORMED
    finish(network)


@pytest.mark.parametrize("number", SUITES)
def test_a_confirm_i_that_does_not_fit_is_rejected(number: int) -> None:
    """Authenticated by its envelope, so it is the peer's own mistake."""
    network = before_init_conf(number).copy()
    left, right = network["left"], network["right"]
    suite = suite_of(network, number)
    fields = GOOD | {"keys": []}
    p_i = padded(cbor2.dumps(fields), initiator_payload_length(suite))
    (datagram,) = forging.init_conf(
        suite, left.exchange("right"), p_i, confirm_i=bytes(suite.hash_length)
    )
    right.endpoint.receive_datagram(datagram, left.address, network.now)
    network.collect()
    assert right.events_of(RejectSent)
    assert not right.events_of(KeyEstablished)
    finish(network)


@functools.cache
def before_resp_conf(number: int) -> Network:
    """`left` has sent InitConf with one external key, and knows the root."""
    network = pair(number, links={name: {"external_mode": REQUIRE} for name in ("left", "right")})
    network["left"].source = agreeing("kme")
    network.start()
    network.settle_until(MessageType.INIT_CONF)
    network.in_flight.clear()
    return network


@QUICK
@given(number=SUITE_NUMBERS, at=st.data())
def test_any_p_r_ends_the_exchange(number: int, at: st.DataObject) -> None:
    network = before_resp_conf(number).copy()
    left = network["left"]
    p_r = at.draw(payloads(FOR_P_R | {"suite": number}, wire.RESP_CONF_PAYLOAD_LENGTH))
    (datagram,) = forging.resp_conf(suite_of(network, number), left.exchange("right"), p_r)
    left.endpoint.receive_datagram(datagram, ADDRESSES["right"], network.now)
    left.take_events(network.now)
    assert left.exchange("right") is None


@QUICK
@given(number=SUITE_NUMBERS, at=st.data())
def test_any_reject_ends_the_exchange(number: int, at: st.DataObject) -> None:
    network = before_resp_conf(number).copy()
    left = network["left"]
    plaintext = at.draw(payloads(FOR_REJECT, wire.REJECT_PAYLOAD_LENGTH))
    (datagram,) = forging.reject(suite_of(network, number), left.exchange("right"), plaintext)
    left.endpoint.receive_datagram(datagram, ADDRESSES["right"], network.now)
    left.take_events(network.now)
    assert left.exchange("right") is None
    assert not left.events_of(KeyEstablished)


UNREADABLE: list[tuple[MessageType, dict[str, Any]]] = [
    (MessageType.RESP_CONF, {}),
    (MessageType.RESP_CONF, FOR_P_R | {"wg": b"short"}),
    (MessageType.RESP_CONF, FOR_P_R | {"mixed": 1.0}),
    (MessageType.REJECT, {}),
    (MessageType.REJECT, FOR_REJECT | {"detail": "x" * 201}),
]


@pytest.mark.parametrize("number", SUITES)
@pytest.mark.parametrize(
    ("kind", "fields"), UNREADABLE, ids=lambda value: getattr(value, "name", "")
)
def test_a_genuine_answer_that_cannot_be_read_ends_the_exchange_at_once(
    number: int, kind: MessageType, fields: dict[str, Any]
) -> None:
    """Its repetition would be the same: to wait 15 s for another one is of no use. What the
    responder has done is not known, so a doubt is left."""
    network = before_resp_conf(number).copy()
    left = network["left"]
    suite, exchange = suite_of(network, number), left.exchange("right")
    if kind is MessageType.RESP_CONF:
        plaintext = padded(cbor2.dumps(fields), wire.RESP_CONF_PAYLOAD_LENGTH)
        (datagram,) = forging.resp_conf(suite, exchange, plaintext)
    else:
        plaintext = padded(cbor2.dumps(fields), wire.REJECT_PAYLOAD_LENGTH)
        (datagram,) = forging.reject(suite, exchange, plaintext)
    left.endpoint.receive_datagram(datagram, ADDRESSES["right"], network.now)
    left.take_events(network.now)
    (failed,) = left.events_of(ExchangeFailed)
    assert failed.code is FailureCode.BAD_ANSWER
    assert failed.detail.startswith("the peer's Re")
    assert "cannot be read (payload: " in failed.detail
    link = left.endpoint.link("right")
    assert link.exchange is None
    assert link.in_doubt
    assert link.retry_at == network.now + 1
    assert not left.events_of(KeyEstablished)
    finish(network)


@pytest.mark.parametrize("kind", [MessageType.RESP_CONF, MessageType.REJECT])
def test_an_answer_that_is_not_genuine_changes_nothing(kind: MessageType) -> None:
    network = before_resp_conf(1).copy()
    left = network["left"]
    exchange = left.exchange("right")
    make, length = {
        MessageType.RESP_CONF: (forging.resp_conf, wire.RESP_CONF_PAYLOAD_LENGTH),
        MessageType.REJECT: (forging.reject, wire.REJECT_PAYLOAD_LENGTH),
    }[kind]
    other = replace(exchange, root=replace(exchange.root, h3=bytes(32)))
    (datagram,) = make(suite_of(network, 1), other, bytes(length))
    assert "tag" in refused(left, datagram, ADDRESSES["right"], network.now)
    finish(network)


def test_the_detail_of_a_reject_cannot_steer_a_terminal() -> None:
    network = before_resp_conf(1).copy()
    left = network["left"]
    plaintext = padded(
        cbor2.dumps({"code": 2, "detail": "\x1b]0;owned\x07\n\u202e"}), wire.REJECT_PAYLOAD_LENGTH
    )
    (datagram,) = forging.reject(suite_of(network, 1), left.exchange("right"), plaintext)
    left.endpoint.receive_datagram(datagram, ADDRESSES["right"], network.now)
    left.take_events(network.now)
    assert all(getattr(event, "detail", "").isprintable() for event in left.events)


def test_the_role_of_the_answer_is_asked_for() -> None:
    """A responder is asked by the listing; the initiator chooses."""
    wanted = before_init_conf(1)["left"].events_of(ExternalKeysWanted)
    assert [event.role for event in wanted] == [Role.INITIATOR]
    assert identity(1, "left").fingerprint < identity(1, "right").fingerprint

"""Fetching a peer's whole public key over the wire, knowing its fingerprint alone."""

from __future__ import annotations

import itertools

import pytest

from kex import wire
from kex.address import Address
from kex.events import ExchangeFailed, FailureCode, IdentityLearned
from kex.identity import Fingerprint
from kex.suites import suite as make_suite
from kex.wire import MessageType

from . import forging
from .harness import (
    SUITES,
    Flying,
    Network,
    captured_of,
    finish,
    identity,
    message_refused,
    pair,
    refused,
    run_exchange,
    same_key,
    under_load,
)
from .reference import SeededBytes

QUERY, REPLY = MessageType.IDENTITY_QUERY, MessageType.IDENTITY_REPLY


@pytest.fixture(params=SUITES, ids=["suite 1", "suite 2"])
def number(request: pytest.FixtureRequest) -> int:
    value: int = request.param
    return value


def asking(number: int, **options: object) -> Network:
    """`left` has just asked."""
    network = pair(number, know_keys=False, **options)  # type: ignore[arg-type]
    network.start()
    assert {flying.type for flying in network.in_flight} == {QUERY}
    return network


def sent(network: Network, kind: MessageType) -> list[Flying]:
    return [flying for flying in network.log if flying.type is kind]


def test_fetched_once_and_kept(number: int) -> None:
    network = asking(number)
    network.settle()
    same_key(network)
    (learnt,) = network["left"].events_of(IdentityLearned)
    right = identity(number, "right")
    assert (learnt.fingerprint, learnt.public_key) == (right.fingerprint, right.public_key)
    assert learnt.link == "right"
    queries = len(sent(network, QUERY))
    run_exchange(network)
    assert len(sent(network, QUERY)) == queries
    # The responder learnt the initiator's from InitHello only for as long as it answered
    assert not network["right"].events_of(IdentityLearned)


def test_one_that_is_known_is_not_asked_for(number: int) -> None:
    network = pair(number)
    run_exchange(network)
    assert not sent(network, QUERY)
    assert not network["left"].events_of(IdentityLearned)


def test_a_query_is_as_long_as_its_answer_and_filled_with_zeros(number: int) -> None:
    network = asking(number)
    network.settle()
    public_key = identity(number, "right").public_key
    for query, reply in zip(sent(network, QUERY), sent(network, REPLY), strict=True):
        asked, got = wire.parse_untrusted(query.data), wire.parse_untrusted(reply.data)
        assert len(query.data) == len(reply.data)
        assert asked.chunk == bytes(len(got.chunk))
        assert (asked.index, asked.count) == (got.index, got.count)
        assert public_key[1200 * got.index :].startswith(got.chunk)


@pytest.mark.parametrize("chunk_length", [500, 832, 1200])
def test_every_subset_of_fragments_may_be_lost(number: int, chunk_length: int) -> None:
    """Answers that got through are kept: a repetition fetches what is missing."""
    options = {"left": {"chunk_length": chunk_length}}
    count = -(-len(identity(number, "right").public_key) // chunk_length)
    for lost in itertools.product((False, True), repeat=count):
        network = asking(number, ends=options)
        assert len(network.in_flight) == count
        kept = [flying for flying, gone in zip(network.in_flight, lost, strict=True) if not gone]
        network.in_flight.clear()
        network.in_flight.extend(kept)
        network.advance(2.0)
        same_key(network)


def test_replies_lost(number: int) -> None:
    network = asking(number)
    for _ in range(len(network.in_flight)):
        network.deliver()
    assert {flying.type for flying in network.in_flight} == {REPLY}
    network.in_flight.popleft()
    network.advance(2.0)
    same_key(network)


def test_the_responder_keeps_no_state(number: int) -> None:
    for moment in captured_of(number, QUERY):
        before = moment.receiver.endpoint.state()
        answers = set()
        for _ in range(3):
            moment.receiver.endpoint.receive_datagram(
                moment.data, moment.flying.source, moment.network.now
            )
            ((answer, address),) = moment.receiver.endpoint.datagrams_to_send()
            assert address == moment.flying.source
            answers.add(answer)
        assert len(answers) == 1
        assert moment.receiver.endpoint.state() == before


def test_answered_under_load_too(number: int) -> None:
    """It costs a hash and has no amplification: no cookie is asked for."""
    network = asking(number, ends={"right": {"load": under_load()}})
    network.settle_until(MessageType.INIT_HELLO)
    assert not sent(network, MessageType.COOKIE_REPLY)
    network.settle()
    same_key(network)


def test_another_key_is_refused(number: int) -> None:
    """Whoever knows the fingerprint may answer; only the key that it belongs to is taken."""
    network = asking(number)
    moment = captured_of(number, REPLY)[0]
    others = [
        identity(number, "third").public_key,
        identity(number, "left").public_key,
        bytes(len(identity(number, "right").public_key)),
    ]
    for public_key in others:
        datagrams = forging.message(moment, public_key)
        exchange_id = network["left"].exchange("right").exchange_id
        assert wire.parse_untrusted(datagrams[0]).exchange_id == exchange_id
        reason = message_refused(network["left"], datagrams, moment.flying.source, network.now)
        assert reason == "public key"
    assert not network["left"].events_of(IdentityLearned)
    finish(network)


def test_an_unsound_key_ends_the_exchange_even_where_the_fingerprint_fits(number: int) -> None:
    """Its owner made it and gave us its fingerprint: this link alone has no exchange. No other key
    will come, so nobody waits for one."""
    unsound = b"\xff" * len(identity(number, "right").public_key)
    fingerprint = Fingerprint.of(number, unsound)
    network = pair(number, know_keys=False, links={"left": {"remotes": (fingerprint,)}})
    left = network["left"].endpoint
    with pytest.raises(ValueError, match="not sound"):
        left.know_public_key(fingerprint, unsound)
    network.start()
    exchange = network["left"].exchange("right")
    fragments = wire.cut(
        REPLY, number, exchange.exchange_id, unsound, key=wire.mac_key(REPLY, fingerprint)
    )
    for datagram in wire.datagrams(fragments):
        left.receive_datagram(datagram, Address("192.0.2.9", 9), network.now)
    network["left"].take_events(network.now)
    (failed,) = network["left"].events_of(ExchangeFailed)
    assert failed.code is FailureCode.BAD_ANSWER
    assert failed.detail.startswith("the peer's public key is not sound (")
    assert not network["left"].events_of(IdentityLearned)
    assert not left.knows_public_key(fingerprint)
    assert network["left"].exchange("right") is None
    assert not left.link("right").in_doubt
    assert left.link("right").retry_at == network.now + 1


def test_a_public_key_of_another_fingerprint_is_not_kept(number: int) -> None:
    network = pair(number, know_keys=False)
    with pytest.raises(ValueError, match="does not belong"):
        network["left"].endpoint.know_public_key(
            identity(number, "right").fingerprint, identity(number, "third").public_key
        )


def test_which_identity_is_asked_for_is_said_by_mac1() -> None:
    """A node of several identities answers with the key of the one whose fingerprint was used."""
    suite = make_suite(1, random=SeededBytes(b"x"))
    own = (identity(1, "right"), identity(1, "right's second"))
    network = pair(1, ends={"right": {"identities": own}})
    for one in own:
        fragments = wire.cut(
            QUERY,
            1,
            b"exchange",
            bytes(suite.public_key_length),
            key=wire.mac_key(QUERY, one.fingerprint),
        )
        body = b""
        for datagram in wire.datagrams(fragments):
            network["right"].endpoint.receive_datagram(
                datagram, network["left"].address, network.now
            )
            ((answer, _),) = network["right"].endpoint.datagrams_to_send()
            body += wire.parse_untrusted(answer).chunk
        assert body == one.public_key


def test_who_does_not_know_the_fingerprint_gets_nothing(number: int) -> None:
    network = pair(number)
    for fingerprint in (
        identity(number, "third").fingerprint,
        identity(number, "left").fingerprint,
        Fingerprint(3 - number, identity(number, "right").fingerprint.digest),
    ):
        length = len(identity(number, "right").public_key)
        fragments = wire.cut(
            QUERY, number, b"exchange", bytes(length), key=wire.mac_key(QUERY, fingerprint)
        )
        for datagram in wire.datagrams(fragments):
            assert refused(network["right"], datagram, network["left"].address, network.now) == (
                "mac1"
            )


def test_a_peer_that_never_answers(number: int) -> None:
    network = asking(number)
    network.ends.pop("right")
    asked = len(network.in_flight)
    for _ in range(40):
        network.now += 0.5
        network.in_flight.clear()
        network["left"].endpoint.handle_timer(network.now)
        network.collect()
    failures = network["left"].events_of(ExchangeFailed)
    assert [event.code for event in failures] == [FailureCode.NO_ANSWER]
    assert 4 * asked <= len(sent(network, QUERY)) <= 20 * asked
    exchange_ids = {wire.parse_untrusted(f.data).exchange_id for f in sent(network, QUERY)}
    assert len(exchange_ids) == 2

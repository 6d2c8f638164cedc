"""Whoever listens, with a list of fingerprints, learns which node is asked and not who asks.

mac1 of questions and of answers is under the fingerprint of the node that was asked
(docs/protocol.md §3.2), so that the list is of no use against the initiator. Last, what it means
that a question and its answers share that fingerprint.
"""

from __future__ import annotations

from itertools import pairwise

import pytest

from kex import wire
from kex.events import StartReason
from kex.identity import Fingerprint
from kex.wire import MessageType

from . import forging
from .harness import (
    NEVER,
    OFF,
    REQUIRE,
    SUITES,
    Flying,
    Network,
    agreeing,
    captured,
    disagreeing,
    finish,
    identity,
    link_config,
    make_end,
    message_refused,
    moments,
    pair,
    refused,
    same_key,
    triangle,
    under_load,
)


@pytest.fixture(params=SUITES, ids=["suite 1", "suite 2"])
def number(request: pytest.FixtureRequest) -> int:
    value: int = request.param
    return value


def named_by(datagram: bytes, fingerprints: list[Fingerprint]) -> list[Fingerprint]:
    """Those of a list whose mac1 fits a datagram, as that of its type or of any other."""
    fragment = wire.parse_untrusted(datagram)
    return [
        one
        for one in fingerprints
        if any(wire.mac1_matches(wire.mac_key(kind, one), fragment) for kind in MessageType)
    ]


def look(network: Network) -> list[tuple[bytes, int]]:
    """Of each datagram version, type, suite, index, count and length: what a listener sees but for
    addresses and times, and what is not drawn at random."""
    return [(flying.data[:4], len(flying.data)) for flying in network.log]


def test_a_list_of_fingerprints_names_the_node_that_was_asked_and_no_other(number: int) -> None:
    everyone = [identity(number, name).fingerprint for name in ("left", "right", "third")]
    asked = identity(number, "right").fingerprint
    seen = captured(number)
    assert {moment.type for moment in seen} == set(MessageType)
    for moment in seen:
        assert named_by(moment.data, everyone) == [asked], moment.type.name


@pytest.mark.parametrize("way", ["plain", "fetches the key", "cookie", "refused"])
def test_exchanges_of_two_peers_look_alike(number: int, way: str) -> None:
    """Types, lengths, counts and their order are the same, whoever it is that begins."""
    looks = []
    for initiator in ("left", "third"):
        network = pair_with(initiator, number, way)
        network.start(initiator, "right")
        network.settle()
        looks.append(look(network))
    assert looks[0] == looks[1]
    assert len(looks[0]) >= 4


def pair_with(initiator: str, number: int, way: str) -> Network:
    """`initiator` and `right`, with one link between them."""
    network = Network({})
    for at, peer in ((initiator, "right"), ("right", initiator)):
        load = under_load() if (way, at) == ("cookie", "right") else None
        network.ends[at] = make_end(at, suite_numbers=(number,), load=load)
        mode = REQUIRE if way == "refused" else OFF
        config = link_config(at, peer, suite=number, external_mode=mode)
        network[at].endpoint.add_link(config, network.now, start_at=NEVER)
        if way != "fetches the key":
            far = identity(number, peer)
            network[at].endpoint.know_public_key(far.fingerprint, far.public_key)
    if way == "refused":
        network[initiator].source, network["right"].source = agreeing("kme"), disagreeing
    return network


def test_an_exchange_id_is_not_used_again() -> None:
    """It would tie two exchanges together; within one it is the same in all datagrams."""
    network = pair(know_keys=False)
    for _ in range(3):
        network.start()
        network.settle()
    ids = [wire.parse_untrusted(flying.data).exchange_id for flying in network.log]
    changes = [after for before, after in pairwise([b"", *ids]) if after != before]
    assert len(changes) == len(set(ids)) == 3


# ---- several identities of the initiator


def test_answers_find_their_exchange_among_those_of_several_identities(number: int) -> None:
    """Two identities here, one there: all answers are under the same fingerprint, and the exchange
    id says which exchange they are for."""
    ours = tuple(identity(number, name) for name in ("left", "left, parallel"))
    network = Network(
        {
            "left": make_end("left", suite_numbers=(number,), identities=ours),
            "right": make_end("right", suite_numbers=(number,)),
        }
    )
    right = identity(number, "right")
    network["left"].endpoint.know_public_key(right.fingerprint, right.public_key)
    for n, own in enumerate(ours):
        for at, locals_, remotes in (
            ("left", own.fingerprint, right.fingerprint),
            ("right", right.fingerprint, own.fingerprint),
        ):
            config = link_config(
                at,
                "right" if at == "left" else "left",
                name=f"link {n}",
                locals=(locals_,),
                remotes=(remotes,),
                wireguard_key=f"{at}{n}".encode().ljust(32, b"."),
            )
            network[at].endpoint.add_link(config, network.now, start_at=NEVER)
    for n in (0, 1):
        network["left"].endpoint.request_exchange(f"link {n}", StartReason.REQUESTED, network.now)
    network.collect()
    begun = {flying.data[8:16] for flying in network.log}
    for moment in moments(network):
        if moment.type in wire.QUESTIONS:
            continue
        (other,) = begun - {moment.data[8:16]}
        # In the place of the other exchange's it is no answer, though tag and mac1 are made to fit
        body = forging.body_of(moment, moment.network)
        datagrams = forging.message(moment, body, exchange_id=other)
        message_refused(moment.receiver, datagrams, moment.flying.source, moment.network.now)
    keys = [{key.link: key.psk for key in network[at].installed} for at in ("left", "right")]
    assert keys[0] == keys[1]
    assert len(set(keys[0].values())) == 2


# ---- questions and answers under one fingerprint


def test_a_datagram_of_another_type_needs_another_mac1(number: int) -> None:
    """The type is in the key: a question sent back as an answer, or an answer as a question, is
    refused unless the one who sends it back knows the fingerprint."""
    for moment in captured(number):
        for kind in set(MessageType) - {moment.type}:
            turned = bytes((wire.VERSION << 4 | kind,)) + moment.data[1:-8] + wire.NO_MAC
            for end in moment.network.ends.values():
                reason = refused(end, turned, moment.flying.source, moment.network.now)
                assert reason in ("mac1", "no such exchange")


def test_an_answer_under_the_initiators_fingerprint_is_refused(number: int) -> None:
    for moment in captured(number):
        if moment.type in wire.QUESTIONS:
            continue
        key = wire.mac_key(moment.type, identity(number, "left").fingerprint)
        under = wire.seal_fragment(wire.parse_untrusted(moment.data), key).datagram()
        source, now = moment.flying.source, moment.network.now
        assert refused(moment.receiver, under, source, now) == "mac1"


def test_a_peer_that_takes_our_exchange_id_gets_no_answer_of_ours_to_send_back(number: int) -> None:
    """It begins an exchange under the id of ours that is in flight: our RespHello to it has the id
    that we wait for, and is under our fingerprint and not under that of the peer that we asked."""
    network = triangle(number)
    network.start("left", "right")
    network.in_flight.clear()
    exchange = network["left"].exchange("right")
    right = network["right"].endpoint
    drawn = right._node.random
    right._node.random = lambda n: exchange.exchange_id if n == 8 else drawn(n)
    network.start("right", "left")
    network.settle_until(MessageType.RESP_HELLO)
    answers: list[Flying] = list(network.in_flight)
    assert {wire.parse_untrusted(f.data).exchange_id for f in answers} == {exchange.exchange_id}
    for flying in answers:
        reason = refused(network["left"], flying.data, flying.destination, network.now)
        assert reason == "mac1"
    right._node.random = drawn
    network.settle()
    finish(network)
    same_key(network)

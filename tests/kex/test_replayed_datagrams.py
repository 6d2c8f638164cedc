"""Genuine datagrams where they do not belong: again, back, in another exchange, at another node.

Two repetitions are answered, always with the bytes of before: the last InitConf, and an InitHello
for 10 s. An IdentityQuery is no part of any state and is answered whenever it comes.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from kex import wire
from kex.address import Address
from kex.endpoint import HELLO_CACHE_SECONDS
from kex.errors import PacketRejected
from kex.wire import MessageType

from . import forging
from .harness import (
    NAMES,
    NEVER,
    SUITES,
    End,
    Flying,
    Moment,
    Network,
    captured_of,
    finish,
    identity,
    link_config,
    make_end,
    message_refused,
    moments,
    never_loaded,
    pair,
    refused,
    run_exchange,
    same_key,
    triangle,
)

INIT_HELLO, RESP_HELLO = MessageType.INIT_HELLO, MessageType.RESP_HELLO
INIT_CONF, RESP_CONF = MessageType.INIT_CONF, MessageType.RESP_CONF
QUERY, REPLY = MessageType.IDENTITY_QUERY, MessageType.IDENTITY_REPLY
ANSWER_TO = {INIT_HELLO: RESP_HELLO, INIT_CONF: RESP_CONF, QUERY: REPLY}


@pytest.fixture(params=SUITES, ids=["suite 1", "suite 2"])
def number(request: pytest.FixtureRequest) -> int:
    value: int = request.param
    return value


def sent(network: Network, kind: MessageType) -> list[bytes]:
    return [flying.data for flying in network.log if flying.type is kind]


def outbox(end: End) -> list[bytes]:
    return [data for data, _ in end.endpoint.datagrams_to_send()]


def replay(network: Network, flying: Flying, *, source: Address | None = None) -> list[bytes]:
    """Deliver a datagram once more; what it is answered with. PacketRejected passes."""
    receiver = network.at(flying.destination)
    receiver.endpoint.receive_datagram(flying.data, source or flying.source, network.now)
    assert receiver.endpoint.next_event() is None
    return outbox(receiver)


def completed(number: int) -> Network:
    network = pair(number, know_keys=False)
    run_exchange(network)
    return network


def test_replayed_after_the_exchange(number: int) -> None:
    network = completed(number)
    for kind in MessageType:
        genuine = [flying for flying in network.log if flying.type is kind]
        if kind not in ANSWER_TO:
            for flying in genuine:
                receiver = network.at(flying.destination)
                reason = refused(receiver, flying.data, flying.source, network.now)
                assert reason == "no such exchange"
            continue
        link_before = network["right"].endpoint.link("left").state()
        answers = [data for flying in genuine for data in replay(network, flying)]
        assert answers == sent(network, ANSWER_TO[kind])
        assert network["right"].endpoint.link("left").state() == link_before
    finish(network)


def test_an_init_hello_is_known_for_ten_seconds(number: int) -> None:
    network = completed(number)
    hello = [flying for flying in network.log if flying.type is INIT_HELLO]
    first = sent(network, RESP_HELLO)

    def again() -> list[bytes]:
        return [data for flying in hello for data in replay(network, flying)]

    network.now += HELLO_CACHE_SECONDS - 0.001
    assert again() == first
    network.now += 0.002
    fresh = again()
    assert fresh
    assert fresh != first
    assert sum(map(len, fresh)) <= sum(len(flying.data) for flying in hello)
    # and that one is now the known one
    assert again() == fresh
    finish(network)


def test_a_replay_from_elsewhere_is_answered_there_and_moves_nothing(number: int) -> None:
    """Whoever can send from another address learns nothing and changes no address of ours."""
    network = completed(number)
    elsewhere = Address("203.0.113.9", 9)
    right = network["right"].endpoint
    before = right.link("left").state()
    for flying in network.log:
        if flying.type in ANSWER_TO:
            right.receive_datagram(flying.data, elsewhere, network.now)
    assert {address for _, address in right.datagrams_to_send()} == {elsewhere}
    assert right.link("left").state() == before
    assert right.link("left").address == network["left"].address
    finish(network)


def test_only_the_last_init_conf_is_answered(number: int) -> None:
    network = pair(number)
    run_exchange(network)
    (first,) = (flying for flying in network.log if flying.type is INIT_CONF)
    run_exchange(network)
    assert refused(network["right"], first.data, first.source, network.now) == "old biscuit"
    second = [flying for flying in network.log if flying.type is INIT_CONF][-1]
    assert replay(network, second) == sent(network, RESP_CONF)[-1:]
    finish(network)


def test_nothing_is_answered_while_the_outcome_is_being_worked_out(number: int) -> None:
    network = pair(number, ends={})
    network["right"].installs = False
    network.start()
    network.settle()
    (conf,) = (flying for flying in network.log if flying.type is INIT_CONF)
    before = network["right"].endpoint.state()
    assert replay(network, conf) == []
    assert network["right"].endpoint.state() == before
    finish_installs(network)
    same_key(network)
    assert replay(network, conf) == sent(network, RESP_CONF)


def finish_installs(network: Network) -> None:
    right = network["right"]
    right.installs = True
    for event in right.events:
        token = getattr(event, "token", None)
        if token is not None:
            right.endpoint.key_installed("left", token, network.now)
    network.collect()
    network.settle()


def test_everything_before_is_replayed_at_every_step(number: int) -> None:
    """After each delivery all that was sent so far comes again, to its receiver and back."""
    network = pair(number, know_keys=False)
    network.start()
    steps = list(moments(network))
    for step in steps:
        for flying in step.network.log:
            for receiver, source in (
                (flying.destination, flying.source),
                (flying.source, flying.destination),
            ):
                end = step.network.at(receiver)
                try:
                    end.endpoint.receive_datagram(flying.data, source, step.network.now)
                except PacketRejected:
                    continue
        step.network.collect()
        assert finish(step.network)


def test_reflected_to_its_sender(number: int) -> None:
    """At every step, and after the end, with the address that it was sent to."""
    network = pair(number, know_keys=False)
    network.start()
    steps = [*moments(network), Moment(network, network.log[-1])]
    for step in steps:
        for flying in step.network.log:
            sender = step.network[flying.sender]
            reason = refused(sender, flying.data, flying.destination, step.network.now)
            assert reason in ("mac1", "no such exchange")
        finish(step.network)


@pytest.mark.parametrize("kind", [MessageType.INIT_HELLO, MessageType.IDENTITY_QUERY])
def test_a_recorded_question_is_answered_a_year_later(number: int, kind: MessageType) -> None:
    """Where P5 ends: wherever it comes from, with no more bytes than it has, and that is all."""
    network = pair(number, know_keys=False)
    network.start()
    network.settle()
    recorded = [flying.data for flying in network.log if flying.type is kind]
    network.now += 365 * 86_400
    right, elsewhere = network["right"].endpoint, Address("203.0.113.66", 6666)
    right.handle_timer(network.now)
    right.datagrams_to_send()
    for datagram in recorded:
        right.receive_datagram(datagram, elsewhere, network.now)
    answers = right.datagrams_to_send()
    assert {address for _, address in answers} == {elsewhere}
    assert 0 < sum(len(data) for data, _ in answers) <= sum(map(len, recorded))
    assert right.link("left").responding is None


def test_answers_of_another_exchange(number: int) -> None:
    """Those of the exchange before, as they were and made to fit by who knows the fingerprint."""
    network = pair(number)
    run_exchange(network)
    earlier = list(network.log)
    network.start()
    for step in moments(network):
        current = wire.parse_untrusted(step.data).exchange_id
        for kind in (RESP_HELLO, RESP_CONF, INIT_CONF):
            old = [flying for flying in earlier if flying.type is kind]
            source, now = old[0].source, step.network.now
            receiver = step.network.at(old[0].destination)
            if kind is not INIT_CONF:  # which is the last one still, and answered
                for flying in old:
                    refused(receiver, flying.data, source, now)
            # With the exchange id of the running exchange, tag and MACs right
            _, body = forging.whole([flying.data for flying in old])
            model = Moment(step.network, old[0])
            message_refused(
                receiver, forging.message(model, body, exchange_id=current), source, now
            )
        finish(step.network)


def test_three_nodes_and_each_others_datagrams(number: int) -> None:
    """What one pair says means nothing to the third, nor to either of them from there."""
    network = triangle(number)
    for one, other in (("left", "right"), ("right", "third"), ("third", "left")):
        network.start(one, other)
        network.settle()
        same_key(network, one, other)
    for flying in network.log:
        receiver_name = network.at(flying.destination).name
        (outsider,) = set(NAMES) - {flying.sender, receiver_name}
        end = network[outsider]
        reason = refused(end, flying.data, flying.source, network.now)
        assert reason in ("mac1", "no such exchange")
        # with mac1 made for the third
        fragment = wire.parse_untrusted(flying.data)
        key = wire.mac_key(fragment.type, identity(number, outsider).fingerprint)
        refused_or_partial(
            end, wire.seal_fragment(fragment, key).datagram(), flying.source, network
        )
    for one, other in (("left", "right"), ("right", "third"), ("third", "left")):
        finish(network, one, other)


def refused_or_partial(end: End, datagram: bytes, source: Address, network: Network) -> None:
    links = [end.endpoint.link(name).state() for name in end.endpoint.links()]
    try:
        end.endpoint.receive_datagram(datagram, source, network.now)
    except PacketRejected:
        pass
    else:
        assert end.endpoint.statistics().reassembly_messages
    assert [end.endpoint.link(name).state() for name in end.endpoint.links()] == links
    assert not outbox(end)
    assert end.endpoint.next_event() is None


def test_a_peer_cannot_answer_for_another(number: int) -> None:
    """`third` is a peer of `left` too, and knows all the public keys: it cannot be `right`."""
    network = triangle(number)
    network.start("left", "right")
    network.settle_until(RESP_HELLO)
    waiting = network.copy()
    exchange = waiting["left"].exchange("right")
    # third answers an InitHello that left sent to it in an exchange of theirs
    theirs = triangle(number)
    theirs.start("left", "third")
    theirs.settle()
    for kind in (RESP_HELLO, RESP_CONF):
        flyings = [flying for flying in theirs.log if flying.type is kind]
        _, body = forging.whole([flying.data for flying in flyings])
        fragments = wire.cut(
            kind,
            number,
            exchange.exchange_id,
            body,
            key=wire.mac_key(kind, identity(number, "right").fingerprint),
        )
        datagrams = list(wire.datagrams(fragments))
        message_refused(waiting["left"], datagrams, waiting["third"].address, waiting.now)
    finish(waiting, "left", "right")


def test_a_stranger_gets_no_answer(number: int) -> None:
    """RH0: who is not configured here ends before any encapsulation; he has the fingerprint."""
    network = pair(number, ends={"right": {"load": never_loaded()}})
    network.ends["third"] = make_end("third", suite_numbers=(number,))
    stranger = network["third"]
    stranger.endpoint.add_link(
        link_config("third", "right", suite=number), network.now, start_at=NEVER
    )
    right = identity(number, "right")
    stranger.endpoint.know_public_key(right.fingerprint, right.public_key)
    before = network["right"].endpoint.state()
    network.start("third", "right")
    network.settle()
    assert network.rejected[-1][1] == "unknown peer"
    assert not [flying for flying in network.log if flying.sender == "right"]
    assert network["right"].endpoint.state() == before
    finish(network)


@pytest.mark.parametrize("kind", list(MessageType), ids=lambda kind: kind.name)
def test_a_node_of_the_other_suite(number: int, kind: MessageType) -> None:
    """A node that holds no identity of a suite answers nothing of that suite."""
    other = pair(3 - number)
    for moment in captured_of(number, kind):
        end = other[moment.receiver.name]
        reason = refused(end, moment.data, moment.flying.source, other.now)
        assert reason in ("mac1", "no such exchange")
    finish(other)


def test_datagrams_of_a_wrong_source_address_complete_all_the_same(number: int) -> None:
    """Addresses prove nothing here: what counts are the keys; RespConf goes where InitConf
    came from."""
    network = pair(number)
    network.start()
    moved = Address("203.0.113.77", 777)
    network["left"].address = moved
    network.in_flight = type(network.in_flight)(
        replace(flying, source=moved) for flying in network.in_flight
    )
    network.settle()
    same_key(network)
    assert network["right"].endpoint.link("left").address == moved

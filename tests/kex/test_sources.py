"""Where a datagram comes from, and how it was cut: what docs/protocol.md §3 and §4.1 leave open to
the other end, and what an end makes of it."""

from __future__ import annotations

import cbor2
import pytest

from kex import wire
from kex.address import Address
from kex.exchange import initiator_payload_length
from kex.wire import MessageType

from . import forging
from .harness import (
    SUITES,
    Flying,
    Network,
    finish,
    pair,
    run_exchange,
    same_key,
)
from .test_hostile_peers import GOOD, before_init_conf, padded, suite_of

ELSEWHERE = Address("203.0.113.7", 4500)


def of_type(network: Network, kind: MessageType) -> list[Flying]:
    return [flying for flying in network.log if flying.type is kind]


@pytest.mark.parametrize("number", SUITES)
def test_an_answer_is_taken_from_another_address_than_was_asked(number: int) -> None:
    network = pair(number, know_keys=False)
    network.start()
    for _ in range(100):
        if not network.in_flight:
            break
        flying = network.in_flight[0]
        source = ELSEWHERE if flying.sender == "right" else flying.source
        network.in_flight[0] = Flying(flying.sender, flying.data, source, flying.destination)
        network.deliver()
    assert not network.rejected
    same_key(network)


def test_the_datagrams_of_an_answer_come_from_one_source() -> None:
    network = pair(1)
    network.start()
    network.settle_until(MessageType.RESP_HELLO)
    first, second = network.in_flight
    network.in_flight.clear()
    left = network["left"]
    left.endpoint.receive_datagram(first.data, first.source, network.now)
    left.endpoint.receive_datagram(
        second.data, Address(second.source.host, second.source.port + 1), network.now
    )
    assert left.exchange("right").noise is not None, "two ports are two sources"
    left.endpoint.receive_datagram(second.data, second.source, network.now)
    assert left.exchange("right").noise is None
    network.collect()
    network.settle()
    same_key(network)


@pytest.mark.parametrize("number", SUITES)
def test_a_repeated_init_conf_is_answered_where_the_repetition_came_from(number: int) -> None:
    network = pair(number)
    run_exchange(network)
    (init_conf,) = of_type(network, MessageType.INIT_CONF)
    (resp_conf,) = of_type(network, MessageType.RESP_CONF)
    assert resp_conf.destination == init_conf.source
    right = network["right"].endpoint
    right.receive_datagram(init_conf.data, ELSEWHERE, network.now)
    assert right.datagrams_to_send() == [(resp_conf.data, ELSEWHERE)]
    learnt = network["right"].endpoint.link("left").learnt
    assert learnt is not None
    assert learnt.address == init_conf.source


@pytest.mark.parametrize(("left", "right"), [(500, 1200), (1200, 500), (700, 650)])
def test_each_end_cuts_as_it_chooses(left: int, right: int) -> None:
    network = pair(
        1, know_keys=False, ends={"left": {"chunk_length": left}, "right": {"chunk_length": right}}
    )
    run_exchange(network)

    def first_chunk(kind: MessageType) -> int:
        return len(wire.parse_untrusted(of_type(network, kind)[0].data).chunk)

    assert first_chunk(MessageType.INIT_HELLO) == left
    assert first_chunk(MessageType.RESP_HELLO) == right
    assert first_chunk(MessageType.INIT_CONF) == left
    assert first_chunk(MessageType.RESP_CONF) == min(right, 1016)
    assert first_chunk(MessageType.IDENTITY_REPLY) == left, "it follows its question"


@pytest.mark.parametrize("announced", [1, 60, 119, 120, 121])
def test_an_interval_that_is_announced_has_a_floor_of_120_s(announced: int) -> None:
    """And a port of 0 is taken."""
    network = before_init_conf(1).copy()
    left, right = network["left"], network["right"]
    config = right.endpoint.link("left").config
    assert config.interval == 120
    suite, exchange = suite_of(network, 1), left.exchange("right")
    fields = GOOD | {"keys": [], "interval": announced, "port": 0}
    p_i = padded(cbor2.dumps(fields), initiator_payload_length(suite))
    (datagram,) = forging.init_conf(suite, exchange, p_i)
    right.endpoint.receive_datagram(datagram, left.address, network.now)
    network.collect()
    link = right.endpoint.link("left")
    assert link.peer is not None
    assert (link.peer.interval, link.peer.wireguard_port) == (announced, 0)
    assert link.interval == 120
    finish(network)

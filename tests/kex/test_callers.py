"""Who calls and is not answered is listed, within bounds, and told of seldom."""

from __future__ import annotations

import itertools

import pytest

from kex.address import Address
from kex.callers import KEPT_SECONDS, MAX_CALLERS, MAX_PER_HOST, NEWCOMER_SECONDS, Callers
from kex.endpoint import Endpoint
from kex.errors import PacketRejected
from kex.events import StartReason
from kex.wire import MessageType

from .harness import (
    ADDRESSES,
    NEVER,
    Network,
    finish,
    identity,
    join,
    link_config,
    make_end,
    pair,
)

LEFT, RIGHT, THIRD = (identity(1, name).fingerprint for name in ("left", "right", "third"))


def call(network: Network, times: int = 1) -> None:
    """`left` begins exchanges with `right` that nobody answers."""
    for _ in range(times):
        network.advance(15.5)
        if network["left"].exchange("right") is None:
            network.start()
        network.settle()


def told(endpoint: Endpoint) -> list[int]:
    found = []
    while (caller := endpoint.next_caller()) is not None:
        found.append(caller.calls)
    return found


def strangers() -> Network:
    """`left` knows `right`, which has no link with it."""
    network = pair()
    network["right"].endpoint.remove_link("left")
    return network


def test_who_is_no_peer_is_listed_with_what_it_claims_to_be() -> None:
    network = strangers()
    call(network, 12)
    (caller,) = network["right"].endpoint.callers(network.now)
    assert caller.claimed == LEFT
    assert caller.called == RIGHT
    assert caller.address == ADDRESSES["left"]
    begun = {flying.data[8:16] for flying in network.log if flying.type is MessageType.INIT_HELLO}
    assert caller.calls == len(begun)  # exchanges, not datagrams
    assert told(network["right"].endpoint) == [1, 10]
    # It is never answered
    assert not [flying for flying in network.log if flying.sender == "right"]


def test_who_becomes_a_peer_is_listed_no_longer() -> None:
    network = strangers()
    call(network)
    right = network["right"].endpoint
    right.add_link(link_config("right", "left"), network.now, start_at=NEVER)
    right.know_public_key(LEFT, identity(1, "left").public_key)
    assert not right.callers(network.now)
    finish(network)


def test_who_calls_another_identity_is_listed_by_its_address() -> None:
    for know_keys in (True, False):  # InitHello, IdentityQuery
        network = pair(know_keys=know_keys)
        third = make_end("third")
        network.ends["right"] = third  # another node has its place now
        third.address = ADDRESSES["right"]
        call(network, 3)
        (caller,) = third.endpoint.callers(network.now)
        assert (caller.called, caller.claimed) == (None, None)
        assert caller.address == ADDRESSES["left"]
        assert caller.calls >= 3
        assert not [flying for flying in network.log if flying.sender == "third"]


def test_who_fits_at_last_is_listed_no_longer() -> None:
    network = pair()
    stranger = make_end("third")
    network.ends["third"] = stranger
    join(network, "left", "third")
    left = network["left"].endpoint
    right = network["right"].endpoint
    left.request_exchange("third", StartReason.REQUESTED, network.now)
    for data, _ in left.datagrams_to_send():
        with pytest.raises(PacketRejected, match="mac1"):
            right.receive_datagram(data, ADDRESSES["left"], network.now)
    assert len(right.callers(network.now)) == 1
    network.start()
    network.settle()
    assert not right.callers(network.now)


def test_junk_is_not_listed() -> None:
    network = pair()
    network.start()
    hello = network.in_flight[0].data
    right = network["right"].endpoint
    for junk in (
        hello[:600],
        hello[:40],
        bytes([hello[0], hello[1], 0, 1]) + hello[4:],
        bytes([0x13]) + hello[1:],
        hello[:1] + bytes([0x0F]) + hello[2:],
    ):
        with pytest.raises(PacketRejected):
            right.receive_datagram(junk, ADDRESSES["third"], network.now)
    assert not right.callers(network.now)


def test_a_flood_from_false_addresses_takes_neither_memory_nor_the_place_of_a_caller() -> None:
    callers = Callers()
    real = Address("192.0.2.10", 51821)
    numbers = itertools.count()
    for number in range(20):
        callers.note(real, number.to_bytes(8, "big"), 15.0 * number, called=LEFT, claimed=RIGHT)
    now = 300.0
    for number in itertools.islice(numbers, 20_000):
        false = Address(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", number)
        callers.note(false, number.to_bytes(8, "big"), now)
        now += 0.001
    assert len(callers.callers) == MAX_CALLERS
    assert len(callers.untold) <= MAX_CALLERS
    assert callers.unlisted > 19_000
    assert callers.callers[real.host, LEFT, RIGHT].calls == 20
    # A newcomer finds a place nevertheless, when the flood pauses
    other = Address("192.0.2.20", 51821)
    callers.note(other, bytes(8), now + NEWCOMER_SECONDS)
    assert (other.host, None, None) in callers.callers


def test_one_host_with_many_identities_takes_a_few_places() -> None:
    callers = Callers()
    for number in range(100):
        claimed = type(LEFT)(1, number.to_bytes(32, "big"))
        source = Address("192.0.2.66", number)
        callers.note(source, number.to_bytes(8, "big"), 1.0 * number, called=LEFT, claimed=claimed)
    assert len(callers.callers) == MAX_PER_HOST


def test_tellings_are_few_however_many_call() -> None:
    callers = Callers()
    for number in range(10_000):
        source = Address(f"192.0.{number >> 8}.{number & 255}", 1)
        callers.note(source, number.to_bytes(8, "big"), number / 10)
    assert len(callers.untold) <= 8 + 1000 / 60 + 1


def test_who_calls_no_more_is_forgotten() -> None:
    network = strangers()
    call(network)
    right = network["right"].endpoint
    assert right.callers(network.now)
    assert not right.callers(network.now + KEPT_SECONDS)


def test_a_copy_is_independent_and_nothing_is_part_of_the_state() -> None:
    network = strangers()
    right = network["right"].endpoint
    twin = right.copy()
    call(network)
    assert right.callers(network.now)
    assert not twin.callers(network.now)
    assert right.state(with_times=False) == twin.state(with_times=False)

"""Datagrams whose source address is not where they came from: they neither keep a peer's messages
from being put together, nor have a node call somebody who never asked for it."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import pytest

from kex import timing, wire
from kex.address import Address
from kex.errors import PacketRejected
from kex.events import ExchangeFailed, ExchangeStarted, Role, StartReason
from kex.link_state import NotPossible
from kex.reassembly import MAX_BYTES, MAX_MESSAGES_PER_ORIGIN, MAX_MESSAGES_PER_SITE
from kex.wire import MessageType

from .harness import (
    ADDRESSES,
    NEVER,
    SUITES,
    Network,
    finish,
    identity,
    join,
    make_end,
    pair,
    run_exchange,
    same_key,
)

LEFT, RIGHT = ADDRESSES["left"], ADDRESSES["right"]
VICTIM = Address("203.0.113.9", 9)
MILLISECOND = 0.001


@pytest.fixture(params=SUITES, ids=["suite 1", "suite 2"])
def number(request: pytest.FixtureRequest) -> int:
    value: int = request.param
    return value


def last_fragments(suite: int, length: int) -> Callable[[], bytes]:
    """Makes last fragments of an InitHello of `length` bytes, as short as they can be, each of
    another message."""
    dice = random.Random(1)
    key = wire.mac_key(MessageType.INIT_HELLO, identity(suite, "right").fingerprint)
    count, size = next(
        (count, size)
        for size in range(1, length)
        for count in range(2, 12)
        if wire.could_be_cut(length, index=count - 1, count=count, size=size)
    )

    def make() -> bytes:
        fragment = wire.Fragment(
            type=MessageType.INIT_HELLO,
            suite=suite,
            index=count - 1,
            count=count,
            tag=dice.randbytes(4),
            exchange_id=dice.randbytes(8),
            chunk=dice.randbytes(size),
            mac1=wire.NO_MAC,
            mac2=wire.NO_MAC,
        )
        return wire.seal_fragment(fragment, key).datagram()

    return make


def hostile_way(network: Network, forged: Callable[[], bytes], seconds: float) -> None:
    """A line of 10 Mbit/s to `right`, on which 10 forged datagrams arrive in each millisecond and
    one genuine one; what it sends arrives at once, and timers are kept."""
    until = network.now + seconds
    right = network["right"].endpoint
    while network.now < until and not network["left"].installed:
        for _ in range(10):
            with suppress(PacketRejected):
                right.receive_datagram(forged(), LEFT, network.now)
        network.collect()
        for flying in [f for f in network.in_flight if f.destination != RIGHT]:
            network.in_flight.remove(flying)
            network.in_flight.appendleft(flying)
            network.deliver()
        if network.in_flight:
            network.deliver()
        network.now += MILLISECOND
        for end in network.ends.values():
            timer = end.endpoint.next_timer()
            if timer is not None and timer <= network.now:
                end.endpoint.handle_timer(network.now)
        network.collect()


# ---- reassembly


def test_a_peer_gets_through_10_000_forged_last_fragments_a_second(number: int) -> None:
    network = pair(number)
    length = network["right"].endpoint._node.suites[number].message1_length
    forged = last_fragments(number, length)
    assert len(forged()) <= 48
    hostile_way(network, forged, 0.2)
    network.start()
    hostile_way(network, forged, 3.0)
    same_key(network)
    # what is too short to be answered is not, and nobody was sent what he did not ask for
    statistics = network["right"].endpoint.statistics()
    assert statistics.rejected["no cookie"] > 1000
    assert statistics.cookie_replies < 20
    assert statistics.reassembly_messages <= MAX_MESSAGES_PER_ORIGIN


def test_forged_first_fragments_are_answered_to_nobody_s_harm() -> None:
    """Long enough to be answered: the peer gets CookieReply for what it did not send."""
    network = pair()
    key = wire.mac_key(MessageType.INIT_HELLO, identity(1, "right").fingerprint)
    dice = random.Random(2)

    def forged() -> bytes:
        body = dice.randbytes(3584)
        return wire.cut(MessageType.INIT_HELLO, 1, dice.randbytes(8), body, key=key)[0].datagram()

    network.start()
    hostile_way(network, forged, 3.0)
    same_key(network)


def test_what_is_collected_with_a_cookie_is_not_spoiled_without_one() -> None:
    """Even by somebody who has seen a datagram of the message."""
    network = pair()
    right = network["right"].endpoint
    network.start()
    genuine = [wire.parse_untrusted(flying.data) for flying in network.in_flight]
    cookie = right._node.cookie_secret.cookie(LEFT)
    datagrams = wire.datagrams(genuine, cookie)
    network.in_flight.clear()
    key = wire.mac_key(MessageType.INIT_HELLO, identity(1, "right").fingerprint)
    false = wire.seal_fragment(replace(genuine[1], chunk=bytes(len(genuine[1].chunk))), key)
    right.receive_datagram(datagrams[0], LEFT, network.now)
    right.receive_datagram(false.datagram(), LEFT, network.now)
    for datagram in datagrams[1:]:
        right.receive_datagram(datagram, LEFT, network.now)
    network.collect()
    network.settle()
    same_key(network)


def test_one_host_with_cookies_for_all_its_ports_has_few_places() -> None:
    network = pair()
    right = network["right"].endpoint
    key = wire.mac_key(MessageType.INIT_HELLO, identity(1, "right").fingerprint)
    network.start()
    ours = [wire.parse_untrusted(flying.data) for flying in network.in_flight]
    ours_with_cookie = wire.datagrams(ours, right._node.cookie_secret.cookie(LEFT))
    network.in_flight.clear()
    for datagram in ours_with_cookie[:-1]:
        right.receive_datagram(datagram, LEFT, network.now)
    dice = random.Random(3)
    for port in range(1, 2000):
        source = Address("203.0.113.66", port)
        fragments = wire.cut(
            MessageType.INIT_HELLO, 1, dice.randbytes(8), dice.randbytes(3584), key=key
        )
        cookie = right._node.cookie_secret.cookie(source)
        right.receive_datagram(wire.datagrams(fragments, cookie)[0], source, network.now)
    assert right.statistics().reassembly_messages == MAX_MESSAGES_PER_SITE + 1
    right.receive_datagram(ours_with_cookie[-1], LEFT, network.now)
    network.collect()
    network.settle()
    same_key(network)


def test_answers_of_many_sources_to_one_exchange_take_few_places() -> None:
    """Who sees an exchange can forge answers to it, from anywhere; others lose nothing by that."""
    network = pair()
    network.ends["third"] = make_end("third", now=network.now)
    join(network, "left", "third")
    left = network["left"].endpoint
    network.start("left", "right")
    exchange = network["left"].exchange("right")
    network.in_flight.clear()
    # an InitHello from `third`, which lacks its last fragment
    network.start("third", "left")
    last = network.in_flight.pop()
    while network.in_flight:
        network.deliver()
    key = wire.mac_key(MessageType.RESP_HELLO, identity(1, "right").fingerprint)
    dice = random.Random(4)
    for n in range(2000):
        fragments = wire.cut(
            MessageType.RESP_HELLO, 1, exchange.exchange_id, dice.randbytes(2400), key=key
        )
        source = Address(f"198.51.{n >> 8}.{n & 255}", 7)
        left.receive_datagram(fragments[0].datagram(), source, network.now)
    assert left.statistics().reassembly_messages == MAX_MESSAGES_PER_ORIGIN + 1
    assert left.statistics().reassembly_bytes < MAX_BYTES // 8
    network.in_flight.append(last)
    network.settle()
    same_key(network, "third", "left")


# ---- where the peer is


def without_address_at_right() -> Network:
    """`right` does not know where `left` is: it comes to it."""
    return pair(links={"right": {"address": None}})


def forge_init_conf(network: Network, source: Address) -> None:
    """An exchange of left's, whose InitConf arrives from another address."""
    network.start()
    network.settle_until(MessageType.INIT_CONF)
    network.in_flight[0] = replace(network.in_flight[0], source=source)
    network.deliver()


def silent_for(network: Network, seconds: float, name: str = "right") -> dict[Address, int]:
    """The bytes that an end sends to each address while nothing comes to it."""
    endpoint = network[name].endpoint
    alone = Network({name: network[name]}, network.now)
    sent: dict[Address, int] = {}
    until = network.now + seconds
    alone.collect()
    while True:
        for flying in alone.in_flight:
            sent[flying.destination] = sent.get(flying.destination, 0) + len(flying.data)
        alone.in_flight.clear()
        at = endpoint.next_timer()
        assert at is not None
        if at > until:
            network.now = until
            return sent
        alone.now = max(alone.now, at)
        endpoint.handle_timer(alone.now)
        alone.collect()


def test_an_address_that_never_answered_is_given_up() -> None:
    network = without_address_at_right()
    forge_init_conf(network, VICTIM)
    network.in_flight.clear()
    (established,) = network["right"].installed
    assert established.address is None  # WireGuard does not go there either
    sent = silent_for(network, 3600.0)
    assert set(sent) == {VICTIM}
    assert sent[VICTIM] <= timing.UNPROVED_BYTES.burst
    link = network["right"].endpoint.link("left")
    assert link.address is None
    assert link.given_up is not None
    assert link.given_up.address == VICTIM
    assert not link.given_up.proved
    with pytest.raises(NotPossible):
        network["right"].endpoint.request_exchange("left", StartReason.REQUESTED, network.now)
    # the peer itself is welcome as ever
    network["left"].endpoint.handle_timer(network.now)
    network.collect()
    finish(network)
    assert network["right"].endpoint.link("left").address == LEFT


def test_many_forged_sources_get_no_more_than_one() -> None:
    """However often the peer's InitConf is made to come from elsewhere. `left` goes first: after
    each of them it owes an exchange of its own at once."""
    network = pair(links={"left": {"address": None}})
    sent: dict[str, int] = {}
    rounds = 40
    begun = network.now
    for n in range(rounds):
        network.now += timing.GIVE_UP_SECONDS  # the answer before went elsewhere
        network["right"].endpoint.handle_timer(network.now)
        network.collect()
        if network["right"].exchange("left") is None:
            network.start("right", "left")
        network.settle_until(MessageType.INIT_CONF)
        source = VICTIM._replace(port=1000 + n)
        network.in_flight[0] = replace(network.in_flight[0], source=source)
        network.deliver()
        network.in_flight.clear()
        for address, count in silent_for(network, 20.0, "left").items():
            sent[address.host] = sent.get(address.host, 0) + count
    assert len(network["left"].installed) >= rounds // 2
    hours = (network.now - begun) / 3600
    answers = rounds * 1048
    assert 20_000 < sent[VICTIM.host] <= timing.UNPROVED_BYTES.burst * (1 + hours) + answers


def test_a_forged_source_does_not_replace_what_is_known() -> None:
    network = pair()
    forge_init_conf(network, VICTIM)
    network.in_flight.clear()
    (established,) = network["right"].installed
    assert established.address == LEFT
    assert network["right"].endpoint.link("left").address == LEFT
    assert VICTIM not in silent_for(network, 600.0)


def test_a_forged_source_does_not_replace_what_was_proved() -> None:
    network = without_address_at_right()
    run_exchange(network)
    assert network["right"].endpoint.link("left").address == LEFT
    forge_init_conf(network, VICTIM)
    network.in_flight.clear()
    assert network["right"].installed[-1].address == LEFT
    assert network["right"].endpoint.link("left").address == LEFT


def test_a_peer_that_calls_has_proved_where_it_is() -> None:
    """A gateway behind a NAT, which gets another address now and then."""
    network = without_address_at_right()
    for n in range(3):
        network["left"].address = moved = Address("198.51.100.7", 4000 + n)
        run_exchange(network)
        link = network["right"].endpoint.link("left")
        assert (link.address, link.learnt is not None and link.learnt.proved) == (moved, True)
        assert network["right"].installed[-1].address == moved
        run_exchange(network, "right", "left")
        network.now += 30


def test_a_replayed_init_hello_makes_an_address_unproved() -> None:
    """The same RespHello went to two addresses: nobody knows who has received it."""
    network = without_address_at_right()
    network.start()
    hello = list(network.in_flight)
    right = network["right"].endpoint
    for flying in hello:
        right.receive_datagram(flying.data, VICTIM, network.now)
    right.datagrams_to_send()
    network.settle_until(MessageType.INIT_CONF)
    network.in_flight[0] = replace(network.in_flight[0], source=VICTIM)
    network.deliver()
    learnt = right.link("left").learnt
    assert learnt is not None
    assert not learnt.proved


def test_an_answer_proves_an_address() -> None:
    """The source of its InitConf was another one than that of its InitHello, and it is there."""
    network = without_address_at_right()
    network.start()
    network.settle_until(MessageType.INIT_CONF)
    network["left"].address = moved = Address("198.51.100.7", 7)
    network.in_flight[0] = replace(network.in_flight[0], source=moved)
    network.settle()
    same_key(network)
    link = network["right"].endpoint.link("left")
    assert link.address == moved
    network.now += 30
    run_exchange(network, "right", "left")
    learnt = network["right"].endpoint.link("left").learnt
    assert learnt is not None
    assert learnt.proved


def test_a_peer_that_has_left_its_address_is_waited_for() -> None:
    network = without_address_at_right()
    run_exchange(network)
    sent = silent_for(network, 3600.0)
    failed = network["right"].events_of(ExchangeFailed)
    assert len(failed) == timing.UNANSWERED_EXCHANGES
    assert set(sent) == {LEFT}
    link = network["right"].endpoint.link("left")
    assert link.address is None
    assert link.given_up is not None
    assert link.given_up.proved
    network["left"].address = Address("198.51.100.8", 8)
    finish(network)
    assert network["right"].endpoint.link("left").address == network["left"].address
    assert network["right"].endpoint.link("left").given_up is None


def test_an_address_that_was_configured_is_never_given_up() -> None:
    network = pair()
    run_exchange(network)
    silent_for(network, 3600.0)
    assert network["right"].endpoint.link("left").address == LEFT
    begun = network["right"].events_of(ExchangeStarted)
    assert len(begun) > 20


def test_a_changed_configuration_forgets_what_was_given_up() -> None:
    network = without_address_at_right()
    run_exchange(network)
    silent_for(network, 3600.0)
    right = network["right"].endpoint
    right.update_link(replace(right.link("left").config, address=LEFT), network.now)
    link = right.link("left")
    assert (link.address, link.given_up) == (LEFT, None)


# ---- how often


def test_a_peer_makes_few_keys_at_once() -> None:
    """60 a second it could make; and one that was refused is taken when its time has come."""
    network = pair()
    seconds = 20
    begun = network.now
    for _ in range(2000):
        if network.now >= begun + seconds:
            break
        network["left"].endpoint.request_exchange("right", StartReason.REQUESTED, network.now)
        network.collect()
        network.advance(1 / 60)
    made = [key for key in network["right"].installed if key.role is Role.RESPONDER]
    limit = timing.INIT_CONFS
    assert limit.burst <= len(made) <= limit.burst + limit.rate * seconds + 1
    assert {reason for _, reason in network.rejected} == {"rate of the link"}
    assert not network["left"].events_of(ExchangeFailed)  # none was given up
    finish(network)


def test_a_refused_one_has_used_nothing_up() -> None:
    network = pair()
    for _ in range(int(timing.INIT_CONFS.burst)):
        run_exchange(network)
    network.start()
    network.settle_until(MessageType.INIT_CONF)
    before = network["right"].endpoint.state()
    network.deliver()
    assert network.rejected[-1][1] == "rate of the link"
    assert network["right"].endpoint.state() == before
    network.advance(timing.GIVE_UP_SECONDS - 1)
    same_key(network)
    assert not network["left"].events_of(ExchangeFailed)


def test_the_links_of_others_have_buckets_of_their_own() -> None:
    network = pair()
    network.ends["third"] = make_end("third", now=network.now)
    join(network, "third", "right")
    for _ in range(int(timing.INIT_CONFS.burst)):
        run_exchange(network)
    run_exchange(network, "third", "right")
    # and what this end begins is not bounded by what the peer has begun
    run_exchange(network, "right", "left")


def test_a_link_that_is_added_again_knows_its_peer_anew() -> None:
    """The index of where peers are holds what links there are."""
    network = pair()
    right = network["right"].endpoint
    config = right.link("left").config
    assert right._peer_sites == {LEFT.host: 1}
    right.remove_link("left")
    assert not right._peer_sites
    right.add_link(config, network.now, start_at=NEVER)
    assert right._peer_sites == {LEFT.host: 1}

"""Cookies: what a node under load asks of strangers, and what it costs an honest peer."""

from __future__ import annotations

import itertools
from contextlib import suppress
from dataclasses import replace

import pytest

from kex import cookies, wire
from kex.address import Address
from kex.cookies import SECRET_SECONDS, CookieSecret
from kex.errors import PacketRejected
from kex.load import ALL_SOURCES, BURST, MAX_SOURCES, RATE, SOURCE, Load
from kex.mlkem import Encapsulation, MlKemParameterSet, MlKemPrivateKey, OpenSslMlKem
from kex.secret import Secret
from kex.suites import suite as make_suite
from kex.wire import MessageType

from .harness import (
    ADDRESSES,
    SUITES,
    Flying,
    Network,
    finish,
    identity,
    never_loaded,
    pair,
    refused,
    run_exchange,
    same_key,
    under_load,
)
from .reference import SeededBytes

ASKED = identity(1, "right").fingerprint
MAC1 = b"mac1mac1"
COOKIE = b"c" * cookies.COOKIE_LENGTH
NONCE = bytes(cookies.NONCE_LENGTH)
LEFT, RIGHT = ADDRESSES["left"], ADDRESSES["right"]


@pytest.fixture(params=SUITES, ids=["suite 1", "suite 2"])
def number(request: pytest.FixtureRequest) -> int:
    value: int = request.param
    return value


class CountingMlKem(OpenSslMlKem):
    """Counts public-key operations."""

    def __init__(self) -> None:
        self.operations = 0

    def private_key(self, parameter_set: MlKemParameterSet, seed: bytes) -> MlKemPrivateKey:
        return _CountingKey(super().private_key(parameter_set, seed), self)

    def encapsulate(self, parameter_set: MlKemParameterSet, ek: bytes) -> Encapsulation:
        self.operations += 1
        return super().encapsulate(parameter_set, ek)


class _CountingKey:
    def __init__(self, key: MlKemPrivateKey, counter: CountingMlKem) -> None:
        self._key, self._counter = key, counter
        self.public_key = key.public_key

    def decapsulate(self, ciphertext: bytes) -> bytes:
        self._counter.operations += 1
        return self._key.decapsulate(ciphertext)


def counted(number: int, load: Load) -> tuple[Network, CountingMlKem]:
    """A pair whose `right` counts its public-key operations."""
    counter = CountingMlKem()
    random = SeededBytes(b"counted")
    suite = make_suite(number, random=random, ml_kem=counter)
    known = identity(number, "right")
    own = replace(
        known, suite=suite, private_key=suite.private_key(known.private_key.seed.expose())
    )
    network = pair(
        number, ends={"right": {"load": load, "suites": {number: suite}, "identities": (own,)}}
    )
    counter.operations = 0
    return network, counter


def sent(network: Network, kind: MessageType) -> list[Flying]:
    return [flying for flying in network.log if flying.type is kind]


# ---- the cookie itself


def test_sealed_and_opened() -> None:
    body = cookies.seal_cookie(ASKED, nonce=NONCE, mac1=MAC1, cookie=COOKIE)
    assert len(body) == cookies.COOKIE_REPLY_LENGTH == 56
    assert cookies.open_cookie_untrusted(ASKED, body=body, mac1=MAC1) == COOKIE


def test_opened_by_who_asked_that_node_that_question_only() -> None:
    body = cookies.seal_cookie(ASKED, nonce=NONCE, mac1=MAC1, cookie=COOKIE)
    for asked, mac1 in (
        (identity(1, "left").fingerprint, MAC1),
        (replace(ASKED, suite=2), MAC1),
        (ASKED, b"mac1mac2"),
        (ASKED, b""),
    ):
        with pytest.raises(PacketRejected):
            cookies.open_cookie_untrusted(asked, body=body, mac1=mac1)


def test_every_change_and_every_length_is_refused() -> None:
    body = cookies.seal_cookie(ASKED, nonce=NONCE, mac1=MAC1, cookie=COOKIE)
    damaged = [body[:length] for length in range(len(body))] + [body + b"\0"]
    for place, bit in itertools.product(range(len(body)), range(8)):
        changed = bytearray(body)
        changed[place] ^= 1 << bit
        damaged.append(bytes(changed))
    for data in damaged:
        with pytest.raises(PacketRejected):
            cookies.open_cookie_untrusted(ASKED, body=data, mac1=MAC1)


def test_bound_to_address_and_port() -> None:
    secret = CookieSecret(Secret(bytes(32)), None, SECRET_SECONDS)
    addresses = [
        Address("192.0.2.1", 1),
        Address("192.0.2.1", 11),
        Address("192.0.2.11", 1),
        Address("192.0.2.2", 1),
        Address("2001:db8::1", 1),
        Address("fe80::1%eth0", 1),
        Address("fe80::1%eth1", 1),
    ]
    assert len({secret.cookie(address) for address in addresses}) == len(addresses)
    assert {len(secret.cookie(address)) for address in addresses} == {16}


def test_the_secret_changes_every_two_minutes_and_the_one_before_is_accepted() -> None:
    secret = CookieSecret(Secret(b"1" * 32), None, SECRET_SECONDS)
    first = secret.cookie(LEFT)
    once = secret.rotated(b"2" * 32, SECRET_SECONDS)
    assert once.cookie(LEFT) != first
    assert once.accepted(LEFT) == (once.cookie(LEFT), first)
    twice = once.rotated(b"3" * 32, 2 * SECRET_SECONDS)
    assert first not in twice.accepted(LEFT)
    assert twice.accepted(LEFT) == (twice.cookie(LEFT), once.cookie(LEFT))
    # asleep for longer than a period
    late = secret.rotated(b"2" * 32, 2 * SECRET_SECONDS)
    assert late.accepted(LEFT) == (late.cookie(LEFT),)


# ---- under load


def test_without_a_cookie_no_memory_and_no_public_key_operation(number: int) -> None:
    network, counter = counted(number, under_load())
    right = network["right"].endpoint
    network.start()
    hello = list(network.in_flight)
    for flying in hello:
        before = right.link("left").state()
        right.receive_datagram(flying.data, flying.source, network.now)
        ((reply, address),) = right.datagrams_to_send()
        assert address == flying.source
        assert reply[0] & 0x0F == MessageType.COOKIE_REPLY
        assert len(reply) <= len(flying.data)
        assert right.statistics().reassembly_bytes == 0
        assert right.link("left").state() == before
    assert right.next_event() is None
    assert counter.operations == 0
    assert right.statistics().cookie_replies == len(hello)
    assert right.statistics().under_load
    finish(network)
    assert counter.operations > 0


def test_an_init_conf_needs_a_cookie_too(number: int) -> None:
    network, counter = counted(number, never_loaded())
    network.start()
    network.settle_until(MessageType.INIT_CONF)
    network["right"].endpoint._load = under_load()
    counter.operations = 0
    before = network["right"].endpoint.link("left").state()
    network.deliver()
    assert network["right"].endpoint.link("left").state() == before
    assert [flying.type for flying in network.in_flight] == [MessageType.COOKIE_REPLY]
    assert counter.operations == 0
    network.settle()
    same_key(network)


def test_an_initiator_completes_with_one_more_round_trip(number: int) -> None:
    network = pair(number, ends={"right": {"load": under_load()}})
    network.start()
    questions = len(network.in_flight)
    network.settle()
    same_key(network)
    # no time has passed: nothing was repeated by the clock, and each fragment came twice at most
    assert len(sent(network, MessageType.INIT_HELLO)) == 2 * questions
    assert len(sent(network, MessageType.INIT_CONF)) == 1
    assert len(sent(network, MessageType.RESP_CONF)) == 1
    # the cookie serves the next exchange as well
    mark = len(network.log)
    run_exchange(network)
    assert not [f for f in network.log[mark:] if f.type is MessageType.COOKIE_REPLY]


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_lost_cookies_cost_a_retransmission(lost: int) -> None:
    network = pair(ends={"right": {"load": under_load()}})
    network.start()
    questions = len(network.in_flight)
    for _ in range(questions):
        network.deliver()
    kept = network.in_flight[lost]
    network.in_flight.clear()
    network.in_flight.append(kept)
    network.settle()
    same_key(network)
    assert len(sent(network, MessageType.INIT_HELLO)) == 2 * questions


def test_all_cookies_lost(number: int) -> None:
    network = pair(number, ends={"right": {"load": under_load()}})
    network.start()
    questions = len(network.in_flight)
    for _ in range(questions):
        network.deliver()
    network.in_flight.clear()
    network.advance(1.0)
    same_key(network)
    assert len(sent(network, MessageType.INIT_HELLO)) == 3 * questions


def test_a_cookie_of_another_address_is_none(number: int) -> None:
    network = pair(number, ends={"right": {"load": under_load()}})
    run_exchange(network)
    run_exchange(network)
    with_cookie = [f for f in sent(network, MessageType.INIT_HELLO) if f.data[-8:] != bytes(8)][-1]
    right = network["right"].endpoint
    before = right.statistics().reassembly_bytes
    for address in (
        Address(LEFT.host, LEFT.port + 1),
        Address("192.0.2.99", LEFT.port),
        RIGHT,
    ):
        right.receive_datagram(with_cookie.data, address, network.now)
        ((reply, to),) = right.datagrams_to_send()
        assert to == address
        assert reply[0] & 0x0F == MessageType.COOKIE_REPLY
        assert right.statistics().reassembly_bytes == before
    right.receive_datagram(with_cookie.data, LEFT, network.now)
    assert right.statistics().reassembly_bytes > before


def test_a_changed_mac2_is_none() -> None:
    network = pair(ends={"right": {"load": under_load()}})
    run_exchange(network)
    with_cookie = [f for f in sent(network, MessageType.INIT_HELLO) if f.data[-8:] != bytes(8)][-1]
    right = network["right"].endpoint
    for place, bit in itertools.product(range(1, 9), range(8)):
        data = bytearray(with_cookie.data)
        data[-place] ^= 1 << bit
        right.receive_datagram(bytes(data), LEFT, network.now)
        ((reply, _),) = right.datagrams_to_send()
        assert reply[0] & 0x0F == MessageType.COOKIE_REPLY
    assert right.statistics().reassembly_bytes == 0
    finish(network)


def test_cookies_over_time() -> None:
    """A cookie is used for two minutes; its node accepts it for two to four."""
    network = pair(ends={"right": {"load": under_load()}})
    network.start()
    network.settle()
    replies = len(sent(network, MessageType.COOKIE_REPLY))
    network.now += SECRET_SECONDS - 1
    for end in network.ends.values():
        end.endpoint.handle_timer(network.now)
        end.endpoint.datagrams_to_send()
    run_exchange(network)
    assert len(sent(network, MessageType.COOKIE_REPLY)) == replies
    network.now += SECRET_SECONDS + 2
    run_exchange(network)
    assert len(sent(network, MessageType.COOKIE_REPLY)) > replies


def test_mac2_is_not_looked_at_without_load(number: int) -> None:
    network = pair(number)
    network.start()
    for _ in range(len(network.in_flight)):
        flying = network.in_flight.popleft()
        network.in_flight.append(replace(flying, data=flying.data[:-8] + b"whatever"))
    network.settle()
    same_key(network)


# ---- the initiator and false cookies


def reply_to(
    network: Network, flying: Flying, *, cookie: bytes, mac1: bytes | None = None
) -> bytes:
    """A CookieReply as anybody can make it who sees a fragment and knows the fingerprint."""
    fragment = wire.parse_untrusted(flying.data)
    asked = identity(fragment.suite, "right").fingerprint
    body = cookies.seal_cookie(
        asked, nonce=NONCE, mac1=fragment.mac1 if mac1 is None else mac1, cookie=cookie
    )
    (reply,) = wire.cut(
        MessageType.COOKIE_REPLY,
        fragment.suite,
        fragment.exchange_id,
        body,
        key=wire.mac_key(MessageType.COOKIE_REPLY, asked),
    )
    return reply.datagram()


def test_a_reply_to_what_was_not_sent_is_refused(number: int) -> None:
    """The associated data is the mac1 of a fragment that is waiting for an answer."""
    network = pair(number)
    network.start()
    hello = network.in_flight[0]
    for mac1 in (bytes(8), MAC1, wire.parse_untrusted(hello.data).mac1[::-1]):
        false = reply_to(network, hello, cookie=COOKIE, mac1=mac1)
        assert refused(network["left"], false, RIGHT, network.now) == "cookie"
    finish(network)


def test_a_reply_of_several_fragments_is_refused() -> None:
    network = pair()
    network.start()
    reply = reply_to(network, network.in_flight[0], cookie=COOKIE)
    fragment = replace(wire.parse_untrusted(reply), count=2)
    key = wire.mac_key(MessageType.COOKIE_REPLY, ASKED)
    false = wire.seal_fragment(fragment, key).datagram()
    assert refused(network["left"], false, RIGHT, network.now) == "fragment count"
    finish(network)


def test_one_cookie_for_each_sending(number: int) -> None:
    """A reply is short and what it makes us repeat is long: nobody may ask for more than one."""
    network = pair(number)
    network.start()
    hello = list(network.in_flight)
    left = network["left"].endpoint
    left.receive_datagram(reply_to(network, hello[0], cookie=b"1" * 16), RIGHT, network.now)
    assert len(left.datagrams_to_send()) == len(hello)
    for cookie in (b"1" * 16, b"2" * 16, b"3" * 16):
        for flying in hello:
            false = reply_to(network, flying, cookie=cookie)
            assert refused(network["left"], false, RIGHT, network.now) == "cookie taken"
    # The clock sends again; then one more is taken, and not one that is known
    timer = left.next_timer()
    assert timer is not None
    network.now = timer
    left.handle_timer(timer)
    left.datagrams_to_send()
    known = reply_to(network, hello[0], cookie=b"1" * 16)
    assert refused(network["left"], known, RIGHT, network.now) == "cookie taken"
    left.receive_datagram(reply_to(network, hello[0], cookie=b"2" * 16), RIGHT, network.now)
    assert len(left.datagrams_to_send()) == len(hello)
    finish(network)


def test_a_replayed_reply_does_not_prolong_a_cookie() -> None:
    network = pair(ends={"right": {"load": under_load()}})
    network.start()
    network.settle_until(MessageType.COOKIE_REPLY)
    reply = network.in_flight[0]
    network.deliver()
    until = network["left"].endpoint.link("right").cookie_until
    network.now += 1
    assert refused(network["left"], reply.data, RIGHT, network.now) == "cookie taken"
    assert network["left"].endpoint.link("right").cookie_until == until


# ---- when


def test_load_begins_after_a_burst_and_ends_when_half_the_bucket_is_back() -> None:
    load = Load(at=0.0)
    for _ in range(int(BURST)):
        assert not load.is_high(0.0)
        load.charge(0.0)
    assert load.is_high(0.0)
    half = BURST / 2 / RATE
    assert load.is_high(half - 0.001)
    assert not load.is_high(half + 0.001)
    # it goes on from there: half a bucket
    for _ in range(int(BURST / 2)):
        assert not load.is_high(half + 0.001)
        load.charge(half + 0.001)
    assert load.is_high(half + 0.001)


def test_load_does_not_go_back_in_time_nor_below_nothing() -> None:
    load = Load(at=10.0)
    for _ in range(1000):
        load.charge(10.0)
    assert load.tokens == 0
    assert load.is_high(5.0)
    assert load.at == 10.0
    assert not load.is_high(1000.0)
    assert load.tokens == BURST


def test_a_proven_source_has_a_bucket_of_its_own() -> None:
    load = Load(at=0.0)
    for _ in range(int(SOURCE.burst)):
        assert load.admits(LEFT, 0.0)
    assert not load.admits(LEFT, 0.0)
    # another port is the same source, another host is not
    assert not load.admits(Address(LEFT.host, 1), 0.0)
    assert load.admits(Address("192.0.2.2", LEFT.port), 0.0)
    assert load.admits(LEFT, 1 / SOURCE.rate + 0.001)
    assert not load.admits(LEFT, 1 / SOURCE.rate + 0.001)
    twin = load.copy()
    assert twin.admits(LEFT, 10.0)
    assert load.sources != twin.sources


def test_an_ipv6_source_is_its_64() -> None:
    load = Load(at=0.0)
    admitted = sum(load.admits(Address(f"2001:db8::{n:x}", n), 0.0) for n in range(1, 100))
    assert admitted == SOURCE.burst
    assert load.admits(Address("2001:db8:0:1::1", 1), 0.0)
    assert load.admits(Address("fe80::1%eth0", 1), 0.0)
    # but an IPv4 address in IPv6 clothes is that one host
    for n in range(1, 30):
        assert load.admits(Address(f"::ffff:192.0.2.{n}", 1), 0.0)


def site(number: int) -> Address:
    """One /64 of a /48."""
    return Address(f"2001:db8:5:{number:x}::1", 1)


def test_sources_are_bounded() -> None:
    load = Load(at=0.0)
    for n in range(3 * MAX_SOURCES):
        assert load.admits(site(n), n / ALL_SOURCES.rate)
    assert len(load.sources) == MAX_SOURCES


def test_one_bucket_for_all_sources() -> None:
    """600 networks of one /48, each with a cookie, have together what one bucket holds."""
    load = Load(at=0.0)
    seconds = 5
    admitted = sum(load.admits(site(n), at / 10) for at in range(10 * seconds) for n in range(600))
    assert admitted <= ALL_SOURCES.burst + ALL_SOURCES.rate * seconds
    # more of them than are kept in mind: the same
    mark = load.copy()
    admitted = sum(
        mark.admits(site(n), seconds + at / 10)
        for at in range(10 * seconds)
        for n in range(2 * MAX_SOURCES)
    )
    assert admitted <= ALL_SOURCES.burst + ALL_SOURCES.rate * seconds
    # a source alone has no more than before, and what was refused has cost nobody anything
    quiet = seconds + 10.0
    assert sum(load.admits(site(1), quiet) for _ in range(100)) == SOURCE.burst
    assert load.admits(site(2), quiet)


def test_a_source_that_is_dropped_has_a_full_bucket() -> None:
    """Else who goes round many sources would find each of them fresh."""
    load = Load(at=0.0)
    now = 0.0
    for n in range(20 * MAX_SOURCES):
        now = n / (2 * ALL_SOURCES.rate)  # both shared buckets are used up
        before = dict(load.sources)
        load.admits(site(n), now, known=bool(n % 2))
        for name in before.keys() - load.sources.keys():
            assert before[name].available(SOURCE, now) == SOURCE.burst


def test_known_peers_come_through_beside_strangers_with_cookies() -> None:
    load = Load(at=0.0)
    for at in range(50):
        now = at / 10
        for n in range(600):
            load.admits(site(n), now)
        assert load.admits(LEFT, now, known=True)
        assert not load.admits(Address("192.0.2.200", 1), now)


def test_a_thousand_peers_at_once_are_through_soon() -> None:
    """A node that was away is asked by all of them; each repeats as the protocol has it."""
    load = Load(at=0.0)
    waiting = dict.fromkeys(range(1000), 0.0)
    pauses = dict.fromkeys(range(1000), 0.5)
    for tick in range(150):
        now = tick / 10
        for n in [n for n, due in waiting.items() if due <= now]:
            if load.admits(Address(f"10.1.{n >> 8}.{n & 255}", 1), now):
                del waiting[n]
            else:
                waiting[n], pauses[n] = now + pauses[n], min(2 * pauses[n], 5.0)
    assert not waiting


def test_networks_of_one_attacker_share_a_bucket_at_a_real_node() -> None:
    """Whole InitHello, each from a network of its own with a good cookie; and a peer beside."""
    network, counter = counted(1, under_load())
    right = network["right"].endpoint
    suite = make_suite(1, random=SeededBytes(b"attacker"))
    key = wire.mac_key(MessageType.INIT_HELLO, ASKED)
    sources = 600
    for n in range(sources):
        body = suite.random(suite.message1_length)
        fragments = wire.cut(MessageType.INIT_HELLO, 1, n.to_bytes(8, "big"), body, key=key)
        cookie = right._node.cookie_secret.cookie(site(n))
        for datagram in wire.datagrams(fragments, cookie):
            with suppress(PacketRejected):
                right.receive_datagram(datagram, site(n), network.now)
    assert counter.operations <= ALL_SOURCES.burst
    assert right.statistics().rejected["rate"] == sources - ALL_SOURCES.burst
    # `left` is where it is configured to be: the attacker has used up none of what is its own
    network.start()
    network.settle()
    same_key(network)


def test_a_flood_with_good_cookies_is_opened_at_a_bounded_rate() -> None:
    """Who has a real address and the fingerprint makes a node work, but not much."""
    network, counter = counted(1, under_load())
    right = network["right"].endpoint
    attacker = Address("203.0.113.66", 666)
    cookie = right._node.cookie_secret.cookie(attacker)
    suite = make_suite(1, random=SeededBytes(b"attacker"))
    key = wire.mac_key(MessageType.INIT_HELLO, ASKED)
    refusals = 0
    for n in range(50):
        body = suite.random(suite.message1_length)
        fragments = wire.cut(MessageType.INIT_HELLO, 1, n.to_bytes(8, "big"), body, key=key)
        for datagram in wire.datagrams(fragments, cookie):
            try:
                right.receive_datagram(datagram, attacker, network.now)
            except PacketRejected as error:
                refusals += error.reason == "rate"
    assert counter.operations <= SOURCE.burst
    assert refusals == 50 - SOURCE.burst
    finish(network)


def test_only_what_is_opened_is_charged(number: int) -> None:
    """Fragments, repetitions and other types are cheap, and cost nothing of the bucket."""
    load = Load(at=1000.0, rate=0.0)
    network = pair(number, know_keys=False, ends={"right": {"load": load}})
    run_exchange(network)
    assert load.tokens == BURST - 1
    for flying in list(network.log):
        if flying.type in (MessageType.INIT_HELLO, MessageType.INIT_CONF):
            network["right"].endpoint.receive_datagram(flying.data, flying.source, network.now)
    assert load.tokens == BURST - 1


def test_many_initiators_are_asked_for_cookies_and_served_again_later() -> None:
    """A replayer of many recorded InitHello: a burst is opened, then cookies are asked for."""
    recorded = []
    for count in range(int(BURST) + 10):
        recorder = pair(seed=bytes([count]))
        recorder.start()
        recorded.append(list(recorder.in_flight))
    network = pair()
    right = network["right"].endpoint
    answered = 0
    for hello in recorded:
        for flying in hello:
            right.receive_datagram(flying.data, Address("203.0.113.1", 1), network.now)
        out = right.datagrams_to_send()
        answered += any(data[0] & 0x0F == MessageType.RESP_HELLO for data, _ in out)
    assert answered == BURST
    assert right.statistics().under_load
    finish(network)

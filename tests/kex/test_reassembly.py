"""Putting fragments together: bounds that hold under a flood, and messages that never mix."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kex import reassembly, wire
from kex.address import Address
from kex.errors import PacketRejected
from kex.reassembly import (
    ENTRY_COST,
    MAX_BYTES,
    MESSAGE_SECONDS,
    Reassembly,
)
from kex.wire import Fragment, MessageType
from tests.examples import examples

from .harness import SUITES, finish, pair, same_key

KEY = bytes(32)
LENGTH = 3584
SOURCE = Address("192.0.2.1", 1)


def source(number: int) -> Address:
    return Address(f"192.0.2.{number % 250}", 1024 + number // 250)


def message(
    name: str = "", *, length: int = LENGTH, chunk_length: int = wire.MAX_CHUNK_LENGTH
) -> tuple[bytes, tuple[Fragment, ...]]:
    """A message that is decided by its name, and its fragments."""
    body = random.Random(name).randbytes(length)
    exchange_id = random.Random(name + "id").randbytes(8)
    fragments = wire.cut(
        MessageType.INIT_HELLO, 1, exchange_id, body, key=KEY, chunk_length=chunk_length
    )
    return body, fragments


def add(
    held: Reassembly,
    fragment: Fragment,
    *,
    at: Address = SOURCE,
    now: float = 0.0,
    length: int = LENGTH,
) -> bytes | None:
    return held.add_untrusted(fragment, source=at, length=length, now=now)


def check_bounds(held: Reassembly) -> None:
    """What is held is counted right, and is within all bounds."""
    chunks = sum(len(c) for p in held.partials.values() for _, c in p.chunks)
    assert held.held == chunks + ENTRY_COST * len(held.partials)
    assert held.held <= MAX_BYTES
    per_origin = Counter(key.origin for key in held.partials)
    assert per_origin == Counter(held.per_origin)
    assert all(count <= origin.places for origin, count in per_origin.items())


# ---- whole messages


@settings(max_examples=examples(100), deadline=None, database=None)
@given(
    length=st.integers(1, 6000),
    chunk_length=st.integers(wire.MIN_CHUNK_LENGTH, wire.MAX_CHUNK_LENGTH),
    order=st.randoms(use_true_random=False),
)
def test_any_order_and_any_repetition(length: int, chunk_length: int, order: random.Random) -> None:
    body, fragments = message(length=length, chunk_length=chunk_length)
    held = Reassembly()
    arriving = [*fragments, *order.choices(fragments, k=3)]
    order.shuffle(arriving)
    whole = []
    for fragment in arriving:
        got = add(held, fragment, length=length)
        if got is not None:
            whole.append(got)
        check_bounds(held)
    assert body in whole
    assert set(whole) == {body}


def test_a_completed_message_is_taken_out() -> None:
    body, fragments = message()
    held = Reassembly()
    assert [add(held, fragment) for fragment in fragments] == [None, None, body]
    assert (held.held, held.partials) == (0, {})


def test_one_fragment_takes_no_memory() -> None:
    body, (fragment,) = message(length=1200)
    held = Reassembly()
    assert add(held, fragment, length=1200) == body
    assert held.held == 0


def test_copies_are_independent() -> None:
    body, fragments = message()
    held = Reassembly()
    add(held, fragments[0])
    twin = held.copy()
    assert [add(twin, fragment) for fragment in fragments[1:]] == [None, body]
    assert len(held.partials) == 1
    check_bounds(held)


# ---- bounds


def test_a_flood_of_first_fragments_from_everywhere() -> None:
    held = Reassembly()
    for number in range(3000):
        _, fragments = message(str(number))
        add(held, fragments[0], at=source(number), now=number / 1000)
        check_bounds(held)
    # the oldest went, the newest are there
    assert len(held.partials) == MAX_BYTES // (1200 + ENTRY_COST)
    assert source(2999) in {key.source for key in held.partials}
    assert source(0) not in {key.source for key in held.partials}
    assert held.is_crowded()


def test_a_flood_of_small_fragments_is_charged_for_its_entries() -> None:
    """The last fragment may be as small as one byte: the entry costs more than that."""
    held = Reassembly()
    length = 3 * wire.MAX_CHUNK_LENGTH + 1
    for number in range(3000):
        _, fragments = message(str(number), length=length)
        add(held, fragments[-1], at=source(number), length=length)
        check_bounds(held)
    assert len(held.partials) <= MAX_BYTES // ENTRY_COST


def test_one_source_has_few_messages() -> None:
    held = Reassembly()
    others = [message(f"other {number}") for number in range(5)]
    for number, (_, fragments) in enumerate(others):
        add(held, fragments[0], at=source(number + 1))
    for number in range(100):
        _, fragments = message(str(number))
        add(held, fragments[0], at=source(0))
        check_bounds(held)
    # of others nothing was lost
    for number, (body, fragments) in enumerate(others):
        assert add(held, fragments[1], at=source(number + 1)) is None
        assert add(held, fragments[2], at=source(number + 1)) == body


def test_fragments_of_a_message_that_goes_on_do_not_pass_the_bound() -> None:
    held = Reassembly()
    flood = [message(str(number)) for number in range(200)]
    for index in range(2):
        for number, (_, fragments) in enumerate(flood):
            add(held, fragments[index], at=source(number))
            check_bounds(held)


def test_time() -> None:
    body, fragments = message()
    held = Reassembly()
    add(held, fragments[0], now=5.0)
    assert held.next_deadline() == 5.0 + MESSAGE_SECONDS
    # a later fragment does not prolong it
    add(held, fragments[1], now=14.0)
    assert held.next_deadline() == 5.0 + MESSAGE_SECONDS
    late = held.copy()
    held.expire(14.999)
    assert add(held, fragments[2], now=14.999) == body
    late.expire(15.0)
    assert (late.held, late.partials, late.next_deadline()) == (0, {}, None)
    assert add(late, fragments[2], now=15.0) is None


def test_an_endpoint_wakes_up_to_forget() -> None:
    network = pair()
    network.start()
    network.deliver()
    right = network["right"].endpoint
    assert right.statistics().reassembly_messages == 1
    assert right.next_timer() == network.now + MESSAGE_SECONDS
    right.handle_timer(network.now + MESSAGE_SECONDS)
    assert right.statistics().reassembly_messages == 0
    assert right.statistics().reassembly_bytes == 0


# ---- spoiled messages


def test_two_different_chunks_in_one_place() -> None:
    _, fragments = message()
    _, others = message("other")
    held = Reassembly()
    add(held, fragments[0])
    false = replace(fragments[0], chunk=others[0].chunk)
    with pytest.raises(PacketRejected, match="fragments disagree"):
        add(held, false)
    assert held.held == 0
    finish_whole(held, message())


def finish_whole(held: Reassembly, whole: tuple[bytes, tuple[Fragment, ...]]) -> None:
    body, fragments = whole
    assert [add(held, fragment) for fragment in fragments][-1] == body
    assert held.held == 0


def test_two_counts_under_one_tag() -> None:
    body = message()[0]
    exchange_id = bytes(8)
    three = wire.cut(MessageType.INIT_HELLO, 1, exchange_id, body, key=KEY)
    four = wire.cut(MessageType.INIT_HELLO, 1, exchange_id, body, key=KEY, chunk_length=1000)
    assert three[0].tag == four[0].tag
    held = Reassembly()
    add(held, three[0])
    with pytest.raises(PacketRejected, match="fragments disagree"):
        add(held, four[1])
    assert held.held == 0


def test_two_cuts_of_one_message_never_make_a_third() -> None:
    """Same message, same count, other chunk lengths: the tag finds it."""
    body = message()[0]
    one = wire.cut(MessageType.INIT_HELLO, 1, bytes(8), body, key=KEY, chunk_length=1200)
    two = wire.cut(MessageType.INIT_HELLO, 1, bytes(8), body, key=KEY, chunk_length=1195)
    for picks in itertools.product((0, 1), repeat=3):
        held = Reassembly()
        parts = [(one, two)[pick][index] for index, pick in enumerate(picks)]
        for part in parts[:-1]:
            assert add(held, part) is None
        if len(set(picks)) == 1:
            assert add(held, parts[-1]) == body
        else:
            with pytest.raises(PacketRejected, match="message tag"):
                add(held, parts[-1])
        assert held.held == 0


def test_fragments_of_two_answers_to_one_question_never_mix() -> None:
    """Two RespHello under one exchange id, interleaved: each comes out as it was sent."""
    length = 2400
    bodies = [random.Random(name).randbytes(length) for name in ("one", "two")]
    cuts = [wire.cut(MessageType.RESP_HELLO, 1, bytes(8), body, key=KEY) for body in bodies]
    for order in itertools.permutations([(m, i) for m in (0, 1) for i in (0, 1)]):
        held = Reassembly()
        whole = [add(held, cuts[m][i], length=length) for m, i in order]
        assert {body for body in whole if body is not None} == set(bodies)
        assert held.held == 0


@pytest.mark.parametrize("what", ["source", "type", "suite", "exchange_id"])
def test_fragments_of_different_origin_never_mix(what: str) -> None:
    body, fragments = message()
    held = Reassembly()
    add(held, fragments[0])
    add(held, fragments[1])
    stray = {
        "source": fragments[2],
        "type": replace(fragments[2], type=MessageType.RESP_HELLO),
        "suite": replace(fragments[2], suite=2),
        "exchange_id": replace(fragments[2], exchange_id=b"another!"),
    }[what]
    assert add(held, stray, at=source(7) if what == "source" else SOURCE) is None
    assert len(held.partials) == 2
    assert add(held, fragments[2]) == body


# ---- between real ends


@pytest.mark.parametrize("number", SUITES)
@pytest.mark.parametrize("chunk_length", [500, 501, 640, 896, 1199, 1200])
def test_ends_with_any_chunk_length_understand_each_other(number: int, chunk_length: int) -> None:
    network = pair(number, know_keys=False, ends={"left": {"chunk_length": chunk_length}})
    network.start()
    network.settle()
    same_key(network)
    assert not network.rejected
    assert max(len(f.data) for f in network.log if f.sender == "left") == chunk_length + 32
    network.start("right", "left")
    network.settle()
    same_key(network)


@pytest.mark.parametrize("chunk_length", [0, 499, 1201])
def test_other_chunk_lengths_are_refused_at_the_start(chunk_length: int) -> None:
    with pytest.raises(ValueError, match="500 to 1200"):
        pair(chunk_length=chunk_length)


@pytest.mark.parametrize("lost", range(5))
def test_what_got_through_adds_up(lost: int) -> None:
    """A repetition is the same bytes: each time only one fragment more gets through."""
    network = pair(ends={"left": {"chunk_length": 800}})
    network.start()
    assert len(network.in_flight) == 5
    first = list(network.in_flight)
    network.in_flight.clear()
    network.in_flight.append(first[lost])
    network.settle()
    timer = network["left"].endpoint.next_timer()
    assert timer is not None
    network.now = timer
    network["left"].endpoint.handle_timer(timer)
    network.collect()
    again = list(network.in_flight)
    assert [flying.data for flying in again] == [flying.data for flying in first]
    del network.in_flight[lost]
    network.settle()
    same_key(network)


def test_a_real_exchange_completes_through_a_flood() -> None:
    """First fragments with a right mac1 and no cookie: they fill half the room, and no more."""
    network = pair()
    right = network["right"].endpoint
    key = wire.mac_key(MessageType.INIT_HELLO, next(iter(right._node.identities)))
    for number in range(1000):
        body, exchange_id = (
            random.Random(number).randbytes(LENGTH),
            random.Random(-number).randbytes(8),
        )
        fragments = wire.cut(MessageType.INIT_HELLO, 1, exchange_id, body, key=key)
        right.receive_datagram(fragments[0].datagram(), source(number), network.now)
    assert right.statistics().reassembly_bytes <= MAX_BYTES // 2 + 1200 + ENTRY_COST
    assert right.statistics().cookie_replies
    right.datagrams_to_send()
    finish(network)
    assert reassembly.MAX_BYTES == 256 * 1024

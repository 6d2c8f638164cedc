"""Fragments: what a datagram looks like, which cuts are legal, and what the MACs depend on."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kex import wire
from kex.errors import PacketRejected
from kex.wire import Fragment, MessageType
from tests.examples import examples

from .harness import identity

KEY = bytes(range(32))
MIN, MAX = wire.MIN_CHUNK_LENGTH, wire.MAX_CHUNK_LENGTH
LENGTHS_IN_USE = (3584, 5027, 2400, 3522, 1200, 1016, 256, 1216, 1665)
"""Of InitHello, RespHello, InitConf, RespConf, Reject and public keys."""


def cut(body: bytes, chunk_length: int = MAX) -> tuple[Fragment, ...]:
    return wire.cut(
        MessageType.INIT_HELLO, 1, b"exchange", body, key=KEY, chunk_length=chunk_length
    )


def test_every_byte_has_its_place() -> None:
    fragment = Fragment(
        type=MessageType.RESP_CONF,
        suite=2,
        index=1,
        count=3,
        tag=b"tag.",
        exchange_id=b"exchange",
        chunk=b"chunk",
        mac1=b"mac1mac1",
        mac2=bytes(8),
    )
    datagram = bytes((0x14, 2, 1, 3)) + b"tag." + b"exchange" + b"chunk" + b"mac1mac1" + bytes(8)
    assert fragment.datagram() == datagram
    assert wire.parse_untrusted(datagram) == fragment


def test_bounds_of_a_datagram() -> None:
    shortest = cut(b"x")[0].datagram()
    longest = cut(bytes(MAX))[0].datagram()
    assert (len(shortest), len(longest)) == (33, 1232)
    for data, reason in (
        (b"", "too short"),
        (shortest[:32], "too short"),
        (longest + b"\0", "too long"),
        (bytes(65507), "too long"),
    ):
        with pytest.raises(PacketRejected, match=reason):
            wire.parse_untrusted(data)


def test_an_answer_carries_no_mac2() -> None:
    """Nobody could check it: what has no meaning has one form."""
    for kind in MessageType:
        (fragment,) = wire.cut(kind, 1, b"exchange", b"body", key=KEY)
        (datagram,) = wire.datagrams([fragment], cookie=b"c" * 16)
        if kind in wire.QUESTIONS:
            assert wire.parse_untrusted(datagram).mac2 != wire.NO_MAC
        else:
            with pytest.raises(PacketRejected, match="mac2"):
                wire.parse_untrusted(datagram)


@settings(max_examples=examples(200), deadline=None, database=None)
@given(body=st.binary(min_size=1, max_size=6000), chunk_length=st.integers(MIN, MAX))
def test_cut_and_joined(body: bytes, chunk_length: int) -> None:
    fragments = cut(body, chunk_length)
    assert b"".join(fragment.chunk for fragment in fragments) == body
    assert len({fragment.tag for fragment in fragments}) == 1
    assert [fragment.index for fragment in fragments] == list(range(len(fragments)))
    for fragment in fragments:
        assert wire.parse_untrusted(fragment.datagram()) == fragment
        assert wire.mac1_matches(KEY, fragment)
        wire.check_fragment_length_untrusted(fragment, len(body))


def test_every_fragment_of_every_legal_cut_is_accepted() -> None:
    """Every length from 1 to 6,000, every chunk length, each place."""
    for length in range(1, 6001):
        for chunk_length in range(MIN, MAX + 1):
            count = -(-length // chunk_length)
            last = length - (count - 1) * chunk_length
            assert wire.could_be_cut(length, index=count - 1, count=count, size=last)
            if count > 1:
                assert wire.could_be_cut(length, index=0, count=count, size=chunk_length)


def test_no_fragment_of_no_legal_cut_is_accepted() -> None:
    """For the lengths that there are: every size, count and place, against a list of all cuts."""
    for length in LENGTHS_IN_USE:
        legal = set()
        for chunk_length in range(MIN, MAX + 1):
            count = -(-length // chunk_length)
            legal |= {(index, count, chunk_length) for index in range(count - 1)}
            legal.add((count - 1, count, length - (count - 1) * chunk_length))
        for count in (*range(1, 14), 128, 255):
            for index in {0, count // 2, count - 2, count - 1} & set(range(count)):
                for size in range(1, MAX + 1):
                    accepted = wire.could_be_cut(length, index=index, count=count, size=size)
                    assert accepted == ((index, count, size) in legal)


def test_mac1_depends_on_type_suite_and_fingerprint() -> None:
    fingerprints = [
        identity(suite, name).fingerprint for suite in (1, 2) for name in ("left", "third")
    ]
    keys = {
        wire.mac_key(kind, fingerprint)
        for kind, fingerprint in itertools.product(MessageType, fingerprints)
    }
    assert len(keys) == len(MessageType) * len(fingerprints)
    assert {len(key) for key in keys} == {32}


def test_the_tag_depends_on_all_that_it_holds_together() -> None:
    tags = {
        wire.message_tag(kind, suite, exchange_id, body)
        for kind in MessageType
        for suite in (1, 2)
        for exchange_id in (bytes(8), b"exchange")
        for body in (b"", b"\0", b"body")
    }
    assert len(tags) == 8 * 2 * 2 * 3

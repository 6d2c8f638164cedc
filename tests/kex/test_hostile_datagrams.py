"""Every kind of datagram, damaged in every way: refused, nothing changed, and then it works.

An attack is made at the moment at which the genuine datagram is next to arrive, so that the
receiver waits for just that; the test ends with the genuine one, and a whole exchange.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from kex import wire
from kex.errors import PacketRejected
from kex.wire import MessageType
from tests.examples import FAST

from . import forging
from .harness import (
    SUITES,
    Moment,
    Network,
    captured,
    captured_of,
    finish,
    message_refused,
    pair,
    refused,
)

KINDS = list(MessageType)
HEADER, TRAILER = wire.HEADER_LENGTH, wire.TRAILER_LENGTH

FRAGMENTED = [MessageType.INIT_HELLO, MessageType.RESP_HELLO, MessageType.IDENTITY_REPLY]


def each_of(*kinds: MessageType) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("kind", kinds, ids=lambda kind: kind.name)


def each_but(*kinds: MessageType) -> pytest.MarkDecorator:
    return each_of(*(kind for kind in KINDS if kind not in kinds))


each_kind = each_of(*KINDS)


@pytest.fixture(params=SUITES, ids=["suite 1", "suite 2"])
def number(request: pytest.FixtureRequest) -> int:
    value: int = request.param
    return value


def attacked(number: int, kind: MessageType) -> Iterator[Moment]:
    """Each moment of a kind; after the attack the network goes on and completes an exchange."""
    found = captured_of(number, kind)
    assert found
    for moment in found:
        yield moment
        finish(moment.network)


def all_refused(moment: Moment, datagrams: list[bytes]) -> set[str]:
    """Each of them is refused and changes nothing. The reasons."""
    source, now, receiver = moment.flying.source, moment.network.now, moment.receiver
    return {refused(receiver, datagram, source, now) for datagram in datagrams}


def without_effect(moment: Moment, datagram: bytes) -> None:
    """Refused, or kept as a piece of a message; it may spoil the pieces of the genuine one."""
    receiver = moment.receiver.copy()
    before = (
        receiver.endpoint.state(with_times=False),
        receiver.endpoint.link(moment.flying.sender).state(),
    )
    try:
        receiver.endpoint.receive_datagram(datagram, moment.flying.source, moment.network.now)
    except PacketRejected:
        pass
    else:
        assert receiver.endpoint.statistics().reassembly_messages
    after = (
        receiver.endpoint.state(with_times=False),
        receiver.endpoint.link(moment.flying.sender).state(),
    )
    assert before == after
    assert not receiver.endpoint.datagrams_to_send()
    assert receiver.endpoint.next_event() is None


# ---- by somebody who knows nothing: mac1 does not fit


@each_kind
def test_truncated_at_every_length(number: int, kind: MessageType) -> None:
    for moment in attacked(number, kind):
        all_refused(moment, [moment.data[:length] for length in range(len(moment.data))])


@each_kind
def test_extended(number: int, kind: MessageType) -> None:
    for moment in attacked(number, kind):
        longer = [moment.data + bytes(n) for n in (1, 2, 8, 16, 1232, 65507 - len(moment.data))]
        all_refused(moment, [*longer, b"\0" + moment.data, moment.data * 2])


@each_kind
def test_every_bit_flipped(number: int, kind: MessageType) -> None:
    for moment in attacked(number, kind):
        # A question's mac2 is looked at under load only: see test_cookies
        end = len(moment.data) - (wire.MAC_LENGTH if kind in wire.QUESTIONS else 0)
        bits = range(8) if number == 1 else (0, 5)
        damaged = []
        for place, bit in itertools.product(range(end), bits):
            data = bytearray(moment.data)
            data[place] ^= 1 << bit
            damaged.append(bytes(data))
        all_refused(moment, damaged)


@each_kind
def test_every_value_of_every_header_byte(number: int, kind: MessageType) -> None:
    for moment in attacked(number, kind):
        damaged = []
        for place, value in itertools.product(range(HEADER), range(256)):
            data = bytearray(moment.data)
            data[place] = value
            if data != moment.data:
                damaged.append(bytes(data))
        all_refused(moment, damaged)


@each_kind
def test_pieces_swapped_between_datagrams(number: int, kind: MessageType) -> None:
    """Header of one, chunk of another, MACs of a third."""
    for moment in attacked(number, kind):
        others = [m.data for m in captured(number) if m.data != moment.data]
        swapped = []
        for other in others:
            swapped.append(other[:HEADER] + moment.data[HEADER:])
            swapped.append(moment.data[:HEADER] + other[HEADER:])
            swapped.append(moment.data[:-TRAILER] + other[-TRAILER:])
        all_refused(moment, swapped)


# ---- by somebody who knows the fingerprint: mac1 fits


@each_kind
def test_other_versions_types_flags_and_suites(number: int, kind: MessageType) -> None:
    for moment in attacked(number, kind):
        own = moment.data
        versions = [
            forging.resealed(moment, bytes((v << 4 | kind,)) + own[1:-TRAILER])
            for v in range(16)
            if v != wire.VERSION
        ]
        assert all_refused(moment, versions) == {"version"}
        types = [
            forging.resealed(moment, bytes((wire.VERSION << 4 | t,)) + own[1:-TRAILER])
            for t in (0, *range(9, 16))
        ]
        assert all_refused(moment, types) == {"type"}
        flags = [
            forging.resealed(moment, own[:1] + bytes((f << 4 | number,)) + own[2:-TRAILER])
            for f in range(1, 16)
        ]
        assert all_refused(moment, flags) == {"flags"}
        suites = [forging.changed_suite(moment, s) for s in range(16) if s != number]
        assert all_refused(moment, suites) <= {"suite", "mac1", "no such exchange"}


@each_kind
def test_one_type_in_the_place_of_another(number: int, kind: MessageType) -> None:
    for moment in attacked(number, kind):
        for other in KINDS:
            datagram = forging.changed(moment, type=other)
            if other is MessageType.IDENTITY_QUERY:
                # Whatever has the right length is a query
                assert_at_most_an_answer_of_its_length(moment, datagram)
            elif other is not kind:
                without_effect(moment, datagram)


@each_kind
def test_index_and_count_at_their_extremes(number: int, kind: MessageType) -> None:
    for moment in attacked(number, kind):
        genuine = wire.parse_untrusted(moment.data)
        extremes = {0, 1, 2, 3, 4, 127, 128, 254, 255, genuine.count, genuine.count + 1}
        for index, count in itertools.product(extremes, repeat=2):
            if (index, count) == (genuine.index, genuine.count):
                continue
            header = moment.data[:2] + bytes((index, count)) + moment.data[4:-TRAILER]
            datagram = forging.resealed(moment, header)
            if kind is MessageType.IDENTITY_QUERY:
                assert_at_most_an_answer_of_its_length(moment, datagram)
            else:
                without_effect(moment, datagram)


@each_kind
def test_chunk_lengths_at_their_extremes(number: int, kind: MessageType) -> None:
    for moment in attacked(number, kind):
        genuine = wire.parse_untrusted(moment.data)
        chunk = genuine.chunk.ljust(wire.MAX_CHUNK_LENGTH, b"\0")
        for length in (1, 2, 15, 16, 55, 56, 57, 255, 256, 499, 500, 501, 1016, 1199, 1200):
            if length == len(genuine.chunk):
                continue
            datagram = forging.changed(moment, chunk=chunk[:length])
            if kind is MessageType.IDENTITY_QUERY:
                assert_at_most_an_answer_of_its_length(moment, datagram)
            else:
                without_effect(moment, datagram)


def assert_at_most_an_answer_of_its_length(moment: Moment, datagram: bytes) -> None:
    receiver = moment.receiver.copy()
    before = receiver.endpoint.state()
    try:
        receiver.endpoint.receive_datagram(datagram, moment.flying.source, moment.network.now)
    except PacketRejected:
        pass
    else:
        ((reply, address),) = receiver.endpoint.datagrams_to_send()
        assert (len(reply), address) == (len(datagram), moment.flying.source)
    assert receiver.endpoint.state() == before


@each_but(MessageType.COOKIE_REPLY, MessageType.IDENTITY_QUERY)  # nobody looks at their tags
def test_other_tags(number: int, kind: MessageType) -> None:
    """A wrong tag costs a piece of memory at most, and never joins the genuine fragments."""
    for moment in attacked(number, kind):
        genuine = wire.parse_untrusted(moment.data)
        inverted = bytes(255 - byte for byte in genuine.tag)
        for tag in (bytes(4), b"\xff" * 4, inverted):
            without_effect(moment, forging.changed(moment, tag=tag))
            # and left where it is for the genuine exchange that follows
            if genuine.count > 1:
                moment.receiver.endpoint.receive_datagram(
                    forging.changed(moment, tag=tag), moment.flying.source, moment.network.now
                )


@each_but(MessageType.IDENTITY_QUERY)  # a query under another exchange id is a query
def test_other_exchange_ids(number: int, kind: MessageType) -> None:
    for moment in attacked(number, kind):
        genuine = wire.parse_untrusted(moment.data)
        others = [bytes(8), b"\xff" * 8, genuine.exchange_id[::-1]]
        for exchange_id in others:
            without_effect(moment, forging.changed(moment, exchange_id=exchange_id))


@each_but(MessageType.IDENTITY_QUERY)  # its content is padding
def test_every_byte_of_the_message_changed(number: int, kind: MessageType) -> None:
    """A whole message with one byte changed, its tag and MACs right: only cryptography is left."""
    moment = captured_of(number, kind)[0]
    network = moment.genuine()
    network.settle()
    body = forging.body_of(moment, network)
    end = len(body)
    if kind is MessageType.RESP_HELLO:
        end -= {1: 128, 2: 160}[number]  # the biscuit: see below
    slow = number == 2 and kind in (MessageType.INIT_HELLO, MessageType.RESP_HELLO)
    for place in range(0, end, 13 if slow or FAST else 1):
        damaged = bytearray(body)
        damaged[place] ^= 1 << place % 8
        datagrams = forging.message(moment, bytes(damaged))
        message_refused(moment.receiver, datagrams, moment.flying.source, moment.network.now)
    finish(moment.network)


def test_a_changed_biscuit_is_found_by_who_made_it(number: int) -> None:
    """The initiator cannot tell; the responder does, and the next exchange completes."""
    length = {1: 128, 2: 160}[number]
    moment = captured_of(number, MessageType.RESP_HELLO)[0]
    network = moment.genuine()
    network.settle()
    body = forging.body_of(moment, network)
    for place in range(len(body) - length, len(body)):
        damaged = bytearray(body)
        damaged[place] ^= 0x80
        attacked_network = moment.network.copy()
        attacked_network.in_flight.clear()
        left, right = attacked_network["left"], attacked_network["right"]
        before = right.endpoint.state()
        for datagram in forging.message(moment, bytes(damaged)):
            left.endpoint.receive_datagram(datagram, right.address, attacked_network.now)
        attacked_network.collect()
        (init_conf,) = attacked_network.in_flight
        with pytest.raises(PacketRejected):
            right.endpoint.receive_datagram(init_conf.data, left.address, attacked_network.now)
        assert right.endpoint.state() == before
        if place % 40 == 0:
            finish(attacked_network)


@each_of(*FRAGMENTED)
def test_fragments_of_an_own_message_among_the_genuine(number: int, kind: MessageType) -> None:
    """A false fragment under the genuine tag spoils that message, and only that."""
    for moment in captured_of(number, kind)[1:]:
        # The fragment before has arrived; a false one in its place, or in the place of this one
        fragment = wire.parse_untrusted(moment.data)
        false = bytes(len(fragment.chunk))
        spoiled = moment.network.copy()
        receiver = spoiled[moment.receiver.name]
        spoil = forging.changed(moment, chunk=false)
        if fragment.index == fragment.count - 1:
            with pytest.raises(PacketRejected, match="message tag"):
                receiver.endpoint.receive_datagram(spoil, moment.flying.source, spoiled.now)
        else:
            receiver.endpoint.receive_datagram(spoil, moment.flying.source, spoiled.now)
            with pytest.raises(PacketRejected, match="fragments disagree"):
                receiver.endpoint.receive_datagram(moment.data, moment.flying.source, spoiled.now)
        assert receiver.endpoint.statistics().reassembly_messages == 0
        finish(spoiled)


# ---- never more out than in


@pytest.mark.parametrize("lengths", list(itertools.product((500, 777, 1200), repeat=2)), ids=str)
def test_no_answer_is_longer_than_its_question(number: int, lengths: tuple[int, int]) -> None:
    left, right = lengths
    network: Network = pair(
        number,
        know_keys=False,
        ends={"left": {"chunk_length": left}, "right": {"chunk_length": right}},
    )
    network.start()
    finish(network)
    headers = 28  # IPv4 and UDP, which a short datagram pays as well as a long one

    def weight(sender: str, *kinds: MessageType) -> int:
        sent = {f.data for f in network.log if f.sender == sender and f.type in kinds}
        assert sent
        return sum(len(data) + headers for data in sent)

    for question, answer in (
        (MessageType.IDENTITY_QUERY, MessageType.IDENTITY_REPLY),
        (MessageType.INIT_HELLO, MessageType.RESP_HELLO),
        (MessageType.INIT_CONF, MessageType.RESP_CONF),
    ):
        assert weight("right", answer) <= weight("left", question)

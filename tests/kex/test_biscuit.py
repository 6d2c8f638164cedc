"""The biscuit: who can open it, for how long, and its bounds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kex import biscuit as biscuits
from kex.biscuit import KEY_SECONDS, Biscuit, BiscuitKey, BiscuitKeys
from kex.errors import PacketRejected
from kex.identity import Fingerprint
from kex.secret import Secret
from kex.suites import MAX_NONCE, Suite
from kex.suites import suite as make_suite
from kex.wire import MessageType

from .harness import (
    SUITES,
    Network,
    finish,
    identity,
    pair,
    refused,
    run_exchange,
    same_key,
)
from .reference import SeededBytes

EXCHANGE = b"exchange"
LOCAL = Fingerprint(1, b"L" * 32)


def keys(name: bytes = b"first", *, now: float = 0.0, next_number: int = 8) -> BiscuitKeys:
    fresh = biscuits.fresh_key(SeededBytes(name)(40))
    return BiscuitKeys(fresh, None, now + KEY_SECONDS, next_number)


def fresh(name: bytes) -> BiscuitKey:
    return biscuits.fresh_key(SeededBytes(name)(40))


def contents(suite: Suite, number: int = 7) -> Biscuit:
    random = SeededBytes(b"contents")
    return Biscuit(
        number,
        Secret(random(suite.hash_length)),
        random(suite.hash_length),
        Fingerprint(suite.number, random(32)),
    )


@pytest.fixture(params=SUITES)
def suite(request: pytest.FixtureRequest) -> Suite:
    return make_suite(request.param, random=SeededBytes(b"suite"))


def seal(suite: Suite, key: BiscuitKey, biscuit: Biscuit) -> bytes:
    return biscuits.seal(suite, key, biscuit, exchange_id=EXCHANGE, local=LOCAL)


def test_length_and_round_trip(suite: Suite) -> None:
    held = keys()
    sealed = seal(suite, held.current, contents(suite))
    assert len(sealed) == suite.biscuit_length == {1: 128, 2: 160}[suite.number]
    assert sealed[:8] == held.current.key_id
    assert sealed[8:16] == (7).to_bytes(8, "big")
    opened = biscuits.open_untrusted(suite, held, sealed, exchange_id=EXCHANGE, local=LOCAL)
    assert opened == contents(suite)


def test_every_other_context_is_refused(suite: Suite) -> None:
    held = keys()
    sealed = seal(suite, held.current, contents(suite))
    other_suite = make_suite(3 - suite.number, random=SeededBytes(b"suite"))
    other = Fingerprint(1, b"M" * 32)
    with pytest.raises(PacketRejected):
        biscuits.open_untrusted(suite, held, sealed, exchange_id=b"another!", local=LOCAL)
    with pytest.raises(PacketRejected):
        biscuits.open_untrusted(suite, held, sealed, exchange_id=EXCHANGE, local=other)
    with pytest.raises(PacketRejected):
        biscuits.open_untrusted(other_suite, held, sealed, exchange_id=EXCHANGE, local=LOCAL)
    with pytest.raises(PacketRejected, match="biscuit key"):
        biscuits.open_untrusted(suite, keys(b"2"), sealed, exchange_id=EXCHANGE, local=LOCAL)
    same_id = replace(keys(b"2").current, key_id=held.current.key_id)
    with pytest.raises(PacketRejected):
        biscuits.open_untrusted(
            suite, replace(held, current=same_id), sealed, exchange_id=EXCHANGE, local=LOCAL
        )


def test_every_change_and_every_length_is_refused(suite: Suite) -> None:
    held = keys()
    sealed = seal(suite, held.current, contents(suite))
    for place in range(len(sealed)):
        changed = bytearray(sealed)
        changed[place] ^= 1 << place % 8
        with pytest.raises(PacketRejected):
            biscuits.open_untrusted(suite, held, bytes(changed), exchange_id=EXCHANGE, local=LOCAL)
        with pytest.raises(PacketRejected):
            biscuits.open_untrusted(suite, held, sealed[:place], exchange_id=EXCHANGE, local=LOCAL)
    with pytest.raises(PacketRejected):
        biscuits.open_untrusted(suite, held, sealed + b"\0", exchange_id=EXCHANGE, local=LOCAL)


def test_number_bounds(suite: Suite) -> None:
    held = keys(next_number=MAX_NONCE + 1)
    for number in (1, 2**32, MAX_NONCE):
        sealed = seal(suite, held.current, contents(suite, number))
        opened = biscuits.open_untrusted(suite, held, sealed, exchange_id=EXCHANGE, local=LOCAL)
        assert opened.number == number
    for number in (MAX_NONCE + 1, 2**64):
        with pytest.raises((ValueError, OverflowError)):
            seal(suite, held.current, contents(suite, number))
    # The number that no nonce can have, from the network
    sealed = seal(suite, held.current, contents(suite))
    with pytest.raises(PacketRejected):
        biscuits.open_untrusted(
            suite,
            held,
            sealed[:8] + b"\xff" * 8 + sealed[16:],
            exchange_id=EXCHANGE,
            local=LOCAL,
        )


def test_a_number_that_was_never_handed_out_is_refused(suite: Suite) -> None:
    """RC1. Whoever has the key can seal any number; the counter knows which were handed out."""
    held = keys(next_number=8)
    for number in (0, 8, 9, 2**40, MAX_NONCE):
        sealed = seal(suite, held.current, contents(suite, number))
        with pytest.raises(PacketRejected, match="biscuit number"):
            biscuits.open_untrusted(suite, held, sealed, exchange_id=EXCHANGE, local=LOCAL)
    for number in (1, 7):
        sealed = seal(suite, held.current, contents(suite, number))
        opened = biscuits.open_untrusted(suite, held, sealed, exchange_id=EXCHANGE, local=LOCAL)
        assert opened.number == number


def test_numbers_go_up_across_keys() -> None:
    held = keys(next_number=1)
    first, held = held.numbered()
    held = held.rotated(fresh(b"second"), KEY_SECONDS)
    second, held = held.numbered()
    assert (first, second, held.next_number) == (1, 2, 3)


def test_the_key_before_is_accepted_and_the_one_before_that_is_gone(suite: Suite) -> None:
    held = keys()
    sealed = seal(suite, held.current, contents(suite))
    once = held.rotated(fresh(b"second"), KEY_SECONDS)
    assert biscuits.open_untrusted(suite, once, sealed, exchange_id=EXCHANGE, local=LOCAL)
    twice = once.rotated(fresh(b"third"), 2 * KEY_SECONDS)
    with pytest.raises(PacketRejected):
        biscuits.open_untrusted(suite, twice, sealed, exchange_id=EXCHANGE, local=LOCAL)
    assert held.current not in (twice.current, twice.previous)


def test_a_key_lives_for_four_minutes_however_late_the_timers_are() -> None:
    # A change that comes 100 s late does not give the next key 100 s more
    once = keys(now=0.0).rotated(fresh(b"second"), KEY_SECONDS + 100)
    assert once.previous is not None
    assert once.rotate_at == 2 * KEY_SECONDS
    # Asleep for longer than a period: nothing of before is kept
    late = keys(now=0.0).rotated(fresh(b"second"), 2 * KEY_SECONDS)
    assert late.previous is None
    assert late.rotate_at == 3 * KEY_SECONDS


def before_init_conf(suite_number: int) -> Network:
    """`left` has sent InitConf, and it has not arrived."""
    network = pair(suite_number)
    network.start()
    network.settle_until(MessageType.INIT_CONF)
    return network


@pytest.mark.parametrize("number", SUITES)
def test_an_init_conf_is_good_for_two_minutes_at_least(number: int) -> None:
    network = before_init_conf(number)
    late = network.in_flight.popleft()
    network.now += KEY_SECONDS - 0.001
    network["right"].endpoint.receive_datagram(late.data, late.source, network.now)
    network.collect()
    assert network["right"].installed


@pytest.mark.parametrize("handles_timers", [True, False], ids=["timers", "no timers"])
def test_after_four_minutes_the_exchange_cannot_be_completed(handles_timers: bool) -> None:
    """P3: whoever takes the responder over then finds nothing that opens a recorded exchange."""
    network = before_init_conf(1)
    late = network.in_flight.popleft()
    right = network["right"].endpoint
    sealing_key = right._node.biscuit_keys.current
    for _ in range(2):
        network.now += KEY_SECONDS
        if handles_timers:
            right.handle_timer(network.now)
    if not handles_timers:
        # A machine that wakes up may get a datagram before its timers
        with pytest.raises(PacketRejected, match="biscuit key"):
            right.receive_datagram(late.data, late.source, network.now)
    assert refused(network["right"], late.data, late.source, network.now) == "biscuit key"
    held = right._node.biscuit_keys
    assert sealing_key not in (held.current, held.previous)
    finish(network)


def test_a_restarted_responder_does_not_know_its_former_biscuits() -> None:
    network = before_init_conf(1)
    late = network.in_flight.popleft()
    fresh_start = pair(1, seed=b"after the restart")
    network.ends["right"] = fresh_start["right"]
    assert refused(network["right"], late.data, late.source, network.now) == "biscuit key"
    finish(network)


def test_a_biscuit_is_used_once_and_those_before_it_are_dead() -> None:
    """RC1: two RespHello to the same peer; whichever InitConf has the lower number is late."""
    network = pair(1)
    first = network.copy()
    first.start()
    first.settle_until(MessageType.INIT_CONF)
    earlier = first.in_flight[0]
    # The responder goes on as it is, the initiator has forgotten that exchange
    network.ends["right"] = first["right"].copy()
    run_exchange(network)
    assert refused(network["right"], earlier.data, earlier.source, network.now) == "old biscuit"
    finish(network)


def test_a_biscuit_issued_before_a_completed_exchange_of_ours_is_dead() -> None:
    """CO1 raises the last accepted number to the highest that was handed out."""
    network = pair(1)
    network.start("right", "left")
    network.settle_until(MessageType.INIT_CONF)
    held_back = network.in_flight.popleft()
    network.start("left", "right")
    # `left` is the smaller: `right` gives way
    network.settle()
    same_key(network)
    assert refused(network["left"], held_back.data, held_back.source, network.now) == "old biscuit"


def test_another_identity_of_the_same_node_does_not_open_it() -> None:
    """The biscuit is bound to the identity that was addressed."""
    second = identity(1, "right's second")
    own = (identity(1, "right"), second)
    network = pair(1, ends={"right": {"identities": own}})
    network.start()
    network.settle_until(MessageType.INIT_CONF)
    exchange = network["left"].exchange("right")
    held = network["right"].endpoint._node.biscuit_keys
    suite = network["right"].endpoint._node.suites[1]
    assert biscuits.open_untrusted(
        suite,
        held,
        exchange.biscuit,
        exchange_id=exchange.exchange_id,
        local=own[0].fingerprint,
    )
    with pytest.raises(PacketRejected):
        biscuits.open_untrusted(
            suite,
            held,
            exchange.biscuit,
            exchange_id=exchange.exchange_id,
            local=second.fingerprint,
        )

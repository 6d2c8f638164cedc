"""Exchanges that are to end a fallback, and keys that were had before an exchange began."""

from __future__ import annotations

import pytest

from kex import timing
from kex.events import (
    ExchangeFailed,
    ExchangeStarted,
    ExternalKeysWanted,
    FailureCode,
    KeyEstablished,
    RejectCode,
    StartReason,
)
from kex.external import ExternalMode
from kex.wire import MessageType

from .harness import PREFER, REQUIRE, Network, agreeing, external_key, finish, same_key
from .test_external import linked, mixed_names


def in_fallback() -> Network:
    """Both ends have a key without external ones; their sources are well again, but for `right`."""
    network = linked(PREFER, PREFER)
    network["left"].source = agreeing("a")
    network["right"].source = lambda wanted: "no such key"
    network.start()
    network.settle()
    network.advance(0.1)
    same_key(network)
    assert mixed_names(network, "left") == []
    return network


def try_again(network: Network) -> None:
    network["left"].endpoint.request_exchange("right", StartReason.END_FALLBACK, network.now)
    network.collect()
    network.settle()


def keys(network: Network) -> int:
    return len(network["left"].events_of(KeyEstablished))


@pytest.mark.parametrize("at", ["left", "right"])
def test_it_gives_a_key_with_external_keys_or_none(at: str) -> None:
    network = in_fallback()
    network["left"].source = network["right"].source = agreeing("a")
    network[at].source = lambda wanted: "none today"
    before, due = keys(network), network["left"].endpoint.link("right").renew_at
    assert due is not None
    try_again(network)
    failed = network["left"].events_of(ExchangeFailed)[-1]
    code = FailureCode.EXTERNAL_KEYS if at == "left" else FailureCode.REFUSED
    assert failed.code is code
    started = len(network["left"].events_of(ExchangeStarted))
    network.advance(60)
    assert keys(network) == before, "the key in use goes on"
    assert len(network["left"].events_of(ExchangeStarted)) == started, "who asked asks again"
    # The renewal comes when it is due, and may go without
    network.advance(due + 2 * timing.RENEWAL_JITTER + 1 - network.now)
    assert keys(network) == before + 1
    assert mixed_names(network, "left") == []
    network["left"].source = network["right"].source = agreeing("a")
    try_again(network)
    same_key(network)
    assert mixed_names(network, "left") == ["a"]


def test_too_few_keys_are_none() -> None:
    network = in_fallback()
    network["left"].source = lambda wanted: ()
    before = keys(network)
    try_again(network)
    assert network["left"].events_of(ExchangeFailed)[-1].code is FailureCode.EXTERNAL_KEYS
    assert keys(network) == before


def test_sources_that_say_nothing_are_no_reason_to_go_on_without() -> None:
    network = in_fallback()
    network["left"].source = None
    before = keys(network)
    try_again(network)
    network.advance(timing.INITIATOR_KEYS_SECONDS + 1)
    assert network["left"].events_of(ExchangeFailed)[-1].code is FailureCode.EXTERNAL_KEYS
    assert keys(network) == before


def test_what_is_wanted_meanwhile_follows() -> None:
    """A key that has to be replaced at once must not wait for an exchange that may give none."""
    network = in_fallback()
    network["left"].source = None
    before = keys(network)
    try_again(network)
    network["left"].endpoint.request_exchange("right", StartReason.REQUESTED, network.now)
    (wanted,) = network["left"].events_of(ExternalKeysWanted)[-1:]
    network["left"].source = network["right"].source = lambda wanted: "none"
    network["left"].endpoint.external_keys_failed("right", wanted.token, "none", network.now)
    network.collect()
    network.advance(1)
    assert keys(network) == before + 1


def test_another_one_that_is_owed_is_enough() -> None:
    network = in_fallback()
    network["left"].endpoint.look_at("right").owe(StartReason.REQUESTED, network.now + 5)
    started = len(network["left"].events_of(ExchangeStarted))
    try_again(network)
    assert len(network["left"].events_of(ExchangeStarted)) == started
    finish(network)


def test_a_key_whose_life_ends_meanwhile_is_replaced() -> None:
    network = in_fallback()
    network["left"].source = None
    try_again(network)
    network["left"].endpoint.end_key("right", network.now, network.now)
    network["left"].endpoint.look_at("right").retry_at = None  # as where it ended by itself
    network.advance(1)
    assert network["left"].endpoint.look_at("right").key is None
    before = keys(network)
    network["left"].source = network["right"].source = lambda wanted: "none"
    (wanted,) = network["left"].events_of(ExternalKeysWanted)[-1:]
    network["left"].endpoint.external_keys_failed("right", wanted.token, "none", network.now)
    network.collect()
    network.advance(1)
    assert keys(network) == before + 1


# ---- keys that were had before the exchange began


def hand_over_ahead(network: Network, *names: str, ahead: str) -> None:
    """Begin an exchange with these keys, of which one was had before."""
    network["left"].source = None
    network.start()
    network.settle()
    (wanted,) = network["left"].events_of(ExternalKeysWanted)[-1:]
    given = tuple(external_key(name) for name in names)
    early = frozenset(key.reference for key in given if key.reference.source == ahead)
    network["left"].endpoint.external_keys("right", wanted.token, given, network.now, ahead=early)
    network["left"].source = agreeing(*names)
    network["right"].source = None
    network.collect()
    network.settle()


def refuse(network: Network, *failed: int) -> None:
    (wanted,) = network["right"].events_of(ExternalKeysWanted)[-1:]
    code = RejectCode.KEY_MANAGER
    network["right"].endpoint.external_keys_failed(
        "left", wanted.token, "not those", network.now, code=code, failed=failed
    )


@pytest.mark.parametrize("mode", [PREFER, REQUIRE])
@pytest.mark.parametrize("failed", [(0,), ()])
def test_a_refused_key_is_replaced_by_a_fresh_one_at_once(
    mode: ExternalMode, failed: tuple[int, ...]
) -> None:
    network = linked(mode, mode)
    hand_over_ahead(network, "a", ahead="a")
    refuse(network, *failed)
    network["right"].source = agreeing()
    network.collect()
    network.settle()
    network.advance(0.01)
    same_key(network)
    assert mixed_names(network, "left") == ["a"]


@pytest.mark.parametrize("mode", [PREFER, REQUIRE])
def test_but_once(mode: ExternalMode) -> None:
    network = linked(mode, mode)
    hand_over_ahead(network, "a", ahead="a")
    refuse(network, 0)
    network["right"].source = lambda wanted: "none"
    network.collect()
    network.settle()
    network.advance(0.5)
    if mode is PREFER:
        same_key(network)
        assert mixed_names(network, "left") == []
    else:
        assert not network["left"].events_of(KeyEstablished)
        assert len(network["left"].events_of(ExchangeStarted)) == 2, "then the pause"
        finish(network)


def test_a_fresh_key_that_is_refused_is_another_matter() -> None:
    network = linked(REQUIRE, REQUIRE)
    hand_over_ahead(network, "a", "b", ahead="a")
    refuse(network, 1)
    network["right"].source = agreeing()
    network.collect()
    network.settle()
    network.advance(0.5)
    assert len(network["left"].events_of(ExchangeStarted)) == 1
    assert not [flying for flying in network.log if flying.type is MessageType.RESP_CONF]
    finish(network)

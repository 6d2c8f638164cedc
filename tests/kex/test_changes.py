"""Links and identities that change while they are in use: all of a change, or nothing of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from kex.events import ExchangeStarted, LinkExpired, StartReason
from kex.exchange import Phase
from kex.wire import MessageType

from .harness import (
    NEVER,
    REQUIRE,
    Network,
    agreeing,
    finish,
    identity,
    refused,
    run_exchange,
    same_key,
    triangle,
)


def test_two_links_can_trade_identities_in_one_step() -> None:
    network = triangle()
    left = network["left"].endpoint
    right, third = (left.link(name).config for name in ("right", "third"))
    traded = [replace(right, remotes=third.remotes), replace(third, remotes=right.remotes)]
    before = left.state()
    with pytest.raises(ValueError, match="the same pair of identities"):
        left.update_link(traded[0], network.now)
    assert left.state() == before
    left.update_links(traded, network.now)
    assert left.link("right").config.remotes == third.remotes
    left.update_links([right, third], network.now)
    finish(network)


def test_a_change_of_identities_is_made_good_for() -> None:
    """By an exchange that is completed, and kills what was handed out for the other link."""
    network = triangle()
    network.start("right", "left")
    network.settle()
    left = network["left"].endpoint
    issued = left.link("right").highest_issued
    assert (issued > 0, left.link("third").highest_issued) == (True, 0)
    right, third = (left.link(name).config for name in ("right", "third"))
    traded = [replace(right, remotes=third.remotes), replace(third, remotes=right.remotes)]
    left.update_links(traded, network.now)
    for name in ("right", "third"):
        link = left.link(name)
        assert (link.in_doubt, link.highest_issued) == (True, issued)
        assert link.exchange_due


def test_an_identity_without_a_peer_of_its_suite_changes_nothing() -> None:
    network = triangle()
    run_exchange(network)
    left = network["left"].endpoint
    own, new = identity(1, "left"), identity(2, "left's next")
    configs = [left.link(name).config for name in left.links()]
    changed = [replace(c, locals=(own.fingerprint, new.fingerprint)) for c in configs]
    left.update_links(changed, network.now, identities=[own, new])
    assert not left.link("right").in_doubt
    assert not left.link("right").exchange_due


def test_a_change_of_identities_is_all_or_nothing() -> None:
    network = triangle()
    left = network["left"].endpoint
    config = left.link("right").config
    own, new = identity(1, "left"), identity(1, "left's next")
    before = left.state()
    for held, remotes, message in (
        ([new], config.remotes, "does not hold"),
        ([own, new], (new.fingerprint,), "an identity of this node"),
    ):
        with pytest.raises(ValueError, match=message):
            left.update_links([replace(config, remotes=remotes)], network.now, identities=held)
        assert left.state() == before
    finish(network)


def test_the_next_identity_is_used_at_once() -> None:
    network = triangle()
    run_exchange(network)
    left, right = network["left"].endpoint, network["right"].endpoint
    own, new = identity(1, "left"), identity(1, "left's next")
    at_right = right.link("left").config
    right.update_link(replace(at_right, remotes=(*at_right.remotes, new.fingerprint)), network.now)
    changed = [
        replace(config, locals=(new.fingerprint, own.fingerprint))
        for config in (left.link(name).config for name in left.links())
    ]
    started = len(network["left"].events_of(ExchangeStarted))
    left.update_links(changed, network.now, identities=[own, new])
    network.advance(0.1)
    assert len(network["left"].events_of(ExchangeStarted)) > started
    network.settle()
    # Both ends have changed, so each completes an exchange, the right one under the old identity
    assert new.fingerprint in {key.peer_identity for key in network["right"].installed}
    same_key(network)


def test_the_same_configuration_again_disturbs_nothing() -> None:
    network = triangle()
    network.start()
    left = network["left"].endpoint
    before = left.state()
    left.update_links([left.link(name).config for name in left.links()], network.now)
    assert left.state() == before
    assert network["left"].exchange("right").phase is not Phase.OVER
    network.settle()
    same_key(network)


def test_a_key_that_is_ended_early_is_renewed_or_closes() -> None:
    network = triangle()
    run_exchange(network)
    left = network["left"].endpoint
    key = left.link("right").key
    assert key is not None
    left.end_key("right", network.now + 10.0, network.now)
    ended = left.link("right").key
    assert ended is not None
    assert ended.expires_at == network.now + 10.0
    network.advance(0.1)
    assert network["left"].events_of(ExchangeStarted)[-1].reason is StartReason.REQUESTED
    network.settle()
    renewed = left.link("right").key
    assert renewed is not None
    assert renewed.expires_at > network.now + 500
    left.end_key("right", network.now, network.now)
    left.handle_timer(network.now)
    network["left"].take_events(network.now)
    assert [event.link for event in network["left"].events_of(LinkExpired)] == ["right"]
    assert left.link("right").key is None


# ---- what was used up stays used up, whoever has the pair of identities


def removed_and_pinned_elsewhere(network: Network) -> None:
    left = network["left"].endpoint
    third, right = (left.link(name).config for name in ("third", "right"))
    left.remove_link("right")
    remotes = (*third.remotes, *right.remotes)
    left.update_link(replace(third, remotes=remotes), network.now)


def traded(network: Network) -> None:
    left = network["left"].endpoint
    right, third = (left.link(name).config for name in ("right", "third"))
    left.update_links(
        [replace(right, remotes=third.remotes), replace(third, remotes=right.remotes)], network.now
    )


def renamed(network: Network) -> None:
    left = network["left"].endpoint
    config = left.link("right").config
    left.remove_link("right")
    left.add_link(replace(config, name="starboard"), network.now, start_at=NEVER)


def taken_out_and_put_back(network: Network) -> None:
    left = network["left"].endpoint
    config = left.link("right").config
    other = identity(1, "somebody").fingerprint
    left.update_link(replace(config, remotes=(other,)), network.now)
    left.update_link(config, network.now)


def by_way_of_another_link(network: Network) -> None:
    traded(network)
    traded(network)


MOVES = [
    removed_and_pinned_elsewhere,
    traded,
    renamed,
    taken_out_and_put_back,
    by_way_of_another_link,
]


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("exchanges", [1, 2])
def test_a_used_up_init_conf_is_dead_wherever_its_pair_goes(
    move: Callable[[Network], None], exchanges: int
) -> None:
    """The last one, for which an answer is kept, and the one before."""
    network = triangle()
    for _ in range(exchanges):
        run_exchange(network, "right", "left")
    old = [f for f in network.log if f.type is MessageType.INIT_CONF]
    left = network["left"]
    move(network)
    left.endpoint.datagrams_to_send()
    left.take_events(network.now)
    left.endpoint.datagrams_to_send()
    for flying in old:
        assert refused(left, flying.data, flying.source, network.now) == "old biscuit"


@pytest.mark.parametrize("move", MOVES)
def test_an_init_conf_on_its_way_is_dead_when_its_pair_has_moved(
    move: Callable[[Network], None],
) -> None:
    network = triangle()
    network.start("right", "left")
    network.settle_until(MessageType.INIT_CONF)
    move(network)
    network["left"].endpoint.datagrams_to_send()
    network["left"].take_events(network.now)
    flying = network.in_flight[0]
    reason = refused(network["left"], flying.data, flying.source, network.now)
    assert reason == "old biscuit"


@pytest.mark.parametrize("move", MOVES)
def test_an_init_hello_that_comes_again_gets_a_biscuit_that_is_good(
    move: Callable[[Network], None],
) -> None:
    """Its answer of before is kept for 10 s, and holds a dead one."""
    network = triangle()
    network.start("right", "left")
    hello = [f for f in network.log if f.type is MessageType.INIT_HELLO]
    network.settle_until(MessageType.RESP_HELLO)
    network.in_flight.clear()  # lost
    move(network)
    network.collect()
    network.in_flight.clear()
    network.in_flight.extend(hello)
    network.settle()
    assert network["right"].installed
    assert network["left"].installed[-1].peer_identity == identity(1, "right").fingerprint


def test_a_pair_that_stays_is_not_disturbed_by_one_that_comes() -> None:
    """An identity more for a link, while an InitConf under another one is on its way."""
    network = triangle()
    network.start("right", "left")
    network.settle_until(MessageType.INIT_CONF)
    left = network["left"].endpoint
    config = left.link("right").config
    more = (*config.remotes, identity(1, "right's next").fingerprint)
    left.update_link(replace(config, remotes=more), network.now)
    network.settle()
    same_key(network)


def test_an_exchange_that_waits_for_keys_ends_with_its_pair() -> None:
    network = triangle()
    for at, peer in (("left", "right"), ("right", "left")):
        endpoint = network[at].endpoint
        config = replace(endpoint.link(peer).config, external_mode=REQUIRE)
        endpoint.update_link(config, network.now)
    network["right"].source = agreeing("kme")
    network.start("right", "left")
    network.settle()
    left = network["left"].endpoint
    assert left.link("right").responding is not None
    traded(network)
    assert left.link("right").responding is None
    assert left.link("right").kept is None

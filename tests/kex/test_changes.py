"""Links and identities that change while they are in use: all of a change, or nothing of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kex.events import ExchangeStarted, LinkExpired, StartReason
from kex.exchange import Phase

from .harness import finish, identity, run_exchange, same_key, triangle


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

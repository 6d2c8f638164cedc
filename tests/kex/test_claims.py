"""Whose a WireGuard key is, where two peers announce the same one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kex.claims import TRIAL_SECONDS, TRIAL_SPACING
from kex.events import (
    ExchangeFailed,
    ExternalKeysWanted,
    FailureCode,
    KeyEstablished,
    RejectCode,
    RejectSent,
    WireGuardKeyContested,
    WireGuardKeyYielded,
)
from kex.wire import MessageType

from .harness import REQUIRE, Network, agreeing, run_exchange, same_key, triangle

THIRDS = b"third".ljust(32, b".")
PEERS = {"left": "right", "right": "left"}


def changed(network: Network, at: str, peer: str, **changes: Any) -> None:
    endpoint = network[at].endpoint
    endpoint.update_link(replace(endpoint.link(peer).config, **changes), network.now)
    network.collect()


def try_exchange(network: Network, initiator: str, responder: str) -> None:
    network.start(initiator, responder)
    network.settle()


def impostor(network: Network) -> None:
    """`right` announces at `left` the WireGuard key of `third`."""
    changed(network, "right", "left", wireguard_key=THIRDS)


def holder(network: Network) -> list[str]:
    """Which links of `left` have the key of `third`."""
    left = network["left"].endpoint
    return [name for name in left.links() if left.link(name).peer_wireguard_key == THIRDS]


@pytest.mark.parametrize("impostor_begins", [True, False])
@pytest.mark.parametrize("owner_begins", [True, False])
def test_the_owner_has_its_key_with_its_first_exchange(
    impostor_begins: bool, owner_begins: bool
) -> None:
    network = triangle()
    impostor(network)
    try_exchange(network, *(("right", "left") if impostor_begins else ("left", "right")))
    assert holder(network) == ["right"]
    try_exchange(network, *(("third", "left") if owner_begins else ("left", "third")))
    assert holder(network) == ["third"]
    same_key(network, "left", "third")
    (told,) = network["left"].events_of(WireGuardKeyYielded)
    assert (told.link, told.other, told.wireguard_key) == ("right", "third", THIRDS)
    # It is told before the other link's key is handed out to be installed, or right after it:
    # in any case in the same turn
    assert network["left"].endpoint.link("right").key is None
    # and does not get it back, neither before it is proved nor afterwards
    for proved in (False, True):
        if proved:
            network["left"].endpoint.key_taken_up("third", THIRDS)
        try_exchange(network, "right", "left")
        assert holder(network) == ["third"]
        (refused,) = network["left"].events_of(RejectSent)[-1:]
        assert (refused.link, refused.code) == ("right", RejectCode.WIREGUARD_KEY)
        contested = network["left"].events_of(WireGuardKeyContested)[-1]
        assert (contested.link, contested.other) == ("right", "third")
    network.now += 10 * TRIAL_SPACING
    try_exchange(network, "right", "left")
    assert holder(network) == ["third"]


def test_a_key_that_is_not_proved_in_time_goes_to_who_announces_it() -> None:
    """Whoever comes between an owner's exchange and its first handshake delays it for the time of
    one trial, and no longer."""
    network = triangle()
    impostor(network)
    try_exchange(network, "third", "left")
    try_exchange(network, "right", "left")
    assert holder(network) == ["right"]
    try_exchange(network, "third", "left")
    assert holder(network) == ["right"]
    refused = network["left"].events_of(RejectSent)[-1]
    assert "has 15 s to prove it" in refused.detail
    network.now += TRIAL_SECONDS
    try_exchange(network, "third", "left")
    assert holder(network) == ["third"]
    try_exchange(network, "right", "left")
    assert holder(network) == ["third"]


def test_a_trial_comes_once_in_a_while() -> None:
    """Peers that take a key from one another do not keep its owner out by turns."""
    network = triangle()
    impostor(network)
    for name in ("third", "right", "third"):
        try_exchange(network, name, "left")
        network.now += TRIAL_SECONDS
    trials = {name: network["left"].endpoint.link(name).trial_at for name in ("right", "third")}
    try_exchange(network, "right", "left")
    assert holder(network) == ["right"]
    assert network["left"].endpoint.link("right").trial_at == trials["right"]
    try_exchange(network, "third", "left")
    assert holder(network) == ["third"]
    assert network["left"].endpoint.link("third").trial_at == trials["third"]


def test_a_handshake_with_its_own_key_gives_nobody_another_trial() -> None:
    """Else two peers could keep an owner out for good: while one has its trial, the other shakes
    hands with its own key."""
    network = triangle()
    impostor(network)
    for name in ("third", "right", "third"):
        try_exchange(network, name, "left")
        network.now += TRIAL_SECONDS
    own = b"right".ljust(32, b".")
    changed(network, "right", "left", wireguard_key=own)
    try_exchange(network, "right", "left")
    network["left"].endpoint.key_taken_up("right", own)
    assert network["left"].endpoint.link("right").proved == own
    impostor(network)
    try_exchange(network, "right", "left")
    assert holder(network) == ["right"]
    try_exchange(network, "third", "left")
    assert holder(network) == ["third"]


def test_another_peer_has_a_trial_of_its_own() -> None:
    """What the peer before has used up is not the next one's."""
    network = triangle()
    impostor(network)
    for name in ("third", "right"):
        try_exchange(network, name, "left")
    left = network["left"].endpoint
    assert left.link("right").trial_at is not None
    other = left.link("third").config.remotes[0]
    left.remove_link("third")
    left.update_link(replace(left.link("right").config, remotes=(other,)), network.now)
    assert left.link("right").trial_at is None


def test_a_proof_ends_with_the_key_of_the_link() -> None:
    network = triangle()
    try_exchange(network, "third", "left")
    left = network["left"].endpoint
    left.key_taken_up("third", THIRDS)
    left.end_key("third", network.now, network.now)
    left.handle_timer(network.now)
    network.collect()
    network.in_flight.clear()
    impostor(network)
    try_exchange(network, "right", "left")
    assert holder(network) == ["right"]
    # who comes back has it again at once
    network.advance(20)
    assert holder(network) == ["third"]


def test_a_handshake_with_another_key_proves_nothing() -> None:
    network = triangle()
    impostor(network)
    try_exchange(network, "right", "left")
    network["left"].endpoint.key_taken_up("right", b"right".ljust(32, b"."))
    try_exchange(network, "third", "left")
    assert holder(network) == ["third"]


def test_an_interface_that_was_made_anew_has_its_new_key_at_once() -> None:
    network = triangle()
    run_exchange(network, "third", "left")
    left = network["left"].endpoint
    left.key_taken_up("third", THIRDS)
    new = b"third's next".ljust(32, b".")
    changed(network, "right", "left", wireguard_key=new)
    try_exchange(network, "right", "left")
    changed(network, "third", "left", wireguard_key=new)
    try_exchange(network, "third", "left")
    assert left.link("third").peer_wireguard_key == new
    assert left.link("right").peer_wireguard_key is None
    # The one before is free: it is another peer's word now
    impostor(network)
    try_exchange(network, "right", "left")
    assert holder(network) == ["right"]


def test_another_interface_has_its_own_peers() -> None:
    network = triangle()
    changed(network, "left", "right", wireguard_key=b"left's second".ljust(32, b"."))
    impostor(network)
    try_exchange(network, "third", "left")
    network["left"].endpoint.key_taken_up("third", THIRDS)
    try_exchange(network, "right", "left")
    assert sorted(holder(network)) == ["right", "third"]
    assert not network["left"].events_of(WireGuardKeyYielded)


def test_the_key_of_another_interface_of_this_node_is_its_own() -> None:
    network = triangle()
    second = b"left's second".ljust(32, b".")
    changed(network, "left", "third", wireguard_key=second)
    changed(network, "right", "left", wireguard_key=second)
    try_exchange(network, "right", "left")
    (told,) = network["left"].events_of(RejectSent)
    assert told.detail == "the WireGuard key is this end's own"


def test_a_pinned_key_is_the_only_one() -> None:
    network = triangle()
    changed(network, "left", "right", peer_wireguard_key=b"right".ljust(32, b"."))
    run_exchange(network)
    changed(network, "right", "left", wireguard_key=b"another".ljust(32, b"."))
    installed = len(network["left"].events_of(KeyEstablished))
    network.in_flight.clear()
    network.advance(30)
    # Whoever begins: nothing is installed where the key is pinned, and both ends are told
    try_exchange(network, "left", "right")
    assert len(network["left"].events_of(KeyEstablished)) == installed
    words = "the WireGuard key is not the one that is pinned for this link"
    assert words in {event.detail for event in network["left"].events_of(RejectSent)}
    bad = [e for e in network["left"].events_of(ExchangeFailed) if e.detail == words]
    assert {event.code for event in bad} == {FailureCode.BAD_ANSWER}
    told = [e for e in network["right"].events_of(ExchangeFailed) if e.detail == words]
    assert {event.code for event in told} == {FailureCode.REFUSED}
    changed(network, "right", "left", wireguard_key=b"right".ljust(32, b"."))
    network.advance(60)
    same_key(network)


@pytest.mark.parametrize("same_interface", [True, False])
def test_no_other_link_has_a_pinned_key(same_interface: bool) -> None:
    network = triangle()
    if not same_interface:
        changed(network, "left", "right", wireguard_key=b"left's second".ljust(32, b"."))
    impostor(network)
    try_exchange(network, "right", "left")
    network["left"].endpoint.key_taken_up("right", THIRDS)  # the two are one host, perhaps
    assert holder(network) == ["right"]
    changed(network, "left", "third", peer_wireguard_key=THIRDS)
    assert holder(network) == []
    (told,) = network["left"].events_of(WireGuardKeyYielded)
    assert (told.link, told.other) == ("right", "third")
    try_exchange(network, "right", "left")
    assert holder(network) == []
    assert network["left"].events_of(RejectSent)[-1].detail.endswith("is pinned for another link")
    try_exchange(network, "third", "left")
    assert holder(network) == ["third"]
    if not same_interface:
        # Two links to one host, each on an interface of its own here: both pin its key
        changed(network, "left", "right", peer_wireguard_key=THIRDS)
        network.in_flight.clear()
        network.advance(60)
        try_exchange(network, "right", "left")
        assert sorted(holder(network)) == ["right", "third"]


def test_a_key_that_is_being_installed_is_decided_about_afterwards() -> None:
    """The InitConf is not used up: it comes again, and is taken then."""
    network = triangle()
    impostor(network)
    network["left"].installs = False
    try_exchange(network, "right", "left")
    (first,) = network["left"].events_of(KeyEstablished)
    try_exchange(network, "third", "left")
    assert network.rejected[-1][1] == "WireGuard key busy"
    network["left"].installs = True
    network["left"].endpoint.key_installed("right", first.token, network.now)
    network.advance(5)
    assert holder(network) == ["third"]
    same_key(network, "left", "third")


def test_a_key_that_was_proved_elsewhere_meanwhile_is_refused() -> None:
    """While the external keys of one exchange are fetched, another link gets the key."""
    network = triangle()
    impostor(network)
    for at, peer in (("left", "right"), ("right", "left")):
        changed(network, at, peer, external_mode=REQUIRE)
    network["right"].source = agreeing("kme")
    network.start("right", "left")
    network.settle()
    (asked,) = network["left"].events_of(ExternalKeysWanted)
    run_exchange(network, "third", "left")
    network["left"].endpoint.key_taken_up("third", THIRDS)
    keys = agreeing("kme")(asked)
    assert not isinstance(keys, str)
    network["left"].endpoint.external_keys("right", asked.token, keys, network.now)
    network.collect()
    network.settle()
    assert holder(network) == ["third"]
    assert network["left"].events_of(RejectSent)[-1].code is RejectCode.WIREGUARD_KEY


def test_an_adopted_key_is_proved_if_wireguard_shook_hands() -> None:
    for proved in (True, False):
        network = triangle()
        impostor(network)
        network["left"].endpoint.adopt(
            "third",
            "12345678",
            wireguard_key=THIRDS,
            installed_at=network.now - 60,
            expires_at=network.now + 540,
            proved=proved,
        )
        try_exchange(network, "right", "left")
        assert holder(network) == (["third"] if proved else ["right"])


def test_links_that_trade_their_peers_do_not_keep_their_keys() -> None:
    network = triangle()
    for peer in ("right", "third"):
        run_exchange(network, "left", peer)
        network["left"].endpoint.key_taken_up(peer, peer.encode().ljust(32, b"."))
    left = network["left"].endpoint
    right, third = (left.link(name).config for name in ("right", "third"))
    left.update_links(
        [
            replace(right, remotes=third.remotes, address=third.address),
            replace(third, remotes=right.remotes, address=right.address),
        ],
        network.now,
    )
    network.advance(5)
    assert left.link("right").peer_wireguard_key == THIRDS
    assert left.link("third").peer_wireguard_key == b"right".ljust(32, b".")


def test_a_peer_that_begins_again_after_each_answer_is_noticed() -> None:
    network = triangle()
    run_exchange(network, "left", "right")
    right = network["right"].endpoint
    assert right.link("left").unheard == 0
    network.start("left", "right")
    for expected in (1, 2, 3):
        until = network.now + 60
        while right.link("left").unheard < expected:
            assert network.now < until
            network.now += 0.5
            for name in ("left", "right"):
                network[name].endpoint.handle_timer(network.now)
            network.collect()
            while network.in_flight:
                if network.in_flight[0].type is MessageType.RESP_CONF:
                    network.in_flight.popleft()
                else:
                    network.deliver()
    failed = {event.code for event in network["left"].events_of(ExchangeFailed)}
    assert failed == {FailureCode.INIT_CONF_UNANSWERED}
    # The first key that WireGuard takes up, and the first exchange that is complete, end it
    taken = network.copy()
    taken["right"].endpoint.key_taken_up("left", b"left".ljust(32, b"."))
    assert taken["right"].endpoint.link("left").unheard == 0
    network.advance(70)
    network.start("right", "left")
    network.settle()
    assert right.link("left").unheard == 0

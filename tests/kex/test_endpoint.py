"""The endpoint as the daemon sees it: links, timers, identities, and what it counts."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from kex.address import Address
from kex.endpoint import UnknownLink
from kex.errors import KexError, PacketRejected
from kex.events import (
    ExchangeFailed,
    ExchangeStarted,
    FailureCode,
    KeyConfirmed,
    KeyEstablished,
    LinkExpired,
    RejectCode,
    RejectSent,
    StartReason,
)
from kex.external import ExternalMode
from kex.identity import Identity
from kex.link_state import NotPossible
from kex.payload import MAX_INTERVAL
from kex.wire import MessageType

from .harness import (
    ADDRESSES,
    NEVER,
    SUITES,
    Network,
    finish,
    identity,
    join,
    link_config,
    make_end,
    pair,
    run_exchange,
    same_key,
    triangle,
)

LEFT, RIGHT, THIRD = ADDRESSES["left"], ADDRESSES["right"], ADDRESSES["third"]


def reconfigured(network: Network, at: str, peer: str, **changes: Any) -> None:
    endpoint = network[at].endpoint
    endpoint.update_link(replace(endpoint.link(peer).config, **changes), network.now)


# ---- configuration


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"locals": ()}, "an identity at each end"),
        ({"remotes": ()}, "an identity at each end"),
        ({"remotes": (identity(1, "left").fingerprint,)}, "own identities"),
        ({"remotes": (identity(1, "right").fingerprint,) * 2}, "stands there twice"),
        ({"remotes": (identity(2, "right").fingerprint,)}, "suite 2, and this node has none"),
        ({"wireguard_key": bytes(31)}, "32 bytes"),
        ({"interval": 119}, "interval of 119 s"),
        ({"interval": MAX_INTERVAL + 1, "lifetime": 10**6}, "interval of 86401 s"),
        ({"interval": 400, "lifetime": 699}, "lifetime less than interval"),
    ],
)
def test_links_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        link_config("left", "right", **changes)


def test_links_that_do_not_go_together() -> None:
    network = triangle()
    left = network["left"].endpoint
    before = left.state()
    good = link_config("left", "right")
    for config, message in (
        (good, "there is one of that name"),
        (replace(good, name="again"), "the same pair of identities as link right"),
        (
            replace(
                good,
                name="mine",
                locals=(identity(1, "nobody").fingerprint,),
                remotes=(identity(1, "far").fingerprint,),
            ),
            "that this node does not hold",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            left.add_link(config, network.now)
        assert left.state() == before
    with pytest.raises(ValueError, match="the same pair of identities as link third"):
        reconfigured(network, "left", "right", remotes=(identity(1, "third").fingerprint,))
    assert left.state() == before
    finish(network)


def test_a_peer_with_an_identity_of_this_node() -> None:
    own = (identity(1, "left"), identity(1, "left's second"))
    end = make_end("left", identities=own)
    config = link_config("left", "right", remotes=(own[1].fingerprint,))
    with pytest.raises(ValueError, match="the peer has an identity of this node"):
        end.endpoint.add_link(config, 0.0)
    assert end.endpoint.links() == ()


def test_links_that_are_not_there() -> None:
    endpoint = make_end("left").endpoint
    calls: list[Any] = [
        lambda: endpoint.update_link(link_config("left", "right"), 0.0),
        lambda: endpoint.remove_link("right"),
        lambda: endpoint.link("right"),
        lambda: endpoint.request_exchange("right", StartReason.REQUESTED, 0.0),
        lambda: endpoint.session_started("right", 0.0, 0.0),
        lambda: endpoint.adopt(
            "right", "00000000", wireguard_key=bytes(32), installed_at=0.0, expires_at=1.0
        ),
        lambda: endpoint.key_installed("right", b"", 0.0),
        lambda: endpoint.install_failed("right", b"", "", 0.0),
        lambda: endpoint.external_keys("right", b"", (), 0.0),
        lambda: endpoint.external_keys_failed("right", b"", "", 0.0),
    ]
    for call in calls:
        with pytest.raises(UnknownLink) as caught:
            call()
        assert isinstance(caught.value, KexError | KeyError)


def test_an_end_without_an_address_only_answers() -> None:
    network = pair(links={"left": {"address": None}})
    with pytest.raises(NotPossible, match="start the exchange there"):
        network["left"].endpoint.request_exchange("right", StartReason.REQUESTED, network.now)
    network.advance(30)
    assert not network.log
    run_exchange(network, "right", "left")
    # now it knows one
    assert network["left"].endpoint.link("right").address == RIGHT
    run_exchange(network)


def test_a_removed_link_leaves_nothing() -> None:
    network = triangle()
    run_exchange(network)
    run_exchange(network, "left", "third")
    network.start()
    network.start("left", "third")
    left = network["left"].endpoint
    left.remove_link("right")
    network.collect()
    network.settle()
    same_key(network, "left", "third")
    assert left.links() == ("third",)
    network.advance(200)
    assert not any(event.link == "right" for event in network["left"].events[-3:])
    # datagrams of the peer that is no more are a stranger's
    network["right"].endpoint.request_exchange("left", StartReason.REQUESTED, network.now)
    network.collect()
    network.settle()
    assert network.rejected[-1][1] == "unknown peer"
    # and it may come back
    left.add_link(link_config("left", "right"), network.now)
    finish(network)


def test_a_changed_link_begins_anew() -> None:
    network = pair()
    network.start()
    reconfigured(network, "left", "right", wireguard_port=1)
    network.advance(0.1)
    network["left"].take_events(network.now)
    (abandoned,) = network["left"].events_of(ExchangeFailed)
    assert abandoned.code is FailureCode.ABANDONED
    same_key(network)
    assert network["right"].installed[-1].peer.wireguard_port == 1


def test_other_links_do_not_notice() -> None:
    network = triangle()
    run_exchange(network, "left", "third")
    network.start("left", "third")
    before = network["left"].endpoint.link("third").state()
    reconfigured(network, "left", "right", interval=300)
    network["left"].endpoint.remove_link("right")
    assert network["left"].endpoint.link("third").state() == before
    network.settle()
    same_key(network, "left", "third")


# ---- timers


def test_the_first_exchange_begins_when_it_was_said_to() -> None:
    network = Network({"left": make_end("left"), "right": make_end("right")})
    for at, peer in (("left", "right"), ("right", "left")):
        network[at].endpoint.add_link(
            link_config(at, peer),
            network.now,
            start_at=network.now + (5 if at == "left" else NEVER),
        )
    assert network["left"].endpoint.next_timer() == network.now + 5
    network["left"].endpoint.handle_timer(network.now + 4.999)
    network.collect()
    assert not network.log
    network.advance(5)
    same_key(network)
    (started, *_) = network["left"].events_of(ExchangeStarted)
    assert started.reason is StartReason.FIRST_KEY


def test_there_is_always_a_next_timer_and_it_is_never_late() -> None:
    """Keys of biscuits and cookies change whether links are there or not."""
    end = make_end("left", now=100.0)
    assert end.endpoint.next_timer() == 220.0
    end.endpoint.handle_timer(220.0)
    assert end.endpoint.next_timer() == 340.0
    network = pair()
    run_exchange(network)
    for _ in range(2000):
        timers = [e.endpoint.next_timer() for e in network.ends.values()]
        network.now = min(at for at in timers if at is not None)
        for each in network.ends.values():
            each.endpoint.handle_timer(network.now)
            after = each.endpoint.next_timer()
            assert after is not None
            assert after > network.now
        network.collect()
        network.settle()
    same_key(network)
    assert network.now > 3600


def test_a_timer_that_is_early_or_late_does_no_harm() -> None:
    network = pair()
    run_exchange(network)
    before = network["left"].endpoint.state()
    for _ in range(10):
        network["left"].endpoint.handle_timer(network.now)
    assert network["left"].endpoint.state() == before
    # an hour of sleep: the key is over, an exchange begins at once
    network.now += 3600
    for end in network.ends.values():
        end.endpoint.handle_timer(network.now)
    network.collect()
    for name in ("left", "right"):
        assert network[name].events_of(LinkExpired)
    network.advance(20)
    same_key(network)


def test_a_timer_that_leads_to_one_that_is_due_is_not_lost() -> None:
    """Giving up leads to a start at the same moment; the link must not fall asleep."""
    network = pair()
    network.start()
    left = network["left"].endpoint
    for _ in range(200):
        network.in_flight.clear()
        at = left.next_timer()
        assert at is not None
        network.now = max(network.now, at)
        left.handle_timer(network.now)
        network.collect()
    started = network["left"].events_of(ExchangeStarted)
    assert len(started) > 5
    assert network.now > 1060


def test_retransmissions_double_up_to_five_seconds_and_end() -> None:
    network = pair()
    start = network.now
    network.start()
    times = []
    for _ in range(40):
        network.in_flight.clear()
        at = network["left"].endpoint.next_timer()
        assert at is not None
        if at > start + 15.0001:
            break
        network.now = at
        mark = len(network.log)
        network["left"].endpoint.handle_timer(at)
        network.collect()
        if [f for f in network.log[mark:] if f.type is MessageType.INIT_HELLO]:
            times.append(at - start)
    gaps = [b - a for a, b in itertools.pairwise([0.0, *times])]
    for gap, base in zip(gaps, (0.5, 1, 2, 4, 5), strict=False):
        assert 0.75 * base <= gap <= 1.25 * base
    (failed,) = network["left"].events_of(ExchangeFailed)
    assert failed.code is FailureCode.NO_ANSWER
    assert len(times) >= 4


def test_a_renewal_comes_before_the_lifetime_is_over() -> None:
    network = pair()
    first = run_exchange(network)
    network.advance(200)
    assert same_key(network) != first
    assert not network["left"].events_of(LinkExpired)
    # nobody answers any more: the key's lifetime ends, once
    network["right"].address = Address("203.0.113.5", 5)
    network["left"].address = Address("203.0.113.6", 6)
    alone = Network({"left": network["left"]}, network.now)
    key = alone["left"].endpoint.link("right").key
    assert key is not None
    for _ in range(10_000):
        alone.in_flight.clear()
        at = alone["left"].endpoint.next_timer()
        assert at is not None
        if at > key.expires_at:
            break
        alone.now = at
        alone["left"].endpoint.handle_timer(at)
        alone.collect()
    (expired,) = alone["left"].events_of(LinkExpired)
    assert expired.key_id == key.key_id
    assert alone["left"].endpoint.link("right").key is None


# ---- installing


def test_resp_conf_waits_for_the_installation() -> None:
    network = pair()
    network["right"].installs = False
    network.start()
    network.settle()
    assert not [f for f in network.log if f.type is MessageType.RESP_CONF]
    (key,) = network["right"].events_of(KeyEstablished)
    network["right"].endpoint.key_installed("left", b"another token", network.now)
    network.collect()
    assert not network.in_flight
    network["right"].endpoint.key_installed("left", key.token, network.now)
    network.collect()
    network.settle()
    same_key(network)


def test_an_installation_that_fails_at_the_responder_is_a_reject() -> None:
    network = pair()
    network["right"].installs = False
    network.start()
    network.settle()
    (key,) = network["right"].events_of(KeyEstablished)
    network["right"].endpoint.install_failed("left", key.token, "no such interface", network.now)
    network.collect()
    network.settle()
    (told,) = network["right"].events_of(RejectSent)
    assert told.code is RejectCode.INSTALL_FAILED
    (failed,) = network["left"].events_of(ExchangeFailed)
    assert failed.reject == RejectCode.INSTALL_FAILED
    assert failed.detail == "no such interface"
    assert not network["left"].installed
    # too late
    network["right"].endpoint.key_installed("left", key.token, network.now)
    assert not network["right"].events_of(KeyConfirmed)
    finish(network)


def test_an_installation_that_fails_at_the_initiator_is_tried_once_more() -> None:
    network = pair()
    network["left"].installs = False
    network.start()
    network.settle()
    left = network["left"].endpoint
    (key,) = network["left"].events_of(KeyEstablished)
    left.install_failed("right", key.token, "busy", network.now)
    network.collect()
    assert [e.token for e in network["left"].events_of(KeyEstablished)] == [key.token] * 2
    left.install_failed("right", key.token, "busy", network.now)
    network.collect()
    (failed,) = network["left"].events_of(ExchangeFailed)
    assert failed.code is FailureCode.INSTALL_FAILED
    finish(network)


# ---- WireGuard keys


def test_the_own_wireguard_key_is_refused() -> None:
    network = pair(links={"right": {"wireguard_key": b"left".ljust(32, b".")}})
    network.start()
    network.settle()
    (told,) = network["right"].events_of(RejectSent)
    assert told.code is RejectCode.WIREGUARD_KEY
    reconfigured(network, "right", "left", wireguard_key=b"right".ljust(32, b"."))
    finish(network)


@pytest.mark.parametrize("initiator", ["left", "right"])
def test_a_wireguard_key_in_use_on_another_link_is_refused(initiator: str) -> None:
    """Whoever took it over would get that link's traffic."""
    network = triangle()
    run_exchange(network, "left", "third")
    network["left"].endpoint.key_taken_up("third", b"third".ljust(32, b"."))
    reconfigured(network, "right", "left", wireguard_key=b"third".ljust(32, b"."))
    network.start(initiator, {"left": "right", "right": "left"}[initiator])
    network.settle()
    assert network["left"].installed[-1].link == "third"
    codes = {event.code for event in network["left"].events_of(RejectSent)}
    failures = {event.code for event in network["left"].events_of(ExchangeFailed)}
    assert codes == {RejectCode.WIREGUARD_KEY} or failures == {FailureCode.BAD_ANSWER}
    reconfigured(network, "right", "left", wireguard_key=b"right".ljust(32, b"."))
    finish(network)


# ---- several identities


def rotating(
    of_left: tuple[Identity, ...], of_right: tuple[Identity, ...], **links: dict[str, Any]
) -> Network:
    """Two nodes with these identities; `links` says which of them each end uses."""
    network = Network(
        {
            "left": make_end("left", identities=of_left),
            "right": make_end("right", identities=of_right),
        }
    )
    for at, peer in (("left", "right"), ("right", "left")):
        config = link_config(at, peer, **links[at])
        network[at].endpoint.add_link(config, network.now, start_at=NEVER)
    return network


OLD, NEW = identity(1, "right"), identity(1, "right's second")
SUITE2 = identity(2, "right")
ME, ME2 = identity(1, "left"), identity(2, "left")


def test_exchanges_under_the_second_identity_are_accepted() -> None:
    """`left` lists the new one after the old one; `right` goes on with the new one already."""
    network = rotating(
        (ME,),
        (OLD, NEW),
        left={"remotes": (OLD.fingerprint, NEW.fingerprint)},
        right={"locals": (NEW.fingerprint, OLD.fingerprint)},
    )
    run_exchange(network, "right", "left")
    assert network["left"].installed[-1].peer_identity == NEW.fingerprint
    assert network["left"].installed[-1].local_identity == ME.fingerprint
    # its own exchanges go to the first of the list
    run_exchange(network, "left", "right")
    assert network["right"].installed[-1].local_identity == OLD.fingerprint
    assert network["left"].installed[-1].peer_identity == OLD.fingerprint


def test_the_initiator_uses_the_first_only() -> None:
    """However long it gets no answer: who drops datagrams does not choose the identity."""
    network = rotating(
        (ME,),
        (OLD,),
        left={"remotes": (NEW.fingerprint, OLD.fingerprint)},
        right={"locals": (OLD.fingerprint,)},
    )
    network.start()
    network.advance(120)
    assert not network["left"].installed
    assert {reason for _, reason in network.rejected} == {"mac1"}
    assert len(network["left"].events_of(ExchangeStarted)) > 5
    # the other end's arrive all the same
    network.start("right", "left")
    network.settle()
    same_key(network)


def test_an_identity_that_is_not_listed_is_a_stranger() -> None:
    network = rotating(
        (ME,),
        (OLD, NEW),
        left={"remotes": (OLD.fingerprint,)},
        right={"locals": (NEW.fingerprint, OLD.fingerprint)},
    )
    network.start("right", "left")
    network.settle()
    assert network.rejected[-1][1] == "unknown peer"
    reconfigured(network, "left", "right", remotes=(OLD.fingerprint, NEW.fingerprint))
    finish(network)


def test_a_move_to_another_suite() -> None:
    both_left, both_right = (ME, ME2), (OLD, SUITE2)
    locals_left = tuple(one.fingerprint for one in both_left)
    locals_right = tuple(one.fingerprint for one in both_right)
    remotes_at_right = (ME.fingerprint, ME2.fingerprint)
    network = rotating(
        both_left,
        both_right,
        left={"locals": locals_left, "remotes": (SUITE2.fingerprint, OLD.fingerprint)},
        right={"locals": locals_right, "remotes": remotes_at_right},
    )
    run_exchange(network)
    assert network["left"].installed[-1].suite == 2
    run_exchange(network, "right", "left")
    assert network["left"].installed[-1].suite == 1
    # `right` puts its list in order, and `left` takes the old one out
    reconfigured(network, "right", "left", remotes=remotes_at_right[::-1])
    reconfigured(network, "left", "right", remotes=(SUITE2.fingerprint,))
    run_exchange(network, "right", "left")
    assert network["left"].installed[-1].suite == 2


def test_the_last_number_belongs_to_the_link_and_not_to_the_identity() -> None:
    """An InitConf under one identity is late after one under another was accepted."""
    network = rotating(
        (ME,),
        (OLD, NEW),
        left={"remotes": (OLD.fingerprint, NEW.fingerprint)},
        right={"locals": (NEW.fingerprint, OLD.fingerprint)},
    )
    network.start("right", "left")
    network.settle_until(MessageType.INIT_CONF)
    under_new = network.in_flight.popleft()
    reconfigured(network, "right", "left", locals=(OLD.fingerprint, NEW.fingerprint))
    network.collect()
    network.advance(0.1)
    same_key(network)
    with pytest.raises(PacketRejected, match="old biscuit"):
        network["left"].endpoint.receive_datagram(under_new.data, under_new.source, network.now)


@pytest.mark.parametrize("number", SUITES)
def test_two_links_between_the_same_two_nodes(number: int) -> None:
    """Two carriers: a pair of identities each, and mac1 says which link is meant."""
    names = ("", " by satellite")
    own = {at: tuple(identity(number, at + name) for name in names) for at in ("left", "right")}
    network = Network(
        {at: make_end(at, suite_numbers=(number,), identities=own[at]) for at in ("left", "right")}
    )
    for (at, peer), n in itertools.product((("left", "right"), ("right", "left")), (0, 1)):
        config = link_config(
            at,
            peer,
            suite=number,
            name=peer + names[n],
            locals=(own[at][n].fingerprint,),
            remotes=(own[peer][n].fingerprint,),
            wireguard_key=f"{at}{n}".encode().ljust(32, b"."),
        )
        network[at].endpoint.add_link(config, network.now, start_at=NEVER)
    for n in (0, 1):
        network["left"].endpoint.request_exchange(
            "right" + names[n], StartReason.REQUESTED, network.now
        )
    network.collect()
    network.settle()
    keys = {at: {key.link: key for key in network[at].installed} for at in ("left", "right")}
    for n in (0, 1):
        ours, theirs = keys["left"]["right" + names[n]], keys["right"]["left" + names[n]]
        assert ours.psk == theirs.psk
        assert ours.peer.wireguard_key == f"right{n}".encode().ljust(32, b".")
    assert len({key.psk for key in keys["left"].values()}) == 2


def test_identities_come_and_go() -> None:
    network = pair()
    right = network["right"].endpoint
    run_exchange(network)
    right.set_identities([identity(1, "right"), NEW])
    run_exchange(network)
    with pytest.raises(ValueError, match="link left: uses an identity that would be gone"):
        right.set_identities([NEW])
    with pytest.raises(ValueError, match="the peer has an identity of this node"):
        right.set_identities([identity(1, "right"), identity(1, "left")])
    run_exchange(network)
    # the new one is used, then the old one may go
    reconfigured(network, "right", "left", locals=(NEW.fingerprint,))
    right.set_identities([NEW])
    reconfigured(network, "left", "right", remotes=(NEW.fingerprint,))
    finish(network)
    assert network["left"].installed[-1].peer_identity == NEW.fingerprint


# ---- what is counted, and copies


def test_statistics() -> None:
    network = pair()
    run_exchange(network)
    counted = network["right"].endpoint.statistics()
    assert (counted.accepted, counted.rejected, counted.cookie_replies) == (4, {}, 0)
    assert (counted.reassembly_bytes, counted.reassembly_messages) == (0, 0)
    assert not counted.under_load
    for data in (b"", bytes(100), bytes(100), network.log[0].data[:-1] + b"\1"):
        with pytest.raises(PacketRejected):
            network["right"].endpoint.receive_datagram(data[:-1], LEFT, network.now)
    counted = network["right"].endpoint.statistics()
    assert counted.rejected == {"too short": 1, "version": 2, "mac1": 1}
    assert counted.accepted == 4


def test_a_copy_is_independent() -> None:
    network = pair()
    network.start()
    network.settle_until(MessageType.RESP_HELLO)
    before = {name: end.endpoint.state() for name, end in network.ends.items()}
    twin = network.copy()
    assert {name: end.endpoint.state() for name, end in twin.ends.items()} == before
    twin.settle()
    same_key(twin)
    twin["left"].endpoint.remove_link("right")
    assert {name: end.endpoint.state() for name, end in network.ends.items()} == before
    network.settle()
    same_key(network)
    # A link that was handed out to be read is a copy, too
    link = network["left"].endpoint.link("right")
    link.exchange = None
    link.key = None
    assert network["left"].endpoint.link("right").key is not None


def test_a_link_added_to_a_running_endpoint() -> None:
    network = pair()
    run_exchange(network)
    network.ends["third"] = make_end("third", now=network.now)
    join(network, "left", "third")
    run_exchange(network, "third", "left")
    same_key(network)
    assert network["left"].endpoint.links() == ("right", "third")
    assert network["left"].endpoint.link("third").config.external_mode is ExternalMode.OFF
    assert network["left"].endpoint.link("third").address == THIRD

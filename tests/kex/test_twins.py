"""Two hosts with one identity are named; one that restarts, moves or has two families is not."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from kex.twins import NAMED_SECONDS, Twins

from .harness import Network, identity, link_config, make_end, pair, run_exchange

A, B, C = (bytes([number]) * 32 for number in (1, 2, 3))
ONE, OTHER, THIRD = "192.0.2.1", "192.0.2.2", "192.0.2.3"
SIX = "2001:db8::1"

Step = tuple[float, bytes, str | None]


def after(*steps: Step, interval: int = 120) -> tuple[Twins, float]:
    """After exchanges, each so many seconds after the one before."""
    twins, now = Twins(), 1000.0
    for seconds, key, host in steps:
        now += seconds
        twins = twins.after(key, host, interval=interval, now=now)
    return twins, now


@pytest.mark.parametrize(
    ("steps", "interval"),
    [
        # A copy with a WireGuard key of its own, behind the same address or another
        ([(0, A, ONE), (55, B, ONE), (55, A, ONE)], 120),
        ([(0, A, ONE), (55, B, OTHER), (55, A, ONE)], 120),
        # This end begins some of the exchanges, or all
        ([(0, A, ONE), (55, B, None), (55, A, ONE)], 120),
        ([(0, A, None), (5, B, None), (5, A, None)], 120),
        # Three of them
        ([(0, A, ONE), (40, B, ONE), (40, C, ONE), (40, A, ONE)], 120),
        # One that calls twice before the other comes
        ([(0, A, ONE), (110, A, ONE), (10, B, ONE), (60, B, ONE), (100, A, ONE)], 120),
        # With a long interval
        ([(0, A, ONE), (3000, B, ONE), (3000, A, ONE)], 7200),
        # A copy with the same WireGuard key, at another address
        ([(0, A, ONE), (60, A, OTHER), (60, A, ONE), (60, A, OTHER)], 120),
        ([(0, A, ONE), (60, A, OTHER), (60, A, None), (1, A, ONE), (60, A, OTHER)], 120),
        ([(0, A, ONE), (1800, A, OTHER), (1800, A, ONE), (1800, A, OTHER)], 3600),
    ],
)
def test_two_hosts_are_named(steps: list[Step], interval: int) -> None:
    twins, now = after(*steps, interval=interval)
    assert twins.named
    assert twins.named_at(now)
    assert not after(*steps[:-1], interval=interval)[0].named  # not before


@pytest.mark.parametrize(
    ("steps", "interval"),
    [
        # Restarts, with a new WireGuard key each time
        ([(0, A, ONE), (30, B, ONE)], 120),
        ([(0, A, ONE), (30, B, ONE), (30, C, ONE), (110, C, ONE)], 120),
        # It comes back to a key after a long time: a host that was switched off
        ([(0, A, ONE), (60, B, ONE), (7200, A, ONE)], 120),
        # It moves at each renewal, or to and fro between two uplinks
        ([(0, A, ONE), (110, A, OTHER), (110, A, ONE), (110, A, OTHER), (110, A, ONE)], 120),
        ([(0, A, ONE), (110, A, OTHER), (110, A, THIRD), (110, A, ONE)], 120),
        ([(0, A, ONE), (20, A, OTHER)], 120),
        ([(0, A, ONE), (20, A, OTHER), (20, A, ONE)], 120),  # there and back, once
        # Both families in turn
        ([(0, A, ONE), (5, A, SIX), (5, A, ONE), (5, A, SIX), (5, A, ONE), (5, A, SIX)], 120),
        # A restart between the changes of address
        ([(0, A, ONE), (50, A, OTHER), (50, B, ONE), (50, B, OTHER)], 120),
    ],
)
def test_one_host_is_not(steps: list[Step], interval: int) -> None:
    for count in range(1, len(steps) + 1):
        assert not after(*steps[:count], interval=interval)[0].named


@pytest.mark.parametrize("interval", [120, 600, 3600])
def test_no_host_that_renews_on_time_can_be_taken_for_two(interval: int) -> None:
    """However it moves: 100 s after its last exchange is the soonest that a renewal is due."""
    dice = random.Random(interval)
    twins, now = Twins(), 0.0
    for _ in range(2000):
        now += dice.uniform(max(100.0, interval - 35.0), interval + 45.0)
        host = dice.choice([ONE, OTHER, THIRD, SIX, None])
        twins = twins.after(A, host, interval=interval, now=now)
        assert not twins.named


def test_it_is_over_when_one_of_them_is_gone() -> None:
    twins, now = after((0, A, ONE), (55, B, ONE), (55, A, ONE))
    assert twins.named_at(now + NAMED_SECONDS - 1)
    assert not twins.named_at(now + NAMED_SECONDS)
    later = twins.after(A, ONE, interval=120, now=now + NAMED_SECONDS)
    assert not later.named


def test_what_is_remembered_is_bounded() -> None:
    twins = Twins()
    for number in range(1000):
        key, host = number.to_bytes(32, "big"), f"10.0.{number // 250}.{number % 250}"
        twins = twins.after(key, host, interval=120, now=number)
        twins = twins.after(key, f"2001:db8::{number:x}", interval=120, now=number)
    assert max(map(len, (twins.keys, twins.hosts4, twins.hosts6))) <= 4


# ---- on real endpoints: `third` is a copy of `left`


def with_copy(wireguard_key: bytes) -> Network:
    network = pair()
    network.ends["third"] = make_end("third", identities=(identity(1, "left"),), seed=b"copy")
    copy = network["third"].endpoint
    copy.add_link(
        link_config("left", "right", wireguard_key=wireguard_key), network.now, start_at=1e9
    )
    far = identity(1, "right")
    copy.know_public_key(far.fingerprint, far.public_key)
    return network


def renew(network: Network, initiator: str, peer: str) -> None:
    network.now += 60
    network.start(initiator, peer)
    network.settle()


@pytest.mark.parametrize("key", [b"copied".ljust(32, b"."), b"left".ljust(32, b".")])
def test_both_copies_and_the_far_end_learn_of_it(key: bytes) -> None:
    network = with_copy(key)
    right = network["right"].endpoint
    for _ in range(3):
        renew(network, "left", "right")
        renew(network, "third", "right")
    assert right.link("left").twins.named_at(network.now)
    # Both of them are told with their next exchange, whoever begins it
    renew(network, "left", "right")
    renew(network, "third", "right")
    for name in ("left", "third"):
        peer = network[name].endpoint.link("right").peer
        assert peer is not None
        assert peer.twins
        assert not network[name].endpoint.link("right").twins.named


def test_a_restart_is_told_to_nobody() -> None:
    network = pair()
    run_exchange(network)
    for number in range(3):
        left = network["left"].endpoint
        key = bytes([number]) * 32
        left.update_link(replace(left.link("right").config, wireguard_key=key), network.now)
        renew(network, "left", "right")
        renew(network, "right", "left")
    peer = network["left"].endpoint.link("right").peer
    assert peer is not None
    assert not peer.twins

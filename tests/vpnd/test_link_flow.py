"""Both ends' counters: what they prove, and what they must not be taken for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from kex.payload import Traffic
from vpnd.link_flow import FlowWatch

HANDSHAKE = 148
KEEPALIVE = 32
PING = 128


@dataclass
class End:
    """One end: what its WireGuard counts, and its watch."""

    watch: FlowWatch = field(default_factory=FlowWatch)
    sent: int = 0
    received: int = 0


@dataclass
class Pair:
    """Two ends, second by second: dumps every five of them, exchanges when they are told to."""

    near: End = field(default_factory=End)
    far: End = field(default_factory=End)
    now: float = 1000.0
    asked: list[float] = field(default_factory=list)

    def send(self, sender: End, size: int, *, arrives: bool) -> None:
        sender.sent += size
        if arrives:
            (self.far if sender is self.near else self.near).received += size

    def exchange(self) -> None:
        """Each end tells what its last dump showed."""
        told = [end.watch.traffic for end in (self.near, self.far)]
        self.near.watch.heard(told[1], self.now)
        self.far.watch.heard(told[0], self.now)

    def run(
        self, seconds: int, traffic: Callable[[Pair], None], *, every: int = 120, asks: bool = False
    ) -> None:
        for second in range(seconds):
            if second % every == 0:
                self.exchange()
            traffic(self)
            self.now += 1
            # The two do not look at the same moment
            for end, shift in ((self.near, 0), (self.far, 3)):
                if (second + shift) % 5 == 0:
                    end.watch.observe(end.sent, end.received, self.now)
                    if asks and end.watch.wants_comparison(self.now):
                        self.asked.append(self.now)
                        self.exchange()

    def losses(self) -> tuple[bool, bool, bool, bool]:
        near, far = self.near.watch, self.far.watch
        assert (near.loses_inbound, near.loses_outbound) == (far.loses_outbound, far.loses_inbound)
        return (
            near.loses_inbound, near.loses_outbound, far.loses_inbound, far.loses_outbound
        )  # fmt: skip


def both_ways(pair: Pair) -> None:
    pair.send(pair.near, PING, arrives=True)
    pair.send(pair.far, PING, arrives=True)


def handshakes(pair: Pair, every: int = 15) -> None:
    """WireGuard makes a new one where nothing comes back for 15 s; each gets through."""
    if int(pair.now) % every == 0:
        pair.send(pair.near, HANDSHAKE, arrives=True)
        pair.send(pair.far, 92, arrives=True)


def blocked(*, to_near: bool, to_far: bool) -> Callable[[Pair], None]:
    def traffic(pair: Pair) -> None:
        handshakes(pair)
        pair.send(pair.near, PING, arrives=not to_far)
        pair.send(pair.far, PING, arrives=not to_near)

    return traffic


@pytest.mark.parametrize(
    ("to_near", "to_far"), [(True, False), (False, True), (True, True)], ids=repr
)
def test_what_does_not_arrive_is_found_at_both_ends(to_near: bool, to_far: bool) -> None:
    pair = Pair()
    pair.run(241, both_ways)
    assert pair.losses() == (False,) * 4
    pair.run(280, blocked(to_near=to_near, to_far=to_far))
    assert pair.losses() == (to_near, to_far, to_far, to_near)
    pair.run(280, both_ways)
    assert pair.losses() == (False,) * 4


def test_a_link_that_never_passed_anything_is_found_after_its_second_exchange() -> None:
    pair = Pair()
    pair.run(150, blocked(to_near=True, to_far=True))
    assert pair.losses() == (True,) * 4


def silence(pair: Pair) -> None:
    if int(pair.now) % 25 == 0:
        pair.send(pair.near, KEEPALIVE, arrives=True)
        pair.send(pair.far, KEEPALIVE, arrives=True)


def one_way(pair: Pair) -> None:
    """Syslog over UDP, and nothing in return but what WireGuard says itself."""
    pair.send(pair.near, 5000, arrives=True)
    if int(pair.now) % 10 == 0:
        pair.send(pair.far, KEEPALIVE, arrives=True)


def lossy(pair: Pair) -> None:
    """Four of five packets are lost: bad, and no link through which nothing passes."""
    pair.send(pair.near, 1500, arrives=int(pair.now) % 5 == 0)
    pair.send(pair.far, 1500, arrives=True)


def bursts(pair: Pair) -> None:
    """All at once, just as an exchange takes the counters of a dump that is older."""
    if int(pair.now) % 120 in (119, 0, 1):
        pair.send(pair.near, 10**8, arrives=True)


def no_handshake(pair: Pair) -> None:
    """WireGuard tries without end, and nobody answers: no packet is lost in that."""
    if int(pair.now) % 5 == 0:
        pair.send(pair.near, HANDSHAKE, arrives=False)


@pytest.mark.parametrize(
    "traffic", [silence, one_way, lossy, bursts, no_handshake, both_ways], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("every", [7, 60, 120, 300])
def test_no_false_alarm(traffic: Callable[[Pair], None], every: int) -> None:
    pair = Pair()
    for _ in range(20):
        pair.run(37, traffic, every=every)
        assert pair.losses() == (False,) * 4


def test_an_end_of_an_older_version_tells_nothing_and_nothing_is_concluded() -> None:
    watch = FlowWatch()
    for second in range(0, 600, 5):
        watch.observe(second * 1000, 0, float(second))
        if second % 120 == 0:
            watch.heard(None, float(second))
        assert not watch.wants_comparison(float(second))
    assert not (watch.loses_inbound)
    assert not (watch.loses_outbound)


def test_an_end_that_tells_no_counters_any_more_ends_what_was_concluded_from_them() -> None:
    pair = Pair()
    pair.run(400, blocked(to_near=True, to_far=True))
    assert pair.losses() == (True,) * 4
    near = pair.near.watch
    near.heard(None, pair.now)
    assert (near.loses_inbound, near.loses_outbound) == (False, False)


def test_an_outage_is_not_held_against_the_time_after_it() -> None:
    pair = Pair()
    pair.run(200, both_ways)
    pair.run(60, blocked(to_near=True, to_far=True), every=1000)
    for end in (pair.near, pair.far):
        end.watch.interrupted()
    pair.run(300, both_ways)
    assert pair.losses() == (False,) * 4


def test_counters_that_begin_anew_at_the_other_end_are_no_loss() -> None:
    pair = Pair()
    pair.run(241, both_ways)
    pair.far.sent = pair.far.received = 0
    pair.far.watch.reset()
    pair.run(280, both_ways)
    assert pair.losses() == (False,) * 4


def test_with_a_long_interval_an_exchange_is_asked_for_when_nothing_comes_back() -> None:
    pair = Pair()
    pair.run(1000, both_ways, every=3600, asks=True)
    assert pair.asked == []
    began = pair.now
    pair.run(400, blocked(to_near=True, to_far=False), every=3600, asks=True)
    assert pair.losses() == (True, False, False, True)
    assert len(pair.asked) < 10
    assert pair.asked[0] - began < 150


def test_traffic_in_one_direction_asks_for_few_exchanges() -> None:
    pair = Pair()
    pair.run(3600, one_way, every=3600, asks=True)
    assert pair.losses() == (False,) * 4
    assert 1 <= len(pair.asked) <= 16


def test_what_does_not_come_out_of_the_interface_is_told_as_not_received() -> None:
    pair = Pair()
    pair.run(121, both_ways)
    pair.far.watch.withheld = True
    before = pair.far.watch.traffic.received
    pair.run(240, both_ways)
    assert pair.far.watch.traffic.received == before
    assert pair.near.watch.loses_outbound
    assert not pair.near.watch.loses_inbound
    pair.far.watch.withheld = False
    pair.run(280, both_ways)
    assert pair.losses() == (False,) * 4


def test_counts_are_told_as_they_are() -> None:
    watch = FlowWatch()
    assert watch.traffic == Traffic(0, 0)
    watch.observe(300, 200, 1.0)
    assert watch.traffic == Traffic(sent=300, received=200)

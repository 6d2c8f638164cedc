"""A router's connection table that repetitions alone keep alive: now and then nothing is sent."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import pytest

from kex import timing
from kex.events import StartReason

from .harness import Flying, Network, pair, run_exchange, same_key

MINUTE = 60.0


@dataclass
class Router(Network):
    """A router before `right`. It decides what becomes of a flow with its first packet, and keeps
    to that until none has come for `timeout` seconds."""

    timeout: float = 30.0
    forwards: bool = False
    seen_at: float = -1e9
    to_right: bool = False

    def deliver(self) -> Flying:
        if self.in_flight[0].sender == "right":
            return super().deliver()
        if self.now - self.seen_at > self.timeout:
            self.to_right = self.forwards
        self.seen_at = self.now
        return super().deliver() if self.to_right else self.in_flight.popleft()


def behind_a_router(timeout: float) -> Router:
    """`left` calls; `right` is behind the router, and does not call."""
    network = pair(links={"right": {"address": None}})
    return Router(network.ends, timeout=timeout)


def times_of_sending(network: Network, seconds: float) -> list[float]:
    """When `left` sent something, to whom nobody answers."""
    times, until = [], network.now + seconds
    while network.now < until:
        at = network["left"].endpoint.next_timer()
        assert at is not None
        network.now = max(network.now, at)
        network["left"].endpoint.handle_timer(network.now)
        network.collect()
        if network.in_flight:
            times.append(network.now)
        network.in_flight.clear()
    return times


def until_silent(network: Network) -> None:
    """Let `left` call in vain until it keeps silent."""
    network.start()
    for _ in range(600):
        times_of_sending(network, 1)
        if network["left"].endpoint.link("right").silent_until is not None:
            return
    raise AssertionError("there is no silence")


@pytest.mark.parametrize(
    ("timeout", "minutes"),
    [(30.0, 5), (180.0, 20)],
)
def test_a_port_forwarding_that_comes_later_is_found(timeout: float, minutes: float) -> None:
    network = behind_a_router(timeout)
    network.start()
    network.advance(MINUTE)
    network.forwards = True
    network.advance(minutes * MINUTE)
    same_key(network)


def test_silences_are_few_and_long_enough() -> None:
    network = pair()
    network.start()
    times = times_of_sending(network, 3600)
    gaps = [later - earlier for earlier, later in pairwise(times)]
    silences = [gap for gap in gaps if gap > 2 * timing.RETRANSMIT_LAST]
    short = [gap for gap in silences if gap < 2 * timing.SILENCE_SHORT]
    long = [gap for gap in silences if gap not in short]
    assert min(short) >= timing.SILENCE_SHORT
    assert min(long) >= timing.SILENCE_LONG
    assert len(short) >= 3 * len(long) > 0
    assert sum(silences) < 3600 / 3
    # None before it has called for three minutes
    assert next(at for at, gap in zip(times, gaps, strict=False) if gap > 30) > times[0] + 170


def test_no_silence_is_long_while_a_key_lives() -> None:
    for unanswered in range(200):
        assert timing.silence(unanswered, has_key=True) in (0.0, timing.SILENCE_SHORT)


def test_the_far_end_is_heard_in_a_silence() -> None:
    network = pair()
    until_silent(network)
    left = network["left"].endpoint.link("right")
    assert left.silent_until is not None
    assert left.silent_until > network.now
    run_exchange(network, "right", "left")
    left = network["left"].endpoint.link("right")
    assert left.silent_until is None
    assert left.unanswered == 0


def test_who_is_asked_for_an_exchange_begins_one() -> None:
    network = pair()
    until_silent(network)
    endpoint = network["left"].endpoint
    endpoint.request_exchange("right", StartReason.HANDSHAKE_OVERDUE, network.now)
    assert endpoint.link("right").exchange is None  # the watch over handshakes waits
    run_exchange(network)


def test_an_answer_ends_the_count() -> None:
    network = pair()
    network.start()
    times_of_sending(network, 120)
    assert network["left"].endpoint.link("right").unanswered > 3
    run_exchange(network)
    assert network["left"].endpoint.link("right").unanswered == 0

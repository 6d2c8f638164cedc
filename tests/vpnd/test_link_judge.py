"""Which state follows from which facts."""

from __future__ import annotations

from typing import Any

import pytest

from vpnd.api import LinkState
from vpnd.link_judge import Facts, Flow, judge

KEY: dict[str, Any] = {"has_key": True, "in_force": True}


@pytest.mark.parametrize(
    ("facts", "state", "words"),
    [
        (Facts(fault="bug", **KEY), LinkState.DOWN, "bug"),
        (Facts(tunnel_error="tunnel backbone: gone", **KEY), LinkState.DOWN, "gone"),
        (Facts(joined=False), LinkState.DOWN, "not started"),
        (Facts(), LinkState.DOWN, "no exchange yet"),
        (Facts(has_endpoint=False), LinkState.DOWN, "no endpoint here"),
        (Facts(has_endpoint=False, given_up="gone"), LinkState.DOWN, "no endpoint here; gone"),
        (Facts(closed_reason="over", given_up="gone"), LinkState.CLOSED, "over; gone"),
        (Facts(given_up="gone", **KEY), LinkState.DEGRADED, "gone"),
        (Facts(exchanging=True), LinkState.EXCHANGING, "first exchange"),
        (Facts(exchanging=True, waiting_reason="no answer"), LinkState.EXCHANGING, "no answer"),
        (Facts(answering=True), LinkState.EXCHANGING, "the peer's"),
        (Facts(closed_reason="over", exchanging=True), LinkState.CLOSED, "over"),
        (Facts(has_key=True), LinkState.INSTALLED, "first handshake"),
        (Facts(has_key=True, doubtful=True), LinkState.DEGRADED, "which of two keys"),
        (Facts(**KEY), LinkState.ACTIVE, ""),
        (Facts(adopted=True, **KEY), LinkState.ACTIVE, "adopted"),
        (Facts(second_identity=True, **KEY), LinkState.DEGRADED, "second identity"),
        (Facts(renewal_problem="no answer", **KEY), LinkState.DEGRADED, "no answer"),
        (Facts(twins="two hosts?", **KEY), LinkState.DEGRADED, "two hosts?"),
        (
            Facts(twins="two hosts?", renewal_problem="no answer", **KEY),
            LinkState.DEGRADED,
            "two hosts?; no answer",
        ),
        (
            Facts(has_key=True, twins="two hosts?"),
            LinkState.INSTALLED,
            "waits for WireGuard's first handshake; two hosts?",
        ),
        (Facts(external="fallback", **KEY), LinkState.DEGRADED, "fallback"),
        (Facts(unheard=True, **KEY), LinkState.DEGRADED, "begins again after each of our answers"),
        (
            Facts(unheard=True, renewal_problem="no answer", **KEY),
            LinkState.DEGRADED,
            "no answer; the peer begins again",
        ),
        (Facts(unheard=True, has_key=True), LinkState.INSTALLED, "handshake; the peer begins"),
        (
            Facts(unheard=True, renewal_problem="refused", has_key=True),
            LinkState.INSTALLED,
            "handshake; refused; the peer begins",
        ),
        (Facts(unheard=True, dead=True, **KEY), LinkState.DOWN, "no WireGuard handshake"),
        (Facts(external="a", renewal_problem="b", **KEY), LinkState.DEGRADED, "a; b"),
        (Facts(external="fallback", has_key=True), LinkState.INSTALLED, "first handshake"),
        # A tunnel that says "connected" and passes nothing is what nobody wants
        (Facts(dead=True, minutes_silent=4, **KEY), LinkState.DOWN, "4 min"),
        (Facts(dead=True, has_key=True, doubtful=True), LinkState.DOWN, "no WireGuard handshake"),
        (Facts(dead=True, wireguard_at="192.0.2.1:51820", **KEY), LinkState.DOWN, "UDP to 192.0.2"),
    ],
)
def test_state_and_reason(facts: Facts, state: LinkState, words: str) -> None:
    found, reason = judge(facts)
    assert found is state
    assert words in reason
    assert reason or state is LinkState.ACTIVE


def test_prefixes_that_lead_elsewhere_degrade_a_link() -> None:
    facts = Facts(has_key=True, in_force=True, ways="10.2.0.0/16 leads to eth0")
    assert judge(facts) == (LinkState.DEGRADED, "10.2.0.0/16 leads to eth0")


def test_a_reason_that_explains_another_is_told_with_it() -> None:
    known: dict[str, Any] = {
        "twins": "two hosts?",
        "ways": "there is no route to the peer's endpoint",
    }
    told = "two hosts?; there is no route to the peer's endpoint"
    dead = Facts(dead=True, minutes_silent=4, wireguard_at="192.0.2.1:51820", **KEY, **known)
    silent = "no WireGuard handshake for 4 min or more; does UDP to 192.0.2.1:51820 pass, and back?"
    assert judge(dead) == (LinkState.DOWN, f"{silent}; {told}")
    waits = Facts(has_key=True, **known)
    found = f"waits for WireGuard's first handshake; {told}"
    assert judge(waits) == (LinkState.INSTALLED, found)
    lost = Facts(flow=Flow.BOTH_LOST, renewal_problem="no answer", **KEY, **known)
    assert judge(lost) == (LinkState.DOWN, f"{told}; {Flow.BOTH_LOST.value}; no answer")


def test_why_nothing_can_be_sent_comes_before_the_answer_that_is_missing() -> None:
    facts = Facts(exchanging=True, waiting_reason="no answer", endpoint="there is no route")
    assert judge(facts) == (LinkState.EXCHANGING, "there is no route; no answer so far")

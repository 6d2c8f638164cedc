"""Which state a link is in, and why: facts in, state and reason out."""

from __future__ import annotations

from dataclasses import dataclass

from vpnd.api import LinkState
from vpnd.link_peer import UNCERTAIN


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a link. Texts are empty where there is nothing to say."""

    fault: str = ""
    """A bug of ours stopped the link's task."""
    tunnel_error: str = ""
    joined: bool = True
    """Whether the link takes part in the key exchange."""
    has_key: bool = False
    """Whether the peer is on the interface."""
    in_force: bool = False
    doubtful: bool = False
    dead: bool = False
    """No WireGuard handshake although keepalives are sent."""
    minutes_silent: int = 0
    closed_reason: str = ""
    exchanging: bool = False
    answering: bool = False
    has_endpoint: bool = True
    waiting_reason: str = ""
    renewal_problem: str = ""
    external: str = ""
    """What of the external keys is not as configured: a fallback, a source that is missing."""
    twins: str = ""
    """Who sees two hosts with one identity, if anybody does."""
    second_identity: bool = False
    adopted: bool = False


def judge(facts: Facts) -> tuple[LinkState, str]:
    """The state and its reason (docs/operations.md, "Reasons and warnings")."""
    if facts.fault:
        return LinkState.DOWN, facts.fault
    if facts.tunnel_error:
        return LinkState.DOWN, facts.tunnel_error
    if not facts.joined:
        return LinkState.DOWN, "not started"
    return _with_key(facts) if facts.has_key else _without_key(facts)


def _with_key(facts: Facts) -> tuple[LinkState, str]:
    if facts.dead:
        # No number that changes with every look: a reason is told when it changes
        return LinkState.DOWN, f"no WireGuard handshake for {facts.minutes_silent} min or more"
    if facts.doubtful:
        return LinkState.DEGRADED, UNCERTAIN
    if not facts.in_force:
        waits = "waits for WireGuard's first handshake"
        return LinkState.INSTALLED, "; ".join(filter(None, (waits, facts.twins)))
    if facts.twins or facts.external or facts.renewal_problem:
        reasons = (facts.twins, facts.external, facts.renewal_problem)
        return LinkState.DEGRADED, "; ".join(filter(None, reasons))
    if facts.second_identity:
        return LinkState.DEGRADED, "the peer used its second identity"
    return LinkState.ACTIVE, "adopted after a restart" if facts.adopted else ""


def _without_key(facts: Facts) -> tuple[LinkState, str]:
    if facts.closed_reason:
        return LinkState.CLOSED, facts.closed_reason
    if facts.exchanging:
        so_far = f"{facts.waiting_reason} so far" if facts.waiting_reason else "first exchange"
        return LinkState.EXCHANGING, so_far
    if facts.answering:
        return LinkState.EXCHANGING, "the peer's exchange"
    if not facts.has_endpoint:
        return LinkState.DOWN, "waits for the peer, which has no endpoint here"
    return LinkState.DOWN, facts.waiting_reason or "no exchange yet"

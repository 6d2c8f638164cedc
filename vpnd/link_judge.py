"""Which state a link is in, and why: facts in, state and reason out."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from vpnd.api import LinkState
from vpnd.link_flow import FlowWatch
from vpnd.link_peer import UNCERTAIN

UNHEARD: Final = (
    "the peer begins again after each of our answers: they do not reach it, or it does not accept "
    "them"
)


class Flow(Enum):
    """What becomes of packets that go through the tunnel, and what is shown of it."""

    SOUND = ""
    INBOUND_LOST = (
        "handshakes pass, but nothing of what the peer sends through the tunnel arrives here: "
        "what drops WireGuard's data on the way, or at a firewall here?"
    )
    OUTBOUND_LOST = (
        "handshakes pass, but nothing of what is sent through the tunnel arrives at the peer: "
        "what drops WireGuard's data on the way, or at a firewall there?"
    )
    BOTH_LOST = (
        "handshakes pass, but no packet through the tunnel arrives, in neither direction: "
        "what drops WireGuard's data on the way?"
    )
    WITHHELD = (
        "WireGuard receives packets of the peer, and none comes out of the interface: are they "
        "from allowed_ips? else delete the interface, it is made anew"
    )
    NOT_TAKEN = (
        "packets go into the interface, and WireGuard sends none: are they for allowed_ips? else "
        "delete the interface, it is made anew"
    )


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
    """No WireGuard handshake although keepalives, or bytes, are sent."""
    minutes_silent: int = 0
    wireguard_at: str = ""
    """Where WireGuard sends to."""
    closed_reason: str = ""
    exchanging: bool = False
    answering: bool = False
    has_endpoint: bool = True
    given_up: str = ""
    """Where the peer was last, and is not asked any more."""
    waiting_reason: str = ""
    renewal_problem: str = ""
    external: str = ""
    """What of the external keys is not as configured: a fallback, a source that is missing."""
    unheard: bool = False
    """The peer begins again after each of our answers."""
    flow: Flow = Flow.SOUND
    ways: str = ""
    """Why not all of the link's prefixes lead into its interface, or its peer is out of reach."""
    endpoint: str = ""
    """Why nothing can be sent to the peer."""
    twins: str = ""
    """Who sees two hosts with one identity, if anybody does."""
    second_identity: bool = False
    adopted: bool = False


def flow_of(watch: FlowWatch) -> Flow:
    """The worst that the counters tell."""
    if watch.loses_inbound and watch.loses_outbound:
        return Flow.BOTH_LOST
    found = {
        Flow.WITHHELD: watch.withheld,
        Flow.NOT_TAKEN: watch.not_taken,
        Flow.INBOUND_LOST: watch.loses_inbound,
        Flow.OUTBOUND_LOST: watch.loses_outbound,
    }
    return next((flow for flow, is_so in found.items() if is_so), Flow.SOUND)


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
    unheard = UNHEARD if facts.unheard else ""
    if facts.dead:
        # No number that changes with every look: a reason is told when it changes
        minutes, at = facts.minutes_silent, facts.wireguard_at
        silent = f"no WireGuard handshake for {minutes} min or more"
        if at and not (facts.renewal_problem or unheard):
            silent = f"{silent}; does UDP to {at} pass, and back?"
        known = (facts.twins, facts.ways, facts.renewal_problem, unheard)
        return LinkState.DOWN, "; ".join(filter(None, (silent, *known)))
    if facts.doubtful:
        return LinkState.DEGRADED, UNCERTAIN
    if not facts.in_force:
        waits = "waits for WireGuard's first handshake"
        problem = facts.renewal_problem if unheard else ""
        known = (facts.twins, facts.ways, problem, unheard)
        return LinkState.INSTALLED, "; ".join(filter(None, (waits, *known)))
    troubles = (
        facts.twins,
        facts.ways,
        facts.flow.value,
        facts.external,
        facts.renewal_problem,
        facts.given_up,
        unheard,
    )
    if any(troubles):
        lost = facts.flow is Flow.BOTH_LOST
        state = LinkState.DOWN if lost else LinkState.DEGRADED
        return state, "; ".join(filter(None, troubles))
    if facts.second_identity:
        return LinkState.DEGRADED, "the peer used its second identity"
    return LinkState.ACTIVE, "adopted after a restart" if facts.adopted else ""


def _without_key(facts: Facts) -> tuple[LinkState, str]:
    if facts.closed_reason:
        return LinkState.CLOSED, "; ".join(filter(None, (facts.closed_reason, facts.given_up)))
    if facts.exchanging:
        so_far = f"{facts.waiting_reason} so far" if facts.waiting_reason else "first exchange"
        # Why nothing could be sent comes first: no answer is what follows from it
        return LinkState.EXCHANGING, "; ".join(filter(None, (facts.endpoint, so_far)))
    if facts.answering:
        return LinkState.EXCHANGING, "the peer's exchange"
    if not facts.has_endpoint:
        waits = "waits for the peer, which has no endpoint here"
        return LinkState.DOWN, "; ".join(filter(None, (waits, facts.given_up)))
    return LinkState.DOWN, facts.waiting_reason or "no exchange yet"

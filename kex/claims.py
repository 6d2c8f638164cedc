"""Whose a WireGuard key is, where two peers announce the same one (docs/protocol.md §8).

What a peer announces proves nothing: it may be another peer's key. So a claim is worth what stands
behind it:

    pinned    the configuration says that the key is this peer's
    proved    a WireGuard handshake was made with it, under a PSK of this link
    on trial  taken over from another link, and has a little time to be proved
    announced

A pinned key belongs to links that pin it, on whatever interface. Otherwise a key matters on one
interface alone: there it goes to who announces it last, unless another link has proved it or has
it on trial.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from kex import timing
from kex.events import StartReason, WireGuardKeyContested, WireGuardKeyYielded
from kex.exchange import Phase
from kex.link_state import LinkState
from kex.node import Node
from kex.payload import Announcement
from kex.responder import Stage

TRIAL_SECONDS: Final = 15.0
"""WireGuard begins a handshake three times in it."""
TRIAL_SPACING: Final = 600.0
"""Between two trials of a link: peers that take a key from one another by turns must not keep its
owner out."""


@dataclass(frozen=True, slots=True)
class Claims:
    """All links of a node, and for each WireGuard key those that hold, install or pin it."""

    links: Mapping[str, LinkState]
    index: Mapping[bytes, frozenset[str]]

    def others(self, link: LinkState, key: bytes) -> list[LinkState]:
        """The other links that have to do with a key."""
        names = self.index.get(key, frozenset()) - {link.name}
        return [self.links[name] for name in sorted(names)]

    def is_busy(self, link: LinkState, peer: Announcement) -> bool:
        """Whether the key is being installed for another link of the interface just now."""
        key = peer.wireguard_key
        return any(
            installing(other) == key and _same_interface(link, other)
            for other in self.others(link, key)
        )

    def objection(self, link: LinkState, node: Node, peer: Announcement, now: float) -> str:
        """Why a link's peer cannot have the WireGuard key that it announces; empty if it can. What
        another link has to do with it is told as an event."""
        key, pin = peer.wireguard_key, link.config.peer_wireguard_key
        if any(one.config.wireguard_key == key for one in self.links.values()):
            return "the WireGuard key is this end's own"
        if pin is not None and pin != key:
            return "the WireGuard key is not the one that is pinned for this link"
        for other in self.others(link, key):
            problem = _stands_against(link, other, key, now)
            if problem:
                node.emit(WireGuardKeyContested(link.name, other.name, key, problem))
                return problem
        return ""

    def take(self, link: LinkState, node: Node, now: float) -> None:
        """The key that is being installed for a link, and the one that is pinned for it, are no
        other's any more."""
        took = False
        for key in {installing(link), link.config.peer_wireguard_key} - {None}:
            for other in self.others(link, key or b""):
                if other.peer_wireguard_key == key and _yields(link, other, key):
                    _yield_key(other, node, link.name, now)
                    took = took or key == installing(link)
        if took and (link.trial_at is None or now >= link.trial_at + TRIAL_SPACING):
            link.trial_at, link.on_trial = now, installing(link)

    def give_back(self, link: LinkState, node: Node, now: float) -> None:
        """A link that holds a key which another one pins gives it up."""
        key = link.peer_wireguard_key
        if key is None or key == link.config.peer_wireguard_key:
            return
        for other in self.others(link, key):
            if other.config.peer_wireguard_key == key:
                _yield_key(link, node, other.name, now)
                return


def installing(link: LinkState) -> bytes | None:
    """The peer's WireGuard key in an exchange whose PSK is being installed."""
    responding, own = link.responding, link.exchange
    if responding is not None and responding.stage is Stage.INSTALLING:
        return responding.peer.wireguard_key
    if own is not None and own.phase is Phase.INSTALLING and own.established is not None:
        return own.established.peer.wireguard_key
    return None


def prove(link: LinkState, key: bytes) -> None:
    """A WireGuard handshake was made with the key, under a PSK of this link."""
    if key == link.peer_wireguard_key:
        link.proved = key
        if key == link.on_trial:  # with a key of its own it proves nothing of the one on trial
            link.trial_at = link.on_trial = None


def _same_interface(one: LinkState, other: LinkState) -> bool:
    return one.config.wireguard_key == other.config.wireguard_key


def _stands_against(link: LinkState, other: LinkState, key: bytes, now: float) -> str:
    """Why another link keeps a key; empty where it does not."""
    ours, theirs = (one.config.peer_wireguard_key == key for one in (link, other))
    if theirs and not ours:
        return "the WireGuard key is pinned for another link"
    if other.peer_wireguard_key != key or not _same_interface(link, other):
        return ""
    if theirs or (not ours and other.proved == key):
        return "the WireGuard key is in use on another link"
    on_trial = other.on_trial == key and other.trial_at is not None
    if not ours and on_trial and now < (other.trial_at or 0.0) + TRIAL_SECONDS:
        return "another link has just announced the WireGuard key, and has 15 s to prove it"
    return ""


def _yields(link: LinkState, other: LinkState, key: bytes | None) -> bool:
    if other.config.peer_wireguard_key == key:
        return False
    return link.config.peer_wireguard_key == key or _same_interface(link, other)


def _yield_key(link: LinkState, node: Node, to: str, now: float) -> None:
    """A link loses its peer's WireGuard key, and with it the key that is in force."""
    key = link.peer_wireguard_key
    link.peer = link.adopted_wireguard_key = link.proved = link.on_trial = None
    link.key = link.renew_at = None
    link.owe(StartReason.FIRST_KEY, now + timing.RETRY_FIRST)
    node.emit(WireGuardKeyYielded(link.name, to, key or b""))

"""Who goes first when exchanges cross, and who goes on until one is complete (docs/protocol.md §6).

Each rule is one function here, and is decided nowhere else. tests/kex/test_exploration.py walks
through all interleavings of two ends under these rules, and through those of rules that look as
good and are not: change nothing here without it.

One thing at a time: who accepts an exchange of the peer's drops its own, and while a key is being
installed nothing else that would install one is accepted. The peer repeats it, and a repetition
costs less than two keys in the wrong order.
"""

from __future__ import annotations

from kex.errors import PacketRejected
from kex.events import FailureCode
from kex.exchange import Exchange, Phase
from kex.identity import Fingerprint
from kex.link_state import LinkState
from kex.responder import OpenedInitConf


def check_acceptable_untrusted(link: LinkState, opened: OpenedInitConf) -> None:
    """RC1: whether the peer's InitConf is taken now. Raises PacketRejected; it may come again."""
    if opened.biscuit.number <= link.last_accepted:
        raise PacketRejected("old biscuit")
    installing = link.exchange is not None and link.exchange.phase is Phase.INSTALLING
    if link.responding is not None or installing:
        raise PacketRejected("busy")
    if ignores(link, opened):
        raise PacketRejected("own exchange goes first")


def ignores(link: LinkState, opened: OpenedInitConf) -> bool:
    """The smaller end ignores the peer's InitConf from sending its own to the answer.

    It is the one whose is the smallest fingerprint in the two crossing exchanges: both see the
    same ones.
    """
    own = link.exchange
    if own is None or own.phase is not Phase.CONF:
        return False
    return min(own.local, opened.local) < min(own.remote, opened.biscuit.initiator)


def is_settled_by_answering(link: LinkState, opened: OpenedInitConf) -> bool:
    """Whether this end owes no exchange of its own once it has answered the peer's.

    After a start nobody knows what was left unanswered before it. The larger end need not care:
    the smaller one goes on until its own exchange is complete, and that kills whatever is still
    on its way from here. See docs/decisions/0003.
    """
    if link.in_doubt:
        return False
    return link.has_completed or is_first(opened.biscuit.initiator, opened.local)


def after_co1(link: LinkState) -> None:
    """CO1: every biscuit handed out before a completed exchange is dead, and nothing is owed."""
    link.last_accepted = max(link.last_accepted, link.highest_issued)
    link.in_doubt = False
    link.has_completed = True


def after_failure(link: LinkState, ended: Exchange, code: FailureCode) -> None:
    """An exchange of ours is over without a key.

    Where the peer may have installed it or may still do so, and this end is the one that goes
    first in it, only a completed exchange makes good for it: the peer relies on that. A Reject is
    final, so it leaves nothing open.
    """
    in_doubt = ended.phase in (Phase.CONF, Phase.INSTALLING) and code is not FailureCode.REFUSED
    if in_doubt and is_first(ended.local, ended.remote):
        link.in_doubt = True


def is_first(initiator: Fingerprint, responder: Fingerprint) -> bool:
    """Whether an exchange was begun by the smaller end, as its own pair of identities has it."""
    return initiator < responder

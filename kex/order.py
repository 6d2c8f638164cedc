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
    """One of two ends whose InitConf cross ignores the peer's until its own is answered.

    It is the one whose is the smallest fingerprint in the two crossing exchanges. Both see the
    same four, whatever their lists are, so exactly one of them ignores.
    """
    own = link.exchange
    if own is None or own.phase is not Phase.CONF:
        return False
    return min(own.local, opened.local) < min(own.remote, opened.biscuit.initiator)


def yields(link: LinkState) -> bool:
    """Whether this end may leave it to the peer to make good for an exchange without an outcome.

    Judged once for the link, from all pairs of identities in this end's own configuration, not
    from the pair of one exchange: the two ends may begin theirs under different pairs. An exchange
    needs a pair that both ends have, and in it one end is the smaller, so that both never yield.
    """
    return link.config.yields


def is_settled_by_answering(link: LinkState) -> bool:
    """Whether this end owes no exchange of its own once it has answered the peer's.

    After a start nobody knows what was left unanswered before it. An end that yields need not
    care: the peer then does not, and goes on until its own exchange is complete, and that kills
    whatever is still on its way from here. See docs/decisions/0020.
    """
    if link.in_doubt:
        return False
    return link.has_completed or yields(link)


def after_co1(link: LinkState) -> None:
    """CO1: every biscuit handed out before a completed exchange is dead, and nothing is owed."""
    link.last_accepted = max(link.last_accepted, link.highest_issued)
    link.in_doubt = False
    link.has_completed = True


def after_failure(link: LinkState, ended: Exchange, code: FailureCode) -> None:
    """An exchange of ours is over without a key.

    Where the peer may have installed it or may still do so, only a completed exchange makes good
    for it. The peer relies on that if it yields, and then this end does not. A Reject is final,
    so it leaves nothing open.
    """
    in_doubt = ended.phase in (Phase.CONF, Phase.INSTALLING) and code is not FailureCode.REFUSED
    if in_doubt and not yields(link):
        link.in_doubt = True


def after_change(link: LinkState, highest_issued: int) -> None:
    """The pairs of identities of the link are others, or another one is used for exchanges of ours.

    What was left open while this end yielded is noted nowhere, and the peer may have relied on an
    end that now yields: only a completed exchange makes good for both. It has to kill all biscuits
    up to `highest_issued`, also those handed out for another link that had the pair before.
    """
    link.in_doubt = True
    link.highest_issued = highest_issued

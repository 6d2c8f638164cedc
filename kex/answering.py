"""An exchange of the peer's on a link: accepted, worked out, its outcome kept and repeated.

The steps themselves are in kex.responder; here is what they change in the link, and when.
"""

from __future__ import annotations

from dataclasses import replace

from kex import initiating, order, responder, timing
from kex.address import Address
from kex.claims import Claims
from kex.errors import KexError, PacketRejected
from kex.events import ExternalKeysWanted, KeyEstablished, RejectCode, RejectSent, Role, StartReason
from kex.external import ExternalKey, ExternalMode
from kex.external import check as check_external_keys
from kex.identity import Fingerprint
from kex.link_state import KeptAnswer, LinkState
from kex.node import Node
from kex.payload import Refusal, decode_initiator_untrusted
from kex.responder import ConfirmationMismatch, OpenedInitConf, Responding, Stage
from kex.wire import Fragment


def init_conf_untrusted(
    link: LinkState,
    node: Node,
    opened: OpenedInitConf,
    *,
    source: Address,
    digest: bytes,
    claims: Claims,
    now: float,
) -> None:
    """RC1: an InitConf that is authenticated. PacketRejected before its number is used up."""
    order.check_acceptable_untrusted(link, opened)
    if not link.init_confs.holds(1, link.config.init_confs, now):
        raise PacketRejected("rate of the link")
    malformed = ""
    try:
        p_i = decode_initiator_untrusted(opened.p_i)
    except PacketRejected as error:
        malformed = error.reason
    if not malformed and claims.is_busy(link, p_i.announcement):
        raise PacketRejected("WireGuard key busy")  # comes again, and by then it is known whose
    # ---- from here on the number is used up, and the outcome is final
    link.init_confs = link.init_confs.less(1, link.config.init_confs, now)
    link.last_accepted = opened.biscuit.number
    link.kept = KeptAnswer(digest, None, (opened.local, opened.biscuit.initiator))
    initiating.give_way(link, node, now)
    _begun_again(link, now)
    if malformed:
        _refuse_opened(link, node, opened, source, RejectCode.MALFORMED, malformed)
        return
    present = sum(entry.present for entry in p_i.external)
    proved = link.has_proved(opened.biscuit.number, source)
    link.forget_answered(opened.biscuit.number)
    link.responding = Responding(opened, source, proved, Stage.KEYS, p_i.external, p_i.announcement)
    conflict = claims.objection(link, node, p_i.announcement, now)
    objection = _policy_objection(link, present, p_i.announcement.mode)
    if conflict:
        refuse(link, node, RejectCode.WIREGUARD_KEY, conflict)
    elif objection:
        refuse(link, node, RejectCode.POLICY, objection)
    elif present:
        link.responder_deadline = now + timing.RESPONDER_KEYS_SECONDS
        node.emit(
            ExternalKeysWanted(
                link.name,
                opened.exchange_id,
                Role.RESPONDER,
                link.responder_deadline,
                p_i.external,
                p_i.announcement.mode,
            )
        )
    else:
        keys = tuple(ExternalKey(entry.reference, None) for entry in p_i.external)
        _complete(link, node, keys)


def _begun_again(link: LinkState, now: float) -> None:
    """The peer begins once more. Soon after an answer whose key no WireGuard handshake has taken
    up, it has not got that answer, or has not liked it."""
    soon = link.answered_at is not None and now < link.answered_at + timing.BEGINS_AGAIN_SECONDS
    link.unheard = link.unheard + 1 if soon else 0
    link.answered_at = None


def _policy_objection(link: LinkState, present: int, peers: ExternalMode) -> str:
    """Why the policy of this end is not met, with the policies of both; empty if it is."""
    mode = link.config.external_mode
    if mode is ExternalMode.REQUIRE and present < link.config.external_at_least:
        needed = f"{link.config.external_at_least} needed, {present} given"
        return f"{both_modes(mode, peers)}: {needed}"
    if mode is ExternalMode.OFF and present:
        return f"{both_modes(mode, peers)}: {present} given"
    return ""


def both_modes(responder_mode: ExternalMode, initiator_mode: ExternalMode) -> str:
    """The policies of both ends, in words that mean the same at either."""
    here, there = responder_mode.name.lower(), initiator_mode.name.lower()
    return f"external keys: {here} at the responder, {there} at the initiator"


# ---- external keys


def wants_keys(link: LinkState, token: bytes) -> bool:
    """Whether the exchange with this token waits for external keys."""
    responding = link.responding
    return (
        responding is not None
        and responding.stage is Stage.KEYS
        and responding.exchange_id == token
    )


def check_claim(link: LinkState, node: Node, claims: Claims, now: float) -> None:
    """Refuse the exchange where its WireGuard key has become another link's while the external
    keys were fetched."""
    if link.responding is None:
        return
    peer = link.responding.peer
    busy = "the WireGuard key is in use on another link" if claims.is_busy(link, peer) else ""
    conflict = claims.objection(link, node, peer, now) or busy
    if conflict:
        refuse(link, node, RejectCode.WIREGUARD_KEY, conflict)


def external_keys(
    link: LinkState, node: Node, keys: tuple[ExternalKey, ...], holders: str = ""
) -> None:
    """The keys that were asked for, in the order of the listing, with None for what is not
    present. Raises ValueError for others.

    A key that is not as long as the peer says is one on which the key managers disagree.
    `holders` names them.
    """
    if link.responding is None:
        return
    wanted = tuple(entry.reference for entry in link.responding.listing)
    if tuple(key.reference for key in keys) != wanted:
        raise ValueError("external keys: not those that were asked for, in their order")
    if any(
        key.present is not entry.present
        for key, entry in zip(keys, link.responding.listing, strict=True)
    ):
        raise ValueError("external keys: a key is missing, or one was not asked for")
    try:
        check_external_keys(keys)
    except ValueError as error:
        refuse(link, node, RejectCode.KEY_MISMATCH, _named(str(error), holders))
        return
    present = sum(key.present for key in keys)
    objection = _policy_objection(link, present, link.responding.peer.mode)
    if objection:  # the policy has become stricter meanwhile
        refuse(link, node, RejectCode.POLICY, objection)
        return
    _complete(link, node, keys, holders)


def _named(what: str, holders: str) -> str:
    return f"{what}: {holders}" if holders else what


# ---- the outcome


def _complete(
    link: LinkState, node: Node, external: tuple[ExternalKey, ...], holders: str = ""
) -> None:
    """RC1 end, RC2: hand the key out; RespConf waits until it is installed."""
    responding = link.responding
    if responding is None:
        raise KexError("nothing to complete")
    suite = node.suites[responding.opened.local.suite]
    link.responder_deadline = None
    announcement = link.announcement()
    try:
        completed = responder.complete(
            suite, responding, external, announcement, chunk_length=node.chunk_length
        )
    except ConfirmationMismatch:
        mixed = any(key.present for key in external)
        code = RejectCode.KEY_MISMATCH if mixed else RejectCode.MALFORMED
        refuse(link, node, code, _named("the two ends hold different keys", holders))
        return
    if completed.key is None:
        raise KexError("RC2 gave no key")
    link.responding, link.announced = completed, announcement
    node.emit(
        KeyEstablished(
            link=link.name,
            token=completed.exchange_id,
            role=Role.RESPONDER,
            psk=completed.key.psk,
            key_id=completed.key.key_id,
            suite=suite.number,
            peer_identity=completed.opened.biscuit.initiator,
            local_identity=completed.opened.local,
            peer=completed.peer,
            address=_whereabouts(link, completed),
            external=completed.listing,
        )
    )


def _whereabouts(link: LinkState, responding: Responding) -> Address | None:
    """Where the peer is: where its InitConf came from only if it has proved to be there."""
    if responding.proved or responding.source in link.known_addresses:
        return responding.source
    return next(reversed(link.known_addresses), None)


def is_installing(link: LinkState, token: bytes) -> bool:
    """Whether the key of the exchange with this token is being installed."""
    responding = link.responding
    return (
        responding is not None
        and responding.stage is Stage.INSTALLING
        and responding.exchange_id == token
    )


def installed(link: LinkState, node: Node, now: float) -> None:
    """The key that was handed out is installed: RespConf goes out."""
    responding = link.responding
    if responding is None or responding.key is None:
        raise KexError("INSTALLING without a key")
    if order.is_settled_by_answering(link):
        link.retry_at = None
    else:
        link.owe(StartReason.UNANSWERED, now)
    _settle(link, node, responding.answer, responding.source)
    link.learn(responding.source, proved=responding.proved)
    link.answered_at = now
    link.saw_peer(responding.peer, responding.source.host, now)
    link.installed(node, responding.key.key_id, responding.peer, Role.RESPONDER, now)


def refuse(
    link: LinkState, node: Node, code: RejectCode, detail: str, failed: tuple[int, ...] = ()
) -> None:
    """The outcome is Reject."""
    responding = link.responding
    if responding is not None:
        _refuse_opened(link, node, responding.opened, responding.source, code, detail, failed)


def _refuse_opened(
    link: LinkState,
    node: Node,
    opened: OpenedInitConf,
    source: Address,
    code: RejectCode,
    detail: str,
    failed: tuple[int, ...] = (),
) -> None:
    fragments = responder.refuse(
        node.suites[opened.local.suite],
        opened,
        Refusal(int(code), detail, failed),
        chunk_length=node.chunk_length,
    )
    node.emit(RejectSent(link.name, opened.exchange_id, code, detail))
    _settle(link, node, fragments, source)


def _settle(link: LinkState, node: Node, fragments: tuple[Fragment, ...], source: Address) -> None:
    """The outcome is final: keep its bytes, and send them."""
    if link.kept is not None:
        link.kept = replace(link.kept, fragments=fragments)
    node.send(fragments, source)
    link.responding = None
    link.responder_deadline = None


def forget(link: LinkState, pair: tuple[Fingerprint, Fingerprint]) -> None:
    """The link has these identities (ours, theirs) no more: what it keeps of an exchange under
    them is no answer of its own. One that waits for external keys is dropped; a key that is on its
    way to the interface gets there, and is for the daemon to end."""
    if link.kept is not None and link.kept.pair == pair:
        link.kept = None
    responding = link.responding
    if responding is None or responding.stage is not Stage.KEYS:
        return
    if (responding.opened.local, responding.opened.biscuit.initiator) == pair:
        link.responding = link.responder_deadline = None


def repeat(link: LinkState, node: Node, source: Address) -> None:
    """RC1: the last InitConf again: the kept answer, or nothing while it is worked out."""
    if link.kept is not None and link.kept.fragments is not None:
        node.send(link.kept.fragments, source)

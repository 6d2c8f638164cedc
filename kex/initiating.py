"""An exchange of this end's on a link: begun, repeated, answered, given up.

The steps themselves are in kex.exchange; here is what they change in the link, and when.
"""

from __future__ import annotations

from dataclasses import replace

from kex import exchange as steps
from kex import order, timing, wire
from kex.claims import Claims
from kex.errors import KexError, MalformedAnswer, PacketRejected
from kex.events import (
    ExchangeFailed,
    ExchangeStarted,
    ExternalKeysWanted,
    FailureCode,
    KeyEstablished,
    RejectCode,
    Role,
    StartReason,
)
from kex.exchange import Exchange, Input, Phase
from kex.external import ExternalKey, ExternalKeyReference, ExternalMode
from kex.link_state import LinkState, NotPossible
from kex.node import Node
from kex.payload import Refusal, listing


def start(link: LinkState, node: Node, reason: StartReason, now: float) -> None:
    """Begin an exchange, unless one is under way in either direction.

    Raises NotPossible where no address of the peer is known.
    """
    if link.exchange is not None or link.responding is not None:
        return
    if link.address is None:
        raise NotPossible(
            f"{link.name} has no address here: it comes to us, start the exchange there"
        )
    remote = link.config.remotes[0]
    local = link.config.local_for(remote)
    if local is None:
        raise NotPossible(f"no identity of suite {remote.suite} for {link.name}")
    begun = Exchange(
        exchange_id=node.random(wire.EXCHANGE_ID_LENGTH),
        local=local,
        remote=remote,
        address=link.address,
        reason=reason,
        attempt=link.failures + 1,
        # A policy that has become stricter since the peer refused is obeyed
        without_external=link.skip_external and link.config.external_mode is ExternalMode.PREFER,
    )
    public_key = node.public_keys.get(remote)
    if public_key is None:
        length = node.suites[remote.suite].public_key_length
        begun = steps.query_identity(begun, length=length, chunk_length=node.chunk_length)
    else:
        begun = _begun(node, begun, public_key)
    link.skip_external = False
    link.retry_at = link.renew_at = link.silent_until = None
    node.emit(ExchangeStarted(link.name, begun.exchange_id, reason, begun.address, begun.attempt))
    _await_answer(link, node, begun, now)


def _begun(node: Node, exchange: Exchange, public_key: bytes) -> Exchange:
    return steps.begin(
        node.suites[exchange.remote.suite],
        node.identities[exchange.local],
        exchange,
        public_key,
        chunk_length=node.chunk_length,
    )


# ---- sending, and sending again


def _await_answer(link: LinkState, node: Node, exchange: Exchange, now: float) -> None:
    """Send what the exchange has to send, and wait for the answer."""
    link.exchange = exchange
    link.exchange_deadline = now + timing.GIVE_UP_SECONDS
    link.retransmit_interval = timing.RETRANSMIT_FIRST
    link.cookie_taken = False
    _transmit(link, node, now)
    _arm_retransmission(link, node, now)


def retransmit(link: LinkState, node: Node, now: float) -> None:
    """The same bytes again."""
    if link.exchange is None or not link.exchange.sent:
        link.retransmit_at = None
        return
    link.cookie_taken = False
    _transmit(link, node, now)
    link.retransmit_interval = min(2 * link.retransmit_interval, timing.RETRANSMIT_LAST)
    _arm_retransmission(link, node, now)


def _arm_retransmission(link: LinkState, node: Node, now: float) -> None:
    spread = timing.jitter(node.random, timing.RETRANSMIT_JITTER)
    link.retransmit_at = now + link.retransmit_interval * (1 + spread)


def _transmit(link: LinkState, node: Node, now: float) -> None:
    if link.exchange is not None and _may_send(link, link.exchange, now):
        cookie = link.cookie if now < link.cookie_until else None
        node.send(link.exchange.sent, link.exchange.address, cookie)


def _may_send(link: LinkState, exchange: Exchange, now: float) -> bool:
    """Whether what waits for an answer may be sent (again): to an address that the peer has not
    proved to be at, which may be anybody's, only so much goes."""
    if exchange.address in link.known_addresses:
        return True
    size = sum(wire.datagram_length(len(fragment.chunk)) for fragment in exchange.sent)
    if not link.unproved_bytes.holds(size, timing.UNPROVED_BYTES, now):
        return False
    link.unproved_bytes = link.unproved_bytes.less(size, timing.UNPROVED_BYTES, now)
    return True


def cookie_received(link: LinkState, node: Node, cookie: bytes, until: float, now: float) -> None:
    """Keep a cookie, and repeat at once what it was asked for.

    Raises PacketRejected for one that is known already, or not the first since the last sending
    by the clock: a cookie is short and what is repeated is long, so nobody may ask for more.
    """
    known = cookie == link.cookie and now < link.cookie_until
    if known or link.cookie_taken:
        raise PacketRejected("cookie taken")
    link.cookie, link.cookie_until, link.cookie_taken = cookie, until, True
    _transmit(link, node, now)


# ---- answers of the peer


def identity_learnt(link: LinkState, node: Node, public_key: bytes, now: float) -> None:
    """The peer's public key came, and fits its fingerprint: write InitHello."""
    if link.exchange is None or link.exchange.phase is not Phase.IDENTITY:
        raise PacketRejected("phase")
    link.unanswered = 0
    _await_answer(link, node, _begun(node, link.exchange, public_key), now)


def identity_unsound(link: LinkState, node: Node, why: str, now: float) -> None:
    """The public key that came has the pinned fingerprint, and no exchange can be had with it."""
    detail = f"the peer's public key is not sound ({why})"
    _fail(link, node, FailureCode.BAD_ANSWER, detail, now)


def resp_hello_untrusted(link: LinkState, node: Node, body: bytes, now: float) -> None:
    """IC0, IC1: RespHello is used only while InitHello waits for one."""
    if link.exchange is None or link.exchange.phase is not Phase.HELLO:
        raise PacketRejected("phase")
    suite = node.suites[link.exchange.remote.suite]
    after = steps.read_resp_hello_untrusted(suite, link.exchange, body)
    link.answered_from(after.address)
    if link.config.external_mode is ExternalMode.OFF or after.without_external:
        _confirm(link, node, after, (), now)
        return
    link.exchange = after
    link.retransmit_at = None
    link.exchange_deadline = now + timing.INITIATOR_KEYS_SECONDS
    node.emit(
        ExternalKeysWanted(
            link.name,
            after.exchange_id,
            Role.INITIATOR,
            link.exchange_deadline,
            (),
            ends_fallback=after.ends_fallback,
        )
    )


def resp_conf_untrusted(
    link: LinkState, node: Node, body: bytes, claims: Claims, now: float
) -> None:
    """CO1."""
    exchange = link.exchange
    if exchange is None or exchange.phase is not Phase.CONF:
        raise PacketRejected("phase")
    suite = node.suites[exchange.remote.suite]
    try:
        answer, after = steps.read_resp_conf_untrusted(suite, exchange, body)
    except MalformedAnswer as error:
        _cannot_read(link, node, "RespConf", error, now)
        return
    present = sum(external.present for external in exchange.external)
    if claims.is_busy(link, answer.announcement):
        raise PacketRejected("WireGuard key busy")  # the peer says it again
    problem = claims.objection(link, node, answer.announcement, now)
    if answer.suite != suite.number or answer.mixed != present:
        problem = "the peer mixed other external keys or used another suite"
    if problem:
        # The peer has installed: only a completed exchange makes both ends equal again
        _fail(link, node, FailureCode.BAD_ANSWER, problem, now)
        return
    order.after_co1(link)
    link.exchange = after
    link.retransmit_at = link.exchange_deadline = None
    _hand_out(link, node)


def reject_untrusted(link: LinkState, node: Node, body: bytes, now: float) -> None:
    """The peer refused: its outcome is final, and it has not installed this key."""
    exchange = link.exchange
    if exchange is None or exchange.phase is not Phase.CONF:
        raise PacketRejected("phase")
    suite = node.suites[exchange.remote.suite]
    try:
        refusal = steps.read_reject_untrusted(suite, exchange, body)
    except MalformedAnswer as error:
        _cannot_read(link, node, "Reject", error, now)
        return
    _fail(link, node, FailureCode.REFUSED, refusal.detail, now, refusal=refusal)


def _cannot_read(
    link: LinkState, node: Node, what: str, error: MalformedAnswer, now: float
) -> None:
    """A genuine answer that is malformed. Whatever it is, the responder may have installed."""
    detail = f"the peer's {what} cannot be read ({error.reason})"
    _fail(link, node, FailureCode.BAD_ANSWER, detail, now)


# ---- external keys


def wants_keys(link: LinkState, token: bytes) -> bool:
    """Whether the exchange with this token waits for external keys."""
    own = link.exchange
    return own is not None and own.phase is Phase.KEYS and own.exchange_id == token


def external_keys(
    link: LinkState,
    node: Node,
    keys: tuple[ExternalKey, ...],
    now: float,
    *,
    ahead: frozenset[ExternalKeyReference] = frozenset(),
) -> None:
    """IC1: the keys that the sources gave. Raises ValueError for keys that cannot be mixed."""
    enough = sum(key.present for key in keys) >= link.config.external_at_least
    if link.exchange is None:
        return
    strict = link.config.external_mode is ExternalMode.REQUIRE or link.exchange.ends_fallback
    if strict and not enough:
        no_external_keys(link, node, "too few external keys", now)
    else:
        _confirm(link, node, replace(link.exchange, ahead=ahead), keys, now)


def no_external_keys(
    link: LinkState,
    node: Node,
    detail: str,
    now: float,
    *,
    code: RejectCode = RejectCode.KEY_MANAGER,
) -> None:
    """`prefer` goes on without where none can be had, and only there; `require` does not, nor does
    an exchange that is to end a fallback."""
    if link.exchange is None:
        return
    prefers = link.config.external_mode is ExternalMode.PREFER and not link.exchange.ends_fallback
    if prefers and code is RejectCode.KEY_MANAGER:
        _confirm(link, node, link.exchange, (), now)
    else:
        _fail(link, node, FailureCode.EXTERNAL_KEYS, detail, now)


def _confirm(
    link: LinkState, node: Node, exchange: Exchange, external: tuple[ExternalKey, ...], now: float
) -> None:
    announcement = link.announcement()
    confirmed = steps.confirm(
        node.suites[exchange.remote.suite],
        exchange,
        announcement,
        external,
        chunk_length=node.chunk_length,
    )
    link.announced = announcement
    _await_answer(link, node, confirmed, now)


# ---- installing


def _hand_out(link: LinkState, node: Node) -> None:
    """Hand the key of an own exchange out to be installed."""
    exchange = link.exchange
    if exchange is None or exchange.established is None:
        raise KexError("no key to hand out")
    node.emit(
        KeyEstablished(
            link=link.name,
            token=exchange.exchange_id,
            role=Role.INITIATOR,
            psk=exchange.established.key.psk,
            key_id=exchange.established.key.key_id,
            suite=exchange.remote.suite,
            peer_identity=exchange.remote,
            local_identity=exchange.local,
            peer=exchange.established.peer,
            address=exchange.address,
            external=listing(exchange.external),
        )
    )


def is_installing(link: LinkState, token: bytes) -> bool:
    """Whether the key of the exchange with this token is being installed."""
    own = link.exchange
    return own is not None and own.phase is Phase.INSTALLING and own.exchange_id == token


def installed(link: LinkState, node: Node, now: float) -> None:
    """The key that was handed out is installed: the exchange is complete."""
    own = link.exchange
    if own is None or own.established is None:
        raise KexError("INSTALLING without a key")
    end(link, Input.INSTALLED)
    link.learn(own.address, proved=True)
    link.answered_at, link.unheard = None, 0
    if not link.in_doubt:  # else the link's identities have changed since CO1: the debt stays
        link.retry_at = None
    established = own.established
    link.saw_peer(established.peer, None, now)
    link.installed(node, established.key.key_id, established.peer, Role.INITIATOR, now)


def install_failed(link: LinkState, node: Node, detail: str, now: float) -> None:
    """CO1: tried once more, then it counts as an InitConf without an answer."""
    own = link.exchange
    if own is None:
        return
    if own.install_failures == 0:
        link.exchange = replace(own, install_failures=1)
        _hand_out(link, node)
    else:
        _fail(link, node, FailureCode.INSTALL_FAILED, detail, now)


# ---- the end of an exchange without a key


def time_out(link: LinkState, node: Node, now: float) -> None:
    """What the exchange waits for has not come."""
    if link.exchange is None:
        return
    if link.exchange.phase is Phase.KEYS:
        no_external_keys(link, node, "the key sources gave no answer in time", now)
    elif link.exchange.phase is Phase.CONF:
        _fail(link, node, FailureCode.INIT_CONF_UNANSWERED, "no answer to InitConf", now)
    else:
        _fail(link, node, FailureCode.NO_ANSWER, "no answer", now)


def give_way(link: LinkState, node: Node, now: float) -> None:
    """Drop an exchange, if there is one, for the peer's that was accepted.

    What it was begun for is owed again until the peer's exchange gives a key.
    """
    own = link.exchange
    if own is None:
        return
    end(link, Input.CROSSED)
    order.after_failure(link, own, FailureCode.CROSSED)
    link.owe(_owed_for(own), now + timing.RETRY_FIRST)
    node.emit(
        ExchangeFailed(link.name, own.exchange_id, FailureCode.CROSSED, "the peer's goes first")
    )


def abandon(link: LinkState, node: Node, now: float) -> None:
    """What the exchange has said of this end is no longer true: a new one begins."""
    own = link.exchange
    if own is None:
        return
    end(link, Input.CROSSED)
    order.after_failure(link, own, FailureCode.ABANDONED)
    node.emit(
        ExchangeFailed(
            link.name, own.exchange_id, FailureCode.ABANDONED, "the configuration changed"
        )
    )
    link.owe(_owed_for(own), now)


def _owed_for(own: Exchange) -> StartReason:
    """Why another exchange is owed in place of one that had to stop: it has to come to its end,
    with external keys or, in `prefer`, without."""
    return StartReason.REQUESTED if own.ends_fallback else own.reason


def _fail(
    link: LinkState,
    node: Node,
    code: FailureCode,
    detail: str,
    now: float,
    *,
    refusal: Refusal | None = None,
) -> None:
    """An exchange is over without a key: what is owed now."""
    exchange = link.exchange
    if exchange is None:
        return
    end(link, _ENDED_BY[code])
    reject = None if refusal is None else refusal.code
    failed = _named_failed(exchange, refusal)
    node.emit(ExchangeFailed(link.name, exchange.exchange_id, code, detail, reject, failed))
    order.after_failure(link, exchange, code)
    link.unanswered = link.unanswered + 1 if code is FailureCode.NO_ANSWER else 0
    afresh = not link.asked_afresh and reject == RejectCode.KEY_MANAGER
    link.asked_afresh = afresh and _was_ahead(exchange, failed)
    if exchange.ends_fallback and code in _LEAVES_NOTHING_OPEN and not link.in_doubt:
        _keep_fallback(link, node, now)
        return
    link.failures += 1
    link.renew_at = None
    if link.asked_afresh:
        link.owe(StartReason.REFUSED, now)
        return
    if code in (FailureCode.NO_ANSWER, FailureCode.INIT_CONF_UNANSWERED):
        link.unanswered_from(exchange.address)
        silence = timing.silence(link.unanswered, has_key=link.key is not None)
        link.silent_until = now + silence if silence else None
        link.owe(StartReason.UNANSWERED, now + silence)
        return
    link.refusals += 1
    pause = timing.retry_pause(link.refusals)
    if reject in _ALLOWS_FALLBACK and _may_fall_back(link, exchange):
        # Where the peer names some of several keys, the others are tried once before none is
        others_are_left = 0 < len(failed) < sum(key.present for key in exchange.external)
        link.skip_external = not others_are_left or link.refusals > 1
        pause = 0.0
    link.owe(StartReason.REFUSED, now + pause)


def _keep_fallback(link: LinkState, node: Node, now: float) -> None:
    """An exchange that was to end a fallback gave no key: the link goes on with the one that it
    has, which is renewed when that is due. Whoever began the exchange begins the next such one."""
    if link.key is None:
        link.owe(StartReason.FIRST_KEY, now)  # its lifetime ended meanwhile
        return
    link.schedule_renewal(node, now)
    if link.asked_afresh:
        link.owe(StartReason.END_FALLBACK, now)


def _was_ahead(exchange: Exchange, failed: tuple[ExternalKeyReference, ...]) -> bool:
    """Whether a key that the peer could not have is one that was had before the exchange began; it
    need not say which."""
    return bool(exchange.ahead & set(failed)) if failed else bool(exchange.ahead)


def _named_failed(exchange: Exchange, refusal: Refusal | None) -> tuple[ExternalKeyReference, ...]:
    """The external keys of an exchange that the peer says it could not have."""
    if refusal is None or refusal.code != RejectCode.KEY_MANAGER:
        return ()
    named = [exchange.external[at] for at in refusal.failed if at < len(exchange.external)]
    return tuple(external.reference for external in named if external.present)


def _may_fall_back(link: LinkState, exchange: Exchange) -> bool:
    mixed = any(external.present for external in exchange.external)
    return link.config.external_mode is ExternalMode.PREFER and mixed


def end(link: LinkState, happened: Input) -> None:
    """The exchange is over, and its timers with it."""
    if link.exchange is not None and link.exchange.after(happened).phase is not Phase.OVER:
        raise KexError(f"{happened} does not end an exchange")
    link.exchange = None
    link.retransmit_at = link.exchange_deadline = None


_LEAVES_NOTHING_OPEN = (FailureCode.REFUSED, FailureCode.EXTERNAL_KEYS)
"""The peer has installed nothing, and will not."""
_ALLOWS_FALLBACK = (RejectCode.KEY_MANAGER, RejectCode.POLICY)
_ENDED_BY = {
    FailureCode.NO_ANSWER: Input.TIME_OUT,
    FailureCode.INIT_CONF_UNANSWERED: Input.TIME_OUT,
    FailureCode.EXTERNAL_KEYS: Input.TIME_OUT,
    FailureCode.REFUSED: Input.REJECT,
    FailureCode.BAD_ANSWER: Input.REJECT,
    FailureCode.INSTALL_FAILED: Input.INSTALL_FAILED,
}

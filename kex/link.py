"""One link: whose exchange goes first, when the next one is due, and what is in force.

The order rules of docs/protocol.md §6 stand here, and nowhere else. What belongs to the link and
not to one identity of it: the last accepted number, the kept answer, the exchange in flight.

One thing at a time: while a key is being installed, nothing else that would install one is
accepted; the peer repeats it, and a repetition costs less than two keys in the wrong order.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from enum import Enum, auto
from typing import Any

from kex import exchange as initiator
from kex import responder, timing, wire
from kex.address import Address
from kex.errors import KexError, PacketRejected
from kex.events import (
    ExchangeFailed,
    ExchangeStarted,
    ExternalKeysWanted,
    FailureCode,
    KeyConfirmed,
    KeyEstablished,
    LinkExpired,
    RejectCode,
    RejectSent,
    Role,
    StartReason,
)
from kex.exchange import Exchange, Input, Phase
from kex.external import ExternalKey, ExternalMode
from kex.identity import Fingerprint
from kex.link_config import LinkConfig
from kex.node import Node
from kex.payload import Announcement, Refusal, decode_initiator_untrusted, listing
from kex.responder import ConfirmationMismatch, OpenedInitConf, Responding, Stage
from kex.wire import Fragment


class Timer(Enum):
    """What a link waits for by the clock."""

    START = auto()
    """An exchange is due."""
    RETRANSMIT = auto()
    EXCHANGE = auto()
    """An exchange of ours has waited long enough."""
    RESPONDER_KEYS = auto()
    """The external keys for an exchange of the peer's have not come."""
    LIFETIME = auto()


class NotPossible(KexError):
    """The link cannot do that now; the message says why."""


@dataclass(frozen=True, slots=True)
class LinkKey:
    """The key that was installed last."""

    key_id: str
    installed_at: float
    expires_at: float


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """The outcome of the last InitConf; None while it is being worked out."""

    digest: bytes
    fragments: tuple[Fragment, ...] | None


@dataclass(slots=True)
class Link:
    """State of one link. Every value in it is immutable, so that copying it is cheap."""

    config: LinkConfig
    exchange: Exchange | None = None
    responding: Responding | None = None
    last_accepted: int = 0
    highest_issued: int = 0
    kept: KeptAnswer | None = None
    unanswered: bool = True
    """An InitConf of ours may have been taken by the peer and not answered since our last CO1.
    After a start nobody knows, so one is assumed."""
    key: LinkKey | None = None
    learnt_address: Address | None = None
    peer: Announcement | None = None
    session_at: float | None = None
    """When the newest WireGuard session began."""
    renew_at: float | None = None
    """The next regular renewal."""
    retry_at: float | None = None
    """The next exchange that is owed for another reason."""
    retry_reason: StartReason = StartReason.FIRST_KEY
    failures: int = 0
    """Exchanges of ours in a row that gave no key."""
    refusals: int = 0
    skip_external: bool = False
    retransmit_at: float | None = None
    retransmit_interval: float = 0.0
    exchange_deadline: float | None = None
    responder_deadline: float | None = None
    requested_at: float | None = None
    cookie: bytes | None = None
    cookie_until: float = 0.0

    # ---- reading

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def address(self) -> Address | None:
        """Where an exchange of ours goes: the address learnt last, else the configured one."""
        return self.learnt_address or self.config.address

    @property
    def awaits_resp_conf(self) -> bool:
        """Whether the peer may have installed a key that this end does not have yet."""
        return self.exchange is not None and self.exchange.phase is Phase.CONF

    @property
    def exchange_due(self) -> bool:
        """Whether an exchange is in flight here, or owed for another reason than the interval."""
        return self.exchange is not None or self.retry_at is not None

    def copy(self) -> Link:
        return replace(self)

    def state(self, *, with_times: bool = True) -> tuple[Any, ...]:
        """All of it as a hashable value; without times, what the order rules depend on."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        if not with_times:
            for name in _TIMES:
                values[name] = values[name] is not None
            for name in _COUNTS:
                del values[name]
            if self.key is not None:
                values["key"] = self.key.key_id
        return tuple(values.values())

    def timers(self) -> list[tuple[float, Timer]]:
        """What is waited for, and until when."""
        start = self._start_at()
        waiting = (
            (start, Timer.START),
            (self.retransmit_at, Timer.RETRANSMIT),
            (self.exchange_deadline, Timer.EXCHANGE),
            (self.responder_deadline, Timer.RESPONDER_KEYS),
            (None if self.key is None else self.key.expires_at, Timer.LIFETIME),
        )
        return [(at, timer) for at, timer in waiting if at is not None]

    def _start_at(self) -> float | None:
        if self.exchange is not None or self.responding is not None or self.address is None:
            return None
        return min((at for at in (self.retry_at, self.renew_at) if at is not None), default=None)

    # ---- time

    def fire(self, node: Node, timer: Timer, now: float) -> None:
        """What is to be done when a timer is up."""
        if timer is Timer.LIFETIME:
            self._expire(node, now)
        elif timer is Timer.RESPONDER_KEYS:
            self._refuse(node, RejectCode.KEY_MANAGER, "no external key in time")
        elif timer is Timer.EXCHANGE:
            self._time_out(node, now)
        elif timer is Timer.RETRANSMIT:
            self._retransmit(node, now)
        elif self.retry_at is not None and self.retry_at <= now:
            self.start(node, self.retry_reason, now)
        else:
            self.start(node, StartReason.RENEWAL, now)

    def _expire(self, node: Node, now: float) -> None:
        if self.key is None:
            return
        node.emit(LinkExpired(self.name, self.key.key_id))
        self.key = None
        self.renew_at = None
        if not self.exchange_due:
            self._owe(StartReason.FIRST_KEY, now)

    def _retransmit(self, node: Node, now: float) -> None:
        if self.exchange is None or not self.exchange.sent:
            self.retransmit_at = None
            return
        self._transmit(node, now)
        self.retransmit_interval = min(2 * self.retransmit_interval, timing.RETRANSMIT_LAST)
        self._arm_retransmission(node, now)

    def _arm_retransmission(self, node: Node, now: float) -> None:
        spread = timing.jitter(node.random, timing.RETRANSMIT_JITTER)
        self.retransmit_at = now + self.retransmit_interval * (1 + spread)

    def _transmit(self, node: Node, now: float) -> None:
        if self.exchange is not None:
            cookie = self.cookie if now < self.cookie_until else None
            node.send(self.exchange.sent, self.exchange.address, cookie)

    def _owe(self, reason: StartReason, at: float) -> None:
        """An exchange is owed at `at`, or sooner if one already was."""
        if self.retry_at is None or at < self.retry_at:
            self.retry_at, self.retry_reason = at, reason

    # ---- an exchange of ours

    def start(self, node: Node, reason: StartReason, now: float) -> None:
        """Begin an exchange, unless one is under way in either direction.

        Raises NotPossible where no address of the peer is known.
        """
        if self.exchange is not None or self.responding is not None:
            return
        if self.address is None:
            raise NotPossible(
                f"{self.name} has no address here: it comes to us, start the exchange there"
            )
        remote = self.config.remotes[0]
        local = self.config.local_for(remote)
        if local is None:
            raise NotPossible(f"no identity of suite {remote.suite} for {self.name}")
        begun = Exchange(
            exchange_id=node.random(wire.EXCHANGE_ID_LENGTH),
            local=local,
            remote=remote,
            address=self.address,
            reason=reason,
            attempt=self.failures + 1,
            without_external=self.skip_external,
        )
        public_key = node.public_keys.get(remote)
        if public_key is None:
            length = node.suites[remote.suite].public_key_length
            begun = initiator.query_identity(begun, length=length, chunk_length=node.chunk_length)
        else:
            begun = self._begun(node, begun, public_key)
        self.skip_external = False
        self.retry_at = self.renew_at = None
        node.emit(
            ExchangeStarted(self.name, begun.exchange_id, reason, begun.address, begun.attempt)
        )
        self._await_answer(node, begun, now, deadline=timing.GIVE_UP_SECONDS)

    @staticmethod
    def _begun(node: Node, exchange: Exchange, public_key: bytes) -> Exchange:
        return initiator.begin(
            node.suites[exchange.remote.suite],
            node.identities[exchange.local],
            exchange,
            public_key,
            chunk_length=node.chunk_length,
        )

    def _await_answer(self, node: Node, exchange: Exchange, now: float, *, deadline: float) -> None:
        """Send what the exchange has to send, and wait for the answer."""
        self.exchange = exchange
        self.exchange_deadline = now + deadline
        first = timing.RETRANSMIT_FIRST * 2 ** min(exchange.attempt - 1, 4)
        self.retransmit_interval = min(first, timing.RETRANSMIT_LAST)
        self._transmit(node, now)
        self._arm_retransmission(node, now)

    def identity_learnt(self, node: Node, public_key: bytes, now: float) -> None:
        """The peer's public key came, and fits its fingerprint: write InitHello."""
        if self.exchange is None or self.exchange.phase is not Phase.IDENTITY:
            raise PacketRejected("phase")
        begun = self._begun(node, self.exchange, public_key)
        self._await_answer(node, begun, now, deadline=timing.GIVE_UP_SECONDS)

    def resp_hello_untrusted(self, node: Node, body: bytes, now: float) -> None:
        """IC0, IC1: RespHello is used only while InitHello waits for one."""
        if self.exchange is None or self.exchange.phase is not Phase.HELLO:
            raise PacketRejected("phase")
        suite = node.suites[self.exchange.remote.suite]
        after = initiator.read_resp_hello_untrusted(suite, self.exchange, body)
        if self.config.external_mode is ExternalMode.OFF or after.without_external:
            self._confirm(node, after, (), now)
            return
        self.exchange = after
        self.retransmit_at = None
        self.exchange_deadline = now + timing.INITIATOR_KEYS_SECONDS
        node.emit(
            ExternalKeysWanted(
                self.name, after.exchange_id, Role.INITIATOR, self.exchange_deadline, ()
            )
        )

    def _confirm(
        self, node: Node, exchange: Exchange, external: tuple[ExternalKey, ...], now: float
    ) -> None:
        confirmed = initiator.confirm(
            node.suites[exchange.remote.suite],
            exchange,
            self._announcement(),
            external,
            chunk_length=node.chunk_length,
        )
        self._await_answer(node, confirmed, now, deadline=timing.GIVE_UP_SECONDS)

    def _announcement(self) -> Announcement:
        return Announcement(
            wireguard_key=self.config.wireguard_key,
            wireguard_port=self.config.wireguard_port,
            prefixes=self.config.prefixes,
            mode=self.config.external_mode,
            interval=self.config.interval,
            can_start=self.address is not None,
        )

    def resp_conf_untrusted(
        self, node: Node, body: bytes, others: frozenset[bytes], now: float
    ) -> None:
        """CO1. `others` are the WireGuard keys of other links."""
        exchange = self.exchange
        if exchange is None or exchange.phase is not Phase.CONF:
            raise PacketRejected("phase")
        if self.responding is not None:
            raise PacketRejected("busy")
        suite = node.suites[exchange.remote.suite]
        answer, after = initiator.read_resp_conf_untrusted(suite, exchange, body)
        present = sum(external.present for external in exchange.external)
        problem = self._conflict(answer.announcement, others)
        if answer.suite != suite.number or answer.mixed != present:
            problem = "the peer mixed other external keys or used another suite"
        if problem:
            # The peer has installed: only a completed exchange makes both ends equal again
            self._fail(node, FailureCode.BAD_ANSWER, problem, now)
            return
        # Every biscuit handed out before a completed exchange is dead
        self.last_accepted = max(self.last_accepted, self.highest_issued)
        self.unanswered = False
        self.exchange = after
        self.retransmit_at = self.exchange_deadline = None
        self._hand_out(node)

    def _hand_out(self, node: Node) -> None:
        """Hand the key of an own exchange out to be installed."""
        exchange = self.exchange
        if exchange is None or exchange.established is None:
            raise KexError("no key to hand out")
        node.emit(
            KeyEstablished(
                link=self.name,
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

    def reject_untrusted(self, node: Node, body: bytes, now: float) -> None:
        """The peer refused: its outcome is final, and it has not installed this key."""
        exchange = self.exchange
        if exchange is None or exchange.phase is not Phase.CONF:
            raise PacketRejected("phase")
        suite = node.suites[exchange.remote.suite]
        refusal = initiator.read_reject_untrusted(suite, exchange, body)
        self._fail(node, FailureCode.REFUSED, refusal.detail, now, reject=refusal.code)

    def _time_out(self, node: Node, now: float) -> None:
        if self.exchange is None:
            return
        if self.exchange.phase is Phase.KEYS:
            self._no_external_keys(node, "the key sources gave no answer in time", now)
        elif self.exchange.phase is Phase.CONF:
            self._fail(node, FailureCode.INIT_CONF_UNANSWERED, "no answer to InitConf", now)
        else:
            self._fail(node, FailureCode.NO_ANSWER, "no answer", now)

    def _no_external_keys(self, node: Node, detail: str, now: float) -> None:
        """`prefer` goes on without; `require` does not."""
        if self.exchange is None:
            return
        if self.config.external_mode is ExternalMode.PREFER:
            self._confirm(node, self.exchange, (), now)
        else:
            self._fail(node, FailureCode.EXTERNAL_KEYS, detail, now)

    def _fail(
        self,
        node: Node,
        code: FailureCode,
        detail: str,
        now: float,
        *,
        reject: int | None = None,
    ) -> None:
        """An exchange of ours is over without a key: what is owed now."""
        exchange = self.exchange
        if exchange is None:
            return
        self._end_exchange(_ENDED_BY[code])
        self.failures += 1
        self.renew_at = None
        node.emit(ExchangeFailed(self.name, exchange.exchange_id, code, detail, reject))
        if code in _PEER_MAY_HAVE_INSTALLED or reject == RejectCode.INSTALL_FAILED:
            self.unanswered = True
        if code in (FailureCode.NO_ANSWER, FailureCode.INIT_CONF_UNANSWERED):
            if self.config.address is not None:
                self.learnt_address = None  # back to the one that was configured
            self._owe(StartReason.UNANSWERED, now)
            return
        self.refusals += 1
        pause = timing.retry_pause(self.refusals)
        if reject in _ALLOWS_FALLBACK and self._may_fall_back(exchange):
            self.skip_external = True
            pause = 0.0
        self._owe(StartReason.REFUSED, now + pause)

    def _may_fall_back(self, exchange: Exchange) -> bool:
        return self.config.external_mode is ExternalMode.PREFER and bool(exchange.external)

    def _end_exchange(self, happened: Input) -> None:
        if self.exchange is not None and self.exchange.after(happened).phase is not Phase.OVER:
            raise KexError(f"{happened} does not end an exchange")
        self.exchange = None
        self.retransmit_at = self.exchange_deadline = None

    def cookie_received(self, node: Node, cookie: bytes, until: float, now: float) -> None:
        """Keep a cookie, and repeat at once what it was asked for, once for each cookie."""
        fresh = cookie != self.cookie or now >= self.cookie_until
        self.cookie, self.cookie_until = cookie, until
        if fresh:
            self._transmit(node, now)

    # ---- an exchange of the peer's

    def init_conf_untrusted(
        self,
        node: Node,
        opened: OpenedInitConf,
        *,
        source: Address,
        digest: bytes,
        others: frozenset[bytes],
        now: float,
    ) -> None:
        """RC1: an InitConf that is authenticated. PacketRejected before its number is used up."""
        if opened.biscuit.number <= self.last_accepted:
            raise PacketRejected("old biscuit")
        installing = self.exchange is not None and self.exchange.phase is Phase.INSTALLING
        if self.responding is not None or installing:
            raise PacketRejected("busy")
        if self._own_goes_first(opened):
            raise PacketRejected("own exchange goes first")
        # ---- from here on the number is used up, and the outcome is final
        self.last_accepted = opened.biscuit.number
        self.kept = KeptAnswer(digest, None)
        self._give_way(node, opened, now)
        try:
            p_i = decode_initiator_untrusted(opened.p_i)
        except PacketRejected as error:
            self._refuse_opened(node, opened, source, RejectCode.MALFORMED, error.reason)
            return
        present = sum(entry.present for entry in p_i.external)
        self.responding = Responding(opened, source, Stage.KEYS, p_i.external, p_i.announcement)
        conflict = self._conflict(p_i.announcement, others)
        objection = self._policy_objection(present)
        if conflict:
            self._refuse(node, RejectCode.WIREGUARD_KEY, conflict)
        elif objection:
            self._refuse(node, RejectCode.POLICY, objection)
        elif present:
            self.responder_deadline = now + timing.RESPONDER_KEYS_SECONDS
            node.emit(
                ExternalKeysWanted(
                    self.name,
                    opened.exchange_id,
                    Role.RESPONDER,
                    self.responder_deadline,
                    p_i.external,
                )
            )
        else:
            keys = tuple(ExternalKey(entry.reference, None) for entry in p_i.external)
            self._complete(node, keys)

    def _own_goes_first(self, opened: OpenedInitConf) -> bool:
        """The smaller end ignores the peer's InitConf from sending its own to the answer."""
        own = self.exchange
        return own is not None and own.phase is Phase.CONF and self._is_smaller(opened)

    def _is_smaller(self, opened: OpenedInitConf) -> bool:
        """Whose is the smallest fingerprint in the two crossing exchanges: both see the same."""
        ours, theirs = [opened.local], [opened.biscuit.initiator]
        if self.exchange is not None:
            ours.append(self.exchange.local)
            theirs.append(self.exchange.remote)
        return min(ours) < min(theirs)

    def _give_way(self, node: Node, opened: OpenedInitConf, now: float) -> None:
        """Drop an exchange of ours, unless the smaller end still owes one.

        What it was begun for is owed again until the peer's exchange gives a key.
        """
        own = self.exchange
        if own is None or (self._is_smaller(opened) and self.unanswered):
            return
        self._end_exchange(Input.CROSSED)
        self._owe(own.reason, now + timing.RETRY_FIRST)
        node.emit(
            ExchangeFailed(self.name, own.exchange_id, FailureCode.CROSSED, "the peer's goes first")
        )

    def _conflict(self, peer: Announcement, others: frozenset[bytes]) -> str:
        if peer.wireguard_key == self.config.wireguard_key:
            return "the WireGuard key is this end's own"
        if peer.wireguard_key in others:
            return "the WireGuard key is in use on another link"
        return ""

    def _policy_objection(self, present: int) -> str:
        mode = self.config.external_mode
        if mode is ExternalMode.REQUIRE and present < self.config.external_at_least:
            return f"{self.config.external_at_least} external key(s) required, {present} named"
        if mode is ExternalMode.OFF and present:
            return "external keys are off at this end"
        return ""

    def _complete(self, node: Node, external: tuple[ExternalKey, ...]) -> None:
        """RC1 end, RC2: hand the key out; RespConf waits until it is installed."""
        responding = self.responding
        if responding is None:
            raise KexError("nothing to complete")
        suite = node.suites[responding.opened.local.suite]
        self.responder_deadline = None
        # Where RespConf goes is an address at which the peer can be reached
        announcement = replace(self._announcement(), can_start=True)
        try:
            completed = responder.complete(
                suite, responding, external, announcement, chunk_length=node.chunk_length
            )
        except ConfirmationMismatch:
            mixed = any(key.present for key in external)
            code = RejectCode.KEY_MISMATCH if mixed else RejectCode.MALFORMED
            self._refuse(node, code, "the two ends hold different keys")
            return
        if completed.key is None:
            raise KexError("RC2 gave no key")
        self.responding = completed
        node.emit(
            KeyEstablished(
                link=self.name,
                token=completed.exchange_id,
                role=Role.RESPONDER,
                psk=completed.key.psk,
                key_id=completed.key.key_id,
                suite=suite.number,
                peer_identity=completed.opened.biscuit.initiator,
                local_identity=completed.opened.local,
                peer=completed.peer,
                address=completed.source,
                external=completed.listing,
            )
        )

    def _refuse(self, node: Node, code: RejectCode, detail: str) -> None:
        responding = self.responding
        if responding is not None:
            self._refuse_opened(node, responding.opened, responding.source, code, detail)

    def _refuse_opened(
        self, node: Node, opened: OpenedInitConf, source: Address, code: RejectCode, detail: str
    ) -> None:
        fragments = responder.refuse(
            node.suites[opened.local.suite],
            opened,
            Refusal(int(code), detail),
            chunk_length=node.chunk_length,
        )
        node.emit(RejectSent(self.name, opened.exchange_id, code, detail))
        self._settle(node, fragments, source)

    def _settle(self, node: Node, fragments: tuple[Fragment, ...], source: Address) -> None:
        """The outcome is final: keep its bytes, and send them."""
        if self.kept is not None:
            self.kept = KeptAnswer(self.kept.digest, fragments)
        node.send(fragments, source)
        self.responding = None
        self.responder_deadline = None

    def repeated(self, node: Node, source: Address) -> None:
        """RC1: the last InitConf again: the kept answer, or nothing while it is worked out."""
        if self.kept is not None and self.kept.fragments is not None:
            node.send(self.kept.fragments, source)

    # ---- answers to events

    def external_keys(
        self, node: Node, token: bytes, keys: tuple[ExternalKey, ...], now: float
    ) -> None:
        """The keys that ExternalKeysWanted asked for; too late is no error. May raise ValueError.

        For the responder: in the order of the listing, with None for what is not present.
        """
        if self.responding is not None and self._responder_waits(token):
            wanted = tuple(entry.reference for entry in self.responding.listing)
            if tuple(key.reference for key in keys) != wanted:
                raise ValueError("external keys: not those that were asked for, in their order")
            if any(
                key.present is not entry.present
                for key, entry in zip(keys, self.responding.listing, strict=True)
            ):
                raise ValueError("external keys: a key is missing, or one was not asked for")
            self._complete(node, keys)
        elif self.exchange is not None and self._initiator_waits(token):
            enough = sum(key.present for key in keys) >= self.config.external_at_least
            if self.config.external_mode is ExternalMode.REQUIRE and not enough:
                self._no_external_keys(node, "too few external keys", now)
            else:
                self._confirm(node, self.exchange, keys, now)

    def external_keys_failed(self, node: Node, token: bytes, detail: str, now: float) -> None:
        """No key can be had from the sources."""
        if self._responder_waits(token):
            self._refuse(node, RejectCode.KEY_MANAGER, detail)
        elif self._initiator_waits(token):
            self._no_external_keys(node, detail, now)

    def _responder_waits(self, token: bytes) -> bool:
        responding = self.responding
        waits = responding is not None and responding.stage is Stage.KEYS
        return waits and responding is not None and responding.exchange_id == token

    def _initiator_waits(self, token: bytes) -> bool:
        own = self.exchange
        return own is not None and own.phase is Phase.KEYS and own.exchange_id == token

    def key_installed(self, node: Node, token: bytes, now: float) -> None:
        """The key that KeyEstablished handed out is installed."""
        responding, own = self.responding, self.exchange
        if responding is not None and responding.exchange_id == token and responding.key:
            self._settle(node, responding.answer, responding.source)
            self.learnt_address = responding.source
            self._installed(node, responding.key.key_id, responding.peer, Role.RESPONDER, now)
            if self.exchange is not None:
                # It goes on at the address where the peer just proved itself
                self.exchange = replace(self.exchange, address=responding.source)
            elif self.unanswered and not self._larger_than(responding.opened):
                self._owe(StartReason.UNANSWERED, now)
            else:
                # The smaller end goes on until its own exchange is complete: see the record
                # 0003 in docs/decisions
                self.unanswered = False
                self.retry_at = None
        elif own is not None and own.phase is Phase.INSTALLING and own.exchange_id == token:
            if own.established is None:
                raise KexError("INSTALLING without a key")
            self._end_exchange(Input.INSTALLED)
            self.learnt_address = own.address
            self.retry_at = None
            self._installed(
                node, own.established.key.key_id, own.established.peer, Role.INITIATOR, now
            )

    def _larger_than(self, opened: OpenedInitConf) -> bool:
        return opened.biscuit.initiator < opened.local

    def install_failed(self, node: Node, token: bytes, detail: str, now: float) -> None:
        """The key could not be installed."""
        own = self.exchange
        if self.responding is not None and self.responding.exchange_id == token:
            self._refuse(node, RejectCode.INSTALL_FAILED, detail)
        elif own is not None and own.phase is Phase.INSTALLING and own.exchange_id == token:
            if own.install_failures == 0:
                self.exchange = replace(own, install_failures=1)
                self._hand_out(node)
            else:
                self._fail(node, FailureCode.INSTALL_FAILED, detail, now)

    def _installed(
        self, node: Node, key_id: str, peer: Announcement, role: Role, now: float
    ) -> None:
        self.key = LinkKey(key_id, now, now + self.config.lifetime)
        self.peer = peer
        self.failures = self.refusals = 0
        self._schedule_renewal(node, now)
        node.emit(KeyConfirmed(self.name, key_id, role, self.key.expires_at))

    # ---- renewal

    @property
    def interval(self) -> int:
        """Seconds between renewals: the smaller of both ends'."""
        peers = self.peer.interval if self.peer is not None else self.config.interval
        return max(timing.MIN_INTERVAL, min(self.config.interval, peers))

    def _renews(self) -> bool:
        """Whether this end renews: the smaller one, where both can start."""
        if self.peer is not None and not self.peer.can_start:
            return True
        remote = self.config.remotes[0]
        local = self.config.local_for(remote)
        return local is not None and local < remote

    def _schedule_renewal(self, node: Node, now: float) -> None:
        """When the next exchange is due: docs/protocol.md §7."""
        if self.key is None:
            self.renew_at = None
            return
        due = timing.renewal_due(
            installed_at=self.key.installed_at, session_at=self.session_at, interval=self.interval
        )
        if self._renews():
            due += timing.jitter(node.random, timing.RENEWAL_JITTER)
        else:
            due += timing.LARGER_END_MARGIN
        self.renew_at = max(due, now)

    def session_started(self, node: Node, at: float, now: float) -> None:
        """A WireGuard session began at `at`; a stamp seen before changes nothing."""
        if at == self.session_at:
            return
        self.session_at = at
        if not self.exchange_due:
            self._schedule_renewal(node, now)

    def request(self, node: Node, reason: StartReason, now: float) -> None:
        """Start an exchange because somebody asks: a person, or the watch over handshakes.

        Raises NotPossible where no address is known. The watch is heard once in 30 s.
        """
        if reason is StartReason.HANDSHAKE_OVERDUE:
            asked = self.requested_at
            if asked is not None and now < asked + timing.REQUEST_SPACING:
                return
            self.requested_at = now
        self.start(node, reason, now)

    def adopt(self, key_id: str, *, installed_at: float, expires_at: float) -> None:
        """Take over a key that an earlier run of the daemon installed."""
        self.key = LinkKey(key_id, installed_at, expires_at)

    def reconfigure(self, node: Node, config: LinkConfig, now: float) -> None:
        """Take a changed configuration. What the exchange in flight has said of this end is no
        longer true: a new one begins."""
        before, self.config = self.config, config
        if config.address != before.address:
            self.learnt_address = None
        own = self.exchange
        if own is not None and own.phase is not Phase.INSTALLING:
            self.unanswered = self.unanswered or own.phase is Phase.CONF
            self._end_exchange(Input.CROSSED)
            node.emit(
                ExchangeFailed(
                    self.name, own.exchange_id, FailureCode.ABANDONED, "the configuration changed"
                )
            )
            self._owe(own.reason, now)
        elif config.wireguard_key != before.wireguard_key:
            self._owe(StartReason.REQUESTED, now)


_TIMES = (
    "session_at",
    "renew_at",
    "retry_at",
    "retransmit_at",
    "exchange_deadline",
    "responder_deadline",
    "requested_at",
)
_COUNTS = ("failures", "refusals", "retransmit_interval", "cookie_until", "retry_reason")
_ALLOWS_FALLBACK = (RejectCode.KEY_MANAGER, RejectCode.POLICY)
_ENDED_BY = {
    FailureCode.NO_ANSWER: Input.TIME_OUT,
    FailureCode.INIT_CONF_UNANSWERED: Input.TIME_OUT,
    FailureCode.EXTERNAL_KEYS: Input.TIME_OUT,
    FailureCode.REFUSED: Input.REJECT,
    FailureCode.BAD_ANSWER: Input.REJECT,
    FailureCode.INSTALL_FAILED: Input.INSTALL_FAILED,
}
_PEER_MAY_HAVE_INSTALLED = (
    FailureCode.INIT_CONF_UNANSWERED,
    FailureCode.BAD_ANSWER,
    FailureCode.INSTALL_FAILED,
)


def local_identities(config: LinkConfig) -> frozenset[tuple[Fingerprint, Fingerprint]]:
    """The pairs (ours, theirs) under which exchanges of this link arrive."""
    return frozenset(
        (local, remote)
        for local in config.locals
        for remote in config.remotes
        if local.suite == remote.suite
    )

"""What an endpoint knows of one link. Every value in it is immutable: copying it is cheap.

What belongs to the link and not to one identity of it: the last accepted number, the kept
answer, the exchange in flight.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

from kex import timing
from kex.address import Address
from kex.errors import KexError
from kex.events import KeyConfirmed, Role, StartReason
from kex.exchange import Exchange, Phase
from kex.identity import Fingerprint
from kex.link_config import LinkConfig
from kex.node import Node
from kex.payload import Announcement, Traffic
from kex.responder import Responding
from kex.token_bucket import TokenBucket
from kex.twins import NOBODY, Twins
from kex.wire import Fragment

KEPT_NUMBERS = 8
"""Of biscuits, for each link: several exchanges of the peer's may be under way, replayed ones
among them."""


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
    pair: tuple[Fingerprint, Fingerprint]
    """Identities (ours, theirs) of the exchange."""


@dataclass(frozen=True, slots=True)
class LearntAddress:
    """Where the peer's last accepted InitConf came from, or where it answered."""

    address: Address
    proved: bool
    """Whether the peer was seen to receive there. A source address alone proves nothing: anybody
    on the way can write another one on a genuine datagram."""
    unanswered: int = 0
    """Exchanges of ours in a row that got no answer there."""


@dataclass(slots=True)
class LinkState:
    """State of one link, and what both sides of an exchange do with it."""

    config: LinkConfig
    exchange: Exchange | None = None
    responding: Responding | None = None
    last_accepted: int = 0
    highest_issued: int = 0
    kept: KeptAnswer | None = None
    in_doubt: bool = False
    """The peer may have taken an InitConf that this end knows no outcome of, or the identities of
    the link have changed, and no exchange of ours was completed since. An end that yields notes
    only the latter."""
    has_completed: bool = False
    """An exchange of ours was completed since the start."""
    key: LinkKey | None = None
    learnt: LearntAddress | None = None
    given_up: LearntAddress | None = None
    """The address learnt last, where the peer did not answer and is not asked any more."""
    answered: tuple[tuple[int, Address | None], ...] = ()
    """The numbers of the last biscuits that were handed out to the peer, and where the RespHello
    with each was sent; None where it was sent to several."""
    unproved_bytes: TokenBucket = field(default_factory=TokenBucket)
    """What is sent to addresses that the peer has not proved to be at."""
    init_confs: TokenBucket = field(default_factory=TokenBucket)
    """Exchanges of the peer's that are accepted."""
    peer: Announcement | None = None
    """What the peer said in the last exchange."""
    adopted_wireguard_key: bytes | None = None
    """The peer's, while it has said nothing since the daemon's start."""
    proved: bytes | None = None
    """The peer's WireGuard key, once a WireGuard handshake was made with it while the link had a
    key: kex.claims."""
    on_trial: bytes | None = None
    """The peer's WireGuard key that was taken over from another link and may be proved yet."""
    trial_at: float | None = None
    """When the last such trial began."""
    answered_at: float | None = None
    """When the peer's last exchange was answered with a key that no WireGuard handshake has taken
    up yet."""
    unheard: int = 0
    """Such exchanges in a row after each of which the peer soon began again."""
    twins: Twins = NOBODY
    """Whether two hosts seem to use the peer's identity."""
    announced: Announcement | None = None
    """What this end said last."""
    traffic: Traffic | None = None
    """What this end's WireGuard has counted of the link, for the next payload."""
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
    unanswered: int = 0
    """Exchanges of ours in a row to which nothing was heard at all."""
    silent_until: float | None = None
    """Until when nothing is sent, so that routers on the way forget this flow."""
    skip_external: bool = False
    asked_afresh: bool = False
    """The last exchange was refused for a key that was had before it began, and the next one has
    fresh keys."""
    retransmit_at: float | None = None
    retransmit_interval: float = 0.0
    exchange_deadline: float | None = None
    responder_deadline: float | None = None
    requested_at: float | None = None
    held: bool = False
    """Whether no exchange is to be begun."""
    cookie: bytes | None = None
    cookie_until: float = 0.0
    cookie_taken: bool = False
    """Whether what was sent last has been answered with a cookie."""

    # ---- reading

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def address(self) -> Address | None:
        """Where an exchange of ours goes: the address learnt last, if the peer has proved to be
        there; else the configured one; else one that is not proved."""
        if self.learnt is not None and (self.learnt.proved or self.config.address is None):
            return self.learnt.address
        return self.config.address

    @property
    def known_addresses(self) -> tuple[Address, ...]:
        """Where the peer is configured to be, and where it has proved to be."""
        proved = self.learnt.address if self.learnt is not None and self.learnt.proved else None
        return tuple(at for at in (self.config.address, proved) if at is not None)

    @property
    def awaits_resp_conf(self) -> bool:
        """Whether the peer may have installed a key that this end does not have yet."""
        return self.exchange is not None and self.exchange.phase is Phase.CONF

    @property
    def exchange_due(self) -> bool:
        """Whether an exchange is in flight here, or owed for another reason than the interval."""
        return self.exchange is not None or self.retry_at is not None

    @property
    def peer_wireguard_key(self) -> bytes | None:
        """The WireGuard key that the peer has on the interface, as far as is known."""
        return self.adopted_wireguard_key if self.peer is None else self.peer.wireguard_key

    @property
    def interval(self) -> int:
        """Seconds between renewals: the smaller of both ends'."""
        peers = self.peer.interval if self.peer is not None else self.config.interval
        return max(timing.MIN_INTERVAL, min(self.config.interval, peers))

    def copy(self) -> Self:
        return replace(self)

    def state(self, *, with_times: bool = True) -> tuple[Any, ...]:
        """All of it as a hashable value; without times, what the order rules depend on."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        if not with_times:
            for name in _TIMES:
                values[name] = values[name] is not None
            for name in _COUNTS:
                del values[name]
            values["learnt"] = self.address
            if self.key is not None:
                values["key"] = self.key.key_id
            if self.exchange is not None:
                values["exchange"] = replace(self.exchange, reason=StartReason.RENEWAL, attempt=1)
        return tuple(values.values())

    # ---- where the peer is

    def answered_hello(self, number: int, address: Address) -> None:
        """A RespHello with the biscuit of this new number is sent there."""
        self.answered = (*self.answered, (number, address))[-KEPT_NUMBERS:]

    def answered_again(self, number: int, address: Address) -> None:
        """The same RespHello once more, perhaps to another address."""
        self.answered = tuple(
            (kept, None if kept == number and at != address else at) for kept, at in self.answered
        )

    def has_proved(self, number: int, source: Address) -> bool:
        """Whether an InitConf with the biscuit of this number, from this source, proves that the
        peer receives there: the biscuit was sent there, and nowhere else."""
        return (number, source) in self.answered

    def forget_answered(self, number: int) -> None:
        """The biscuits up to this number are used up: nothing is proved with them any more."""
        self.answered = tuple(pair for pair in self.answered if pair[0] > number)

    def learn(self, address: Address, *, proved: bool) -> None:
        """The peer's last exchange came from there. What is not proved takes the place only of
        what is not, either."""
        known = self.known_addresses
        if proved or address in known or not known:
            self.learnt = LearntAddress(address, proved or address in known)
            self.given_up = None

    def answered_from(self, address: Address) -> None:
        """The peer gave an answer that only it can give to what was sent there."""
        if self.learnt is not None and self.learnt.address == address:
            self.learnt = LearntAddress(address, proved=True)

    def unanswered_from(self, address: Address) -> None:
        """What was sent there for a whole exchange got no answer."""
        learnt = self.learnt
        if learnt is None or learnt.address != address:
            return
        if self.config.address is not None:
            self.learnt = None  # back to the one that was configured
            return
        unanswered = learnt.unanswered + 1
        if learnt.proved and unanswered < timing.UNANSWERED_EXCHANGES:
            self.learnt = replace(learnt, unanswered=unanswered)
        else:
            self.learnt, self.given_up = None, learnt

    def forget_addresses(self) -> None:
        """What was learnt of where the peer is counts no more."""
        self.learnt = self.given_up = None

    # ---- what both sides of an exchange do

    def announcement(self) -> Announcement:
        """What this end says of itself in a payload."""
        return Announcement(
            wireguard_key=self.config.wireguard_key,
            wireguard_port=self.config.wireguard_port,
            prefixes=self.config.prefixes,
            mode=self.config.external_mode,
            interval=self.config.interval,
            # An address that was only learnt may be a hole in a NAT that closes: not counted on
            can_start=self.config.address is not None,
            traffic=self.traffic,
            allows=self.config.allows,
            twins=self.twins.named,
        )

    def owe(self, reason: StartReason, at: float) -> None:
        """An exchange is owed at `at`, or sooner if one already was."""
        if self.retry_at is None or at < self.retry_at:
            self.retry_at, self.retry_reason = at, reason

    def installed(
        self, node: Node, key_id: str, peer: Announcement, role: Role, now: float
    ) -> None:
        """A key is installed: note it, and when the next one is due."""
        if self.announced is not None and self.announced.wireguard_key != self.config.wireguard_key:
            self.owe(StartReason.REQUESTED, now)  # the peer was told of one that is gone
        self.key = LinkKey(key_id, now, now + self.config.lifetime)
        self.peer = peer
        if self.proved != peer.wireguard_key:
            self.proved = None
        self.failures = self.refusals = self.unanswered = 0
        self.silent_until = None
        self.skip_external = False  # it was for the exchange after the one that was refused
        self.asked_afresh = False
        self.schedule_renewal(node, now)
        node.emit(KeyConfirmed(self.name, key_id, role, self.key.expires_at))

    def saw_peer(self, peer: Announcement, host: str | None, now: float) -> None:
        """An exchange with the peer is complete, begun from `host` where it was the peer's."""
        key, interval = peer.wireguard_key, self.interval
        self.twins = self.twins.after(key, host, interval=interval, now=now)

    def schedule_renewal(self, node: Node, now: float) -> None:
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

    def _renews(self) -> bool:
        """Whether this end renews, and does not wait for the other: where both have an address
        to start at, the end that does not yield. In the midst of a rotation both may renew, one
        of them first, but never neither."""
        if self.config.address is None:
            return False
        if self.peer is not None and not self.peer.can_start:
            return True
        return not self.config.yields


_TIMES = (
    "session_at",
    "renew_at",
    "retry_at",
    "retransmit_at",
    "exchange_deadline",
    "responder_deadline",
    "requested_at",
    "trial_at",
    "silent_until",
)
_COUNTS = (
    "failures",
    "refusals",
    "unanswered",
    "twins",
    "unheard",
    "answered_at",
    "retransmit_interval",
    "cookie_until",
    "retry_reason",
    "given_up",
    "answered",
    "unproved_bytes",
    "init_confs",
)

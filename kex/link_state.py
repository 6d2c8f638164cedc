"""What an endpoint knows of one link. Every value in it is immutable: copying it is cheap.

What belongs to the link and not to one identity of it: the last accepted number, the kept
answer, the exchange in flight.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Self

from kex import timing
from kex.address import Address
from kex.errors import KexError
from kex.events import KeyConfirmed, Role, StartReason
from kex.exchange import Exchange, Phase
from kex.identity import Fingerprint
from kex.link_config import LinkConfig
from kex.node import Node
from kex.payload import Announcement
from kex.responder import Responding
from kex.wire import Fragment


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
    """An InitConf with which this end goes first may have been taken by the peer, and since then
    no exchange of ours was completed."""
    has_completed: bool = False
    """An exchange of ours was completed since the start."""
    key: LinkKey | None = None
    learnt_address: Address | None = None
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
    announced: Announcement | None = None
    """What this end said last."""
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
            values["learnt_address"] = self.address
            if self.key is not None:
                values["key"] = self.key.key_id
            if self.exchange is not None:
                values["exchange"] = replace(self.exchange, reason=StartReason.RENEWAL, attempt=1)
        return tuple(values.values())

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
        self.failures = self.refusals = 0
        self.skip_external = False  # it was for the exchange after the one that was refused
        self.asked_afresh = False
        self.schedule_renewal(node, now)
        node.emit(KeyConfirmed(self.name, key_id, role, self.key.expires_at))

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
        """Whether this end renews: the smaller one, where both have an address to start at."""
        if self.config.address is None:
            return False
        if self.peer is not None and not self.peer.can_start:
            return True
        remote = self.config.remotes[0]
        local = self.config.local_for(remote)
        return local is not None and local < remote


_TIMES = (
    "session_at",
    "renew_at",
    "retry_at",
    "retransmit_at",
    "exchange_deadline",
    "responder_deadline",
    "requested_at",
    "trial_at",
)
_COUNTS = (
    "failures",
    "refusals",
    "unheard",
    "answered_at",
    "retransmit_interval",
    "cookie_until",
    "retry_reason",
)

"""One link of a node: its timers, and the answers to its events."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, auto

from kex import answering, claims, initiating, order, timing
from kex.events import LinkExpired, RejectCode, StartReason
from kex.exchange import Phase
from kex.external import ExternalKey, ExternalKeyReference
from kex.link_config import LinkConfig
from kex.link_state import LinkKey, LinkState
from kex.node import Node

KEYS_FAILED = (RejectCode.KEY_MANAGER, RejectCode.KEY_MISMATCH, RejectCode.POLICY)
"""What may be said of external keys that are not given."""


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


@dataclass(slots=True)
class Link(LinkState):
    """A link: what comes in by the clock and from the daemon, for either side of an exchange."""

    # ---- time

    def timers(self) -> list[tuple[float, Timer]]:
        """What is waited for, and until when."""
        waiting = (
            (self._start_at(), Timer.START),
            (self.retransmit_at, Timer.RETRANSMIT),
            (self.exchange_deadline, Timer.EXCHANGE),
            (self.responder_deadline, Timer.RESPONDER_KEYS),
            (None if self.key is None else self.key.expires_at, Timer.LIFETIME),
        )
        return [(at, timer) for at, timer in waiting if at is not None]

    def next_timer(self) -> float | None:
        """The first of them."""
        soonest = self._start_at()
        if self.key is not None and (soonest is None or self.key.expires_at < soonest):
            soonest = self.key.expires_at
        for at in (self.retransmit_at, self.exchange_deadline, self.responder_deadline):
            if at is not None and (soonest is None or at < soonest):
                soonest = at
        return soonest

    def _start_at(self) -> float | None:
        under_way = self.exchange is not None or self.responding is not None
        if under_way or self.held or self.address is None:
            return None
        return min((at for at in (self.retry_at, self.renew_at) if at is not None), default=None)

    def fire(self, node: Node, timer: Timer, now: float) -> None:
        """What is to be done when a timer is up."""
        if timer is Timer.LIFETIME:
            self._expire(node, now)
        elif timer is Timer.RESPONDER_KEYS:
            answering.refuse(self, node, RejectCode.KEY_MANAGER, "no external key in time")
        elif timer is Timer.EXCHANGE:
            initiating.time_out(self, node, now)
        elif timer is Timer.RETRANSMIT:
            initiating.retransmit(self, node, now)
        elif self.retry_at is not None and self.retry_at <= now:
            initiating.start(self, node, self.retry_reason, now)
        else:
            initiating.start(self, node, StartReason.RENEWAL, now)

    def _expire(self, node: Node, now: float) -> None:
        if self.key is None:
            return
        node.emit(LinkExpired(self.name, self.key.key_id))
        self.key = self.proved = None
        self.renew_at = None
        if not self.exchange_due:
            self.owe(StartReason.FIRST_KEY, now)

    # ---- answers to events

    def external_keys(
        self,
        node: Node,
        token: bytes,
        keys: tuple[ExternalKey, ...],
        now: float,
        *,
        holders: str = "",
        ahead: frozenset[ExternalKeyReference] = frozenset(),
    ) -> None:
        """The keys that ExternalKeysWanted asked for; too late is no error. May raise ValueError.

        For the responder: in the order of the listing, with None for what is not present.
        """
        if answering.wants_keys(self, token):
            answering.external_keys(self, node, keys, holders)
        elif initiating.wants_keys(self, token):
            initiating.external_keys(self, node, keys, now, ahead=ahead)

    def external_keys_failed(
        self,
        node: Node,
        token: bytes,
        detail: str,
        now: float,
        *,
        code: RejectCode = RejectCode.KEY_MANAGER,
        failed: tuple[int, ...] = (),
    ) -> None:
        """No key can be had from the sources, or none that may be used."""
        if code not in KEYS_FAILED:
            raise ValueError(f"{code.name} does not say what is wrong with external keys")
        if answering.wants_keys(self, token):
            answering.refuse(self, node, code, detail, failed)
        elif initiating.wants_keys(self, token):
            initiating.no_external_keys(self, node, detail, now, code=code)

    def key_installed(self, node: Node, token: bytes, now: float) -> None:
        """The key that KeyEstablished handed out is installed."""
        if answering.is_installing(self, token):
            answering.installed(self, node, now)
        elif initiating.is_installing(self, token):
            initiating.installed(self, node, now)

    def install_failed(self, node: Node, token: bytes, detail: str, now: float) -> None:
        """The key could not be installed."""
        if answering.is_installing(self, token):
            answering.refuse(self, node, RejectCode.INSTALL_FAILED, detail)
        elif initiating.is_installing(self, token):
            initiating.install_failed(self, node, detail, now)

    # ---- what else the daemon says

    def session_started(self, node: Node, at: float, now: float) -> None:
        """A WireGuard session began at `at`; a stamp seen before changes nothing."""
        if at == self.session_at:
            return
        self.session_at = at
        if not self.exchange_due:
            self.schedule_renewal(node, now)

    def request(self, node: Node, reason: StartReason, now: float) -> None:
        """Start an exchange because somebody asks: a person, the watch over handshakes, or who
        wants a fallback to end.

        Raises NotPossible where no address is known. The watch is heard once in 30 s. An exchange
        that is to end a fallback stands in nobody's way: another one that is owed asks for the
        same keys, and one that is wanted meanwhile follows it if it gives none.
        """
        if reason is StartReason.END_FALLBACK and self.retry_at is not None:
            return
        if self.exchange is not None and self.exchange.ends_fallback:
            if reason is not StartReason.END_FALLBACK:
                self.owe(reason, now)
            return
        if reason is StartReason.HANDSHAKE_OVERDUE:
            if self.silent_until is not None and now < self.silent_until:
                return  # an exchange is owed, and begins when the silence is over
            asked = self.requested_at
            if asked is not None and now < asked + timing.REQUEST_SPACING:
                return
            self.requested_at = now
        initiating.start(self, node, reason, now)

    def adopt(
        self,
        key_id: str,
        *,
        wireguard_key: bytes,
        installed_at: float,
        expires_at: float,
        proved: bool = False,
    ) -> None:
        """Take over a key that an earlier run of the daemon installed."""
        self.key = LinkKey(key_id, installed_at, expires_at)
        self.adopted_wireguard_key = wireguard_key
        self.proved = wireguard_key if proved else None

    def reconfigure(self, node: Node, config: LinkConfig, now: float) -> None:
        """Take a changed configuration; an exchange in flight has announced the old one."""
        before, self.config = self.config, config
        if config == before:
            return
        if config.address != before.address:
            self.forget_addresses()
        if not set(config.remotes) & set(before.remotes):
            self._forget_peer()
        identities_changed = (config.pairs, config.own_pair) != (before.pairs, before.own_pair)
        if identities_changed:
            order.after_change(self, node.biscuit_keys.next_number - 1)
        if self.exchange is not None and self.exchange.phase is not Phase.INSTALLING:
            initiating.abandon(self, node, now)
        elif identities_changed or config.wireguard_key != before.wireguard_key:
            self.owe(StartReason.REQUESTED, now)

    def _forget_peer(self) -> None:
        """It is another peer: what the one before has said, and where it was, is not this one's."""
        self.peer = self.adopted_wireguard_key = self.proved = self.on_trial = None
        self.session_at = self.cookie = self.answered_at = self.trial_at = None
        self.forget_addresses()
        self.unheard = 0

    def taken_up(self, wireguard_key: bytes) -> None:
        """A WireGuard handshake has taken a key of this link up, with this key of the peer's."""
        claims.prove(self, wireguard_key)
        self.answered_at, self.unheard = None, 0

    def end_key(self, at: float, now: float) -> None:
        """The key lives until `at` at the latest, and another one is owed."""
        if self.key is not None:
            self.key = replace(self.key, expires_at=min(self.key.expires_at, at))
            self.owe(StartReason.REQUESTED, now)

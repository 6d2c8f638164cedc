"""What there is to tell of a link: its state with the reason, its last problem, its warnings."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from kex.events import (
    ExchangeFailed,
    ExchangeStarted,
    FailureCode,
    KeyConfirmed,
    KeyEstablished,
    LinkExpired,
    RejectCode,
    RejectSent,
    Role,
    WireGuardKeyContested,
    WireGuardKeyYielded,
)
from kex.external import ExternalMode
from kex.identity import Fingerprint
from kex.payload import Announcement
from vpnd.api import LinkState
from vpnd.clock import boottime, wall
from vpnd.config_model import PeerConfig
from vpnd.deliveries import Trouble
from vpnd.external_policy import modes_differ
from vpnd.journal import Journal
from vpnd.link_exchanges import LinkExchanges
from vpnd.link_external import LinkExternal
from vpnd.link_judge import Facts, flow_of, judge
from vpnd.link_peer import WireGuardPeer
from vpnd.prefixes_differ import differences as prefix_differences
from vpnd.tunnels import ManagedTunnel

LIFETIME_OVER: Final = "the key's lifetime is over, and no exchange gave a new one"
CLOSED_WHILE_AWAY: Final = "the key's lifetime is over: it ended while no daemon ran here"
OTHER_IDENTITY: Final = "the peer used another identity than the first one pinned here"

EXPECTED: Final = (FailureCode.CROSSED, FailureCode.ABANDONED)
"""How an exchange ends that another one has taken the place of."""


@dataclass(frozen=True, slots=True)
class Problem:
    """The last thing that went wrong."""

    code: str
    message: str
    at_wall: float
    hint: str = ""


@dataclass(frozen=True, slots=True)
class LastExchange:
    """What is to be shown of the last exchange that gave a key."""

    role: Role
    suite: int
    identity: Fingerprint


class LinkReport:
    """Keeps what is shown of a link, and records it as it comes to be."""

    def __init__(
        self,
        peer: PeerConfig,
        *,
        tunnel: ManagedTunnel,
        wireguard: WireGuardPeer,
        external: LinkExternal,
        exchanges: LinkExchanges,
        journal: Journal,
    ) -> None:
        self._peer = peer
        self._tunnel = tunnel
        self._wireguard = wireguard
        self._external = external
        self._exchanges = exchanges
        self._journal = journal
        self.last: LastExchange | None = None
        self.adopted = False
        self.end_reason = ""
        """Why the key's end was brought forward, if it was."""
        self.fault = ""
        """The bug of ours that has stopped the link's task, if one has."""
        self.problem: Problem | None = None
        self._said: Announcement | None = None
        """What the peer said of itself in the exchange that gave the last key."""
        self._warnings: tuple[str, ...] = ()
        self._refused_policies: tuple[str, ...] = ()
        """What the two ends said of their policies when one refused, since the last key."""
        self._peer_mode: ExternalMode | None = None
        """The peer's policy for external keys as it said last, since this end's was changed."""
        self.state = LinkState.DOWN
        self.reason = "starting"
        self.since_wall = wall()
        self._closed_reason = ""
        self._waiting_reason = ""
        self._renewal_problem = ""
        self._contested: tuple[str, bytes, str] | None = None
        """What was told last of a WireGuard key that another link has, too."""
        self._given_up = ""
        """The address that was given up last, in words."""
        self._told_twins = ""

    def take(self, peer: PeerConfig) -> None:
        """Go by this configuration from now on."""
        told = self.warnings
        before, self._peer = self._peer, peer
        where = (peer.endpoint, peer.wireguard_endpoint)
        if where != (before.endpoint, before.wireguard_endpoint):
            self._waiting_reason = ""
        self._warnings = tuple(warning for warning in self._warnings if warning != OTHER_IDENTITY)
        if peer.external_keys != before.external_keys:
            # What the two ends said of the policy before; an exchange under the new one follows
            self._peer_mode, self._refused_policies = None, ()
        self._tell_new(told)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the two ends say differently, as it is now."""
        prefixes = self._prefix_differences()
        rest = (*self._warnings, *self._refused_policies, *self._modes())
        return tuple(dict.fromkeys((*prefixes, *rest)))

    def _modes(self) -> list[str]:
        if self._peer_mode is None:
            return []
        differ = modes_differ(self._external.mode_of(self._peer), self._peer_mode)
        return [differ] if differ else []

    # ---- exchanges

    def started(self, event: ExchangeStarted) -> None:
        self._journal.record(
            "exchange_started",
            peer=self._peer.name,
            reason=event.reason.value,
            exchange=event.exchange_id.hex(),
            to=str(event.address),
            attempt=event.attempt,
        )
        self._exchanges.begun(event.address, self._undelivered)
        self._undelivered()

    def _undelivered(self) -> None:
        """Something became known of what an exchange of this end has sent."""
        trouble = self._exchanges.trouble()
        if trouble is not None:
            self.problem = Problem(trouble.code, trouble.reason, wall(), trouble.hint)
        self.refresh()

    def failed(self, event: ExchangeFailed) -> None:
        why = self._why(event)
        self._journal.record(
            "exchange_failed",
            peer=self._peer.name,
            level="info" if event.code in EXPECTED else "warning",
            reason=why.reason,
            code=why.code,
            exchange=event.exchange_id.hex(),
        )
        given_up = self._exchanges.given_up
        if given_up and given_up != self._given_up:
            self._journal.record(
                "address_given_up", peer=self._peer.name, level="warning", reason=given_up
            )
        self._given_up = given_up

    def gave_no_key(self, event: ExchangeFailed) -> None:
        """The link goes on without the key that the exchange should have given."""
        why = self._why(event)
        self.problem = Problem(why.code, why.reason, wall(), why.hint)
        self._renewal_problem = f"last exchange: {why.reason}"
        self._waiting_reason = why.reason

    def _why(self, event: ExchangeFailed) -> Trouble:
        """Why an exchange gave no key. Where nothing was heard, what is known of that."""
        if event.code is FailureCode.NO_ANSWER:
            return self._exchanges.nothing_heard()
        return Trouble(event.code.value, _reason_of(event), "")

    def refused(self, event: RejectSent) -> None:
        code = f"refused_{event.code.name.lower()}"
        self.problem = Problem(code, f"refused the peer's exchange: {event.detail}", wall())
        self._journal.record(
            "exchange_refused",
            peer=self._peer.name,
            level="warning",
            code=code,
            reason=event.detail,
        )

    def key_contested(self, event: WireGuardKeyContested) -> None:
        """The peer announced a WireGuard key that another link keeps."""
        told = (event.other, event.wireguard_key, event.detail)
        if told == self._contested:
            return  # it says so again with every exchange
        self._contested = told
        self._journal.record(
            "wireguard_key_contested",
            peer=self._peer.name,
            level="warning",
            other=event.other,
            wireguard=b64encode(event.wireguard_key).decode(),
            reason=event.detail,
        )

    def key_yielded(self, event: WireGuardKeyYielded) -> None:
        """The peer of another link has the WireGuard key that this link's peer had announced."""
        self._contested = None
        self._closed_reason = (
            f"the WireGuard key that the peer announced is the one of {event.other} now: no "
            "WireGuard handshake had proved it here, or it is pinned there"
        )
        self.problem = Problem("wireguard_key_yielded", self._closed_reason, wall())
        self._journal.record(
            "wireguard_key_yielded",
            peer=self._peer.name,
            level="error",
            other=event.other,
            wireguard=b64encode(event.wireguard_key).decode(),
            reason=self._closed_reason,
        )

    def keys_differ(self, detail: str) -> None:
        """The two ends hold different external keys."""
        self._journal.record(
            "key_mismatch",
            peer=self._peer.name,
            level="error",
            reason=detail,
            on_mismatch=self._peer.external_keys.on_mismatch,
        )
        self._renewal_problem = detail

    def policies_differ(self, detail: str) -> None:
        before = self.warnings
        self._refused_policies = tuple(dict.fromkeys((*self._refused_policies, detail)))
        self._tell_new(before)

    def gave_key(self, event: KeyEstablished) -> None:
        """A key is on the interface. What the two ends say differently is warned of; none of it
        stops the link."""
        self.last = LastExchange(event.role, event.suite, event.peer_identity)
        before = self.warnings
        self._said = event.peer
        self._warnings, self._refused_policies = tuple(self._differences(event)), ()
        self._peer_mode = event.peer.mode
        self._tell_new(before)

    def _prefix_differences(self) -> tuple[str, ...]:
        if self._said is None:
            return ()
        config = self._tunnel.config
        return tuple(
            prefix_differences(
                self._said,
                announced=config.announced,
                allowed=self._peer.allowed_ips,
                routed=config.routes != "none",
            )
        )

    def _differences(self, event: KeyEstablished) -> Iterable[str]:
        if event.peer_identity != self._peer.identity[0]:
            yield OTHER_IDENTITY

    def _tell_new(self, before: tuple[str, ...]) -> None:
        for warning in self.warnings:
            if warning not in before:
                self._journal.record(
                    "ends_differ", peer=self._peer.name, level="warning", reason=warning
                )

    def name_not_resolved(self, reason: str) -> None:
        self._waiting_reason = reason
        self.problem = Problem("name_not_resolved", reason, wall())

    # ---- the key, and the peer on the interface

    def confirmed(self, event: KeyConfirmed) -> None:
        self.adopted = False
        self.end_reason = self._waiting_reason = self._closed_reason = self._given_up = ""
        if not self._exchanges.unheard:
            # Else it is one more answer that the peer does not take, and what it said of that
            # stands
            self._renewal_problem, self.problem = "", None
            self._contested = None
        self._journal.record(
            "key_installed",
            peer=self._peer.name,
            key_id=event.key_id,
            role=event.role.value,
            **self._external.watch.sources_of(event.key_id),
        )
        before, self._told_twins = self._told_twins, self._twins()
        if self._told_twins and not before:
            self._journal.record(
                "identity_shared",
                peer=self._peer.name,
                level="error",
                reason=self._told_twins,
            )

    def install_failed(self, event: KeyEstablished, reason: str) -> None:
        self.problem = Problem("install_failed", reason, wall())
        self._journal.record(
            "install_failed",
            peer=self._peer.name,
            level="error",
            key_id=event.key_id,
            reason=reason,
        )

    def not_updated(self, reason: str) -> None:
        self.problem = Problem("not_updated", reason, wall())
        self._journal.record("update_failed", peer=self._peer.name, level="error", reason=reason)

    def endpoint_not_moved(self, reason: str) -> None:
        self.problem = Problem("endpoint_not_moved", reason, wall())

    def key_altered(self) -> None:
        self._renewal_problem = "the key on the interface was changed by another hand"
        self._journal.record(
            "key_altered", peer=self._peer.name, level="error", reason=self._renewal_problem
        )

    def expired(self, event: LinkExpired) -> None:
        self._closed_reason = self.end_reason or LIFETIME_OVER
        if self._external.watch.over:
            self._closed_reason += f"; {self._external.watch.standing}"
        self._journal.record(
            "link_closed",
            peer=self._peer.name,
            level="error",
            key_id=event.key_id,
            reason=self._closed_reason,
        )

    def expired_while_away(self) -> None:
        self._closed_reason = CLOSED_WHILE_AWAY
        self._journal.record(
            "link_closed", peer=self._peer.name, level="error", reason=self._closed_reason
        )

    # ---- state

    def refresh(self) -> None:
        """Work the state out anew, and record it where it changed."""
        before = self.state
        state, reason = judge(self._facts())
        if state is before and reason == self.reason:
            return
        self.state, self.reason = state, reason
        if state is not before:
            self.since_wall = wall()
            self._journal.record(
                "state_changed",
                peer=self._peer.name,
                level="info" if state.protected else "warning",
                state=state.value,
                before=before.value,
                reason=reason,
                key_id=self._wireguard.watch.newest_id,
            )

    def _twins(self) -> str:
        """Whether two hosts seem to use one identity, the peer's or this node's; '' if not."""
        state, peer = self._exchanges.state, self._peer.name
        if state is None:
            return ""
        if state.twins.named_at(boottime()):
            between = " and ".join(state.twins.between)
            if between:
                return f"two hosts use the identity of {peer}? it calls from {between} in turn"
            return f"two hosts use the identity of {peer}? its WireGuard key changes to and fro"
        if state.peer is not None and state.peer.twins:
            return f"two hosts use this node's identity? {peer} hears from both in turn"
        return ""

    def _facts(self) -> Facts:
        watch, now = self._wireguard.watch, boottime()
        state = self._exchanges.state
        error = self._tunnel.error
        trouble = None if state is None or state.exchange is None else self._exchanges.trouble()
        return Facts(
            fault=self.fault,
            tunnel_error="" if error is None else f"tunnel {self._tunnel.name}: {error}",
            joined=self._exchanges.joined,
            has_key=self._wireguard.public_key is not None,
            in_force=watch.in_force is not None,
            doubtful=watch.doubtful,
            dead=watch.dead(self._peer.keepalive, now),
            minutes_silent=max(3, round((watch.session_age(now) or 0) // 60)),
            wireguard_at=self._wireguard.endpoint_text,
            closed_reason=self._closed_reason,
            exchanging=state is not None and state.exchange_due and state.address is not None,
            answering=state is not None and state.responding is not None,
            has_endpoint=self._peer.endpoint is not None,
            given_up=self._exchanges.given_up,
            waiting_reason=self._waiting_reason if trouble is None else trouble.reason,
            renewal_problem=self._renewal_problem,
            external=self._external.watch.standing,
            twins=self._twins(),
            unheard=self._exchanges.unheard,
            flow=flow_of(self._wireguard.flow),
            ways=self._tunnel.ways.trouble(self._peer),
            endpoint=self._tunnel.ways.endpoints.get(self._peer.name, ""),
            second_identity=self.last is not None and self.last.identity != self._peer.identity[0],
            adopted=self.adopted,
        )


def _reason_of(event: ExchangeFailed) -> str:
    """The peer's own words are quoted as such: they prove nothing."""
    if event.code is not FailureCode.REFUSED:
        return event.detail
    known = next((code.name.lower() for code in RejectCode if code == event.reject), event.reject)
    return f'refused ({known}), the peer says "{event.detail}"'

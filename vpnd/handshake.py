"""What WireGuard's handshake stamps tell: when a session began, whether a key is in force.

Pure logic over what a dump showed. A stamp is wall clock: it is compared for change, and read as a
time only once, for a session found at adoption. Facts of Linux WireGuard behind it: a PSK counts
from the next handshake; the end that began a session renews it from 120 s on when it sends, any
end from 165 s on; it dies at 180 s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tun.model import HandshakeStamp

SESSION_RENEWS: Final = 120.0
SESSION_OVERDUE: Final = 135.0
SESSION_DEAD: Final = 180.0
ANSWER_MARGIN: Final = 15.0
"""WireGuard starts a handshake after 15 s without an answer."""
OLD_KEY_MARGIN: Final = 10.0
"""A handshake seen this soon after a PSK was replaced may have been made with the one before."""


@dataclass(frozen=True, slots=True)
class WatchedKey:
    """The key on the interface, and the stamp that stood there just before it was set."""

    key_id: str
    installed_at: float
    stamp_before: HandshakeStamp | None
    replaces: bool


@dataclass(frozen=True, slots=True)
class KeyInForce:
    """A key that a WireGuard handshake has taken up; times on the boot clock."""

    key_id: str
    installed_at: float
    since: float


@dataclass(slots=True)
class HandshakeWatch:
    """One peer's handshakes, as successive dumps show them."""

    stamp: HandshakeStamp | None = None
    session_at: float | None = None
    """When the newest session began, on the boot clock, as far as it can be known."""
    waiting: WatchedKey | None = None
    """A key that is installed and not yet seen in force."""
    in_force: KeyInForce | None = None
    tx_bytes: int = 0
    tx_when_due: int | None = None
    """Bytes sent when the session was first seen older than 120 s."""

    def adopt(self, stamp: HandshakeStamp | None, now: float, wall: float) -> None:
        """A session found at the start: its age is read off the stamp, if that can be true."""
        self.stamp = stamp
        if stamp is None:
            return
        age = wall - (stamp[0] + stamp[1] / 1e9)
        # The clock may have been set since: what cannot be is taken as due now
        self.session_at = now - age if 0 <= age <= SESSION_DEAD else now - SESSION_RENEWS

    def installed(
        self, key_id: str, stamp_before: HandshakeStamp | None, now: float, *, replaces: bool
    ) -> None:
        """A PSK was set at `now`."""
        self.waiting = WatchedKey(key_id, now, stamp_before, replaces)

    def observe(self, stamp: HandshakeStamp | None, tx_bytes: int, now: float) -> bool:
        """Take one dump's reading; whether a new session was seen."""
        self.tx_bytes = tx_bytes
        fresh = stamp is not None and stamp != self.stamp
        if fresh:
            self.stamp, self.session_at, self.tx_when_due = stamp, now, None
        age = self.session_age(now)
        if age is not None and age >= SESSION_RENEWS and self.tx_when_due is None:
            self.tx_when_due = tx_bytes
        self._judge(now)
        return fresh

    def _judge(self, now: float) -> None:
        """Whether the waiting key is in force: the stamp has changed since it was installed."""
        key = self.waiting
        if key is None or self.stamp is None or self.stamp == key.stamp_before:
            return
        if key.replaces and now < key.installed_at + OLD_KEY_MARGIN:
            # May have been made with the key before: only a later one counts
            self.waiting = WatchedKey(key.key_id, key.installed_at, self.stamp, key.replaces)
            return
        self.in_force = KeyInForce(key.key_id, key.installed_at, now)
        self.waiting = None

    def session_age(self, now: float) -> float | None:
        return None if self.session_at is None else now - self.session_at

    def overdue(self, keepalive: int, now: float) -> bool:
        """Whether a handshake should have been seen by now, so that a waiting key is in doubt."""
        age = self.session_age(now)
        if age is None:
            waiting = self.waiting
            limit = keepalive + ANSWER_MARGIN
            return waiting is not None and keepalive > 0 and now > waiting.installed_at + limit
        sent = self.tx_when_due is not None and self.tx_bytes > self.tx_when_due
        if sent and age >= SESSION_OVERDUE:
            return True
        return keepalive > 0 and age >= SESSION_RENEWS + keepalive + ANSWER_MARGIN

    def dead(self, keepalive: int, now: float) -> bool:
        """Whether nothing can have passed for a while, although keepalives are sent."""
        age = self.session_age(now)
        return keepalive > 0 and age is not None and age > SESSION_DEAD + ANSWER_MARGIN

    def reset(self) -> None:
        """The peer is gone from the interface."""
        self.stamp = self.session_at = self.waiting = self.in_force = self.tx_when_due = None
        self.tx_bytes = 0

"""What WireGuard's handshake stamps tell: when a session began, whether a key is in force.

Pure logic over what a dump showed. A stamp is wall clock: it is compared for change, and read as a
time only for what was found at a restart. Facts of Linux WireGuard behind it: a PSK counts from
the next handshake; the end that began a session renews it from 120 s on when it sends, any end
from 165 s on; it dies at 180 s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tun import HandshakeStamp

SESSION_RENEWS: Final = 120.0
SESSION_OVERDUE: Final = 135.0
SESSION_DEAD: Final = 180.0
ANSWER_MARGIN: Final = 15.0
"""WireGuard starts a handshake after 15 s without an answer."""
OLD_KEY_MARGIN: Final = 10.0
"""A handshake seen this soon after a PSK was replaced may have been made with the one before."""


@dataclass(frozen=True, slots=True)
class WatchedKey:
    """The key on the interface, and the stamp of the last handshake that was or may have been made
    with the one before."""

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


@dataclass(frozen=True, slots=True)
class EitherKey:
    """Keys of which nobody here knows which one the sessions that are alive were made with."""

    key_ids: tuple[str, ...]
    """The oldest first."""
    until: float | None
    """When the last of these sessions is dead, on the boot clock; None where that is not known."""

    def alive(self, now: float) -> bool:
        return len(self.key_ids) > 1 and (self.until is None or now < self.until)


@dataclass(slots=True)
class HandshakeWatch:
    """One peer's handshakes, as successive dumps show them."""

    stamp: HandshakeStamp | None = None
    session_at: float | None = None
    """When the newest session began, on the boot clock; None where that cannot be known."""
    waiting: WatchedKey | None = None
    """A key that is installed and not yet seen in force."""
    in_force: KeyInForce | None = None
    older: WatchedKey | None = None
    """The key that the waiting one replaced before it was seen in force."""
    either: EitherKey | None = None
    """After a handshake that was made right after a key was replaced: with either of the two."""
    doubtful: bool = False
    """A key may have been set or not: the next handshake is made with nobody knows which."""
    watched_since: float | None = None
    suspect: bool = False
    """Found at a restart with a stamp that cannot be true or is too old: is anything heard?"""
    rx_bytes: int = 0
    tx_bytes: int = 0
    tx_when_due: int | None = None
    """Bytes sent when the session was first seen older than 120 s, or when no session was known."""

    def adopt(
        self,
        stamp: HandshakeStamp | None,
        rx_bytes: int,
        *,
        now: float,
        wall: float,
        waiting: WatchedKey | None,
        in_force: KeyInForce | None,
        doubtful: bool,
        either: EitherKey | None = None,
        pending_id: str = "",
    ) -> None:
        """Take over what an earlier run knew, and what is on the interface now. `pending_id` is of
        a key that may have been set or not."""
        self.reset()
        self.either = either
        self.stamp, self.rx_bytes, self.watched_since = stamp, rx_bytes, now
        self.waiting, self.in_force, self.doubtful = waiting, in_force, doubtful
        if stamp is not None:
            age = wall - (stamp[0] + stamp[1] / 1e9)
            if 0 <= age <= SESSION_DEAD:
                self.session_at = now - age
            else:
                self.suspect = True  # too old, or the clock was set meanwhile
        if waiting is not None and stamp != waiting.stamp_before:
            # A handshake while nobody looked: with which key depends on when it was
            late = self.session_at is not None and (
                not waiting.replaces or self.session_at >= waiting.installed_at + OLD_KEY_MARGIN
            )
            if late and not doubtful:
                self.in_force = KeyInForce(waiting.key_id, waiting.installed_at, now)
                self.waiting = self.either = None
            else:
                self.doubt(pending_id)
                self.in_force = None
        elif doubtful:
            self.doubt(pending_id)

    def installed(
        self, key_id: str, stamp_before: HandshakeStamp | None, now: float, *, replaces: bool
    ) -> None:
        """A PSK was set at `now`."""
        if self.watched_since is None:
            self.watched_since = now
        if replaces and stamp_before != self.stamp:
            # A handshake that no dump has shown yet: it was made with a key before this one
            self.observe(stamp_before, self.rx_bytes, self.tx_bytes, now)
        self.older = self.waiting if replaces and self.in_force is None else None
        self.waiting = WatchedKey(key_id, now, stamp_before, replaces)

    def doubt(self, key_id: str = "") -> None:
        """A PSK, of this key where that is known, may have been set or not."""
        self.either = EitherKey(self._possible(key_id), None)
        self.waiting, self.doubtful = None, True

    def _possible(self, newest: str) -> tuple[str, ...]:
        """The keys that sessions may have been made with, up to this one."""
        known = () if self.either is None else self.either.key_ids
        keys = (self.in_force, self.older, self.waiting)
        ids = (*known, *(key.key_id for key in keys if key is not None), newest)
        return tuple(dict.fromkeys(filter(None, ids)))

    def undecided(self, now: float) -> EitherKey | None:
        """The keys that sessions alive now may have been made with, where they are several."""
        return self.either if self.either is not None and self.either.alive(now) else None

    def observe(
        self, stamp: HandshakeStamp | None, rx_bytes: int, tx_bytes: int, now: float
    ) -> bool:
        """Take one dump's reading; whether a new session was seen."""
        if rx_bytes > self.rx_bytes:
            self.suspect = False
        self.rx_bytes, self.tx_bytes = rx_bytes, tx_bytes
        fresh = stamp is not None and stamp != self.stamp
        if fresh:
            self.stamp, self.session_at, self.tx_when_due = stamp, now, None
            self.suspect = False
        age = self.session_age(now)
        if self.tx_when_due is None and (age is None or age >= SESSION_RENEWS):
            self.tx_when_due = tx_bytes
        self._judge(now, fresh=fresh)
        return fresh

    def _judge(self, now: float, *, fresh: bool) -> None:
        """Whether the waiting key is in force: the stamp has changed since it was installed."""
        key = self.waiting
        if key is None:
            if fresh and self.doubtful:
                self.in_force = None
            return
        if self.stamp is None or self.stamp == key.stamp_before:
            return
        if key.replaces and now < key.installed_at + OLD_KEY_MARGIN:
            # May have been made with the key before: only a later one counts. Of two keys that
            # nobody has seen in force yet, it is at least the older one
            before = self.older or self.in_force
            if self.older is not None:
                self.in_force = KeyInForce(self.older.key_id, self.older.installed_at, now)
                self.older = None
            known = [] if before is None else [before.key_id]
            if self.either is not None and self.either.alive(now):
                known = [*self.either.key_ids]
            ids = tuple(dict.fromkeys([*known, key.key_id]))
            self.either = EitherKey(ids, now + SESSION_DEAD) if known else None
            self.waiting = WatchedKey(key.key_id, key.installed_at, self.stamp, key.replaces)
            return
        self.in_force = KeyInForce(key.key_id, key.installed_at, now)
        self.waiting, self.doubtful, self.either = None, False, None

    @property
    def newest(self) -> WatchedKey | KeyInForce | None:
        """The key that was set last, in force or not yet."""
        return self.waiting or self.in_force

    @property
    def newest_id(self) -> str:
        return "" if self.newest is None else self.newest.key_id

    def session_age(self, now: float) -> float | None:
        return None if self.session_at is None else now - self.session_at

    def overdue(self, keepalive: int, now: float) -> bool:
        """Whether WireGuard should have made a handshake by now: the one that takes the waiting key
        up, or the next one under the key in force. The peer may have lost that one."""
        key = self.newest
        if key is None or now < key.installed_at + ANSWER_MARGIN:
            return False
        age = self.session_age(now)
        if age is None:
            limit = keepalive + ANSWER_MARGIN
            return keepalive > 0 and self.waiting is not None and now > key.installed_at + limit
        if self._sent_in_vain and age >= SESSION_OVERDUE:
            return True
        return keepalive > 0 and age >= SESSION_RENEWS + keepalive + ANSWER_MARGIN

    @property
    def _sent_in_vain(self) -> bool:
        """Whether bytes were sent that should have made WireGuard shake hands."""
        return self.tx_when_due is not None and self.tx_bytes > self.tx_when_due

    def dead(self, keepalive: int, now: float) -> bool:
        """Whether nothing can have passed for a while, although something was sent: keepalives,
        or bytes that WireGuard counts. Without either, a session that is over is one at rest."""
        since = self.watched_since if self.session_at is None else self.session_at
        late = since is not None and now - since > SESSION_DEAD + ANSWER_MARGIN
        if late and self._sent_in_vain:
            return True
        return keepalive > 0 and (self.suspect or (late and self.stamp is not None))

    def reset(self) -> None:
        """The peer is gone from the interface."""
        self.stamp = self.session_at = self.waiting = self.in_force = self.tx_when_due = None
        self.watched_since = self.older = self.either = None
        self.doubtful = self.suspect = False
        self.rx_bytes = self.tx_bytes = 0

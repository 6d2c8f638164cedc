"""How many keys may be asked for: so many a minute, and as many in a burst."""

from __future__ import annotations

import trio


class TokenBucket:
    """Full at the beginning; refilled steadily. On trio's clock."""

    def __init__(self, per_minute: int) -> None:
        self._rate = per_minute / 60
        self._room = float(per_minute)
        self._tokens = self._room
        self._at: float | None = None

    def take(self, count: int = 1) -> bool:
        """Take `count` tokens if they are there."""
        self._refill()
        # A key of several parts may be more than a minute's worth: then a whole bucket is enough
        wanted = min(float(count), self._room)
        if self._tokens < wanted:
            return False
        self._tokens -= wanted
        return True

    def wait(self) -> float:
        """Seconds until there is one again."""
        self._refill()
        return max(0.0, (1 - self._tokens) / self._rate)

    def _refill(self) -> None:
        now = trio.current_time()
        if self._at is not None:
            self._tokens = min(self._room, self._tokens + (now - self._at) * self._rate)
        self._at = now

"""When to ask for cookies: a bucket of public-key operations done for strangers."""

from __future__ import annotations

from dataclasses import dataclass

BURST = 64.0
"""InitHello messages opened in a burst before cookies are asked for."""
RATE = 100.0
"""InitHello messages a second that are opened without cookies."""


@dataclass(slots=True)
class Load:
    """Tokens are spent on each InitHello that is opened and come back with time."""

    at: float
    tokens: float = BURST
    burst: float = BURST
    rate: float = RATE
    high: bool = False

    def is_high(self, now: float) -> bool:
        """Whether cookies are to be asked for; ends only when half the bucket is full again."""
        self._refill(now)
        if self.tokens < 1:
            self.high = True
        elif self.tokens >= self.burst / 2:
            self.high = False
        return self.high

    def charge(self, now: float) -> None:
        """An InitHello is about to be opened."""
        self._refill(now)
        self.tokens = max(0.0, self.tokens - 1)

    def _refill(self, now: float) -> None:
        if now > self.at:
            self.tokens = min(self.burst, self.tokens + (now - self.at) * self.rate)
            self.at = now

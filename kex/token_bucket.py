"""Token buckets as values: so much at once, and so much a second after that."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a bucket holds when it is full, and what comes back each second."""

    burst: float
    rate: float


@dataclass(frozen=True, slots=True)
class TokenBucket:
    """Tokens that were there `at` a time, in the endpoint's seconds. None: never used, so full."""

    tokens: float = 0.0
    at: float | None = None

    def available(self, allowance: Allowance, now: float) -> float:
        """The tokens that are there now."""
        if self.at is None:
            return allowance.burst
        return min(allowance.burst, self.tokens + max(0.0, now - self.at) * allowance.rate)

    def holds(self, count: float, allowance: Allowance, now: float) -> bool:
        return self.available(allowance, now) >= count

    def less(self, count: float, allowance: Allowance, now: float) -> TokenBucket:
        """The bucket after `count` tokens were taken, which must be there."""
        at = now if self.at is None else max(now, self.at)
        return TokenBucket(self.available(allowance, now) - count, at)

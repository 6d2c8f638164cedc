"""A time in which a link in `prefer` has no external keys: it has a reason, a limit and an end.

Times are on the boot clock, in seconds. A value: what changes it gives another one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from vpnd.api import MAX_FALLBACK_EXTENSION, MIN_FALLBACK_EXTENSION


class NotExtensible(Exception):
    """The fallback cannot be extended; the message says why."""


@dataclass(frozen=True, slots=True)
class Fallback:
    """One fallback, from the first key without what is needed to the next key with it."""

    started_at: float
    reason: str
    limit: int
    """Seconds, as configured."""
    extended_by: int = 0
    """Seconds; 0 where nobody has extended it."""
    extended_at: float = 0.0
    extension_reason: str = ""
    extension_uid: int = -1

    @property
    def deadline(self) -> float:
        """After which the link behaves as with `require`.

        An extension counts from the moment it was given, where the limit was over by then.
        """
        limit_at = self.started_at + self.limit
        if not self.extended_by:
            return limit_at
        return max(limit_at, self.extended_at) + self.extended_by

    def over(self, now: float) -> bool:
        return now >= self.deadline

    @property
    def extended(self) -> bool:
        return self.extended_by > 0

    def because(self, reason: str) -> Fallback:
        """The same fallback; why it goes on."""
        return replace(self, reason=reason)

    def with_limit(self, seconds: int) -> Fallback:
        """The same under another configuration."""
        return replace(self, limit=seconds)

    def extend(self, seconds: int, reason: str, *, uid: int, now: float) -> Fallback:
        """Raises NotExtensible: once in a fallback, and only for a reason."""
        if self.extended:
            raise NotExtensible(
                f"the fallback was extended already, by {self.extended_by} s: "
                f'"{self.extension_reason}"'
            )
        if not MIN_FALLBACK_EXTENSION <= seconds <= MAX_FALLBACK_EXTENSION:
            raise NotExtensible(
                f"a fallback can be extended by {MIN_FALLBACK_EXTENSION} s to "
                f"{MAX_FALLBACK_EXTENSION // 86400} days"
            )
        return replace(
            self,
            extended_by=seconds,
            extended_at=now,
            extension_reason=reason,
            extension_uid=uid,
        )

"""What is wrong with a source just now, and who is told when that changes.

A fault of the source itself (no connection, say) and faults towards single far ends (their pool is
empty) are kept apart. An event tells the beginning and the end of each, not every call in between.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final

from vpnd.clock import wall
from vpnd.keysource.base import SourceError, SourceFault, SourceListener

OF_THE_SOURCE: Final = frozenset(
    {
        SourceFault.UNREACHABLE,
        SourceFault.TIMEOUT,
        SourceFault.TLS,
        SourceFault.CERTIFICATE,
        SourceFault.FILE,
    }
)
"""Faults that do not depend on the far end."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """A fault that is not over."""

    fault: SourceFault
    reason: str
    hint: str
    since_wall: float


class Health:
    """Of one source."""

    def __init__(self, name: str, listener: SourceListener) -> None:
        self._name = name
        self._listener = listener
        self._troubles: dict[str, Trouble] = {}
        """By far end; "" is the source itself."""
        self._fars: set[str] = set()
        self.counters: Counter[str] = Counter()

    @property
    def available(self) -> bool:
        """Whether somebody can have keys, as far as is known."""
        return "" not in self._troubles and (
            not self._troubles or bool(self._fars - set(self._troubles))
        )

    @property
    def trouble(self) -> Trouble | None:
        """The worst, or the latest."""
        if "" in self._troubles:
            return self._troubles[""]
        return max(self._troubles.values(), key=lambda one: one.since_wall, default=None)

    def failed(self, error: SourceError, *, far: str = "", link: str = "") -> None:
        self.counters["failed"] += 1
        self.counters[error.fault.value] += 1
        if far:
            self._fars.add(far)
        key = "" if error.fault in OF_THE_SOURCE else far
        before = self._troubles.get(key)
        since = wall() if before is None or before.fault is not error.fault else before.since_wall
        self._troubles[key] = Trouble(error.fault, error.reason, error.hint, since)
        if before is None or before.fault is not error.fault:
            self._tell("source_failed", "warning", error.reason, error.fault.value, link)

    def succeeded(self, *, far: str = "", link: str = "") -> None:
        """A call came to its end as it should; `far` where it was about one."""
        if far:
            self._fars.add(far)
        for key in {"", far}:
            over = self._troubles.pop(key, None)
            if over is not None:
                reason = f"over after {max(0.0, wall() - over.since_wall):.0f} s: {over.reason}"
                self._tell("source_back", "info", reason, over.fault.value, link)

    def forget(self, far: str) -> None:
        """Nobody asks for this far end any more."""
        self._fars.discard(far)
        self._troubles.pop(far, None)

    def tell(self, event: str, *, level: str, reason: str, code: str = "") -> None:
        """Something else that happened to the source."""
        self._tell(event, level, reason, code, "")

    def _tell(self, event: str, level: str, reason: str, code: str, link: str) -> None:
        self._listener.source_event(
            event, self._name, level=level, reason=reason, code=code, link=link
        )

"""How many keys a pair of key managers has left, and for how long that lasts.

Stock is what the key manager said last; use is this node's own, of the last 24 hours.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from vpnd.clock import wall
from vpnd.keysource.base import StockLevel

DAY: Final = 86_400.0
_PART: Final = DAY / 48
_SHORTEST: Final = 600.0
"""Seconds that a rate is taken from, at the least."""
_BACK: Final = 1.25
"""Times the low-water mark, above which the stock counts as filled up again."""


class _Use:
    """Keys that were used, in parts of half an hour."""

    def __init__(self, now: float) -> None:
        self._since = now
        self._parts: deque[tuple[float, int]] = deque()

    def add(self, now: float, count: int) -> None:
        if self._parts and now - self._parts[-1][0] < _PART:
            began, before = self._parts.pop()
            self._parts.append((began, before + count))
        else:
            self._parts.append((now, count))
        self._drop_old(now)

    def per_day(self, now: float) -> float:
        self._drop_old(now)
        seconds = min(DAY, max(_SHORTEST, now - self._since))
        return sum(count for _, count in self._parts) * DAY / seconds

    def _drop_old(self, now: float) -> None:
        while self._parts and now - self._parts[0][0] > DAY:
            self._parts.popleft()


class Stock:
    """Of one source, for each far end."""

    def __init__(self, clock: Callable[[], float], low_water: int | None) -> None:
        self._clock = clock
        self._low_water = low_water
        self._uses: dict[str, _Use] = {}
        self._levels: dict[str, tuple[int, int, int, float]] = {}
        self._low: set[str] = set()

    def used(self, peer_id: str, count: int) -> None:
        """Keys (IDs) that left the pool on our behalf."""
        now = self._clock()
        self._uses.setdefault(peer_id, _Use(now)).add(now, count)

    def said(self, peer_id: str, stored: int, capacity: int, key_bits: int) -> bool | None:
        """What a status said; True where the stock became low just now, False where it is no
        longer, None where nothing changed."""
        self._levels[peer_id] = (stored, capacity, key_bits, wall())
        mark = capacity // 10 if self._low_water is None else self._low_water
        if stored <= mark and peer_id not in self._low:
            self._low.add(peer_id)
            return True
        if stored > mark * _BACK and peer_id in self._low:
            self._low.remove(peer_id)
            return False
        return None

    def forget(self, peer_id: str) -> None:
        """Nobody asks for this far end any more."""
        self._levels.pop(peer_id, None)
        self._uses.pop(peer_id, None)
        self._low.discard(peer_id)

    def level(self, peer_id: str) -> StockLevel | None:
        if peer_id not in self._levels:
            return None
        stored, capacity, key_bits, at_wall = self._levels[peer_id]
        use = self._uses.get(peer_id)
        per_day = 0.0 if use is None else use.per_day(self._clock())
        return StockLevel(
            peer_id=peer_id,
            stored=stored,
            capacity=capacity,
            key_bits=key_bits,
            at_wall=at_wall,
            used_per_day=round(per_day, 1),
            days_left=round(stored / per_day, 2) if per_day else None,
            low=peer_id in self._low,
        )

    def levels(self) -> list[StockLevel]:
        return [level for peer_id in self._levels if (level := self.level(peer_id)) is not None]

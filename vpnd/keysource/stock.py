"""How many keys a pair of key managers has left, and for how long that lasts.

Stock is what the key manager said last; use is this node's own, of the last 24 hours.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
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


@dataclass(slots=True)
class _Count:
    """What a status said, and what came since: a count need not be one."""

    stored: int
    capacity: int
    key_bits: int
    at_wall: float
    changed: bool = False
    """Whether it ever was another one."""
    came: int = 0
    """New keys that came since it was first said."""
    empty: bool = False
    """Whether the key manager has said since that it has none left."""

    @property
    def contradicted(self) -> bool:
        """Whether more keys came than it would have, and it has never moved for that. A store that
        is full again at each look is another matter."""
        full = self.stored > 0 and self.stored >= self.capacity
        moves = self.changed or self.empty or full
        return self.came > self.stored and not moves

    @property
    def believed(self) -> bool:
        """A count that never was another than 0 may be none: until it is heard that no key is
        left, or moves."""
        return not self.contradicted and (self.stored > 0 or self.changed or self.empty)


class Stock:
    """Of one source, for each far end."""

    def __init__(self, clock: Callable[[], float], low_water: int | None) -> None:
        self._clock = clock
        self._low_water = low_water
        self._uses: dict[str, _Use] = {}
        self._counts: dict[str, _Count] = {}
        self._low: set[str] = set()

    def used(self, peer_id: str, count: int, *, new: bool = True) -> None:
        """Keys (IDs) that left the pool on our behalf; `new` but for those that the far end had
        taken from it before."""
        if new and peer_id in self._counts:
            self._counts[peer_id].came += count
            self._counts[peer_id].empty = False
        now = self._clock()
        self._uses.setdefault(peer_id, _Use(now)).add(now, count)

    def said(self, peer_id: str, stored: int, capacity: int, key_bits: int) -> bool | None:
        """What a status said; True where the stock became low just now, False where it is no
        longer, None where nothing changed."""
        before = self._counts.get(peer_id)
        now = _Count(stored, capacity, key_bits, wall())
        if before is not None:
            now.changed = before.changed or before.stored != stored
            now.empty = before.empty
            now.came = before.came
        self._counts[peer_id] = now
        return self._judged(peer_id)

    def empty(self, peer_id: str) -> bool | None:
        """The key manager says that it has no keys left; the same answer as of `said`."""
        if peer_id not in self._counts:
            return None
        self._counts[peer_id].empty = True
        return self._judged(peer_id)

    def _judged(self, peer_id: str) -> bool | None:
        count = self._counts[peer_id]
        # A tenth of a store for less than ten keys is none: there it is told when a key is missing
        mark = count.capacity // 10 if self._low_water is None else self._low_water
        low = count.believed and mark > 0 and count.stored <= mark
        if low and peer_id not in self._low:
            self._low.add(peer_id)
            return True
        if peer_id in self._low and (count.stored > mark * _BACK or not count.believed):
            self._low.remove(peer_id)
            return False
        return None

    def doubts(self) -> list[str]:
        """What is not believed, in words."""
        return [
            f"its status says {count.stored} of {keys_of(count.capacity)} for {peer_id}, and "
            f"{keys_of(count.came)} came since: the number is not believed"
            for peer_id, count in self._counts.items()
            if count.contradicted
        ]

    def forget(self, peer_id: str) -> None:
        """Nobody asks for this far end any more."""
        self._counts.pop(peer_id, None)
        self._uses.pop(peer_id, None)
        self._low.discard(peer_id)

    def level(self, peer_id: str) -> StockLevel | None:
        """What it said last; None where that is nothing, or is not believed."""
        count = self._counts.get(peer_id)
        if count is None or count.contradicted:
            return None
        use = self._uses.get(peer_id)
        per_day = 0.0 if use is None else use.per_day(self._clock())
        return StockLevel(
            peer_id=peer_id,
            stored=count.stored,
            capacity=count.capacity,
            key_bits=count.key_bits,
            at_wall=count.at_wall,
            used_per_day=round(per_day, 1),
            days_left=round(count.stored / per_day, 2) if per_day else None,
            low=peer_id in self._low,
        )

    def levels(self) -> list[StockLevel]:
        return [level for peer_id in self._counts if (level := self.level(peer_id)) is not None]


def keys_of(number: int) -> str:
    """A number of keys, in words."""
    return "1 key" if number == 1 else f"{number} keys"

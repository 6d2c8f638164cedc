"""Keys fetched ahead, one for each far end at most, shortly before the next renewal is due.

When that is follows from the time between the last two uses. A key that is not used within five
minutes is thrown away, and no other is fetched before the next use: a link that fell silent costs
one key.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from kex.external import ExternalKey
from vpnd.keysource.base import Correspondent, KeyFetchedAhead

MAX_AGE: Final = 300.0
"""Seconds. How long a key manager keeps its half is not known: no longer than this is relied on."""
LONGEST_LEAD: Final = 60.0
"""Seconds before the next use that a key is fetched at the earliest."""
SHORTEST_LEAD: Final = 5.0
"""Seconds. A key that was refused may have been fetched too early: the lead is halved then."""
SHORTEST_GAP: Final = 45.0
"""Seconds: uses that follow each other more quickly are failures, not a rhythm."""


@dataclass(slots=True)
class _Place:
    far: Correspondent
    used_at: float
    gap: float | None = None
    lead: float = LONGEST_LEAD
    tried: bool = False
    key: ExternalKey | None = None
    fetched_at: float = 0.0


class Reserve:
    """The keys of one source. `clock` in seconds, suspend included."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._places: dict[str, _Place] = {}
        self.thrown_away = 0

    def __len__(self) -> int:
        return sum(place.key is not None for place in self._places.values())

    def take(self, far: Correspondent) -> ExternalKey | None:
        """The fresh key for this far end, if there is one; it is not there any more then."""
        self.expire()
        place = self._places.get(far.peer_id)
        if place is None or place.key is None:
            return None
        key, place.key = place.key, None
        return KeyFetchedAhead(key.reference, key.key)

    def throw_away(self, far: Correspondent) -> None:
        """A key for this far end that was fetched ahead was of no use: nor is what is here."""
        place = self._places.get(far.peer_id)
        if place is None:
            return
        place.lead = max(SHORTEST_LEAD, place.lead / 2)
        if place.key is not None:
            place.key = None
            self.thrown_away += 1

    def used(self, far: Correspondent) -> None:
        """A key for this far end was handed out just now."""
        now = self._clock()
        place = self._places.get(far.peer_id)
        if place is None:
            self._places[far.peer_id] = _Place(far, now)
            return
        if now - place.used_at >= SHORTEST_GAP:
            place.gap = now - place.used_at
        place.far = far
        place.used_at = now
        place.tried = False

    def due(self) -> list[Correspondent]:
        """For whom a key has to be fetched now."""
        now = self._clock()
        return [
            place.far
            for place in self._places.values()
            if (at := _due_at(place)) is not None and at <= now
        ]

    def next_due(self) -> float:
        """Seconds until something has to be fetched or thrown away; infinity for never."""
        now = self._clock()
        times = [at for place in self._places.values() if (at := _due_at(place)) is not None]
        times += [place.fetched_at + MAX_AGE for place in self._places.values() if place.key]
        return max(0.0, min(times) - now) if times else float("inf")

    def tried(self, far: Correspondent) -> None:
        """A key is being fetched: whether or not one comes, it is not tried again before a use."""
        if far.peer_id in self._places:
            self._places[far.peer_id].tried = True

    def put(self, far: Correspondent, key: ExternalKey) -> None:
        place = self._places[far.peer_id]
        if place.key is not None:
            self.thrown_away += 1
        place.key = key
        place.fetched_at = self._clock()

    def expire(self) -> None:
        """Throw away what is too old."""
        now = self._clock()
        for place in self._places.values():
            if place.key is not None and now - place.fetched_at > MAX_AGE:
                place.key = None
                self.thrown_away += 1

    def clear(self) -> None:
        self.thrown_away += len(self)
        self._places.clear()


def _due_at(place: _Place) -> float | None:
    if place.gap is None or place.tried or place.key is not None:
        return None
    return place.used_at + place.gap - min(place.lead, place.gap / 2)

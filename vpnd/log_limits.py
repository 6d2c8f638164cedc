"""How much of what happens again and again stands in the log.

A peer that is away, a port that another program has, a key manager that refuses: each tells the
same every few seconds, for as long as it lasts. And a peer that misbehaves can make something
happen as often as it likes. So of records about one thing the log has

- of those that say the same the first few, and then fewer and fewer, down to one an hour, until
  the thing works again or is quiet for a while;
- of all of one kind, whatever they say, so many at once and one a minute.

What differs from what was told is told at once, within the second bound. A record that is written
after others were left out says how many.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from kex.token_bucket import Allowance, TokenBucket

FIRST: Final = 3
"""Records that say the same, before they become fewer."""
SPACING: Final = 60.0
"""Seconds to the next one then; doubled each time."""
SPACING_AT_MOST: Final = 3600.0
QUIET: Final = 600.0
"""Seconds without a record, after which the same one is told as if it were new. Longer than the
pauses between what repeats itself."""
OF_ONE_KIND: Final = Allowance(burst=200, rate=1 / 60)
WORDINGS: Final = 8
"""Different ones of a kind that are remembered, to tell what is the same."""

ALWAYS: Final = frozenset(
    {
        "started",
        "stopping",
        "stopped",
        "reloaded",
        "reload_refused",
        "warning",
        "memory_not_protected",
    }
)
"""About the daemon itself, or one for each mistake in a file: nothing that others can cause."""
WORKS_AGAIN: Final = frozenset({"key_installed", "tunnel_opened", "source_back", "listening"})
"""What ends all that was wrong with a thing: the next time it is told anew."""
CURRENT: Final = frozenset({"state_changed"})
"""Where the last one counts: it is written later, if it was left out."""
_VARYING: Final = frozenset({"exchange", "attempt"})
"""Fields that differ in records that say the same."""

Value = str | int | float | bool | None
Fields = Mapping[str, Value]


@dataclass(slots=True)
class _Run:
    """Records that say the same, one after the other."""

    count: int = 0
    seen_at: float = 0.0
    told_at: float = 0.0

    def is_due(self, now: float) -> bool:
        if self.count < FIRST:
            return True
        doublings = min(self.count - FIRST, 10)
        return now >= self.told_at + min(SPACING * 2.0**doublings, SPACING_AT_MOST)


@dataclass(slots=True)
class _Kind:
    """Records of one kind about one thing."""

    bucket: TokenBucket = field(default_factory=TokenBucket)
    runs: dict[tuple[object, ...], _Run] = field(default_factory=dict)
    """By what they say; the one seen longest ago first."""
    left_out: int = 0

    def admits(self, wording: tuple[object, ...], now: float) -> bool:
        run = self.runs.pop(wording, None)
        if run is None or now >= run.seen_at + QUIET:
            run = _Run()
        self.runs[wording] = run
        if len(self.runs) > WORDINGS:
            del self.runs[next(iter(self.runs))]
        run.seen_at = now
        if not (run.is_due(now) and self.bucket.holds(1, OF_ONE_KIND, now)):
            self.left_out += 1
            return False
        run.count += 1
        run.told_at = now
        self.bucket = self.bucket.less(1, OF_ONE_KIND, now)
        return True

    def count_left_out(self) -> int:
        """How many were left out since this was asked last."""
        count, self.left_out = self.left_out, 0
        return count


@dataclass(frozen=True, slots=True)
class Line:
    """What is to be written."""

    event: str
    level: str
    fields: Fields


class LogLimits:
    """Of one log."""

    def __init__(self) -> None:
        self._things: dict[str, dict[tuple[object, ...], _Kind]] = {}
        """What is told of: a link, a tunnel, a source, a place to listen at; and what of it."""
        self._late: dict[tuple[str, tuple[object, ...]], Line] = {}

    def lines(
        self, event: str, level: str, fields: Fields, now: float, *, error: str = ""
    ) -> Iterator[Line]:
        """What the log gets when something happens, in order: often just that, or nothing.

        `error` is of the traceback that goes with it: another one says something else.
        """
        yield from self._come_due(now)
        line = Line(event, level, fields)
        if event in ALWAYS or "uid" in fields:
            yield line
            return
        thing = _thing(fields)
        kinds = self._things.setdefault(thing, {})
        key = (event, *(fields.get(name) for name in _THINGS))
        kind = kinds.setdefault(key, _Kind())
        if kind.admits((error, *_wording(level, fields)), now):
            self._late.pop((thing, key), None)
            if event in WORKS_AGAIN:
                yield from _work_again(thing, kinds)
            yield _with_count(line, kind)
        elif event in CURRENT:
            self._late[thing, key] = line

    def _come_due(self, now: float) -> Iterator[Line]:
        """What was left out, and is still how it stands."""
        for (thing, key), line in list(self._late.items()):
            kind = self._things[thing][key]
            if kind.bucket.holds(1, OF_ONE_KIND, now):
                kind.bucket = kind.bucket.less(1, OF_ONE_KIND, now)
                kind.left_out -= 1
                del self._late[thing, key]
                yield _with_count(line, kind)

    def forget(self, peer: str) -> None:
        """The link is not configured any more."""
        self._things.pop(f"peer {peer}", None)
        self._late = {key: line for key, line in self._late.items() if key[0] != f"peer {peer}"}


_THINGS: Final = ("peer", "source", "tunnel", "address")
"""Fields that name what a record is about."""


def _thing(fields: Fields) -> str:
    """A record about a link and a tunnel is about the link."""
    return next((f"{name} {fields[name]}" for name in _THINGS if name in fields), "")


def _wording(level: str, fields: Fields) -> tuple[object, ...]:
    return (level, *sorted((k, str(v)) for k, v in fields.items() if k not in _VARYING))


def _with_count(line: Line, kind: _Kind) -> Line:
    count = kind.count_left_out()
    return Line(line.event, line.level, {**line.fields, "left_out": count}) if count else line


def _work_again(thing: str, kinds: Mapping[tuple[object, ...], _Kind]) -> Iterator[Line]:
    """Tell of what was left out, and begin anew. The buckets stay as they are: who makes a thing
    fail and work in turn does not get more."""
    counts: dict[str, int] = {}
    for (event, *_), kind in kinds.items():
        kind.runs.clear()
        if str(event) not in WORKS_AGAIN | CURRENT and kind.left_out:
            counts[str(event)] = counts.get(str(event), 0) + kind.count_left_out()
    if counts:
        name, _, value = thing.partition(" ")
        about: Fields = {name: value} if name else {}
        told = ", ".join(f"{event} {count}" for event, count in sorted(counts.items()))
        yield Line(
            "records_left_out",
            "info",
            {**about, "reason": told, "left_out": sum(counts.values())},
        )

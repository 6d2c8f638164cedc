"""One record for each step of a link's life: to the log, the counters and the watchers alike.

Counters and watchers get every one. The log, which somebody has to store and to read, has fewer of
what happens again and again: vpnd.log_limits.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import structlog

from vpnd.api import SCHEMA, Event
from vpnd.clock import boottime, rfc3339, wall
from vpnd.event_feed import EventFeed
from vpnd.log_limits import LogLimits

Field = str | int | float | bool | None

_IN_THE_OPEN = ("tunnel", "state", "reason", "key_id", "role")
"""Fields that stand in an event under their own names; the others go to `fields`."""


def configure_logging(level: str) -> None:
    """Log to stderr: lines for people on a terminal, JSON objects elsewhere."""
    people = sys.stderr.isatty()
    renderer: Any = (
        structlog.dev.ConsoleRenderer() if people else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            # The traceback as text, without the values of variables: keys are among them
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    # Libraries: nothing below a warning. pyroute2 would log whole messages, keys included
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    logging.getLogger("pyroute2").setLevel(logging.CRITICAL)


class Journal:
    """Takes records and hands each to the log, the counters and the watchers."""

    def __init__(self, feed: EventFeed, *, now: Callable[[], float] = boottime) -> None:
        self._log = structlog.get_logger("vpnd")
        self._feed = feed
        self._now = now
        self._limits = LogLimits()
        self.counters: Counter[str] = Counter()
        self.link_counters: dict[str, Counter[str]] = {}

    def record(
        self,
        event: str,
        *,
        peer: str | None = None,
        level: str = "info",
        exc_info: BaseException | None = None,
        **fields: Field,
    ) -> None:
        """One step. `event` is a stable slug; no field may hold a secret."""
        self.counters[event] += 1
        about: dict[str, Field] = dict(fields)
        if peer is not None:
            self.link_counters.setdefault(peer, Counter())[event] += 1
            about = {"peer": peer, **fields}
        error = "" if exc_info is None else f"{type(exc_info).__name__}: {exc_info}"
        for line in self._limits.lines(event, level, about, self._now(), error=error):
            # A traceback belongs to this record, and to none that comes with it
            trace = {"exc_info": exc_info} if exc_info is not None and line.event == event else {}
            with suppress(OSError):  # a log on a full disk: nothing else may depend on it
                getattr(self._log, line.level)(line.event, **line.fields, **trace)
        self._feed.publish(_event(event, peer, fields))

    def forget_link(self, peer: str) -> None:
        self.link_counters.pop(peer, None)
        self._limits.forget(peer)


def _event(event: str, peer: str | None, fields: dict[str, Field]) -> Event:
    message = Event(schema=SCHEMA, at=rfc3339(wall()), event=event)
    if peer is not None:
        message["peer"] = peer
    rest: dict[str, Field] = {}
    for name, value in fields.items():
        if name in _IN_THE_OPEN and isinstance(value, str):
            message[name] = value  # type: ignore[literal-required]  # the names above
        else:
            rest[name] = value
    if rest:
        message["fields"] = rest
    return message

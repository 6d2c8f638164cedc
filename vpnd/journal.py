"""One record for each step of a link's life: to the log, the counters and the watchers alike.

Counters and watchers get every one. The log, which somebody has to store and to read, has fewer of
what happens again and again: vpnd.log_limits.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any, Final, TextIO, cast

import structlog

from vpnd.api import SCHEMA, Event
from vpnd.clock import boottime, rfc3339, wall
from vpnd.event_feed import EventFeed
from vpnd.log_format import PRIORITIES, LineRenderer, LogFormat, is_journal
from vpnd.log_limits import LogLimits
from vpnd.log_writer import FLUSH_SECONDS, LogStream, LogWriter

DROPPED: Final = "log_dropped"
"""The record that tells of records that could not be written."""
_DROPPED_REASON: Final = "nobody took them off stderr, or its disk is full"

Field = str | int | float | bool | None

_IN_THE_OPEN = ("tunnel", "state", "reason", "key_id", "role")
"""Fields that stand in an event under their own names; the others go to `fields`."""


def configure_logging(level: str, log_format: LogFormat = "auto") -> LogWriter:
    """Log to stderr, without ever waiting for who reads it.

    `auto`: lines for people on a terminal and in systemd's journal, JSON objects elsewhere. From
    now on all that is printed to stderr takes the same way. Returns what writes, for its counts
    and to be flushed at the end.
    """
    descriptor = 2 if sys.__stderr__ is None else sys.__stderr__.fileno()
    terminal, journal = os.isatty(descriptor), is_journal(descriptor)
    as_json = log_format == "json" or (log_format == "auto" and not terminal and not journal)
    line = LineRenderer(as_json=as_json, journal=journal)
    renderer: Any = structlog.dev.ConsoleRenderer() if terminal and not as_json else line
    processors: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        # The traceback as text, without the values of variables: keys are among them
        structlog.processors.format_exc_info,
    ]

    def tell_dropped(count: int) -> str:
        record = {"event": DROPPED, "dropped": count, "reason": _DROPPED_REASON, "level": "warning"}
        record["timestamp"] = rfc3339(wall())
        return f"{renderer(None, 'warning', record)}\n"

    writer = LogWriter(descriptor, tell_dropped=tell_dropped)
    structlog.configure(
        processors=[*processors, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, writer)),
        cache_logger_on_first_use=True,
    )

    def write_plain(text: str) -> None:
        # What a program says as it fails, and tracebacks; a note or a hint is no error
        plain = text.startswith(("vpnd: note:", "vpnd: hint:"))
        writer.write(f"{line.prefixed(text, PRIORITIES['notice' if plain else 'error'])}\n")

    sys.stderr = cast(TextIO, LogStream(descriptor, write_plain))
    # Libraries: nothing below a warning. pyroute2 would log whole messages, keys included
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    logging.getLogger("pyroute2").setLevel(logging.CRITICAL)
    atexit.register(writer.flush, FLUSH_SECONDS)
    return writer


class Journal:
    """Takes records and hands each to the log, the counters and the watchers."""

    def __init__(
        self,
        feed: EventFeed,
        writer: LogWriter | None = None,
        *,
        now: Callable[[], float] = boottime,
    ) -> None:
        """`writer` is what the log goes through (`configure_logging`), for its count."""
        self._log = structlog.get_logger("vpnd")
        self._feed = feed
        self._writer = writer
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
            getattr(self._log, line.level)(line.event, **line.fields, **trace)
        self._feed.publish(_event(event, peer, fields))

    @property
    def unwritten(self) -> int:
        """Records that the log has lost since the start."""
        return 0 if self._writer is None else self._writer.dropped

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

"""What a record of the log looks like: for people, for programs, and for systemd's journal."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, Final, Literal

from vpnd.config_errors import printable

LogFormat = Literal["auto", "text", "json"]

PRIORITIES: Final = {
    "debug": 7, "info": 6, "notice": 5, "warning": 4, "error": 3, "critical": 2, "exception": 3,
}  # fmt: skip
"""Levels as syslog(3) numbers them: what `<N>` before a line means to systemd (sd-daemon(3))."""
_NAMED: Final = ("event", "level", "timestamp", "peer", "tunnel", "reason", "exception")
_LONGEST: Final = 2000
"""Characters of one field."""


def is_journal(descriptor: int) -> bool:
    """Whether a descriptor is the one that systemd has connected with its journal."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        found = os.fstat(descriptor)
    except OSError:
        return False
    return (device, inode) == (str(found.st_dev), str(found.st_ino))


def as_text(record: Mapping[str, Any]) -> str:
    """A line for people, the event first: `exchange_failed ams1: no answer (code=no_answer)`. A
    traceback follows on lines of its own."""
    line = _shown(record.get("event", ""))
    about = record.get("peer") or record.get("tunnel")
    if about:
        line += f" {_shown(about)}"
    if record.get("reason"):
        line += f": {_shown(record['reason'])}"
    rest = [
        f"{name}={_shown(value)}"
        for name, value in record.items()
        if name not in _NAMED and value not in (None, "")
    ]
    if rest:
        line += f" ({' '.join(rest)})"
    if record.get("exception"):
        line += f"\n{record['exception']}"
    return line


def _shown(value: object) -> str:
    return printable(str(value), limit=_LONGEST)


class LineRenderer:
    """The last of structlog's processors: a record as what is written of it, but for the end of
    its last line."""

    def __init__(self, *, as_json: bool, journal: bool) -> None:
        """`journal`: whether systemd's journal takes it, which has times and priorities itself."""
        self._json = as_json
        self._journal = journal

    def __call__(self, logger: object, method: str, record: Mapping[str, Any]) -> str:
        level = str(record.get("level", method))
        if self._json:
            first = {"event": record.get("event", "")}
            text = json.dumps(first | dict(record), default=repr, ensure_ascii=False)
        else:
            text = as_text(record)
            if not self._journal:
                text = f"{record.get('timestamp', '')} {level:7} {text}"
        return self.prefixed(text, PRIORITIES.get(level, PRIORITIES["info"]))

    def prefixed(self, text: str, priority: int) -> str:
        """The text as it stands in the log: each line is a record of its own to the journal."""
        if not self._journal:
            return text
        return "\n".join(f"<{priority}>{line}" for line in text.split("\n"))

"""Reads the values of flags, by the same rules as the daemon reads its files.

The daemon checks everything again: this is for the person at the keyboard, who hears of a
mistake at once, of all of them together, and without a daemon. What only the daemon knows (names
of peers and tunnels, prefixes in use) is left to it.

Imported inside the commands that need it: the rules bring `kex.identity` and with it the
cryptography package (60 ms).
"""

import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, time, timedelta
from typing import Final, TypeVar

from cli.errors import Problem, UsageProblem
from vpnd.config_fields import FieldError, whole_number

Value = TypeVar("Value")

MAX_WAIT_SECONDS: Final = 86_400


class Flags:
    """Reads one flag after another and keeps what was wrong, to tell all of it at once."""

    def __init__(self, command: str) -> None:
        self._command = command
        self._problems: list[Problem] = []

    def read(self, flag: str, parse: Callable[[str], Value], text: str) -> Value | None:
        """The value, or None when it was wrong: `check()` before it is used."""
        try:
            return parse(text)
        except FieldError as wrong:
            self.problem(f"{flag}: {wrong.reason}", wrong.hint)
            return None

    def read_list(
        self, flag: str, parse: Callable[[str], Value], texts: Iterable[str]
    ) -> list[Value]:
        """The entries of a flag that is repeated, or holds several with commas between."""
        values = []
        for text in texts:
            entries = [entry.strip() for entry in text.split(",")]
            if not all(entries):
                self.problem(f"{flag} {text!r}: an entry is empty", "remove the comma too many")
            values += [self.read(flag, parse, entry) for entry in entries if entry]
        return [value for value in values if value is not None]

    def problem(self, message: str, hint: str = "") -> None:
        self._problems.append(
            Problem(message, hint or f"{self._command} --help shows what is expected")
        )

    def check(self) -> None:
        """Raises UsageProblem with everything that was wrong so far."""
        if self._problems:
            raise UsageProblem.of(self._problems)


def number(low: int, high: int, unit: str = "") -> Callable[[str], int]:
    """A parser of whole numbers written in plain digits."""
    parse = whole_number(low, high, unit)

    def parse_text(text: str) -> int:
        # Not int() alone: it takes "1_000", " 7" and the digits of every script
        if not (text.isascii() and text.isdigit() and len(text) <= 9):
            raise FieldError(f"{text!r} is not a whole number", f"{low} to {high} {unit}".rstrip())
        return parse(int(text))

    return parse_text


def wait_seconds(text: str) -> float:
    """How long to wait: more than nothing, at most a day."""
    seconds = float(text) if re.fullmatch(r"[0-9]{1,5}(\.[0-9]{1,3})?", text) else 0.0
    if not 0 < seconds <= MAX_WAIT_SECONDS:
        raise FieldError(
            f"{text!r} is not a time to wait", f"seconds, up to {MAX_WAIT_SECONDS}, such as 10"
        )
    return seconds


_AGO: Final = {"s": 1, "min": 60, "m": 60, "h": 3_600, "d": 86_400}


def moment(text: str) -> str:
    """A moment of the past, so long ago or by date and time, in RFC 3339 and UTC.

    A time without a zone is the local one, a time without a date is today's.
    """
    now = datetime.now(tz=UTC)
    if ago := re.fullmatch(r"([0-9]{1,6}) ?(s|min|m|h|d)", text):
        found = now - timedelta(seconds=int(ago[1]) * _AGO[ago[2]])
    else:
        try:
            found = _clock_or_date(text).astimezone(UTC)
        except (ValueError, OverflowError):
            raise FieldError(
                f"{text!r} is no time",
                "so long ago (90s, 15min, 2h, 1d), 14:30, or 2026-01-31T14:30:00",
            ) from None
    if found > now:
        raise FieldError(f"{text!r} lies ahead", "events of the past are kept, since a time before")
    return found.strftime("%Y-%m-%dT%H:%M:%S.") + f"{found.microsecond // 1000:03d}Z"


def _clock_or_date(text: str) -> datetime:
    """Raises ValueError."""
    if re.fullmatch(r"[0-9]{1,2}:[0-9]{2}(:[0-9]{2})?", text):
        clock = time.fromisoformat(text.zfill(len(text) + (text.index(":") == 1)))
        return datetime.combine(datetime.now().astimezone().date(), clock)
    return datetime.fromisoformat(text)

"""What is wrong with a configuration: every problem with its place, its reason and what to do."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vpnd.api import ErrorDetail

Location = tuple[str | int, ...]
"""Keys and list indexes from the top of a file to a value."""

_SHOWN_LENGTH: Final = 60
_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]{1,39}")
# 30 bytes or more in Base64 or hex: a key that somebody pasted into the wrong place.
_LIKE_A_SECRET: Final = re.compile(r"[A-Za-z0-9+/_=-]{40,}")


def printable(text: str, *, limit: int = _SHOWN_LENGTH) -> str:
    """The text on one line, without control characters, cut after `limit` characters."""
    # Cut first: the text may be a megabyte
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


def without_secrets(text: str) -> str:
    """The text without anything that looks like a key."""
    return _LIKE_A_SECRET.sub("…", text)


def shown(value: object) -> str:
    """A value from a file as an error may quote it: never what could be a secret."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        # Beyond 64 bits the number itself tells nothing; Python refuses to print huge ones
        return str(value) if abs(value) < 2**64 else "a number of more than 64 bits"
    if isinstance(value, str):
        if _LIKE_A_SECRET.search(value) or "vpnd-identity" in value:
            return f"a text of {len(value)} characters"
        return f'"{printable(value)}"'
    return kind_of(value)


def kind_of(value: object) -> str:
    """What a value is, in TOML's words."""
    for python_type, name in (
        (bool, "true or false"),
        (int, "a whole number"),
        (float, "a number with a decimal point"),
        (str, "a string"),
        (list, "a list"),
        (dict, "a table"),
    ):
        if isinstance(value, python_type):
            return name
    return "nothing" if value is None else "a date or time"


def dotted(location: Location) -> str:
    """A location as text: `tunnels.backbone.addresses[2]`."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            key = part if _BARE_KEY.fullmatch(part) else shown(part)
            text += f".{key}" if text else key
    return text


@dataclass(frozen=True, slots=True)
class ConfigProblem:
    """One thing that is wrong, or worth a note."""

    file: Path | None
    """None where the values came over the control socket."""
    key: str
    """Dotted; empty where the whole file is meant."""
    reason: str
    hint: str = ""
    line: int | None = None

    def __str__(self) -> str:
        place = "" if self.file is None else printable(str(self.file), limit=4096)
        if self.line is not None:
            place += f":{self.line}"
        return ": ".join(part for part in (place, self.key, self.reason) if part)

    def detail(self) -> ErrorDetail:
        """The same for the control API."""
        detail = ErrorDetail(reason=self.reason)
        if self.file is not None:
            detail["file"] = printable(str(self.file), limit=4096)
        if self.line is not None:
            detail["line"] = self.line
        if self.key:
            detail["key"] = self.key
        if self.hint:
            detail["hint"] = self.hint
        return detail


class ConfigErrors(Exception):
    """A configuration that cannot be used: all that is wrong with it, never only the first."""

    def __init__(self, problems: Iterable[ConfigProblem]) -> None:
        self.problems = tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(
            f"{problem}\n    {problem.hint}" if problem.hint else str(problem)
            for problem in self.problems
        )

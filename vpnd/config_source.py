"""One file of the configuration: its text, what it says, and on which line it says it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from vpnd.config_errors import ConfigProblem, Location, dotted, printable, without_secrets
from vpnd.file_trust import FileFault, read_public
from vpnd.odd_characters import first_odd, wide_encoding, without_mark

MAX_CONFIG_BYTES: Final = 1024 * 1024

_AT_LINE: Final = re.compile(r"\s*\(at line (\d+), column \d+\)|\s*\(at end of document\)")
_KEY: Final = re.compile(
    r"""\s*(?:(?P<bare>[A-Za-z0-9_-]+)|"(?P<basic>[^"\\]*)"|'(?P<literal>[^']*)')\s*"""
)


@dataclass(frozen=True, slots=True)
class Source:
    """Where values came from, so that a problem with one of them can name its place.

    Values that came over the control socket have no path and no text.
    """

    path: Path | None
    text: str = field(default="", repr=False)

    def problem(
        self, location: Location, reason: str, hint: str = "", *, value: object = None
    ) -> ConfigProblem:
        """A problem at a place of this file; `value` helps to find the line of a list's element."""
        return ConfigProblem(
            file=self.path,
            key=dotted(location),
            reason=reason,
            hint=hint,
            line=line_of(self.text, location, value),
        )


@dataclass(frozen=True, slots=True)
class Document:
    """A file as read: `values` is empty where it could not be parsed, and `problems` says why."""

    source: Source
    values: dict[str, Any]
    problems: tuple[ConfigProblem, ...]


def read_document(path: Path) -> Document:
    """Read a TOML file; every failure ends in `problems`, none is raised."""
    try:
        checked = read_public(path, limit=MAX_CONFIG_BYTES)
    except FileFault as fault:
        return Document(Source(path), {}, (fault_problem(fault),))
    problems = [] if checked.fault is None else [fault_problem(checked.fault)]
    wide = wide_encoding(checked.data)
    if wide is not None:
        problems.append(ConfigProblem(path, "", f"is {wide} text, not UTF-8", "save it as UTF-8"))
        return Document(Source(path), {}, tuple(problems))
    try:
        text = without_mark(checked.data.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = checked.data.count(b"\n", 0, error.start) + 1
        reason = f"is not UTF-8 text (byte {error.start})"
        problems.append(ConfigProblem(path, "", reason, "save it as UTF-8", line))
        return Document(Source(path), {}, tuple(problems))
    return read_text(path, text, problems)


def read_text(path: Path, text: str, problems: Sequence[ConfigProblem] = ()) -> Document:
    """The document that a file's text is; `problems` is what is wrong with the file itself."""
    source = Source(path, text)
    try:
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        # ValueError is wider than TOMLDecodeError: numbers too long for Python are one, too
        return Document(source, {}, (*problems, _syntax_problem(path, text, error)))
    return Document(source, values, tuple(problems))


def fault_problem(fault: FileFault) -> ConfigProblem:
    """A file's fault as a problem of the configuration."""
    return ConfigProblem(fault.path, "", fault.reason, fault.hint)


def _syntax_problem(path: Path, text: str, error: ValueError | RecursionError) -> ConfigProblem:
    if isinstance(error, RecursionError):
        return ConfigProblem(path, "", "is nested too deeply to be a configuration")
    message = str(error)
    place = _AT_LINE.search(message)
    line = int(place[1]) if place is not None and place[1] else None
    odd = first_odd(text, line)
    if odd is not None:
        reason = f"column {odd.column} holds {odd}, which TOML does not take there"
        return ConfigProblem(path, "", reason, odd.hint, odd.line)
    reason = printable(without_secrets(_AT_LINE.sub("", message)), limit=200)
    hint = "strings stand in quotes, lists in [ ], and each key stands once"
    return ConfigProblem(path, "", f"is not valid TOML: {reason}", hint, line)


def line_of(text: str, location: Location, value: object = None) -> int | None:
    """The line (from 1) of the key at `location`, or of the nearest table above it.

    A scan for people's eyes, not a parser: None where the text is written in a way that it does
    not follow. A key that is missing has the line of its table.
    """
    wanted = tuple(part for part in location if isinstance(part, str))
    best: tuple[int, int] = (0, 0)  # how many keys fit, line
    table: tuple[str, ...] = ()
    keys: tuple[str, ...]
    inside: str | None = None  # the quotes of a multi-line string
    lines = text.split("\n")
    for number, line in enumerate(lines, 1):
        began_inside = inside is not None
        for quotes in ('"""', "'''"):
            if inside in (None, quotes) and line.count(quotes) % 2:
                inside = None if inside else quotes
        if began_inside:
            continue
        header = re.match(r"\s*\[\[?", line)
        found, rest = _keys(line[header.end() :] if header else line)
        # An element of a list can look like a header, `["a"],`, but does not end like one
        if header and re.fullmatch(r"\]\]?\s*(#.*)?", rest):
            table = keys = found
        elif not header and rest.startswith("="):
            keys = table + found
        else:
            continue
        # As much of the one as of the other: a table above the key, or a key in the table
        common = min(len(keys), len(wanted))
        if keys[:common] == wanted[:common] and common > best[0]:
            best = (common, number)
    if not best[0]:
        return None
    if isinstance(location[-1], int) and isinstance(value, str):
        return _line_of_element(lines, best[1], value)
    return best[1]


def _line_of_element(lines: list[str], start: int, value: str) -> int:
    for number, line in enumerate(lines[start - 1 :], start):
        if f'"{value}"' in line or f"'{value}'" in line:
            return number
    return start


def _keys(text: str) -> tuple[tuple[str, ...], str]:
    """The dotted key that a text begins with, and what comes after it."""
    keys: list[str] = []
    while match := _KEY.match(text):
        keys.append(next(key for key in match.group("bare", "basic", "literal") if key is not None))
        text = text[match.end() :]
        if not text.startswith("."):
            break
        text = text[1:]
    return tuple(keys), text

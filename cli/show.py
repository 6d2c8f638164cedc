"""How vpnctl prints: JSON for programs, tables and plain lines for people."""

import json
import math
import os
import shutil
import sys
import unicodedata
from collections.abc import Sequence
from typing import Final

from cli.errors import printable, wants_colour
from vpnd.api import LinkState

NOTHING: Final = "–"

_STATE_STYLES: Final = {
    LinkState.ACTIVE: "32",  # green
    LinkState.DEGRADED: "33",  # yellow
    LinkState.CLOSED: "31",  # red
    LinkState.DOWN: "31",
}

_BOLD: Final = "1"
_BETWEEN: Final = "  "


class _Printed:
    """Whether a document has been printed: a command that fails afterwards prints no second one."""

    document = False


def print_json(document: object) -> None:
    """One document on stdout."""
    _Printed.document = True
    print(json.dumps(document, indent=2, ensure_ascii=False))


def print_json_error(document: object) -> None:
    """What went wrong, for a program that asked for JSON and has not got its document.

    On one line: it may be the last one of a stream of lines.
    """
    if not _Printed.document:
        print_json_line(document)


def print_json_line(document: object) -> None:
    """One document on one line, at once: for a reader that follows."""
    print(json.dumps(document, ensure_ascii=False), flush=True)


def terminal_size() -> tuple[int, int] | None:
    """Columns and lines of the terminal that stdout is now; None where it is none."""
    if not sys.stdout.isatty():
        return None
    try:
        columns, lines = os.get_terminal_size(sys.stdout.fileno())
    except (OSError, ValueError):
        columns = lines = 0
    usual = shutil.get_terminal_size()  # a serial line does not know its size
    return columns or usual.columns, lines or usual.lines


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as text that ends in a newline.

    In a pipe a row is one line, whatever its length. On a terminal that is too narrow for it, each
    row becomes a block of lines: no cell is ever cut or broken. Cells that are a link's state are
    coloured on a terminal.
    """
    cells = _printable(rows)
    widths = _widths(heads, cells)
    size = terminal_size()
    if size is not None and _needed(widths) > size[0]:
        return "\n".join(fields(list(zip(heads, row, strict=True))) for row in rows)
    return "".join(f"{line}\n" for line in _lines(heads, cells, widths))


def table_lines(
    heads: Sequence[str], rows: Sequence[Sequence[str]], *, falls_away: Sequence[str]
) -> list[str]:
    """A table that stays one, as lines without their newlines, the heads first.

    On a terminal that is too narrow columns fall away, in this order; when only the others are
    left, the first one is cut.
    """
    cells, size = _printable(rows), terminal_size()
    widths = _widths(heads, cells)
    room = math.inf if size is None else size[0]
    left = list(range(len(heads)))
    for head in falls_away:
        if _needed([widths[at] for at in left]) <= room:
            break
        left = [at for at in left if heads[at] != head]
    heads, widths = [heads[at] for at in left], [widths[at] for at in left]
    cells = [[row[at] for at in left] for row in cells]
    if (over := _needed(widths) - room) > 0:
        widths[0] = max(1, widths[0] - int(over))
        heads = [clipped(heads[0], widths[0]), *heads[1:]]
        cells = [[clipped(row[0], widths[0]), *row[1:]] for row in cells]
    return _lines(heads, cells, widths)


def clipped(text: str, columns: int) -> str:
    """A text in at most that many columns of a terminal; "…" stands for what is cut off."""
    if _columns(text) <= columns:
        return text
    kept, used = [], 1
    for character in text:
        used += _width(character)
        if used > columns:
            break
        kept.append(character)
    return "".join(kept) + "…"


def _printable(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    return [[printable(cell) for cell in row] for row in rows]


def _widths(heads: Sequence[str], cells: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(_columns, column)) for column in zip(heads, *cells, strict=True)]


def _needed(widths: Sequence[int]) -> int:
    return sum(widths) + len(_BETWEEN) * (len(widths) - 1)


def _lines(
    heads: Sequence[str], cells: Sequence[Sequence[str]], widths: Sequence[int]
) -> list[str]:
    colour = wants_colour(sys.stdout)
    lines = [_line(heads, widths, [_BOLD] * len(heads) if colour else None)]
    lines += [_line(row, widths, [_style(c) for c in row] if colour else None) for row in cells]
    return lines


def _line(cells: Sequence[str], widths: Sequence[int], styles: Sequence[str] | None) -> str:
    last = max((at for at, cell in enumerate(cells) if cell), default=0)
    line = ""
    for at, cell in enumerate(cells[: last + 1]):
        shown = f"\x1b[{styles[at]}m{cell}\x1b[0m" if styles and styles[at] and cell else cell
        line += shown
        if at < last:
            line += " " * (widths[at] - _columns(cell)) + _BETWEEN
    return line.rstrip()


def _columns(text: str) -> int:
    """How wide a text is on a terminal."""
    if text.isascii():
        return len(text)
    return sum(_width(character) for character in text)


def _width(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


def fields(pairs: Sequence[tuple[str, str]]) -> str:
    """One `name  value` a line, as text that ends in a newline."""
    width = max(len(name) for name, _ in pairs)
    return "".join(f"{name:<{width}}  {printable(value)}\n" for name, value in pairs)


def duration(seconds: float | None) -> str:
    """A time span in the two units that matter: `42 s`, `3 min 5 s`, `2 h 10 min`, `4 d 3 h`."""
    if seconds is None:
        return NOTHING
    whole = max(0, int(seconds))
    units = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))
    for index, (unit, size) in enumerate(units):
        if whole < size and size > 1:
            continue
        text = f"{whole // size} {unit}"
        if index + 1 < len(units):
            smaller, smaller_size = units[index + 1]
            if rest := whole % size // smaller_size:
                text += f" {rest} {smaller}"
        return text
    raise AssertionError("the last unit takes every rest")  # pragma: no cover


def size(count: int) -> str:
    """Bytes in binary units: `512 B`, `1.4 KiB`, `12 MiB`."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 10 else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.0f} PiB"


def _style(cell: str) -> str:
    word = cell.split(" ", 1)[0]
    return _STATE_STYLES[LinkState(word)] if word in _STATE_STYLES else ""

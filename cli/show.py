"""How vpnctl prints: JSON for programs, tables and plain lines for people."""

import json
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


def print_json(document: object) -> None:
    """One document on stdout."""
    print(json.dumps(document, indent=2, ensure_ascii=False))


def print_json_line(document: object) -> None:
    """One document on one line, at once: for a reader that follows."""
    print(json.dumps(document, ensure_ascii=False), flush=True)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as text that ends in a newline.

    In a pipe a row is one line, whatever its length. On a terminal that is too narrow for it, each
    row becomes a block of lines: no cell is ever cut or broken. Cells that are a link's state are
    coloured on a terminal.
    """
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [
        max(_columns(head), *(_columns(row[at]) for row in cells)) if cells else _columns(head)
        for at, head in enumerate(heads)
    ]
    if sys.stdout.isatty():
        needed = sum(widths) + len(_BETWEEN) * len(widths)
        if needed > shutil.get_terminal_size().columns:
            return "\n".join(fields(list(zip(heads, row, strict=True))) for row in rows)
    colour = wants_colour(sys.stdout)
    lines = [_line(heads, widths, [_BOLD] * len(heads) if colour else None)]
    lines += [_line(row, widths, [_style(c) for c in row] if colour else None) for row in cells]
    return "".join(lines)


def _line(cells: Sequence[str], widths: Sequence[int], styles: Sequence[str] | None) -> str:
    last = max((at for at, cell in enumerate(cells) if cell), default=0)
    line = ""
    for at, cell in enumerate(cells[: last + 1]):
        shown = f"\x1b[{styles[at]}m{cell}\x1b[0m" if styles and styles[at] and cell else cell
        line += shown
        if at < last:
            line += " " * (widths[at] - _columns(cell)) + _BETWEEN
    return f"{line.rstrip()}\n"


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

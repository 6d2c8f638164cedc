"""How vpnctl prints: JSON for programs, tables and plain lines for people."""

import json
import shutil
import sys
from collections.abc import Sequence
from typing import Final

from cli.errors import printable, wants_colour
from vpnd.api import LinkState

NOTHING: Final = "–"

_STATE_STYLES: Final = {
    LinkState.ACTIVE: "green",
    LinkState.DEGRADED: "yellow",
    LinkState.CLOSED: "red",
    LinkState.DOWN: "red",
}

_WIDE: Final = 10_000
"""Columns: rich must not break a line or cut a cell by itself."""


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
    from rich.console import Console  # 40 ms, so only where a table is drawn
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    colour = wants_colour(sys.stdout)
    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for head in heads:
        drawn.add_column(head, no_wrap=True)
    for row in rows:
        drawn.add_row(*(Text(cell := printable(raw), style=_style(cell)) for raw in row))
    console = Console(
        force_terminal=colour,
        no_color=not colour,
        highlight=False,
        width=_WIDE,
        legacy_windows=False,
    )
    if sys.stdout.isatty():
        needed = Measurement.get(console, console.options, drawn).maximum
        if needed > shutil.get_terminal_size().columns:
            return "\n".join(fields(list(zip(heads, row, strict=True))) for row in rows)
    with console.capture() as captured:
        console.print(drawn)
    return "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())


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

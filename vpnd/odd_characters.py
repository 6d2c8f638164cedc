"""Characters in a configuration file that nobody sees, or takes for others.

A no-break space from a web page, quotes that a word processor made typographic, a byte order mark
in the middle: a TOML parser stops at them with words that help nobody. Here they get their names
and their places.
"""

from __future__ import annotations

import codecs
import unicodedata
from dataclasses import dataclass
from typing import Final

_LOOK_ALIKES: Final = {
    "“": '"', "”": '"', "„": '"', "‟": '"', "«": '"', "»": '"', "″": '"', "＂": '"',
    "‘": "'", "’": "'", "‚": "'", "‛": "'", "′": "'", "`": "'", "´": "'", "＇": "'",
    "＝": "=", "［": "[", "］": "]", "，": ",", "、": ",", "．": ".",
    "：": ":", "／": "/", "＃": "#",
    "–": "-", "—": "-", "‐": "-", "‑": "-", "−": "-", "⁄": "/", "∕": "/",
}  # fmt: skip
"""What is taken for an ASCII character of TOML's."""
_CONTROL_NAMES: Final = {
    "\0": "NULL",
    "\r": "CARRIAGE RETURN",
    "\v": "LINE TABULATION",
    "\f": "FORM FEED",
    "\x1b": "ESCAPE",
    "\x7f": "DELETE",
    "\x85": "NEXT LINE",
}
_UNSEEN: Final = ("Cc", "Cf", "Zs", "Zl", "Zp")
"""Categories of Unicode: control and format characters, spaces, line and paragraph separators."""
_WIDE_MARKS: Final = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
"""UTF-32's before UTF-16's: the one begins like the other."""


@dataclass(frozen=True, slots=True)
class OddCharacter:
    """One of them; line and column count from 1, the column in characters."""

    character: str
    line: int
    column: int

    def __str__(self) -> str:
        return named(self.character)

    @property
    def hint(self) -> str:
        """What to do about it."""
        meant = _LOOK_ALIKES.get(self.character)
        if self.character == "\r":
            return "save the file with line ends of LF or CRLF"
        if meant is not None:
            return f"write {meant} in its place"
        if unicodedata.category(self.character) == "Zs":
            return "write an ordinary space in its place"
        return "remove it; it may not show: type the line again"


def named(character: str) -> str:
    """`U+00A0 NO-BREAK SPACE`."""
    name = _CONTROL_NAMES.get(character) or unicodedata.name(character, "")
    return f"U+{ord(character):04X} {name}".rstrip()


def wide_encoding(data: bytes) -> str | None:
    """UTF-16 or UTF-32, if the bytes are text in it; with its mark, or without by its zeros."""
    for mark, name in _WIDE_MARKS:
        if data.startswith(mark):
            return name
    start = data[:256]
    half = len(start) // 2
    zeros = sorted((start[::2].count(0), start[1::2].count(0)))
    # One half of Latin text; a file that is all zeros is none
    return "UTF-16" if half >= 4 and zeros[0] < half // 4 and zeros[1] > half * 3 // 4 else None


def without_mark(text: str) -> str:
    """The text without a byte order mark at its beginning."""
    return text.removeprefix("\ufeff")


def first_odd(text: str, line: int | None = None) -> OddCharacter | None:
    """The character that a parser may have stopped at: on that line if there is one, else the
    first one anywhere, comments left out; a string's content counts on that line alone."""
    anywhere = None
    for number, content in enumerate(text.split("\n"), 1):
        found = _on_line(content, in_strings=number == line)
        if found is None:
            continue
        odd = OddCharacter(content[found], number, found + 1)
        if number == line or line is None:
            return odd
        anywhere = anywhere or odd
    return anywhere


def _on_line(content: str, *, in_strings: bool) -> int | None:
    """Where on a line the first one is; what stands behind a # is a comment but in a string."""
    quote = ""
    for index, character in enumerate(content):
        if character == "\r" and index == len(content) - 1:
            return None  # the line ends in CRLF
        if character == quote:
            quote = ""
        elif not quote and character in "\"'":
            quote = character
        elif not quote and character == "#":
            return _control_in(content, index)
        elif _is_odd(character) and (in_strings or not quote or character in _CONTROL_NAMES):
            return index
    return None


def _control_in(content: str, start: int) -> int | None:
    """Where a control character is, which TOML takes in comments no more than elsewhere."""
    for index, character in enumerate(content[start:], start):
        last = index == len(content) - 1
        if character < " " and character != "\t" and not (character == "\r" and last):
            return index
    return None


def _is_odd(character: str) -> bool:
    if character in _LOOK_ALIKES:
        return True
    return character not in " \t" and unicodedata.category(character) in _UNSEEN

"""Characters that nobody sees, or takes for others, in a file of the configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vpnd.config_files import Site
from vpnd.config_errors import ConfigProblem
from vpnd.config_fields import FieldError, text
from vpnd.config_source import Document, read_document
from vpnd.odd_characters import first_odd


def read(folder: Path, data: bytes) -> Document:
    path = folder / "peer.toml"
    path.write_bytes(data)
    path.chmod(0o644)
    return read_document(path)


def problem(folder: Path, content: str) -> ConfigProblem:
    (found,) = read(folder, content.encode()).problems
    return found


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    document = read(tmp_path, b'\xef\xbb\xbfname = "a"\r\n# \xc2\xa0 in a comment\r\n')
    assert not document.problems
    assert document.values == {"name": "a"}


@pytest.mark.parametrize(
    ("content", "line", "column", "name"),
    [
        ('a = 1\nname\u00a0= "a"\n', 2, 5, "U+00A0 NO-BREAK SPACE"),
        ('a = 1\n\u200bname = "a"\n', 2, 1, "U+200B ZERO WIDTH SPACE"),
        ('name = \u201ca\u201d\n', 1, 8, "U+201C LEFT DOUBLE QUOTATION MARK"),
        ('name = "a\u201d\n', 1, 10, "U+201D RIGHT DOUBLE QUOTATION MARK"),
        ('name = \u2018a\u2019\n', 1, 8, "U+2018 LEFT SINGLE QUOTATION MARK"),
        ('na\u00adme = "a"\n', 1, 3, "U+00AD SOFT HYPHEN"),
        ('[ta\ufeffble]\n', 1, 4, "U+FEFF ZERO WIDTH NO-BREAK SPACE"),
        ('a = 1\rb = 2\r', 1, 6, "U+000D CARRIAGE RETURN"),
        ('a = "x\0"\n', 1, 7, "U+0000 NULL"),
        ('a = 1 # c\x07\n', 1, 10, "U+0007"),
        ('a \uff1d 1\n', 1, 3, "U+FF1D FULLWIDTH EQUALS SIGN"),
        ('a = 1\n\u2028b = 2\n', 2, 1, "U+2028 LINE SEPARATOR"),
        ('list = [\n  "a",\n  \u201eb\u201c,\n]\n', 3, 3, "U+201E DOUBLE LOW-9 QUOTATION MARK"),
    ],
)  # fmt: skip
def test_it_is_named_with_its_place(
    tmp_path: Path, content: str, line: int, column: int, name: str
) -> None:
    found = problem(tmp_path, content)
    assert found.line == line
    assert found.reason == f"column {column} holds {name}, which TOML does not take there"
    assert found.hint


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_another_encoding_is_named(tmp_path: Path, encoding: str) -> None:
    (found,) = read(tmp_path, '[node]\nname = "fra1"\n'.encode(encoding)).problems
    assert found.reason.endswith("text, not UTF-8")
    assert found.reason.startswith("is UTF-")


def test_other_mistakes_keep_their_words(tmp_path: Path) -> None:
    assert problem(tmp_path, "a = 3 3\n").reason.startswith("is not valid TOML: ")
    assert problem(tmp_path, '# \u201cquoted\u201d\na = "\u201c" x\n').line == 2
    assert first_odd('name = "\u201cquoted\u201d" # \u00a0\n') is None
    assert problem(tmp_path, "\0" * 40).reason.startswith("column 1 holds U+0000 NULL")


def test_in_a_value_it_is_named_too(tmp_path: Path) -> None:
    with pytest.raises(FieldError, match=r"U\+200B ZERO WIDTH SPACE at position 2"):
        text("a\u200bb")
    site = Site(tmp_path)
    tmp_path.chmod(0o755)
    site.peers["ams1"]["endpoint"] = "ams1.example.net\u00a0:51821"
    (found,) = site.problems()
    assert "U+00A0 NO-BREAK SPACE" in found.reason
    assert found.line is not None

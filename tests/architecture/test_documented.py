"""What a user can be told has its line in docs/operations.md, with what to do."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from kex.events import FailureCode, RejectCode
from vpnd.api import ErrorCode, ExitCode, LinkState
from vpnd.keysource.base import SourceFault

ROOT = Path(__file__).resolve().parents[2]
OPERATIONS = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
TELLERS = {"record", "_trouble", "Problem", "tell", "_tell", "source_event"}
"""What takes the name of an event, or the code of a problem, as its first argument."""


def _told(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and node.args):
            continue
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        match node.args[0]:
            case ast.Constant(value=str(text)) if name in TELLERS:
                yield text


def told_by_the_daemon() -> list[str]:
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in ROOT.glob("vpnd/**/*.py"))
    return sorted({text for tree in trees for text in _told(tree)})


def test_there_is_something_to_look_for() -> None:
    assert {"key_installed", "install_failed", "tunnel_failed"} <= set(told_by_the_daemon())


@pytest.mark.parametrize("name", told_by_the_daemon())
def test_every_event_and_problem_is_explained(name: str) -> None:
    assert f"`{name}`" in OPERATIONS


@pytest.mark.parametrize(
    "name",
    [
        *(code.value for code in FailureCode),
        *(f"refused_{code.name.lower()}" for code in RejectCode),
        *(code.value for code in ErrorCode),
        *(state.value for state in LinkState),
        *(fault.value for fault in SourceFault),
    ],
)
def test_every_code_is_explained(name: str) -> None:
    assert f"`{name}`" in OPERATIONS


@pytest.mark.parametrize("code", list(ExitCode), ids=lambda code: code.name)
def test_every_exit_code_is_explained(code: ExitCode) -> None:
    assert f"\n| {code.value} |" in OPERATIONS

"""What a user can be told has its line in docs/operations.md, with what to do."""

from __future__ import annotations

import ast
import re
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


FAILURES = {
    "TunError", "BackendUnavailable", "InterfaceMissing", "KeyChanged", "MalformedAnswer",
    "NamespaceOutOfReach", "NotOurs", "PeerMissing", "ReadBackMismatch", "ControlSocketError",
    "NoIdentity",
}  # fmt: skip
"""Exceptions whose text is shown to a user as it is."""
ENOUGH = 10
"""Characters of a message that nobody finds in the document by chance."""
PASSED_ON = {"{}; and {}", "{}: {}", "reading {}: {}"}
"""Messages that are made of other ones alone, or of the system's."""


def _message(argument: ast.expr) -> str:
    """The text of a message with {} for what is filled in."""
    match argument:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(
                _message(part) if isinstance(part, ast.Constant) else "{}" for part in parts
            )
        case ast.BinOp(left=left, right=right):
            return _message(left) + _message(right)
    return "{}"


def messages() -> list[str]:
    """What interfaces, routes and the control socket can fail with."""
    found = set()
    for path in (*ROOT.glob("tun/*.py"), *ROOT.glob("vpnd/*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Name(id=name), args=[first, *_]) if name in FAILURES:
                    found.add(_message(first))
                case ast.Assign(targets=[ast.Name(id=name)], value=value) if "_MISSING" in name:
                    found.add(_message(value))
    return sorted(found - PASSED_ON - {"{}", ""})


def _clauses(message: str) -> list[str]:
    """The parts of a message that stand in it as they are."""
    clauses = (part.strip() for part in re.split(r"\{\}|[:;,()`]", message))
    return [clause for clause in clauses if len(clause) >= ENOUGH]


def test_messages_are_found() -> None:
    assert len(messages()) > 50
    assert "another vpnd answers at {}" in messages()


@pytest.mark.parametrize("message", messages())
def test_every_failure_is_explained(message: str) -> None:
    told = [
        text.strip()
        for quoted in re.findall(r"`([^`\n]+)`", OPERATIONS)
        for text in quoted.split("…")
        if len(text.strip()) >= ENOUGH
    ]
    assert any(clause in text or text in clause for clause in _clauses(message) for text in told), (
        f"docs/operations.md does not say what to do about: {message}"
    )

"""What a user can be told has its line in docs/operations.md, with what to do."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import pytest
import typer

from cli.main import app
from kex.events import FailureCode, RejectCode
from vpnd.api import ErrorCode, ExitCode, LinkState
from vpnd.keysource.base import SourceFault

ROOT = Path(__file__).resolve().parents[2]
OPERATIONS = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
OF_THE_CONFIGURATION = "## Errors of the configuration"
OF_VPNCTL = "## Errors of vpnctl"
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


def _section(heading: str) -> str:
    """A section of the document, from its heading to the next one."""
    _, found, after = OPERATIONS.partition(f"\n{heading}\n")
    assert found, heading
    return after.partition("\n## ")[0]


def _without(*headings: str) -> str:
    """The document without some sections, whose short messages are parts of many others."""
    rest = OPERATIONS
    for heading in headings:
        rest = rest.replace(_section(heading), "\n")
    return rest


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
        for quoted in re.findall(r"`([^`\n]+)`", _without(OF_THE_CONFIGURATION, OF_VPNCTL))
        for text in quoted.split("…")
        if len(text.strip()) >= ENOUGH
    ]
    assert any(clause in text or text in clause for clause in _clauses(message) for text in told), (
        f"docs/operations.md does not say what to do about: {message}"
    )


OF_A_FILE = (
    "FileFault", "FileMissing", "FileUnreadable", "FileExists", "FileNoted", "NoKey",
    "UnusableContent",
)  # fmt: skip
TAKES_A_MESSAGE: dict[str, dict[str, int]] = {
    "vpnd/**/*.py": {
        "FieldError": 0, "MlKemUnavailable": 0, "problem": 1, "ConfigProblem": 2,
        **dict.fromkeys(OF_A_FILE, 1),
    },
    "vpnd/config.py": {"_tell": 2, "_is_name": 3},
    "vpnd/keysource/static_key.py": {"ValueError": 0},
    "kex/*.py": {"InvalidIdentity": 0},
    "cli/*.py": {
        "CliError": 0, "UsageProblem": 0, "DaemonUnreachable": 0, "LinkNotProtected": 0,
        "Refused": 0, "Problem": 0, "problem": 0, "FieldError": 0, "_not_vpnd": 0, "_failed": 1,
    },
}  # fmt: skip
"""What is called with an error's message, and how many arguments stand before it."""
REASON_AND_HINT = "tuple[str, str]"
KEY_REASON_AND_HINT = "_Found"
"""What a function gives that leaves the call to another one."""


def _called(function: ast.expr) -> str:
    match function:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case ast.Call(func=ast.Name(id="type"), args=[ast.Name(id=name)]):
            return name.capitalize()  # type(refused)(…): another one of the same
    return ""


def _arguments(function: ast.AST, takes: Mapping[str, int]) -> Iterator[ast.expr]:
    """The expressions in a function that are the message of an error."""
    gives = ast.unparse(getattr(function, "returns", None) or ast.Constant(None))
    for node in ast.walk(function):
        match node:
            case ast.Return(value=ast.Tuple(elts=[reason, _])) if REASON_AND_HINT in gives:
                yield reason
            case ast.Yield(value=ast.Tuple(elts=[_, reason, _])) if KEY_REASON_AND_HINT in gives:
                yield reason
            case ast.Call(func=ast.Attribute(attr="append"), args=[ast.Tuple(elts=[_, reason, _])]):
                yield reason
            case ast.Call(func=called, args=arguments) if _called(called) in takes:
                yield from arguments[takes[_called(called)] :][:1]


def _assigned(function: ast.AST, name: str) -> Iterator[ast.expr]:
    """What a variable of a function may hold."""
    for node in ast.walk(function):
        match node:
            case ast.Assign(targets=[ast.Name(id=found)], value=value) if found == name:
                yield value
            case ast.Assign(
                targets=[ast.Tuple(elts=[ast.Name(id=found), _])],
                value=ast.Tuple(elts=[value, _]),
            ) if found == name:
                yield value


def _alternatives(argument: ast.expr, function: ast.AST) -> Iterator[str]:
    """The messages that an expression may be."""
    match argument:
        case ast.IfExp(body=one, orelse=other):
            yield from _alternatives(one, function)
            yield from _alternatives(other, function)
        case ast.Call(func=ast.Attribute(value=text, attr="replace")):
            yield from _alternatives(text, function)
        case ast.Name(id=name):
            for value in _assigned(function, name):
                yield from _alternatives(value, function)
        case _:
            yield _message(argument)


def errors(folder: str) -> list[str]:
    """The messages of all errors that are made in a folder, but those that pass others on alone."""
    found: set[str] = set()
    for pattern, takes in TAKES_A_MESSAGE.items():
        for path in ROOT.glob(pattern) if pattern.startswith(folder) else ():
            for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                    for argument in _arguments(function, takes):
                        found.update(_alternatives(argument, function))
    return sorted(message for message in found if re.search("[a-z]", message.replace("{}", "")))


ERRORS = {
    OF_THE_CONFIGURATION: sorted({*errors("vpnd"), *errors("kex")}),
    OF_VPNCTL: errors("cli"),
}
"""Messages by the section that explains them."""


@cache
def _looks_like(message: str) -> re.Pattern[str]:
    """The message as the document shows it: its fixed text from the first word to the last, with
    anything in its gaps. A gap at the front, and what follows on a colon, may be left out."""
    fixed, front = re.subn(r"^(\{\}[ :]*)+", "", message.replace("`", ""))
    fixed, colon = re.subn(r": (\{\})?$", "", fixed)
    shown = ".*".join(map(re.escape, fixed.split("{}")))
    return re.compile(("(.* )?" if front else "") + shown + ("(: .*)?" if colon else ""))


def explained(heading: str) -> list[str]:
    """The messages in a section's tables, as they are shown, of rows that say what to do."""
    rows = re.findall(r"^\| (`.*) \| (.*) \|$", _section(heading), re.MULTILINE)
    return [
        text for shown, todo in rows if todo.strip() for text in re.findall(r"`([^`]+)`", shown)
    ]


def meant(shown: str, messages: Sequence[str]) -> set[str]:
    """The messages that a text of the document stands for: those with most of it in them."""
    fitting = {
        message: len(re.findall("[a-z]", message.replace("{}", "")))
        for message in messages
        if _looks_like(message).fullmatch(shown)
    }
    most = max(fitting.values(), default=0)
    return {message for message, letters in fitting.items() if letters == most}


MEANT = {
    (heading, shown): meant(shown, messages)
    for heading, messages in ERRORS.items()
    for shown in explained(heading)
}


def test_errors_are_found_however_they_are_made() -> None:
    assert {
        "{} has host bits set",  # raised
        "unknown key",  # given with its hint
        "is missing, and there is no tunnel at all",  # one of two
        "{} is no source of this link",  # given with key and hint
        "{} s is longer than the rekey_interval of {} s: renewals would find no key",  # in a list
        "{} and {} know the far end by the same name",  # a variable
        "{} is not an {}",  # with its article put right
        "the checksum does not fit: more than one character is wrong",
        "holds a text: no key",
    } <= set(ERRORS[OF_THE_CONFIGURATION])
    assert {
        "vpnd is not running: there is no {}",
        "there is no peer {}",
        "there is no identity yet",
        "its answer is no JSON",
        "{} is not a time to wait",
    } <= set(ERRORS[OF_VPNCTL])
    assert len(ERRORS[OF_THE_CONFIGURATION]) > 150
    assert len(ERRORS[OF_VPNCTL]) > 40


@pytest.mark.parametrize(
    ("heading", "message"),
    [(heading, message) for heading, messages in ERRORS.items() for message in messages],
)
def test_every_error_is_explained(heading: str, message: str) -> None:
    told = (messages for (section, _), messages in MEANT.items() if section == heading)
    assert message in set().union(*told), (
        f"{heading} of docs/operations.md does not say what to do about: {message}"
    )


WRONG_COMMAND_LINES = {
    "nonsense": "No such command …",
    "status --nonsense": "No such option: …",
    "peer": "Missing command",
    "peer show": "Missing argument …",
    "peer add ams1": "Missing option …",
    "reload now": "Got unexpected extra argument(s) …",
    "peer set ams1 --allow": "Option … requires an argument",
    "status --watch=1": "Option … does not take a value",
}
"""What typer says of them."""


@pytest.mark.parametrize("line", WRONG_COMMAND_LINES)
def test_every_wrong_command_line_is_explained(line: str) -> None:
    with pytest.raises(typer.TyperException) as told:
        app(line.split(), prog_name="vpnctl", standalone_mode=False)
    shown = WRONG_COMMAND_LINES[line]
    assert re.match(re.escape(shown).replace("…", ".*"), told.value.format_message())
    assert shown in explained(OF_VPNCTL)


@pytest.mark.parametrize(("heading", "shown"), MEANT)
def test_no_error_is_explained_that_nobody_makes(heading: str, shown: str) -> None:
    assert MEANT[heading, shown] or shown in WRONG_COMMAND_LINES.values()

"""What a user can be told has its line in docs/operations.md, with what to do."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import product
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
OF_THE_DAEMON = "## What the daemon refuses"
OF_A_LAB = "## Errors of a lab"
OF_INSTALLING = "## Errors of make install"
OF_KEY_SOURCES = "## Errors of key sources"
REASONS = "## Reasons and warnings"
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
    "TunError", "BackendUnavailable", "FenceUnavailable", "InterfaceMissing", "KeyChanged",
    "MalformedAnswer", "NamespaceOutOfReach", "NotOurs", "PeerMissing", "ReadBackMismatch",
    "ControlSocketError", "NoIdentity",
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


@cache
def messages() -> list[str]:
    """What interfaces, routes and the control socket can fail with."""
    found = set()
    for path in (*ROOT.glob("tun/*.py"), *ROOT.glob("vpnd/*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Name(id=name), args=[first, *_]) if name in FAILURES:
                    found.add(_message(first))
                case ast.Call(func=ast.Attribute(attr="__init__"), args=[first, *_]):
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


def _alike(clauses: Iterable[str], texts: Iterable[str]) -> bool:
    """Whether the document has a part of a message: it may show more of it, or less."""
    return any(
        clause in text or text in clause
        for clause, text in product(clauses, list(texts))
        if len(text) >= ENOUGH
    )


def _parts(quoted: Iterable[str]) -> list[str]:
    return [text.strip() for shown in quoted for text in shown.split("…")]


@pytest.mark.parametrize("message", messages())
def test_every_failure_is_explained(message: str) -> None:
    told = _parts(re.findall(r"`([^`\n]+)`", _without(*ERRORS)))
    assert _alike(_clauses(message), told), (
        f"docs/operations.md does not say what to do about: {message}"
    )


OF_A_FILE = (
    "FileFault", "FileMissing", "FileUnreadable", "FileExists", "FileNoted", "NoKey",
    "UnusableContent",
)  # fmt: skip
REASON_AND_HINT = "tuple[str, str]"
KEY_REASON_AND_HINT = "_Found"
"""What a function gives that leaves the call to another one."""
TAKES_A_MESSAGE: dict[str, dict[str, dict[str, int]]] = {
    OF_THE_CONFIGURATION: {
        "vpnd/**/*.py": {
            "FieldError": 0, "MlKemUnavailable": 0, "UntrustedName": 0,
            "problem": 1, "ConfigProblem": 2,
            **dict.fromkeys(OF_A_FILE, 1), REASON_AND_HINT: 0, KEY_REASON_AND_HINT: 1,
        },
        "vpnd/config.py": {"_tell": 2, "_is_name": 3},
        "vpnd/keysource/static_key.py": {"ValueError": 0},
        "kex/*.py": {"InvalidIdentity": 0},
    },
    OF_VPNCTL: {
        "cli/*.py": {
            "CliError": 0, "UsageProblem": 0, "DaemonUnreachable": 0, "LinkNotProtected": 0,
            "Refused": 0, "Problem": 0, "problem": 0, "FieldError": 0, "_not_vpnd": 0,
            "_failed": 1, REASON_AND_HINT: 0,
        },
    },
    OF_THE_DAEMON: {
        "vpnd/*.py": {
            "ControlError": 1, "NotPossible": 0, "NotExtensible": 0, "TooManySubscribers": 0,
        },
        "vpnd/source_test.py": {"_step": 2},
        "kex/*.py": {"NotPossible": 0},
    },
    OF_A_LAB: {
        "vpnd_lab/**/*.py": {
            "LabError": 0, "DaemonFailed": 0, "WaitTimeout": 0, "NotAnswering": 0, "NotProved": 0,
            "Problem": 1,
        },
        "vpnd_lab/spec.py": {"ValueError": 0},
        "vpnd_lab/errors.py": {"__init__": 0},
    },
    OF_KEY_SOURCES: {
        "vpnd/keysource/*.py": {
            "SourceError": 2, "AskFailed": 2, "CallFailed": 1, "BadAnswer": 1, "ProbeStep": 2,
            "stage_of": 0, "slow": 0,
        },
        "vpnd/keysource/https_call.py": {"timed_out": 0},
    },
    REASONS: {
        "vpnd/link_external.py": {"SourceError": 2},
        "vpnd/listed_keys.py": {"SourceError": 2, "NoOwner": 2, "__init__": 2},
        "vpnd/deliveries.py": {"Told": 0},
        "vpnd/strangers.py": {"Told": 0},
    },
}  # fmt: skip
"""What is called with an error's message, and how many arguments stand before it, or what gives
one: by the section that explains it, and by file."""
TELL_REASONS = (
    "kex/answering.py", "kex/claims.py", "kex/initiating.py", "kex/link_state.py",
    "vpnd/ask_sources.py", "vpnd/external_policy.py", "vpnd/fallback_watch.py",
    "vpnd/forwarding.py", "vpnd/link.py",
    "vpnd/link_exchanges.py", "vpnd/link_external.py", "vpnd/link_judge.py", "vpnd/link_peer.py",
    "vpnd/link_report.py", "vpnd/listener.py", "vpnd/keysource/certificate_watch.py",
    "vpnd/prefixes_differ.py", "vpnd/resolver.py", "vpnd/view_external.py",
)  # fmt: skip
"""Where the reasons of links and the warnings are made: every text in there is one, but for what
is raised."""


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
    pair, triple = (
        kind in takes and kind in gives for kind in (REASON_AND_HINT, KEY_REASON_AND_HINT)
    )
    for node in ast.walk(function):
        match node:
            case ast.Return(value=ast.expr() as text) if getattr(function, "name", "") in takes:
                yield text
            case ast.Return(value=ast.Tuple(elts=[reason, _])) if pair:
                yield reason
            case ast.Yield(value=ast.Tuple(elts=[_, reason, _])) if triple:
                yield reason
            case ast.Call(func=ast.Attribute(attr="append"), args=[ast.Tuple(elts=[_, reason, _])]):
                if KEY_REASON_AND_HINT in takes:
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
        case ast.BoolOp(values=values):
            for value in values:
                yield from _alternatives(value, function)
        case ast.Call(func=ast.Attribute(value=text, attr="replace")):
            yield from _alternatives(text, function)
        case ast.Name(id=name):
            for value in _assigned(function, name):
                yield from _alternatives(value, function)
        case _:
            yield _message(argument)


def errors(heading: str) -> Iterator[str]:
    """The messages of all errors that a section explains."""
    for pattern, takes in TAKES_A_MESSAGE[heading].items():
        for path in ROOT.glob(pattern):
            for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                    for argument in _arguments(function, takes):
                        yield from _alternatives(argument, function)


def _texts(node: ast.AST) -> Iterator[str]:
    """Every text of several words, but docstrings and what is raised."""
    match node:
        case ast.Constant() | ast.JoinedStr():
            yield from (text for text in (_message(node),) if " " in text)
        case ast.Raise() | ast.Expr(value=ast.Constant()):
            return
        case _:
            for part in ast.iter_child_nodes(node):
                yield from _texts(part)


def reasons() -> Iterator[str]:
    for path in TELL_REASONS:
        yield from _texts(ast.parse((ROOT / path).read_text(encoding="utf-8")))


def _telling(messages: Iterable[str], least: int = 1) -> list[str]:
    """Without those that have fewer letters of their own: they pass others on alone, or join
    them."""
    return sorted({text for text in messages if len(re.findall("[a-z]", text)) >= least})


ERRORS = {heading: _telling(errors(heading)) for heading in TAKES_A_MESSAGE}
"""Messages by the section that explains them."""
ERRORS[REASONS] = _telling([*ERRORS[REASONS], *reasons()], len("given"))
ERRORS[OF_INSTALLING] = _telling(
    re.sub(r"\$\{?\w+\}?", "{}", message).replace("{}{}", "{}")
    for message in re.findall(r'fail "([^"]+)"', (ROOT / "systemd/install").read_text("utf-8"))
)


@cache
def _looks_like(message: str) -> re.Pattern[str]:
    """The message as the document shows it: its fixed text from the first word to the last, with
    anything in its gaps. A gap at the front, and what follows on a colon, may be left out."""
    fixed, front = re.subn(r"^(\{\}[ :;,/-]*)+", "", message.replace("`", "").replace("\n", " "))
    fixed, colon = re.subn(r": (\{\})?$", "", fixed)
    shown = ".*".join(map(re.escape, fixed.split("{}")))
    return re.compile(("(.* )?" if front else "") + shown + ("(: .*)?" if colon else ""))


def explained(heading: str) -> list[str]:
    """The messages in a section's tables, as they are shown, of rows that say what to do."""
    rows = re.findall(r"^\| (`.*?) \|(?: .* \|)? (.*) \|$", _section(heading), re.MULTILINE)
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
    assert {
        "{}: there is no interface: {}",
        'the fallback was extended already, by {} s: "{}"',
        "{} values are wrong",  # one of two
        "no outcome within {} s",  # where there is no other
    } <= set(ERRORS[OF_THE_DAEMON])
    assert {
        "{} is not a lab's state file: {}",
        "in {}, `{}` exited with {}:\n{}",
        "{} has no prefix length; write it like 10.1.0.0/16",  # of a value in a lab file
        "{} overlaps {} of {}",
    } <= set(ERRORS[OF_A_LAB])
    assert {
        "adopted after a restart",
        "the key's lifetime is over, and no exchange gave a new one",  # a constant
        "no key of {} is mixed{}",
        "no answer to InitConf",
        "cannot listen on {}: the device is gone",
    } <= set(ERRORS[REASONS])
    assert "another installation is at work" in ERRORS[OF_INSTALLING]
    assert {
        "not a byte {} for {} s",  # given
        "it gives no keys",
        "expected a whole answer; it was cut off",
    } <= set(ERRORS[OF_KEY_SOURCES])
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


def explained_failures() -> list[str]:
    """What stands in the tables of the other sections, but the names of files and events."""
    tables = re.findall(
        r"^\| message \| what to do \|\n((?:\|.*\n)+)", _without(*ERRORS), re.MULTILINE
    )
    cells = [row.split(" | ")[0] for table in tables for row in table.splitlines()]
    return [text for cell in cells for text in re.findall(r"`([^`]+)`", cell) if " " in text]


@pytest.mark.parametrize("shown", explained_failures())
def test_no_failure_is_explained_that_nobody_has(shown: str) -> None:
    clauses = [clause for message in messages() for clause in _clauses(message)]
    assert _alike(clauses, _parts([shown]))

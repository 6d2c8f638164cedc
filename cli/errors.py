"""What goes wrong in vpnctl, as an exception that knows its hint and its exit code."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cli.output import discard
from vpnd.api import SCHEMA, ErrorDetail, ErrorInfo, ExitCode

PROGRAM = "vpnctl"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, in one line, and what to do about it (empty: nothing to add)."""

    message: str
    hint: str = ""

    @classmethod
    def of(cls, detail: ErrorDetail) -> "Problem":
        """A detail of the daemon's or of the configuration's: `file:line: key: reason`."""
        place = detail.get("file", "")
        if (line := detail.get("line")) is not None:
            place += f":{line}"
        parts = (place, detail.get("key", ""), detail["reason"])
        return cls(": ".join(part for part in parts if part), detail.get("hint", ""))


class CliError(Exception):
    """Ends the command: every problem goes to stderr, `code` to the shell.

    The base of everything that a person in front of vpnctl can put right.
    """

    code = ExitCode.FAILED
    slug = "failed"
    """What programs go by: `error.code` of the JSON document."""

    def __init__(self, message: str, hint: str = "", *, more: Sequence[Problem] = ()) -> None:
        super().__init__(message)
        # Each once: a refusal's message may be its only detail
        self.problems = tuple(dict.fromkeys((Problem(message, hint), *more)))

    def document(self) -> dict[str, Any]:
        """The JSON document of a command that failed: the control API's `ErrorBody`."""
        first, *rest = self.problems
        details = [
            ErrorDetail(reason=each.message, hint=each.hint)
            if each.hint
            else ErrorDetail(reason=each.message)
            for each in rest
        ]
        error = ErrorInfo(code=self.slug, message=first.message, hint=first.hint, details=details)
        return {"schema": SCHEMA, "error": error}


class UsageProblem(CliError):
    """A flag, an argument or the configuration is wrong; nothing was changed."""

    code = ExitCode.USAGE
    slug = "usage"

    @classmethod
    def of(cls, problems: Sequence[Problem]) -> "UsageProblem":
        """Several at once, so that nobody mends them one run at a time.

        `problems` holds at least one.
        """
        first, *rest = problems
        return cls(first.message, first.hint, more=rest)


class DaemonUnreachable(CliError):
    """No vpnd answers at the control socket."""

    code = ExitCode.UNREACHABLE
    slug = "unreachable"


class LinkNotProtected(CliError):
    """The link does not pass traffic under a key in force."""

    code = ExitCode.NOT_PROTECTED
    slug = "not_protected"


def printable(text: str) -> str:
    """`text` on one line, with nothing in it that a terminal would act upon.

    Flags, file names and what a peer sent end up in messages: a control character, or a byte that
    was no UTF-8, is shown as its escape.
    """
    if text.isprintable():
        return text
    line = " ".join(text.splitlines())
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in line)


def wants_colour(stream: object) -> bool:
    """True for a terminal whose owner did not ask for plain text (https://no-color.org)."""
    is_terminal = getattr(stream, "isatty", lambda: False)()
    return bool(is_terminal) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def report(error: CliError) -> None:
    """Each problem on stderr as `vpnctl: error: …` and, where there is one, `vpnctl: hint: …`."""
    for problem in error.problems:
        _line("error", problem.message, "\x1b[31m")
        if problem.hint:
            _line("hint", problem.hint, "\x1b[36m")


def hint(text: str) -> None:
    """A remark beside the data: on stderr, so that a program reading stdout never meets it."""
    _line("hint", text, "\x1b[36m")


def _line(kind: str, text: str, colour: str) -> None:
    label = f"{kind}:"
    if wants_colour(sys.stderr):
        label = f"{colour}{label}\x1b[0m"
    try:
        print(f"{PROGRAM}: {label} {printable(text)}", file=sys.stderr, flush=True)
    except OSError:  # nobody is left to tell; the exit code still says it
        discard(sys.stderr)

"""What can go wrong in a lab. Every message says what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class LabError(Exception):
    """The lab could not do what was asked; `hint` says what to do."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(f"{message} ({hint})" if hint else message)
        self.message = message
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in a lab file: where, why, and what to do."""

    key: str
    reason: str
    hint: str = ""

    def text(self, source: str) -> str:
        """One line for a person: file, key, reason, what to do."""
        where = f"{source}: {self.key}" if self.key else source
        return f"{where}: {self.reason}" + (f"; {self.hint}" if self.hint else "")


class LabFileError(LabError):
    """The lab file is wrong: all its problems at once, in `problems`."""

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(problem.text(source) for problem in problems))
        self.source = source
        self.problems = tuple(problems)


class CommandFailed(LabError):
    """A command that ran in a node did not exit with 0."""

    def __init__(
        self, node: str, argv: Sequence[str], returncode: int, *, stdout: str, stderr: str
    ) -> None:
        said = last_lines(stderr) or last_lines(stdout) or "it said nothing"
        super().__init__(f"in {node}, `{' '.join(argv)}` exited with {returncode}:\n{said}")
        self.node = node
        self.argv = tuple(argv)
        self.returncode = returncode
        self.stdout = stdout
        self.stderr = stderr


class DaemonFailed(LabError):
    """A daemon ended, or did not answer on its control socket in time."""


class WaitTimeout(LabError):
    """A condition that was awaited did not come true in time."""


def last_lines(text: str, count: int = 15) -> str:
    """The last `count` lines of `text`, indented, for quoting in an error."""
    return "\n".join(f"    {line}" for line in text.rstrip().splitlines()[-count:])

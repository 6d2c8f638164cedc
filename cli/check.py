"""`vpnctl check`: everything that is wrong with the configuration, before anything is touched."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cli.errors import Problem, UsageProblem, printable
from cli.options import AsJson, Settings
from cli.show import print_json
from vpnd.api import DEFAULT_CONFIG_PATH, SCHEMA, ErrorDetail

if TYPE_CHECKING:
    from vpnd.config import Config


def check(context: typer.Context, as_json: AsJson = False) -> None:
    """Check the configuration: all errors at once.

    Needs no daemon. Exits 2 for a configuration that cannot be used.
    """
    from vpnd.config import load_config  # with pydantic and cryptography: 150 ms
    from vpnd.config_errors import ConfigErrors
    from vpnd.host_check import missing_backends

    path = Path(Settings.of(context).config or DEFAULT_CONFIG_PATH)
    try:
        config = load_config(path)
    except ConfigErrors as errors:
        details = [problem.detail() for problem in errors.problems]
        if as_json:
            print_json(_document(path, errors=details, notes=[]))
        raise UsageProblem.of([_problem(detail, path) for detail in details]) from None
    # First what keeps a tunnel from coming up at all, whatever is right in the file
    notes = [note.detail() for note in (*missing_backends(config), *config.notes)]
    if as_json:
        print_json(_document(path, errors=[], notes=notes))
    else:
        print(printable(_summary(config)))
        for note in map(Problem.of, notes):
            print(f"note: {printable(note.message)}" + (f" ({note.hint})" if note.hint else ""))


def _document(path: Path, *, errors: list[ErrorDetail], notes: list[ErrorDetail]) -> object:
    return {
        "schema": SCHEMA,
        "file": str(path),
        "valid": not errors,
        "errors": errors,
        "notes": notes,
    }


def _problem(detail: ErrorDetail, path: Path) -> Problem:
    problem = Problem.of(detail)
    if detail.get("file") == str(path.absolute()) and not path.exists():
        return Problem(problem.message, "vpnctl init makes one; another one is named by --config")
    return problem


def _summary(config: "Config") -> str:
    peers = ", ".join(config.peers) or "none yet"
    tunnels = ", ".join(config.tunnels) or "none"
    text = f"{config.path}: good; tunnels: {tunnels}; peers: {peers}"
    return text if config.own else f"{text}; no identity yet (vpnctl init makes one)"

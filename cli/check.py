"""`vpnctl check`: everything that is wrong with the configuration, before anything is touched."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer

from cli.configuration import MAX_SHOWN
from cli.errors import Problem, UsageProblem, hint, printable, report
from cli.options import AsJson, Settings
from cli.show import print_json
from vpnd.api import DEFAULT_CONFIG_PATH, SCHEMA, ErrorDetail, ExitCode
from vpnd.file_trust import current_user

if TYPE_CHECKING:
    from vpnd.config import Config

_PATIENCE: Final = 60.0  # seconds; it takes one


def check(context: typer.Context, as_json: AsJson = False) -> int:
    """Check the configuration: all errors at once, and what a restart would make of them.

    Needs no daemon. Exits 2 for a configuration that cannot be used. What this user may not read
    is not checked, and is named.
    """
    from vpnd.config import load_config  # with pydantic and cryptography: 150 ms
    from vpnd.config_errors import ConfigErrors
    from vpnd.start_config import foreseen, read_start

    path = Path(Settings.of(context).config or DEFAULT_CONFIG_PATH)
    try:
        config = load_config(path)
    except ConfigErrors as errors:
        details = [problem.detail() for problem in errors.problems]
        restart = foreseen(read_start(path))
        if as_json:
            print_json(_document(path, errors=details, notes=[], restart=restart, unread=()))
        report(UsageProblem.of([_problem(detail, path) for detail in details]))
        if not as_json and not _is_missing(path):
            for line in restart[:MAX_SHOWN]:
                hint(f"at a restart: {line}")
            if len(restart) > MAX_SHOWN:
                hint(f"at a restart: … {len(restart) - MAX_SHOWN} more; --json has them all")
        return ExitCode.USAGE
    notes = [*(note.detail() for note in config.notes), *_notes_on_host(path)]
    if as_json:
        print_json(_document(path, errors=[], notes=notes, restart=[], unread=config.unread))
    else:
        print(printable(_summary(config)))
        for note in map(Problem.of, notes):
            print(f"note: {printable(note.message)}" + (f" ({note.hint})" if note.hint else ""))
    return ExitCode.DONE


def _notes_on_host(path: Path) -> list[ErrorDetail]:
    """What is in the way on this host: vpnd itself looks, which can ask the kernel."""
    try:
        looked = subprocess.run(
            [sys.executable, "-I", "-m", "vpnd", "--config", str(path), "--host-notes"],
            capture_output=True,
            timeout=_PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        reason = f"this host could not be looked at within {_PATIENCE:.0f} s"
        return [ErrorDetail(reason=reason, hint="again; `vpnctl status` tells as well")]
    if looked.returncode == ExitCode.USAGE:
        return []  # the configuration has changed in between
    if looked.returncode != ExitCode.DONE:
        reason = f"this host could not be looked at: vpnd --host-notes exits {looked.returncode}"
        return [ErrorDetail(reason=reason, hint="a bug: please report what that command prints")]
    found: list[ErrorDetail] = json.loads(looked.stdout)
    return found


def _document(
    path: Path,
    *,
    errors: list[ErrorDetail],
    notes: list[ErrorDetail],
    restart: list[str],
    unread: Sequence[Path],
) -> object:
    return {
        "schema": SCHEMA,
        "file": str(path),
        "valid": not errors,
        "errors": errors,
        "notes": notes,
        "restart": restart,
        "unread": [str(each) for each in unread],
    }


def _problem(detail: ErrorDetail, path: Path) -> Problem:
    problem = Problem.of(detail)
    if detail.get("file") == str(path.absolute()) and _is_missing(path):
        return Problem(problem.message, "vpnctl init makes one; another one is named by --config")
    return problem


def _is_missing(path: Path) -> bool:
    """As opposed to a file that this user may not look for."""
    try:
        path.lstat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def _summary(config: "Config") -> str:
    peers = ", ".join(config.peers) or "none yet"
    tunnels = ", ".join(config.tunnels) or "none"
    if config.unread:
        good = f"nothing wrong in what can be read as {current_user()}"
        return f"{config.path}: {good}; tunnels: {tunnels}; peers: {peers}"
    text = f"{config.path}: good; tunnels: {tunnels}; peers: {peers}"
    return text if config.own else f"{text}; no identity yet (vpnctl init makes one)"

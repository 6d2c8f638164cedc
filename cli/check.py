"""`vpnctl check`: everything that is wrong with the configuration, before anything is touched."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cli.errors import Problem, UsageProblem, printable
from cli.options import AsJson, Settings
from cli.show import print_json
from vpnd.api import DEFAULT_CONFIG_PATH, SCHEMA, ErrorDetail
from vpnd.file_trust import current_user

if TYPE_CHECKING:
    from vpnd.config import Config


def check(context: typer.Context, as_json: AsJson = False) -> None:
    """Check the configuration: all errors at once.

    Needs no daemon. Exits 2 for a configuration that cannot be used. What this user may not read
    is not checked, and is named.
    """
    from vpnd.config import load_config  # with pydantic and cryptography: 150 ms
    from vpnd.config_errors import ConfigErrors

    path = Path(Settings.of(context).config or DEFAULT_CONFIG_PATH)
    try:
        config = load_config(path)
    except ConfigErrors as errors:
        details = [problem.detail() for problem in errors.problems]
        if as_json:
            print_json(_document(path, errors=details, notes=[], unread=()))
        raise UsageProblem.of([_problem(detail, path) for detail in details]) from None
    notes = [note.detail() for note in config.notes] + list(_forwarding(config))
    if as_json:
        print_json(_document(path, errors=[], notes=notes, unread=config.unread))
    else:
        print(printable(_summary(config)))
        for note in map(Problem.of, notes):
            print(f"note: {printable(note.message)}" + (f" ({note.hint})" if note.hint else ""))


def _forwarding(config: "Config") -> Iterator[ErrorDetail]:
    """Whether this host forwards what the tunnels are to carry for others."""
    from tun.errors import TunError
    from tun.forwarding import forwarding
    from vpnd.forwarding import families_forwarded, hint_for, not_forwarded

    for tunnel in config.tunnels.values():
        peers = (peer for peer in config.peers.values() if peer.tunnel == tunnel.name)
        families = families_forwarded(tunnel, peers)
        if not families:
            continue
        behind = () if tunnel.vrf is not None else tunnel.announce
        try:
            found = forwarding(tunnel.netns, tunnel.interface, behind)
        except (TunError, OSError) as unknown:
            reason = f"tunnel {tunnel.name}: whether this host forwards is not known: {unknown}"
            yield ErrorDetail(reason=reason, hint="vpnctl status tells, once the tunnel is up")
            continue
        for text in not_forwarded(tunnel, families, found):
            yield ErrorDetail(reason=text, hint=hint_for((*found.ipv4_off, *found.ipv6_off)))


def _document(
    path: Path, *, errors: list[ErrorDetail], notes: list[ErrorDetail], unread: Sequence[Path]
) -> object:
    return {
        "schema": SCHEMA,
        "file": str(path),
        "valid": not errors,
        "errors": errors,
        "notes": notes,
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

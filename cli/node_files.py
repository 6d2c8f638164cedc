"""A new node's files: rendered, tried out before anything is written, written once.

Imported inside `vpnctl init` only: it brings pydantic and the cryptography package.
"""

import json
import os
import pwd
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from cli.errors import CliError, Problem, UsageProblem
from cli.node_paths import DEFAULT_STATE_DIR
from kex.identity import Fingerprint, Identity
from vpnd import atomic_file
from vpnd.api import DEFAULT_RUNTIME_DIR
from vpnd.atomic_file import Owner, write_atomically
from vpnd.config import Config, load_config
from vpnd.config_errors import ConfigErrors
from vpnd.config_fields import FieldError, endpoint
from vpnd.config_source import MAX_CONFIG_BYTES
from vpnd.file_trust import DAEMON_USER, FileFault, folder_fault, read_public
from vpnd.identity_store import DEFAULT_IDENTITY, create_identity, load_identities, system_suite

_CONFIG_MODE: Final = 0o644
_FOLDER_MODE: Final = 0o755
_ENDPOINT_NOTE: Final = "# The far end reaches this node at: "
_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class NewNode:
    """What a configuration is made of; every value has been read by its parser."""

    name: str
    listen: tuple[str, ...]
    tunnel: str
    interface: str
    wg_port: int
    addresses: tuple[str, ...]
    behind: tuple[str, ...]
    backend: str
    suite: int
    identity: str | None
    """A further identity; None: the one in use."""
    state_dir: str
    runtime_dir: str


def render(node: NewNode, far_end_endpoint: str | None) -> str:
    """vpnd.toml of a new node. The endpoint is for `init` alone, so it stands in a comment."""
    lines = ["# Made by `vpnctl init`; change it at will, `vpnctl check` reads it over."]
    if far_end_endpoint is not None:
        lines.append(f"{_ENDPOINT_NOTE}{far_end_endpoint}")
    lines += ["", "[node]", f"name = {_literal(node.name)}", f"listen = {_literal(node.listen)}"]
    if node.state_dir != DEFAULT_STATE_DIR:
        lines.append(f"state_dir = {_literal(node.state_dir)}")
    if node.runtime_dir != DEFAULT_RUNTIME_DIR:
        lines.append(f"runtime_dir = {_literal(node.runtime_dir)}")
    key = node.tunnel if _BARE_KEY.fullmatch(node.tunnel) else _literal(node.tunnel)
    lines += [
        "",
        f"[tunnels.{key}]",
        f"interface = {_literal(node.interface)}",
        f"listen_port = {node.wg_port}",
        f"addresses = {_literal(node.addresses)}",
        f"backend = {_literal(node.backend)}",
    ]
    if node.behind:
        lines.append(f"announce = {_literal(node.behind)}")
    return "\n".join(lines) + "\n"


def remembered_endpoint(config: Path) -> str | None:
    """The endpoint that `render` noted; None where the note is gone or spoiled."""
    text = read_public(config, limit=MAX_CONFIG_BYTES).data.decode(errors="replace")
    for line in text.splitlines():
        if line.startswith(_ENDPOINT_NOTE):
            try:
                return str(endpoint(line.removeprefix(_ENDPOINT_NOTE).strip()))
            except FieldError:
                return None
    return None


def try_out(text: str) -> Config:
    """What the daemon would make of `text`, with no peers; UsageProblem with all that is wrong."""
    with TemporaryDirectory(prefix="vpnctl-init-") as folder:
        path = Path(folder, "vpnd.toml")
        path.touch(mode=0o600)  # under any umask: what others can write would not be believed
        path.write_text(text, encoding="utf-8")
        try:
            return load_config(path, with_identities=False)
        except ConfigErrors as errors:
            raise UsageProblem.of(
                [
                    Problem(f"{found.key}: {found.reason}", found.hint or "vpnctl init --help")
                    for found in errors.problems
                ]
            ) from None


def load(path: Path) -> Config:
    """The configuration that is there; UsageProblem with all that is wrong with it."""
    try:
        return load_config(path, with_identities=False)
    except ConfigErrors as errors:
        first = Problem(f"{path} is there and was left as it is, but cannot be used")
        raise UsageProblem.of(
            [first, *(Problem.of(found.detail()) for found in errors.problems)]
        ) from None


def make_folder(folder: Path, *, for_daemon: bool = False) -> list[Path]:
    """Makes a folder that all may read, with its parents; what was made.

    CliError on failure, also where it is there and the daemon would not believe what is in it.
    """
    owner = _daemon_owner() if for_daemon else None
    with _told():
        made = atomic_file.make_folder(folder, mode=_FOLDER_MODE, exact=True, owner=owner)
        if fault := folder_fault(folder):
            raise fault
    return [folder] if made else []


def write_config(path: Path, text: str) -> list[Path]:
    """Writes vpnd.toml where there was none; CliError if there is one by now, or on failure."""
    with _told():
        write_atomically(path, text.encode(), mode=_CONFIG_MODE, replace=False)
    return [path]


def ensure_identity(
    state_dir: Path, suite: int, name: str | None = None
) -> tuple[Fingerprint, list[Path]]:
    """The node's identity in use, or the one of that name, made if there is none; and what was
    made. CliError on failure."""
    stored = load_identities(state_dir)
    for fault in stored.faults:
        raise _failed(fault.path, fault.reason, fault.hint)
    for found, identity in stored.identities.items():
        if name in (None, found):
            return identity.fingerprint, []
    new_folder = [] if state_dir.is_dir() else [state_dir]
    made = Identity.generate(system_suite(suite))
    with _told():
        path = create_identity(state_dir, made, name or DEFAULT_IDENTITY, owner=_daemon_owner())
    return made.fingerprint, [*new_folder, path]


def make_identity(state_dir: Path, name: str, suite: int) -> Fingerprint:
    """A further identity of a node that has one; CliError on failure, also if there is one of
    that name."""
    stored = load_identities(state_dir)
    for fault in stored.faults:
        raise _failed(fault.path, fault.reason, fault.hint)
    if not stored.identities:
        raise _failed(state_dir, "there is no identity yet", "vpnctl init makes the first one")
    if name in stored.identities:
        raise _failed(
            state_dir, f"there is an identity {name} already", f"vpnctl id --identity {name}"
        )
    fingerprint, _ = ensure_identity(state_dir, suite, name)
    return fingerprint


def _daemon_owner() -> Owner | None:
    """The user of an installed daemon, where root makes files; None: they stay whose they are."""
    if os.geteuid() != 0:
        return None
    try:
        user = pwd.getpwnam(DAEMON_USER)
    except KeyError:
        return None  # not installed as a service: the daemon runs as root, too
    return Owner(user.pw_uid, user.pw_gid)


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except FileFault as fault:
        raise _failed(fault.path, fault.reason, fault.hint) from None


def _failed(path: Path, reason: str, todo: str = "") -> CliError:
    elsewhere = "run it as root, or name other places with --config and --state-dir"
    return CliError(f"{path}: {reason}", todo or elsewhere)


def _literal(value: str | tuple[str, ...]) -> str:
    """TOML for a text, or for a list of texts, all of them of printable characters.

    For those, which are all that the parsers let through, JSON's strings are TOML's.
    """
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return "[" + ", ".join(map(_literal, value)) + "]"

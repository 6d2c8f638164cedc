"""Labs from the command line: what `vpnctl lab up/exec/status/down` does. Blocking.

Only `up` loads trio and pydantic; the others need the standard library.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vpnd_lab import teardown
from vpnd_lab.holder import enter_argv, node_env
from vpnd_lab.state import LabState, find, lab_folder, lab_root

if TYPE_CHECKING:
    from vpnd_lab.spec import LabSpec

SCHEMA = 1


def up(
    file: Path | str,
    *,
    name: str | None = None,
    start: Literal["network", "daemons", "links"] = "links",
    root: Path | None = None,
) -> dict[str, Any]:
    """Bring up the lab in a file and let it stand; a summary, as `status` gives it.

    Raises LabFileError for what is wrong in the file, LabError where it cannot be built; nothing
    is left behind then.
    """
    import trio

    from vpnd_lab.spec import LabSpec

    spec = LabSpec.load(Path(file))
    folder = (root or lab_root()).resolve()
    trio.run(_up, spec, name or spec.name, start, folder)
    return _summary(LabState.load(folder / (name or spec.name)))


async def _up(
    spec: LabSpec, name: str, start: Literal["network", "daemons", "links"], root: Path
) -> None:
    from vpnd_lab.lab import claim_lab, close_lab, raise_lab

    state = await claim_lab(root, name)
    try:
        lab = await raise_lab(state, spec)
        await lab.start(start)
        # Only now: if this process is killed before, the next start takes the rest away.
        lab.keep()
    except BaseException:
        await close_lab(root, state)
        raise


def exec(name: str, node: str, argv: Sequence[str], *, root: Path | None = None) -> int:
    """Run a command in a node of a lab, on this terminal; its exit code, as a shell has it.

    Raises LabError where there is no such lab or node.
    """
    state = LabState.load(lab_folder((root or lab_root()).resolve(), name))
    command = enter_argv(state, node, [_own(argv[0]), *argv[1:]], cwd=Path.cwd())
    with subprocess.Popen(command, env=node_env(state, node)) as process:
        while True:
            # Ctrl-C reaches the command as well: it decides what that means.
            with contextlib.suppress(KeyboardInterrupt):
                code = process.wait()
                break
    return code if code >= 0 else 128 - code


def _own(program: str) -> str:
    """A program of this installation is the one beside this Python, not an older one on PATH."""
    beside = Path(sys.executable).parent / program
    return str(beside) if program in ("vpnd", "vpnctl") and beside.exists() else program


def status(*, root: Path | None = None) -> list[dict[str, Any]]:
    """Every lab on this host."""
    return [_summary(state) for state in find((root or lab_root()).resolve())]


def down(name: str, *, root: Path | None = None) -> dict[str, Any]:
    """Take a lab away, whoever made it, in whatever state it is. Raises LabError."""
    folder = (root or lab_root()).resolve()
    # Without the folder there is nothing to lock, and locking would make it.
    LabState.load(lab_folder(folder, name))
    ended = teardown.down(folder, name)
    return {"schema": SCHEMA, "name": name, "processes_ended": ended}


def _summary(state: LabState) -> dict[str, Any]:
    owner = state.owner
    return {
        "schema": SCHEMA,
        "name": state.name,
        # running: ends with its harness; standing: until `down`; abandoned: its harness has died.
        "state": "abandoned" if state.abandoned else "standing" if owner is None else "running",
        "owner_pid": None if owner is None else owner.pid,
        "created": state.created,
        "folder": str(state.folder),
        "nodes": [
            {
                "name": name,
                "kind": node.kind,
                "addresses": node.addresses,
                "alive": node.holder is not None and node.holder.alive(),
                "daemon_pid": (
                    node.daemon.pid if node.daemon is not None and node.daemon.alive() else None
                ),
            }
            for name, node in state.nodes.items()
        ],
    }

"""The lab's folder and the state file in it: what must be found again after a crash.

    /run/vpnd-lab/NAME/state.json       this file: written before each thing is made
    /run/vpnd-lab/NAME/NODE/run         what the node sees as /run
    /run/vpnd-lab/NAME/NODE/etc, state  configuration and state of the site's daemon
    /run/vpnd-lab/NAME/NODE/*.stderr    what its daemon and its holder wrote to stderr

Standard library only: `vpnctl lab status` and `vpnctl lab down` need nothing else.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vpnd_lab.errors import LabError
from vpnd_lab.process import ProcessId

SCHEMA = 1
STATE_FILE = "state.json"
# A lab's name is that of a folder, which is taken away with it, and part of its sockets' paths.
NAME_PATTERN = r"^[a-z0-9][a-z0-9-]{0,39}$"
# The longest path of a Unix socket that Linux takes, terminating zero excluded (unix(7)).
SOCKET_PATH_MAX = 107


def lab_root() -> Path:
    """Where the labs' folders are."""
    return Path(os.environ.get("VPND_LAB_ROOT", "/run/vpnd-lab"))


def lab_folder(root: Path, name: str) -> Path:
    """The folder of the lab `name`. Raises LabError for what cannot be a lab's name."""
    if not re.fullmatch(NAME_PATTERN, name):
        hint = "use lower-case letters, digits and hyphens, at most 40"
        raise LabError(f"{name!r} cannot be the name of a lab", hint=hint)
    return root / name


def boot_id() -> str:
    """Tells this boot from another: pids and start times mean nothing across boots."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


@dataclass(slots=True)
class NodeState:
    """One node as it was made. `netns` is the inode of its network namespace, once it is there."""

    kind: str
    addresses: list[str] = field(default_factory=list)
    holder: ProcessId | None = None
    netns: int | None = None
    daemon: ProcessId | None = None


@dataclass(slots=True)
class LabState:
    """One lab. `owner` is the harness whose end is the lab's end; None: it stands until `down`."""

    folder: Path
    uid: str
    boot_id: str
    created: str
    owner: ProcessId | None
    nodes: dict[str, NodeState] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def abandoned(self) -> bool:
        """Whether its harness has died and left it behind."""
        if self.boot_id != boot_id():
            return True
        return self.owner is not None and not self.owner.alive()

    def save(self) -> None:
        """Write the state file, whole or not at all."""
        document = {"schema": SCHEMA, **asdict(self)}
        del document["folder"]
        temporary = self.folder / f".{STATE_FILE}.new"
        temporary.write_text(json.dumps(document, indent=1), encoding="utf-8")
        temporary.replace(self.folder / STATE_FILE)

    @classmethod
    def load(cls, folder: Path) -> LabState:
        """The state in `folder`. Raises LabError if it is not there or is not a lab's."""
        path = folder / STATE_FILE
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if document["schema"] != SCHEMA:
                raise LabError(
                    f"{path} has schema {document['schema']}, this program knows {SCHEMA}",
                    hint="take the lab down with the version that made it",
                )
            return cls(
                folder=folder,
                uid=document["uid"],
                boot_id=document["boot_id"],
                created=document["created"],
                owner=_process(document["owner"]),
                nodes={name: _node(node) for name, node in document["nodes"].items()},
            )
        except FileNotFoundError:
            hint = "see `vpnctl lab status`"
            raise LabError(f"there is no lab {folder.name}", hint=hint) from None
        except (ValueError, KeyError, TypeError) as error:
            hint = f"damaged, or of another program: look into {folder} before you remove it"
            raise LabError(f"{path} is not a lab's state file: {error!r}", hint=hint) from error


def _process(document: Any) -> ProcessId | None:
    return None if document is None else ProcessId(document["pid"], document["start_time"])


def _node(document: Any) -> NodeState:
    return NodeState(
        kind=document["kind"],
        addresses=list(document["addresses"]),
        holder=_process(document["holder"]),
        netns=document["netns"],
        daemon=_process(document["daemon"]),
    )


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """Hold the one lock under which labs are claimed and taken away.

    The folder of all labs goes with the last lab, so that nothing is left behind.
    """
    path = root / ".lock"
    fd = _take_lock(path)
    try:
        yield
    finally:
        if os.listdir(root) == [path.name]:
            path.unlink()
            # From here on another process may hold a lock of its own, in a folder made anew.
            with contextlib.suppress(OSError):
                root.rmdir()
        os.close(fd)


def _take_lock(path: Path) -> int:
    while True:
        # Not `exist_ok`: that fails where the folder goes between its two looks.
        with contextlib.suppress(FileExistsError):
            path.parent.mkdir(mode=0o755, parents=True)
        try:
            fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:  # removed since: the holder before us was the last
            continue
        fcntl.flock(fd, fcntl.LOCK_EX)
        try:
            if os.path.samestat(os.fstat(fd), path.stat()):
                return fd
        except FileNotFoundError:
            pass
        os.close(fd)


def claim(root: Path, name: str, *, owner: ProcessId | None) -> LabState:
    """Make the folder and state file of a new lab. The caller holds the lock.

    Raises LabError where a lab of that name stands.
    """
    folder = lab_folder(root, name)
    if (folder / STATE_FILE).exists():
        state = LabState.load(folder)
        by = f"made by process {state.owner.pid}" if state.owner else "standing"
        raise LabError(
            f"there is already a lab {name} ({by}, since {state.created})",
            hint=f"`vpnctl lab down {name}` takes it away; or give this one another name",
        )
    if folder.exists():
        # Folder and state file are made under the lock: one without the other is the rest of a
        # start that was killed in between, and holds nothing.
        shutil.rmtree(folder)
    folder.mkdir(mode=0o755)
    state = LabState(
        folder=folder,
        uid=secrets.token_hex(8),
        boot_id=boot_id(),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        owner=owner,
    )
    state.save()
    return state


def find(root: Path) -> list[LabState]:
    """Every lab under `root`, by name. A folder without a readable state file is passed over."""
    found = []
    for path in sorted(root.glob(f"*/{STATE_FILE}")):
        with contextlib.suppress(LabError):
            found.append(LabState.load(path.parent))
    return found

"""Take a lab away again, however its harness ended.

A lab is nothing but processes and one folder: namespaces, interfaces, routes and mounts end with
the last process that is in them. So: find every process of the lab, end it, remove the folder.

A process belongs to the lab if it sees the lab's own mark at /run (it is in a node's mount
namespace), or if it is in a node's network namespace. The first needs no living process of ours to
compare with, so it holds even when a holder was killed; an inode of a namespace is given out again
as soon as the namespace has gone, so the second is asked only of a holder that is known to live.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path

from vpnd_lab.errors import LabError
from vpnd_lab.patience import patient
from vpnd_lab.process import ProcessId, kill_all
from vpnd_lab.state import LabState, boot_id, find, lab_folder, locked

MARK = "vpnd-lab.id"
PATIENCE_SECONDS = 30.0


def netns_inode(pid: int) -> int:
    """The inode of a process's network namespace.

    Raises ProcessLookupError where there is no such process, or none that root may look into
    (there are such: under a security module, or of a larger user namespace). Ours are not among
    them.
    """
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    except OSError as error:
        raise ProcessLookupError(f"process {pid}: {error.strerror}") from None


def members(state: LabState) -> set[ProcessId]:
    """Every living process of the lab, its holders included."""
    if state.boot_id != boot_id():
        return set()
    namespaces = _living_namespaces(state)
    found = set()
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(ProcessLookupError):
                process = ProcessId.of(int(entry))
                if _is_member(process.pid, state.uid, namespaces) and process.alive():
                    found.add(process)
    # A holder that has not yet been told to make its namespaces is still in ours.
    for node in state.nodes.values():
        if node.holder is not None and node.holder.alive():
            found.add(node.holder)
    return found


def _living_namespaces(state: LabState) -> set[int]:
    namespaces = set()
    for node in state.nodes.values():
        if node.holder is not None and node.netns is not None and node.holder.alive():
            with contextlib.suppress(ProcessLookupError):
                if netns_inode(node.holder.pid) == node.netns:
                    namespaces.add(node.netns)
    # Never the host's own, whatever a state file says.
    for pid in (1, os.getpid()):
        with contextlib.suppress(ProcessLookupError):
            namespaces.discard(netns_inode(pid))
    return namespaces


def _is_member(pid: int, uid: str, namespaces: set[int]) -> bool:
    if netns_inode(pid) in namespaces:
        return True
    with contextlib.suppress(OSError):
        # Of whatever process: what stands there may be a pipe, or a link to anything
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        handle = os.open(f"/proc/{pid}/root/run/{MARK}", flags)
        try:
            return os.read(handle, len(uid) + 1) == uid.encode("ascii")
        finally:
            os.close(handle)
    return False


def take_down(state: LabState) -> int:
    """End every process of the lab and remove its folder; how many were ended.

    Raises LabError if a process does not end, or if the caller is one of them.
    """
    ended = _end_processes(state)
    shutil.rmtree(state.folder, ignore_errors=False)
    return ended


def _end_processes(state: LabState) -> int:
    holders = {node.holder for node in state.nodes.values() if node.holder is not None}
    ended = 0
    deadline = time.monotonic() + patient(PATIENCE_SECONDS)
    # More than one round: a process may start another while we look. Holders come last, since
    # they prove which namespaces are ours.
    while found := members(state):
        if ProcessId.of(os.getpid()) in found:
            raise LabError(
                f"this process runs inside the lab {state.name}", hint="call it from outside"
            )
        targets = found - holders or found
        left = kill_all(targets, seconds=deadline - time.monotonic())
        ended += len(targets) - len(left)
        if left or time.monotonic() > deadline:
            pids = ", ".join(str(process.pid) for process in left or targets)
            hint = f"`ps` shows what they wait for; then `vpnctl lab down {state.name}` again"
            raise LabError(f"lab {state.name}: processes do not end: {pids}", hint=hint)
    for holder in holders:
        holder.reap()
    return ended


def remove_abandoned(root: Path) -> list[str]:
    """Take away every lab whose harness has died; their names. The caller holds the lock."""
    names = []
    for state in find(root):
        if state.abandoned:
            take_down(state)
            names.append(state.name)
    return names


def down(root: Path, name: str) -> int:
    """Take the lab `name` away, whoever made it; how many processes were ended."""
    with locked(root):
        return take_down(LabState.load(lab_folder(root, name)))

"""A node's namespaces, and the process that holds them open.

A node is a network, a mount and a UTS namespace. None has a name on the host and no interface is
ever in the host's own network namespace: labs cannot collide, and with the last process in it a
node has vanished. Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from vpnd_lab.errors import LabError, last_lines
from vpnd_lab.process import ProcessId, spawn
from vpnd_lab.state import LabState
from vpnd_lab.teardown import MARK, netns_inode

READY_SECONDS = 60.0

# $1 name, $2 the node's folder, $3 the folder of all labs, $4 "1" where the node forwards.
_SCRIPT = """
set -eu
# The harness writes the line once it has recorded this process; if it dies first, that was all.
read -r _ || exit 0
mount -t sysfs vpnd-lab /sys
# An installed vpnd's own files are hidden in the lab. Nothing is made on the host for this.
if [ -d /etc/vpnd ]; then mount --bind "$2/etc" /etc/vpnd; fi
if [ -d /var/lib/vpnd ]; then mount --bind "$2/state" /var/lib/vpnd; fi
# /run is the node's own; the labs' folder stays where it is, also when it is under /run.
case "$3" in /run/*) mkdir -p "$2$3"; mount --bind "$3" "$2$3";; esac
mount --rbind "$2/run" /run
echo "$1" > /proc/sys/kernel/hostname
cd /proc/sys/net
for which in all default; do
    echo 0 > ipv4/conf/$which/rp_filter
    echo 0 > ipv6/conf/$which/accept_dad
    echo 0 > ipv6/conf/$which/accept_ra
    echo 0 > ipv6/conf/$which/disable_ipv6
done
echo "$4" > ipv4/ip_forward
echo "$4" > ipv6/conf/all/forwarding
cd /
ip link set dev lo up
echo ready
exec sleep infinity < /dev/null > /dev/null 2>&1
"""


def make_node_folder(state: LabState, node: str) -> Path:
    """The node's folder, with what it will see as /run, marked as the lab's."""
    folder = state.folder / node
    for name in ("run/vpnd", "run/wireguard", "etc", "state"):
        (folder / name).mkdir(parents=True)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)  # whatever the umask: vpnd refuses folders that others can write
    (folder / "run" / MARK).write_text(state.uid, encoding="ascii")
    return folder


class Holder:
    """A holder on its way up: made, then told to go, then awaited."""

    def __init__(self, state: LabState, node: str, *, forwarding: bool) -> None:
        """Start the process; it makes nothing until `go`. Raises OSError."""
        self.node = node
        self._folder = make_node_folder(state, node)
        command = ["unshare", "--net", "--mount", "--uts", "sh", "-c", _SCRIPT, "vpnd-lab-holder"]
        arguments = [node, str(self._folder), str(state.folder.parent), str(int(forwarding))]
        child_in, self._in = os.pipe()
        self._out, child_out = os.pipe()
        errors = os.open(self._stderr, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644)
        try:
            self.process = spawn(
                [*command, *arguments],
                env=node_env(state, node),
                stdin=child_in,
                stdout=child_out,
                stderr=errors,
            )
        except BaseException:
            self.close()
            raise
        finally:
            for fd in (child_in, child_out, errors):
                os.close(fd)

    @property
    def _stderr(self) -> Path:
        return self._folder / "holder.stderr"

    def go(self) -> None:
        """Let it make its namespaces: it has been recorded."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._in, b"go\n")

    def wait_ready(self) -> int:
        """Wait until the namespaces are there: the inode of the network namespace."""
        poll = select.poll()
        poll.register(self._out, select.POLLIN)
        if not poll.poll(READY_SECONDS * 1000) or os.read(self._out, 64) != b"ready\n":
            said = last_lines(self._stderr.read_text(encoding="utf-8", errors="replace"))
            raise LabError(
                f"node {self.node} could not be made:\n{said}",
                hint="a lab needs root with CAP_SYS_ADMIN and CAP_NET_ADMIN: sudo, or a "
                "privileged container",
            )
        return netns_inode(self.process.pid)

    def close(self) -> None:
        """Close the pipes; a holder that was not told to go ends."""
        for fd in (self._in, self._out):
            os.close(fd)


def node_env(state: LabState, node: str, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a command in a node."""
    env = {
        **os.environ,
        "VPND_LAB": state.name,
        "VPND_LAB_NODE": node,
        "VPND_CONFIG": str(state.folder / node / "etc" / "vpnd.toml"),
        "VPND_SOCKET": "/run/vpnd/control.sock",
        **(extra or {}),
    }
    # ip and nft are in sbin, which root's PATH lacks after a plain `su` (Debian, su(1)). vpnctl is
    # beside this Python, also where its virtual environment was not activated; last, because a
    # `python3` is there, too.
    folders = env.get("PATH", "/usr/bin:/bin").split(":")
    also = ("/usr/sbin", "/sbin", str(Path(sys.executable).parent))
    env["PATH"] = ":".join([*folders, *(folder for folder in also if folder not in folders)])
    return env


def enter_argv(state: LabState, node: str, argv: Sequence[str], *, cwd: Path) -> list[str]:
    """The command line that runs `argv` in a node. Raises LabError where the node is not there."""
    holder = holder_of(state, node)
    targets = [f"--target={holder.pid}", "--net", "--mount", "--uts"]
    return ["nsenter", *targets, f"--wdns={inside(cwd)}", "--", *argv]


def holder_of(state: LabState, node: str) -> ProcessId:
    """The process that holds a node. Raises LabError where the node is not there."""
    known = state.nodes.get(node)
    if known is None:
        hint = f"it has: {', '.join(sorted(state.nodes))}"
        raise LabError(f"the lab {state.name} has no node {node}", hint=hint)
    if known.holder is None or not known.holder.alive():
        hint = f"take it down with `vpnctl lab down {state.name}` and start again"
        raise LabError(f"node {node} of lab {state.name} has gone", hint=hint)
    return known.holder


def inside(cwd: Path) -> str:
    """The folder to start in: the host's /run is not seen in a node."""
    return "/" if cwd.is_relative_to("/run") or not cwd.is_dir() else str(cwd)

"""Build a plan: holders, cables, addresses, routes. Blocking; about 0.1 s for two sites.

Standard library and the programs `unshare`, `nsenter`, `mount` and `ip`, one `ip -batch` for each
node: 3 ms, where opening a netlink socket in another namespace from Python costs 140.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from vpnd_lab.errors import LabError, last_lines
from vpnd_lab.holder import Holder, enter_argv, node_env
from vpnd_lab.plan import End, Plan
from vpnd_lab.state import SOCKET_PATH_MAX, LabState, NodeState

_PACKAGES = {"ip": "iproute2", "unshare": "util-linux", "nsenter": "util-linux", "mount": "mount"}
TUN_DEVICE = "/dev/net/tun"
# Above what Linux gives to an interface that asks for none: a site's tunnels come later.
_FIRST_INDEX = 1000


def check_host(plan: Plan, folder: Path) -> None:
    """Raise LabError where the lab cannot be built here, before anything is made."""
    if missing := [name for name in _PACKAGES if shutil.which(name, path=_path()) is None]:
        packages = " ".join(sorted({_PACKAGES[name] for name in missing}))
        raise LabError(f"missing: {', '.join(missing)}", hint=f"apt-get install {packages}")
    for name in plan.kmes:
        _check_socket(folder / name / "run" / "kme.sock")
    for name, site in plan.sites.items():
        sockets = [f"wireguard/{tunnel.interface}.sock" for tunnel in site.tunnels]
        for socket in ("vpnd/control.sock", *sockets):
            _check_socket(folder / name / "run" / socket)


def check_wireguard(plan: Plan) -> None:
    """Raise LabError where the sites' tunnels cannot come up on this host. Blocking."""
    backends = {tunnel.backend for site in plan.sites.values() for tunnel in site.tunnels}
    missing = _missing_for_userspace()
    if missing is None or backends <= {"kernel"}:
        return
    if "userspace" in backends or not _kernel_has_wireguard():
        raise missing


def _path() -> str:
    return ":".join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def _missing_for_userspace() -> LabError | None:
    program = "wireguard-go"
    if shutil.which(program, path=_path()) is None:
        return LabError(f"missing: {program}", hint=f"apt-get install {program}")
    try:
        os.close(os.open(TUN_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return LabError(
            f"{TUN_DEVICE} cannot be opened: {error.strerror}",
            hint=f"modprobe tun; a container has to be given it: --device {TUN_DEVICE}",
        )
    return None


def _kernel_has_wireguard() -> bool:
    """By making an interface in a network namespace of its own, which goes with it."""
    made = subprocess.run(
        ["unshare", "--net", "ip", "link", "add", "wg0", "type", "wireguard"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=os.environ | {"PATH": _path()},
        check=False,
    )
    return made.returncode == 0


def _check_socket(file: Path) -> None:
    if len(os.fsencode(file)) > SOCKET_PATH_MAX:
        raise LabError(
            f"{file} is longer than the {SOCKET_PATH_MAX} bytes a socket may have",
            hint="shorten the lab's name, or set VPND_LAB_ROOT to a shorter folder",
        )


def build(state: LabState, plan: Plan) -> None:
    """Build everything in `plan`; `state` is on disk before each step. Raises LabError."""
    _make_nodes(state, plan)
    # A veth pair is made inside its near node with the far end already in the other one: it never
    # shows on the host. Its ends get different indices: for a pair with the same index at both
    # ends, Linux takes up to 1 s to notice that the link is up (net/core/link_watch.c,
    # linkwatch_urgent_event: only stacked devices are urgent, told by ifindex != iflink).
    creations: dict[str, list[str]] = {}
    for number, cable in enumerate(plan.cables):
        holder = state.nodes[cable.far.node].holder
        if holder is None:
            raise LabError(f"node {cable.far.node} has not been made")
        near, far, mtu, index = cable.near, cable.far, cable.mtu, _FIRST_INDEX + 2 * number
        creations.setdefault(near.node, []).append(
            f"link add name {near.interface} index {index} mtu {mtu} type veth "
            f"peer name {far.interface} index {index + 1} mtu {mtu} netns {holder.pid}"
        )
    _ip_batches(state, creations)
    _ip_batches(state, {node: _configuration(plan, node) for node in plan.nodes})


def _make_nodes(state: LabState, plan: Plan) -> None:
    for name, kind in plan.nodes.items():
        addresses = [str(address) for address in plan.addresses(name)]
        state.nodes[name] = NodeState(kind=kind, addresses=addresses)
    state.save()
    holders: list[Holder] = []
    try:
        for name, kind in plan.nodes.items():
            holders.append(Holder(state, name, forwarding=kind != "host"))
            state.nodes[name].holder = holders[-1].process
        state.save()
        for holder in holders:
            holder.go()
        for holder in holders:
            state.nodes[holder.node].netns = holder.wait_ready()
        state.save()
    finally:
        for holder in holders:
            holder.close()


def _configuration(plan: Plan, node: str) -> list[str]:
    """The lines for `ip -batch` that give a node its addresses and routes."""
    lines = []
    for cable in plan.cables:
        for end, _ in cable.ends():
            if end.node == node:
                lines += _end(end)
    for route in plan.routes[node]:
        lines.append(f"route add {route.destination} via {route.via} dev {route.interface}")
    return lines


def _end(end: End) -> list[str]:
    # nodad: an address is there at once, not after a second of duplicate address detection.
    return [
        *(
            f"address add {address} dev {end.interface}{' nodad' if address.version == 6 else ''}"
            for address in end.addresses
        ),
        f"link set dev {end.interface} up",
    ]


def _ip_batches(state: LabState, batches: Mapping[str, list[str]]) -> None:
    """Run each node's lines in it, all nodes at once."""
    running = []
    for node, lines in batches.items():
        if lines:
            process = subprocess.Popen(
                enter_argv(state, node, ["ip", "-batch", "-"], cwd=Path("/")),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=node_env(state, node),
                text=True,
            )
            running.append((node, "\n".join(lines) + "\n", process))
    failures = []
    for node, batch, process in running:
        with process:
            _, errors = process.communicate(batch)
        if process.returncode != 0:
            failures.append(f"in {node}:\n{last_lines(errors)}\n  of\n{last_lines(batch, 99)}")
    if failures:
        raise LabError(
            "`ip` could not set up the lab:\n" + "\n".join(failures),
            hint="does this kernel have what it names (veth, VRF, IPv6)?",
        )

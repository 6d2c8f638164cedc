"""The installed daemon under a systemd that runs: from `make install` to `make uninstall PURGE=1`.

    near (vpnd.service, user vpnd) ── near0 ═══ far0 ── far (network namespace, vpnd as root)

Both ends in one guest; the far end with folders and a /run/wireguard of its own.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from systemd_guest import CHECKOUT, Guest, booted

pytestmark = [pytest.mark.long, pytest.mark.netns]

RENEWAL_SECONDS = 180.0
"""WireGuard renews its session after 120 s; then a key that was installed is in force."""
FAR_CONFIG = ("--config", "/etc/far/vpnd.toml")
FAR_SOCKET = ("--socket", "/run/far/control.sock")
INTERVAL = "0.05"  # seconds between two packets
GUARD = "unreachable 10.255.0.2 proto 157 metric 4294967294"


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    if not Path("/dev/net/tun").exists():
        pytest.fail("this machine has no /dev/net/tun: modprobe tun")
    made = subprocess.run(
        [CHECKOUT / "netns-tests/systemd-root"], stdout=subprocess.PIPE, text=True, check=True
    ).stdout.strip()
    with booted(Path(made)) as guest:
        yield guest


def test_from_install_to_purge(guest: Guest) -> None:
    before = files(guest)
    install(guest)
    start_far_end(guest)
    guest.run("vpnctl", "init", "--name", "near", "--address", "10.255.0.1/24")
    guest.run("systemctl", "enable", "--now", "vpnd")
    assert_unprivileged(guest)
    link_both(guest)
    survive_restarts(guest)
    another_namespace(guest)
    guards_at_boot(guest)
    upgrade(guest)
    uninstall(guest, before)


def install(guest: Guest) -> None:
    guest.run("make", "-C", "/src", "install")
    for unit in ("vpnd", "vpnd-guard"):
        # Nothing runs before there is a configuration
        assert not guest.succeeds("systemctl", "is-active", unit)
    said = guest.run(
        "systemd-analyze", "verify", "--recursive-errors=no", "vpnd.service", "vpnd-guard.service",
        "vpnd-wireguard-go.socket", "vpnd-wireguard-go@test.service", "vpnd-nsfd.socket",
        "vpnd-nsfd.service",
    )  # fmt: skip
    assert not said, said
    for shell, file in (
        ("bash", "bash-completion/completions/vpnctl"),
        ("zsh", "zsh/site-functions/_vpnctl"),
        ("fish", "fish/vendor_completions.d/vpnctl.fish"),
    ):
        assert "vpnctl" in guest.run("cat", f"/usr/local/share/{file}"), shell


def start_far_end(guest: Guest) -> None:
    for command in (
        "ip netns add far",
        "ip link add near0 type veth peer name far0 netns far",
        "ip address add 198.18.0.1/30 dev near0",
        "ip link set near0 up",
        "ip -n far address add 198.18.0.2/30 dev far0",
        "ip -n far link set far0 up",
        "ip -n far link set lo up",
        "vpnctl --config /etc/far/vpnd.toml init --name far --address 10.255.0.2/24"
        " --state-dir /var/lib/far --runtime-dir /run/far",
        "chown -R root: /etc/far /var/lib/far",
        "systemd-run --quiet --unit=far -p NetworkNamespacePath=/run/netns/far"
        " -p TemporaryFileSystem=/run/wireguard -p Type=notify"
        " /opt/vpnd/bin/vpnd --config /etc/far/vpnd.toml",
    ):
        guest.run(*command.split())


def assert_unprivileged(guest: Guest) -> None:
    """Its own user, one capability, and memory that is not swapped out."""
    status = guest.run("cat", f"/proc/{main_pid(guest)}/status")
    uid = guest.run("id", "-u", "vpnd").strip()
    assert re.search(rf"^Uid:\s+{uid}\s+{uid}\s+{uid}\s+{uid}$", status, re.MULTILINE)
    for kind in ("CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert re.search(rf"^{kind}:\s+0000000000001000$", status, re.MULTILINE), status
    assert_locked(guest, status)


def assert_locked(guest: Guest, status: str) -> None:
    limit = guest.run(
        "systemd-run", "--quiet", "--wait", "--pipe", "-p", "LimitMEMLOCK=infinity",
        "sh", "-c", "ulimit -H -l",
    ).strip()  # fmt: skip
    told = "memory_not_protected" in guest.run("journalctl", "-u", "vpnd", "-o", "cat")
    locked = re.search(r"^VmLck:\s+(\d+) kB$", status, re.MULTILINE)
    assert locked is not None
    if limit == "unlimited":
        assert int(locked[1]) > 0
        assert not told
    else:
        print("locked memory: not tested, for systemd itself cannot raise limits on this machine")
        assert told


def main_pid(guest: Guest) -> str:
    return guest.run("systemctl", "show", "--property=MainPID", "--value", "vpnd").strip()


def link_both(guest: Guest) -> None:
    near, far = (
        guest.json("vpnctl", *options, "id", "--json")["identities"][0]["text"]
        for options in ((), FAR_CONFIG)
    )
    guest.run(
        "vpnctl", *FAR_SOCKET, "peer", "add", "near", "--identity", near,
        "--endpoint", "198.18.0.1:51821", "--allow", "10.255.0.1/32",
    )  # fmt: skip
    guest.run(
        "vpnctl", "peer", "add", "far", "--identity", far,
        "--endpoint", "198.18.0.2:51821", "--allow", "10.255.0.2/32",
    )  # fmt: skip
    guest.wait("link active", 30, lambda: link(guest).get("state") == "active")
    assert "/etc/vpnd/peers.d/far.toml" in guest.run("find", "/etc/vpnd/peers.d", "-user", "vpnd")
    assert re.search(r"^key_installed far \(.*key_id=[0-9a-f]{8}", logged(guest, 6), re.MULTILINE)
    assert re.search(r"^state_changed far: ", logged(guest, 4), re.MULTILINE)


def logged(guest: Guest, priority: int) -> str:
    """What the journal has of the daemon with just this priority."""
    return guest.run("journalctl", "-u", "vpnd", "-o", "cat", "-p", f"{priority}..{priority}")


def link(guest: Guest) -> dict[str, Any]:
    return guest.json("vpnctl", "status", "far", "--json") or {}


def key_id(guest: Guest, which: str) -> str | None:
    return (link(guest).get(which) or {}).get("key_id")


def survive_restarts(guest: Guest) -> None:
    """A restart, then SIGKILL, under traffic, until WireGuard uses the last key: 0 lost."""
    wireguard_go = guest.run("pgrep", "-u", "vpnd", "wireguard-go")
    guest.run(
        "systemd-run", "--quiet", "--unit=traffic", "ping", "-q", "-i", INTERVAL, "10.255.0.2"
    )
    before: set[str | None] = {None}
    for disturb in (
        ("systemctl", "restart", "vpnd"),
        ("systemctl", "kill", "--signal=KILL", "vpnd"),
    ):
        before |= {key_id(guest, "key_installed"), key_id(guest, "key_in_force")}
        guest.run(*disturb)
        # In both places: a key may come into force while we look
        installed = partial(has_other_key, guest, before, "key_installed", "key_in_force")
        guest.wait(f"a new key after {disturb}", 30, installed)
    in_force = partial(has_other_key, guest, before, "key_in_force")
    guest.wait("the new key in force", RENEWAL_SECONDS, in_force)
    guest.run("systemctl", "kill", "--signal=INT", "traffic")
    guest.wait("the count", 10, lambda: not guest.succeeds("systemctl", "is-active", "traffic"))
    said = guest.run("journalctl", "-u", "traffic", "-o", "cat")
    counted = re.search(r"(\d+) packets transmitted, (\d+) received", said)
    assert counted is not None, said
    print(f"restart and SIGKILL of vpnd.service, a new key in force: {counted[0]}")
    # One packet may be on its way when ping is told to stop
    assert int(counted[1]) - int(counted[2]) <= 1
    assert int(counted[1]) > 100
    assert guest.run("pgrep", "-u", "vpnd", "wireguard-go") == wireguard_go


def has_other_key(guest: Guest, before: set[str | None], *places: str) -> bool:
    status = link(guest)
    return any((status.get(place) or {}).get("key_id") not in before for place in places)


def another_namespace(guest: Guest) -> None:
    """An interface in a namespace that is made while vpnd runs, which may not enter it itself."""
    table = '[tunnels.inner]\ninterface = "wg-inner"\nlisten_port = 51830\nnetns = "blue"'
    guest.run("sh", "-c", f"printf '%s\n' '{table}' >>/etc/vpnd/vpnd.toml")
    peer = "/etc/vpnd/peers.d/far.toml"
    # With two tunnels a peer has to name its own
    guest.run("sed", "-i", '1i tunnel = "backbone"', peer)
    guest.run("vpnctl", "reload")
    assert "ip netns add blue" in tunnel_error(guest)
    guest.run("ip", "netns", "add", "blue")
    guest.wait("the tunnel in blue", 30, lambda: not tunnel_error(guest))
    assert "alias vpnd:inner" in guest.run("ip", "-n", "blue", "link", "show", "wg-inner")
    assert not guest.succeeds("ip", "link", "show", "wg-inner")
    pid = guest.run("systemctl", "show", "--property=MainPID", "--value", "vpnd-nsfd").strip()
    status = guest.run("cat", f"/proc/{pid}/status")
    for kind in ("CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert re.search(rf"^{kind}:\s+0000000000200000$", status, re.MULTILINE), status
    guest.run("systemctl", "restart", "vpnd")
    assert tunnel(guest)["adopted"]
    # The guards of a peer in there, from the unit for the boot
    guest.run("cp", "-p", peer, "/root/far.toml")
    guest.run("sed", "-i", 's/^tunnel.*/tunnel = "inner"/', peer)
    guest.run("systemctl", "restart", "vpnd-guard")
    assert GUARD in guest.run("ip", "-n", "blue", "route", "show")
    guest.run("mv", "/root/far.toml", peer)


def tunnel(guest: Guest) -> dict[str, Any]:
    status = guest.json("vpnctl", "status", "--json")
    (found,) = (one for one in status["tunnels"] if one["netns"] == "blue")
    return dict(found)


def tunnel_error(guest: Guest) -> str:
    return tunnel(guest)["error"] or ""


def guards_at_boot(guest: Guest) -> None:
    """The unit alone sets them, and it comes before all that brings up the network."""
    guest.run("systemctl", "stop", "vpnd")
    guest.run("ip", "route", "flush", "proto", "157")
    guest.run("systemctl", "restart", "vpnd-guard")
    assert GUARD in guest.run("ip", "route", "show")
    order = guest.run("systemctl", "show", "--property=Before", "--value", "vpnd-guard").split()
    assert "network-pre.target" in order
    assert "vpnd.service" in order
    guest.run("systemctl", "start", "vpnd")


def upgrade(guest: Guest) -> None:
    """A second installation leaves the running daemon alone and says what to do."""
    pid = main_pid(guest)
    assert "systemctl restart vpnd" in guest.run("make", "-C", "/src", "install")
    assert main_pid(guest) == pid
    guest.run("systemctl", "restart", "vpnd")
    guest.wait("link active", 30, lambda: link(guest).get("state") == "active")


def uninstall(guest: Guest, before: set[str]) -> None:
    guest.run("systemctl", "stop", "far")
    guest.run("rm", "-r", "/etc/far", "/var/lib/far", "/run/far")
    assert "kept: /etc/vpnd /var/lib/vpnd" in guest.run("make", "-C", "/src", "uninstall")
    assert "wg-backbone" not in guest.run("ip", "link")
    assert "wg-inner" not in guest.run("ip", "-n", "blue", "link")
    assert "proto 157" not in guest.run("ip", "-n", "blue", "route")
    assert not guest.succeeds("pgrep", "wireguard-go")
    for family in ("-4", "-6"):
        assert not guest.run("ip", family, "route", "show", "table", "all", "proto", "157")
    for kind in ("list-units", "list-unit-files"):
        assert not guest.run("systemctl", kind, "--all", "--no-legend", "*vpnd*", check=False)
    kept = files(guest) - before
    assert {"/etc/vpnd/vpnd.toml", "/var/lib/vpnd/identity.key"} <= kept
    assert all(file.startswith(("/etc/vpnd", "/var/lib/vpnd")) for file in kept - USER_FILES), kept
    guest.run("make", "-C", "/src", "uninstall", "PURGE=1")
    assert files(guest) - before - USER_FILES == set()
    assert not guest.succeeds("id", "vpnd")


# Copies that systemd-sysusers and userdel keep of the files with users and groups.
USER_FILES = {
    f"/etc/{name}{suffix}" for name in ("passwd", "group", "shadow", "gshadow") for suffix in "-"
} | {"/etc/.pwd.lock"}


def files(guest: Guest) -> set[str]:
    """All files and folders of the guest's disk and of /run but systemd's own."""
    left_out = [
        "/run/systemd",
        "/run/log",
        "/run/udev",
        "/run/netns",
        "/var/log",
        "/var/lib/systemd",
        "*/tmp",
    ]
    prune = [word for path in left_out for word in ("-o", "-path", path)][1:]
    kinds = [
        "(",
        "-type",
        "f",
        "-o",
        "-type",
        "s",
        "-o",
        "-type",
        "l",
        "-o",
        "-iname",
        "*vpnd*",
        ")",
    ]
    found = guest.run(
        "find", "/", "/run", "-xdev", "(", *prune, ")", "-prune", "-o", *kinds, "-print"
    )
    return {line for line in found.splitlines() if "__pycache__" not in line}

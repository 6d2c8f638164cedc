"""A host without /dev/net/tun, as a container has none: told at once, by whatever needs it.

In a mount namespace with an empty /dev/net.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from vpnd_lab.build import TUN_DEVICE

EMPTY = 'mount -t tmpfs none /dev/net && ip link set lo up && exec "$@"'
WITHOUT_TUN = ("unshare", "--mount", "--net", "sh", "-c", EMPTY, "sh")
PROGRAMS = Path(sys.executable).parent
CONFIG = """
[node]
name = "fra"
state_dir = "{folder}/state"
runtime_dir = "{folder}/run"

[tunnels.backbone]
interface = "wg-notun"
listen_port = 51820
backend = "{backend}"
"""


def configured(folder: Path, backend: str) -> Path:
    folder.chmod(0o755)
    path = folder / "vpnd.toml"
    path.write_text(CONFIG.format(folder=folder, backend=backend))
    path.chmod(0o644)
    return path


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """A command on a host without TUN. To its end: 30 s would be what a lab waits for a link."""
    return subprocess.run(
        [*WITHOUT_TUN, *command], capture_output=True, text=True, check=False, timeout=25
    )


def test_check_says_it_first(tmp_path: Path) -> None:
    config = configured(tmp_path, "userspace")
    check = (str(PROGRAMS / "vpnctl"), "--config", str(config), "check", "--json")
    here = subprocess.run(check, capture_output=True, text=True, check=True)
    assert TUN_DEVICE not in here.stdout
    note = json.loads(run(*check).stdout)["notes"][0]
    assert note["key"] == "tunnels.backbone.backend"
    assert note["reason"] == "/dev/net/tun does not exist"
    assert "modprobe tun" in note["hint"]
    assert "--device /dev/net/tun" in note["hint"]


def test_the_daemon_says_it_before_anything_else(tmp_path: Path) -> None:
    config = configured(tmp_path, "userspace")
    # An identity is what it asks for before it looks at tunnels
    init = (str(PROGRAMS / "vpnctl"), "--config", str(config), "init")
    subprocess.run(init, capture_output=True, check=True)
    with subprocess.Popen(
        [*WITHOUT_TUN, str(PROGRAMS / "vpnd"), "--config", str(config)],
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        try:
            told = json.loads(process.stderr.readline())
        finally:
            process.terminate()
            process.communicate()
    assert (told["event"], told["level"]) == ("tunnel_failed", "error")
    assert told["reason"].startswith("/dev/net/tun does not exist: modprobe tun")


@pytest.mark.parametrize("backend", ["userspace", "auto"])
def test_a_lab_says_it_before_it_starts_a_daemon(tmp_path: Path, backend: str) -> None:
    kernel = ("unshare", "--net", "ip", "link", "add", "wg0", "type", "wireguard")
    if (
        backend == "auto"
        and subprocess.run(kernel, capture_output=True, check=False).returncode == 0
    ):
        backend = "userspace"  # what auto needs it for is not to be had here
    lab = tmp_path / "lab.toml"
    lab.write_text(f'[sites.fra]\n[sites.ams]\n[tunnels.backbone]\nbackend = "{backend}"\n')
    up = (str(PROGRAMS / "vpnctl"), "lab", "up", str(lab), "--name", "without-tun")
    with tempfile.TemporaryDirectory(prefix="vpnd-") as labs:  # a short path: sockets lie in it
        ended = run("env", f"VPND_LAB_ROOT={labs}/labs", *up)
        assert not Path(labs, "labs", "without-tun").exists()
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[0].endswith(
        "/dev/net/tun cannot be opened: No such file or directory"
    )
    assert "--device /dev/net/tun" in ended.stderr


def test_the_demo_says_it_at_once() -> None:
    ended = run(sys.executable, "-m", "vpnd_lab.demo")
    assert ended.returncode != 0
    assert "/dev/net/tun cannot be opened" in ended.stdout + ended.stderr
    assert len((ended.stdout + ended.stderr).splitlines()) <= 3

"""wireguard-go from a unit of its own: asked for over a socket, as vpnd.service does.

systemd-socket-activate stands in for the service manager: it starts the same program in the same
way, a process for each connection. With a service manager that runs: test_systemd.py.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_tun_tunnel import new_psk, peer, spec
from tun_site import Refused, Site

from tun.starters import UNIT_SOCKET_VARIABLE

pytestmark = pytest.mark.netns

SOCKET = "/run/unit.sock"


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    if shutil.which("systemd-socket-activate") is None:
        pytest.skip("no systemd-socket-activate (Debian: apt-get install systemd)")
    monkeypatch.setenv(UNIT_SOCKET_VARIABLE, SOCKET)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    with Site("unit") as site:
        units = subprocess.Popen(
            site.command(
                "systemd-socket-activate", "--seqpacket", "--accept", "--inetd",
                f"--listen={SOCKET}", "--setenv=PYTHONPATH",
                sys.executable, "-m", "tun.wireguard_go",
            ),
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert units.stderr is not None
        with units.stderr:
            try:
                assert "Listening on" in units.stderr.readline()
                yield site
            finally:
                units.terminate()
                units.wait()


def test_a_tunnel_is_made_adopted_and_deleted(site: Site) -> None:
    made = site.call("open", **spec(1, backend="userspace"))
    assert made["backend"] == "userspace"
    site.call("add_peer", **peer(new_psk(), 2, new_psk()))
    (plane,) = site.data_planes()
    assert plane.endswith("wireguard-go -f wg0")
    names = site.run("sh", "-c", f"tr '\\0' '\\n' < /proc/{plane.split()[0]}/environ").split()
    assert {entry.partition("=")[0] for entry in names} == {
        "PATH", "WG_TUN_FD", "WG_UAPI_FD", "WG_PROCESS_FOREGROUND", "LOG_LEVEL", "GOTRACEBACK",
    }  # fmt: skip
    assert "alias vpnd:test" in site.run("ip", "link", "show", "wg0")
    site.kill_driver()
    assert site.data_planes() == [plane]
    again = site.call("open", **spec(1, backend="userspace"))
    assert again == {**made, "adopted": True}
    assert len(site.call("peers")) == 1
    site.call("delete")
    assert site.data_planes() == []
    assert not site.succeeds("ip", "link", "show", "wg0")


def test_what_stands_in_the_way_is_told(site: Site) -> None:
    site.run("mount", "-t", "tmpfs", "none", "/dev/net")
    with pytest.raises(Refused, match="/dev/net/tun does not exist") as refused:
        site.call("open", **spec(1, backend="userspace"))
    assert refused.value.name == "BackendUnavailable"
    assert site.data_planes() == []

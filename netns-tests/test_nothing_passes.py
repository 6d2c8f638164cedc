"""Links on which handshakes and the key exchange pass, and packets do not: what status says.

fra-host ── fra ══ internet ══ ams ── ams-host
             └──── wg0 ────────┘

They wait for minutes, as long as it takes to tell such a link from one at rest, and side by side.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from linking import TWO, firewall, linked, open_sites

from vpnd_lab.errors import CommandFailed
from vpnd_lab.lab import Lab

pytestmark = [pytest.mark.netns, pytest.mark.long]

FOUND_SECONDS = 400.0
"""Some minutes of traffic, and an exchange on either side of them."""

DROP_DATA = """
table inet t {{
    chain c {{
        type filter hook forward priority 0;
        ip saddr {source} udp dport 51820 @th,64,8 4 drop
    }}
}}
"""
"""WireGuard's messages of type 4: packets and keepalives. Handshakes are 1 and 2."""
DROP_WIREGUARD = """
table inet t {
    chain c { type filter hook forward priority 0; udp dport 51820 drop; }
}
"""


@asynccontextmanager
async def busy(lab: Lab) -> AsyncIterator[None]:
    """Traffic in both directions, whether it arrives or not."""
    async with lab.traffic("fra-host", "ams-host", rate=10):
        yield


async def told(lab: Lab, site: str, peer: str, state: str, words: str) -> None:
    await lab.site(site).wait_link(
        peer,
        lambda status: status["state"] == state and words in (status["reason"] or ""),
        what=f"{state}: {words}",
        seconds=FOUND_SECONDS,
    )


async def test_packets_lost_in_one_direction_are_told_at_both_ends() -> None:
    async with linked(TWO + LINK) as lab, busy(lab):
        source = lab.site("fra").address(4)
        await firewall(lab.node("internet"), DROP_DATA.format(source=source))
        await told(lab, "ams", "fra", "degraded", "nothing of what the peer sends")
        await told(lab, "fra", "ams", "degraded", "nothing of what is sent through the tunnel")
        with pytest.raises(CommandFailed) as failed:
            await lab.site("fra").vpnctl("status", "ams", "--strict")
        assert failed.value.returncode == 4
        await firewall(lab.node("internet"), "")
        for site, peer in (("ams", "fra"), ("fra", "ams")):
            await lab.site(site).wait_state(peer, "active", seconds=FOUND_SECONDS)


async def test_without_keepalive_a_session_that_is_over_is_down() -> None:
    """WireGuard's way is cut, and the exchange goes on."""
    without = TWO + LINK + "keepalive = 0\n"
    async with open_sites(without, start="links") as lab, busy(lab):
        for site, peer in (("ams", "fra"), ("fra", "ams")):
            await lab.site(site).wait_state(peer, "active")
        await firewall(lab.node("internet"), DROP_WIREGUARD)
        await told(lab, "fra", "ams", "down", "no WireGuard handshake for 3 min")
        await told(lab, "ams", "fra", "down", "pass, and back?")
        await firewall(lab.node("internet"), "")
        for site, peer in (("ams", "fra"), ("fra", "ams")):
            await lab.site(site).wait_state(peer, "active", seconds=FOUND_SECONDS)


LINK = """
[[links]]
sites = ["fra", "ams"]
"""
OTHER_THAN_IT_SEEMS = """#!{python}
import fcntl, os, socket, struct, sys
if os.environ.get("WG_UAPI_FD") != "none":
    os.execv("{program}", ["wireguard-go", *sys.argv[1:]])
fcntl.ioctl(int(os.environ["WG_TUN_FD"]), 0x400454D0, 0x7)
name = sys.argv[-1].encode()
fcntl.ioctl(socket.socket(), 0x8922, struct.pack("=16si20x", name, 1420))
"""
"""Takes up its link as newer versions do, and is the one that is installed after that."""


@pytest.fixture
def misfit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = shutil.which("wireguard-go")
    assert program is not None
    if b"virtioNetHdr" in Path(program).read_bytes():
        pytest.skip("the wireguard-go in PATH takes any link")
    written = tmp_path / "wireguard-go"
    written.write_text(OTHER_THAN_IT_SEEMS.format(python=sys.executable, program=program))
    written.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


@pytest.mark.usefixtures("misfit")
async def test_a_tun_device_that_does_not_fit_is_told() -> None:
    async with open_sites(TWO + LINK, start="links") as lab, busy(lab):
        for site, peer in (("ams", "fra"), ("fra", "ams")):
            await told(lab, site, peer, "degraded", "packets go into the interface")

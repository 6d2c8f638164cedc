"""A WireGuard that does not answer is the trouble of its own tunnel alone.

ams ═══ wg0 ═══ fra ═══ wg1 ═══ lon        the wireguard-go of fra's wg1 stands still
"""

from __future__ import annotations

import os
import signal

import pytest
import trio
from linking import counted, linked
from pair import logged
from report import Case

from vpnd_lab.patience import patient
from vpnd_lab.proof import installed, wait_new_key
from vpnd_lab.site import Site

# Not marked `kernel`: nobody can stop the kernel's WireGuard.
pytestmark = pytest.mark.netns

TEXT = """
[sites.fra]
tunnels.near = []
tunnels.far = []
[sites.ams]
tunnels.near = []
[sites.lon]
tunnels.far = []
[tunnels.near]
interface = "wg0"
networks = ["10.255.1.0/24", "fd00:255:1::/64"]
backend = "userspace"
[tunnels.far]
interface = "wg1"
listen_port = 51822
networks = ["10.255.2.0/24", "fd00:255:2::/64"]
backend = "userspace"
[[links]]
sites = ["fra", "ams"]
tunnel = "near"
[[links]]
sites = ["fra", "lon"]
tunnel = "far"
"""
STATUS_SECONDS = 2.0
"""How long a status waits for an interface; then it shows what was seen last."""


async def carrier_of(site: Site, interface: str) -> int:
    """The wireguard-go of an interface: who listens at its socket."""
    shown = await site.run(["ss", "-xlpH", "src", f"*/{interface}.sock"])
    return int(shown.stdout.split("pid=")[1].split(",")[0])


async def test_a_wireguard_go_that_stands_still_delays_no_other_link(case: Case) -> None:
    async with linked(TEXT) as lab, counted(lab) as meter:
        fra = lab.site("fra")
        pid = await carrier_of(fra, "wg1")
        os.kill(pid, signal.SIGSTOP)
        try:
            await fra.vpnctl("peer", "rekey", "lon")
            for _ in range(3):
                before = await installed(lab, "fra", "ams")
                began = trio.current_time()
                assert len((await fra.status())["links"]) == 2
                await fra.vpnctl("peer", "rekey", "ams")
                await wait_new_key(lab, "fra", "ams", before=before)
                print(f"status and renewal beside it: {trio.current_time() - began:.1f} s")
                assert trio.current_time() - began < patient(STATUS_SECONDS + 10)
            await logged(fra, "wireguard-go does not answer")
            assert (await fra.link_status("ams"))["state"] in ("active", "degraded")
        finally:
            os.kill(pid, signal.SIGCONT)
        await fra.wait_state("lon", "active", "degraded", seconds=60)
        await meter.wait_received(30)
        traffic = await meter.stop()
        case.traffic(traffic)
        assert traffic.lost == traffic.repeated == 0
        assert "internal_error" not in fra.daemon_log.read_text()

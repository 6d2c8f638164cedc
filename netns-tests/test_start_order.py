"""Started in any order: the other end is away, a port is taken, an address is not there yet.

Each time the daemon waits, says what for, and the link comes up by itself when that is over.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from linking import TUNNEL, back_after, counted, open_sites, wait_active
from report import Case

from vpnd_lab.lab import Lab
from vpnd_lab.patience import patient
from vpnd_lab.proof import HANDSHAKE_SECONDS, key_id

pytestmark = [pytest.mark.netns, pytest.mark.kernel_long]

ONLY_FRA_CALLS = f"""
[sites.fra]
[sites.ams]
{TUNNEL}
[[links]]
sites = ["fra", "ams"]
endpoints = ["ams"]
"""


@asynccontextmanager
async def down() -> AsyncIterator[Lab]:
    """Two sites that know each other, and at both neither daemon nor interface, as after a boot."""
    async with open_sites(ONLY_FRA_CALLS) as lab:
        await lab.link("fra", "ams")
        for site in lab.sites.values():
            await site.kill_daemon()
            await site.run(["ip", "link", "delete", "wg0"])
        yield lab


async def heals(lab: Lab, case: Case, *, seconds: float = 60) -> None:
    """The link comes up by itself from now on, and carries traffic."""
    start = trio.current_time()
    await wait_active(lab, "fra", "ams", seconds=seconds)
    recovered = trio.current_time() - start
    async with counted(lab) as meter:
        await meter.wait_received(50)
        traffic = await meter.stop()
    case.traffic(traffic, recovered=recovered)
    assert traffic.lost == traffic.repeated == 0


def says(words: str) -> Any:
    """A condition for Site.wait_link."""

    def check(status: Any) -> bool:
        return words in status["reason"]

    return check


async def test_the_end_that_calls_is_there_first(case: Case) -> None:
    """It calls in vain, more than one exchange long, and again until it is answered."""
    async with down() as lab:
        await lab.site("fra").start_daemon()
        status = await lab.site("fra").wait_link("ams", says("no answer"), what="waiting")
        print(f"{status['state']}: {status['reason']}")
        assert status["state"] in ("down", "exchanging")
        await lab.site("ams").start_daemon()
        await heals(lab, case)


async def test_the_end_that_is_called_is_there_first(case: Case) -> None:
    async with down() as lab:
        await lab.site("ams").start_daemon()
        status = await lab.site("ams").wait_link("fra", says("waits for the peer"), what="waiting")
        assert status["state"] == "down"
        await lab.site("fra").start_daemon()
        await heals(lab, case)


def newest_in_force(status: Any) -> bool:
    return key_id(status) == key_id(status, "key_installed") != ""


HOLD_PORT = """
import socket, sys
held = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
held.bind(("::", 51820))
print("held", flush=True)
sys.stdin.read()
"""


async def test_the_wireguard_port_is_taken_at_the_start(case: Case) -> None:
    async with down() as lab:
        ams = lab.site("ams")
        await lab.site("fra").start_daemon()
        async with ams.background([sys.executable, "-c", HOLD_PORT]) as holder:
            assert holder.stdout is not None
            with trio.fail_after(patient(60)):
                assert (await holder.stdout.receive_some()).startswith(b"held")
            await ams.start_daemon()
            status = await ams.wait_link("fra", says("51820"), what="waiting for the port")
            print(f"{status['state']}: {status['reason']}")
            assert status["state"] == "down"
            assert "tunnel_failed" in ams.daemon_log.read_text()
        await heals(lab, case)


async def test_the_uplink_has_no_address_at_the_start(case: Case) -> None:
    async with open_sites(ONLY_FRA_CALLS) as lab:
        fra = lab.site("fra")
        address, way = f"{fra.address(4)}/24", str(fra.address(4) - 1)
        await fra.kill_daemon()
        await fra.run(["ip", "address", "flush", "dev", "internet"])
        await fra.start_daemon()
        await lab.link("fra", "ams")
        status = await fra.wait_link("ams", says("could not be sent"), what="waiting")
        print(f"{status['state']}: {status['reason']}")
        await fra.run(["ip", "address", "add", address, "dev", "internet"])
        await fra.run(["ip", "route", "add", "default", "via", way])
        await heals(lab, case)


async def test_a_gateway_that_is_only_called_has_booted_anew(case: Case) -> None:
    """It cannot call, and the next renewal is an hour away: the other end calls when WireGuard's
    handshake is overdue, 135 s after the last one."""
    async with open_sites(ONLY_FRA_CALLS, start="network") as lab:
        for site in lab.sites.values():
            await site.init()
            with site.config_path.open("a", encoding="utf-8") as file:
                file.write("\n[defaults]\nrekey_interval = 3600\n")
            await site.start_daemon()
        # First the end that waits: then one exchange is enough. Where there was another all the
        # same, WireGuard's next handshake takes its key up: no key is to wait for one
        await lab.link("ams", "fra")
        await wait_active(lab, "fra", "ams")
        for site, peer in (("fra", "ams"), ("ams", "fra")):
            await lab.site(site).wait_link(
                peer, newest_in_force, what="at rest", seconds=HANDSHAKE_SECONDS
            )
        ams = lab.site("ams")
        async with counted(lab) as meter:
            await ams.kill_daemon()
            await ams.run(["ip", "link", "delete", "wg0"])
            await ams.run(["sh", "-c", "rm -r /run/vpnd/*"])
            start = await meter.mark("boot")
            await ams.start_daemon()
            await back_after(meter, seconds=300)
            await meter.wait_received(20)
            traffic = await meter.between(start, None)
            case.traffic(traffic, recovered=traffic.longest_gap)
        await wait_active(lab, "fra", "ams")

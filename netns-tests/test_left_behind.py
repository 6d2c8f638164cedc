"""What a daemon that was away finds: keys past their life, and what is not configured any more.

fra-host ── fra ══ internet ══ ams ── ams-host
             ╚═══════╩════════ lon
"""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
import trio
from linking import THREE, linked, wait_active

from vpnd_lab.lab import Lab
from vpnd_lab.patience import patient
from vpnd_lab.site import Site

pytestmark = [pytest.mark.netns, pytest.mark.kernel_long]

RECORD = "/run/vpnd/links/ams.json"


async def output(site: Site, *command: str) -> str:
    return (await site.run(list(command))).stdout


async def gone(site: Site, word: str, *command: str) -> None:
    """Wait until what a command shows does not have the word any more."""
    with trio.fail_after(patient(10)):
        while True:
            if word not in await output(site, *command):
                return
            await trio.sleep(0.05)


async def public_key(site: Site, peer: str) -> str:
    status: Any = await site.link_status(peer)
    return str(status["wireguard"]["peer_public_key"])


async def refused(lab: Lab, target: str) -> None:
    """fra's host is told at once that there is no way."""
    address = str(lab.node(target).address(4))
    asked = await lab.node("fra-host").run(["ping", "-c1", "-W2", address], check=False)
    assert "nreachable" in asked.stdout


async def test_a_key_whose_life_has_ended_while_nobody_was_there_is_closed() -> None:
    """By the record and the boot clock; the far end is away, so that no new key comes."""
    async with linked() as lab:
        fra, ams = lab.site("fra"), lab.site("ams")
        key = await public_key(fra, "ams")
        for site in (fra, ams):
            await site.kill_daemon()
        record = json.loads(await output(fra, "cat", RECORD))
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        assert now + 300 < record["expires_at"] < now + 601
        assert key in await output(fra, "wg", "show", "wg0", "peers")
        record |= {"expires_at": now - 1}
        await fra.run(["sh", "-c", f"cat > {RECORD}"], stdin=json.dumps(record))
        await fra.start_daemon()
        await gone(fra, key, "wg", "show", "wg0", "peers")
        status = await fra.link_status("ams")
        assert status["state"] == "closed"
        assert "ended while no daemon ran" in status["reason"]
        await refused(lab, "ams-host")
        await ams.start_daemon()
        await wait_active(lab, "fra", "ams")


async def test_another_boot_is_nothing_to_go_by() -> None:
    """A record of another boot has another clock: the peer is nobody's, and no way leads to it."""
    async with linked() as lab:
        fra, ams = lab.site("fra"), lab.site("ams")
        for site in (fra, ams):
            await site.kill_daemon()
        record = json.loads(await output(fra, "cat", RECORD)) | {"boot_id": "0" * 32}
        await fra.run(["sh", "-c", f"cat > {RECORD}"], stdin=json.dumps(record))
        await fra.start_daemon()
        assert (await fra.link_status("ams"))["state"] == "exchanging"
        await refused(lab, "ams-host")
        await ams.start_daemon()
        # Nobody knows which key the session of before has: it may take the next one to tell
        await fra.wait_state("ams", "installed", "degraded", "active")
        await lab.node("fra-host").run(["ping", "-c3", "-W5", str(lab.node("ams-host").address(4))])


async def test_a_peer_that_was_taken_out_while_no_daemon_ran_goes_at_once() -> None:
    async with linked(THREE) as lab:
        fra = lab.site("fra")
        other, key = await public_key(fra, "ams"), await public_key(fra, "lon")
        await fra.stop_daemon()
        (fra.config_path.parent / "peers.d" / "lon.toml").unlink()
        await fra.start_daemon()
        await gone(fra, key, "wg", "show", "wg0", "peers")
        assert other in await output(fra, "wg", "show", "wg0", "peers")
        assert "lon" not in await output(fra, "ls", "/run/vpnd/links")
        await fra.wait_state("ams", "active")


async def test_an_interface_of_another_name_takes_the_place_of_the_old_one() -> None:
    async with linked() as lab:
        fra = lab.site("fra")
        text = fra.config_path.read_text()
        await fra.stop_daemon()
        fra.config_path.write_text(text.replace('"wg0"', '"wg7"'))
        await fra.start_daemon()
        await fra.wait_state("ams", "active")
        links = await output(fra, "ip", "-o", "link")
        assert "wg7" in links
        assert "wg0" not in links
        assert '"event": "tunnel_removed"' in fra.daemon_log.read_text()


async def test_a_tunnel_that_is_not_configured_any_more_goes_and_nobody_elses() -> None:
    async with linked() as lab:
        fra = lab.site("fra")
        text = fra.config_path.read_text()
        more = "".join(
            f'[tunnels.more{number}]\ninterface = "wg{number}"\nlisten_port = 5190{number}\n'
            for number in (8, 9)
        )
        fra.config_path.write_text(f"{text}\n{more}")
        await fra.vpnctl("reload")
        await fra.stop_daemon()
        await fra.run(["ip", "link", "set", "wg9", "alias", "somebody else's"])
        fra.config_path.write_text(text)
        await fra.start_daemon()
        links = await output(fra, "ip", "-o", "link")
        assert "wg8" not in links
        assert "wg9" in links
        await fra.wait_state("ams", "active")

"""A configured peer that announces another peer's WireGuard key before that one does.

    ams
     │
fra ═╪══ internet       lon says that it has the WireGuard key of ams
     │
    lon
"""

from __future__ import annotations

import base64
import sys
from pathlib import Path
from typing import Any

import pytest
from linking import THREE, counted, linked, wait_active

from vpnd_lab.journal import log_end, wait_record
from vpnd_lab.lab import Lab

pytestmark = [pytest.mark.netns, pytest.mark.long]

LYING = Path(__file__).parent / "lying_vpnd.py"


async def peers_of(lab: Lab, site: str) -> dict[str, Any]:
    """What the interface has: allowed IPs by public key."""
    shown = (await lab.site(site).run(["wg", "show", "wg0", "allowed-ips"])).stdout
    lines = (line.split("\t") for line in shown.splitlines())
    return {key: set(prefixes.split()) for key, prefixes in lines}


async def test_the_owner_of_a_key_has_its_link_with_its_first_exchange() -> None:
    async with linked(THREE) as lab:
        fra, ams, lon = (lab.site(name) for name in ("fra", "ams", "lon"))
        key = (await ams.status())["tunnels"][0]["public_key"]
        mine = (await peers_of(lab, "fra"))[key]
        # As after a boot of fra, at which lon is the first to come
        for site in (fra, ams, lon):
            await site.kill_daemon()
        await fra.run(["ip", "link", "delete", "wg0"])
        since = log_end(fra)
        await fra.start_daemon()
        lie = base64.b64decode(key).hex()
        await lon.start_daemon(program=[sys.executable, str(LYING), lie])
        await wait_record(fra, since, "key_installed", peer="lon")
        assert (await peers_of(lab, "fra")).keys() == {key}
        await ams.start_daemon()
        told = await wait_record(fra, since, "wireguard_key_yielded", peer="lon")
        assert told["other"] == "ams"
        await wait_active(lab, "fra", "ams")
        assert await peers_of(lab, "fra") == {key: mine}
        async with counted(lab) as meter:
            await wait_record(fra, since, "wireguard_key_contested", peer="lon", seconds=60)
            await meter.wait_received(25)
            traffic = await meter.stop()
        assert not traffic.lost
        assert await peers_of(lab, "fra") == {key: mine}
        assert (await fra.link_status("lon"))["state"] == "closed"

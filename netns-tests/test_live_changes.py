"""Peers that come, change and go while the traffic of another one runs (see pair.py).

        fra-host ── fra ══ internet ══ ams ── ams-host      counted
                     ╚═══════╩════════ lon                  changed

How a reload decides what has changed is tried in test_reload.py.
"""

from __future__ import annotations

import pytest
from linking import THREE, counted, linked
from report import Case

from vpnd_lab.site import Site

pytestmark = [pytest.mark.netns, pytest.mark.kernel_long]

ROUNDS = 2


async def test_other_peers_added_changed_removed(case: Case) -> None:
    async with linked(THREE) as lab, counted(lab, rate=200) as meter:
        fra, lon = lab.site("fra"), lab.site("lon")
        key = (await fra.link_status("ams"))["wireguard"]["peer_public_key"]
        for _ in range(ROUNDS):
            await fra.vpnctl("peer", "set", "lon", "--keepalive", "7", "--allow", "10.3.0.0/17")
            assert "10.3.0.0/17" in await allowed(fra)
            await fra.vpnctl("peer", "rekey", "lon")
            await fra.vpnctl("peer", "remove", "lon")
            await lon.vpnctl("peer", "remove", "fra")
            assert "10.3.0.0/17" not in await allowed(fra)
            await lab.link("fra", "lon")
            await fra.wait_state("lon", "active")
            await lon.wait_state("fra", "active")
        status = await fra.link_status("ams")
        assert status["wireguard"]["peer_public_key"] == key
        assert status["state"] == "active"
        await meter.wait_received(50)
        traffic = await meter.stop()
        case.traffic(traffic)
        assert traffic.lost == traffic.repeated == 0
        for site in lab.sites.values():
            assert "internal_error" not in site.daemon_log.read_text()


async def test_reload_of_another_peer(case: Case) -> None:
    async with linked(THREE) as lab, counted(lab, rate=200) as meter:
        fra = lab.site("fra")
        file = fra.config_path.parent / "peers.d" / "lon.toml"
        text = file.read_text()
        for _ in range(ROUNDS):
            file.write_text(text.replace("10.3.0.0/16", "10.3.128.0/17"))
            await fra.vpnctl("reload")
            assert "10.3.128.0/17" in await allowed(fra)
            file.unlink()
            await fra.vpnctl("reload")
            assert "10.3.128.0/17" not in await allowed(fra)
            file.write_text(text)
            await fra.vpnctl("reload")
            await fra.wait_state("lon", "active")
        await meter.wait_received(50)
        traffic = await meter.stop()
        case.traffic(traffic)
        assert traffic.lost == traffic.repeated == 0


async def allowed(site: Site) -> str:
    return (await site.run(["wg", "show", "wg0", "allowed-ips"])).stdout

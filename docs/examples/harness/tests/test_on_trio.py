"""A harness that runs on trio."""

from pathlib import Path

import pytest
from lab import ROUND_TRIPS

SITES = Path(__file__).parent / "sites.toml"


@pytest.mark.trio
async def test_what_passes_the_tunnel(lab_factory):
    async with lab_factory(SITES, start="links") as lab:
        fra, ams = lab.site("fra"), lab.site("ams")
        await fra.wait_state("ams", "active")
        inside = str(ams.plan.tunnels[0].addresses[0].ip)
        await fra.run(["ping", f"-c{ROUND_TRIPS}", "-i0.2", "-W5", inside])

        here, there = await fra.link_status("ams"), await ams.link_status("fra")
        assert here["key_in_force"]["key_id"] == there["key_in_force"]["key_id"]

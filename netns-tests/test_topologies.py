"""More than two sites: a full mesh, a hub with branches, two carriers between two gateways."""

from __future__ import annotations

from contextlib import AsyncExitStack
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
import trio
from linking import (
    BACKEND,
    DROP_ALL,
    TUNNEL,
    address_towards,
    back_after,
    counted,
    firewall,
    linked,
    open_sites,
    renewed,
    wait_active,
)
from report import Case

from vpnd_lab.lab import Lab
from vpnd_lab.proof import installed, key_id, prove, same_preshared_key

pytestmark = [pytest.mark.netns, pytest.mark.kernel_long]

BRANCHES = 20


@pytest.mark.kernel
async def test_three_sites_in_a_full_mesh_renew_without_loss(case: Case) -> None:
    """One interface at each, with two peers; all six directions carry traffic."""
    pairs = (("fra", "ams"), ("fra", "lon"), ("ams", "lon"))
    text = f"[sites.fra]\n[sites.ams]\n[sites.lon]\n{TUNNEL}"
    async with linked(text) as lab, AsyncExitStack() as stack:
        meters = {
            pair: await stack.enter_async_context(
                counted(lab, f"{pair[0]}-host", f"{pair[1]}-host", rate=25)
            )
            for pair in pairs
        }
        async with trio.open_nursery() as nursery:
            for pair in pairs:
                nursery.start_soon(renewed, lab, *pair)
        for (one, other), meter in meters.items():
            await meter.wait_received(25)
            traffic = await meter.stop()
            case.traffic(traffic, f"{one} and {other}")
            await prove(lab, one, other, traffic)


def hub(branches: int) -> str:
    """A hub and branches that reach each other by way of it; two of them have a client host."""
    lines = ['[sites.hub]\nlan = ["10.200.0.0/16"]', TUNNEL]
    for number in range(1, branches + 1):
        lines.append(f'[sites.b{number}]\nlan = ["10.100.{number}.0/24"]')
        if number > 2:
            lines.append("hosts = []")
    for number in range(1, branches + 1):
        lines.append(f'[[links]]\nsites = ["hub", "b{number}"]')
    return "\n".join(lines)


TO_THE_HUB = [ip_network(text) for text in ("10.255.0.0/24", "10.200.0.0/16", "10.100.0.0/16")]
"""What a branch sends to the hub: the hub's network and those of all branches."""


async def join(lab: Lab, branch: str, slots: trio.CapacityLimiter) -> None:
    async with slots:
        await lab.add_peer("hub", branch)
        await lab.add_peer(branch, "hub", allow=TO_THE_HUB)


async def ping_hub(lab: Lab, branch: str) -> None:
    """Wait until the branch reaches what is behind the hub."""
    await lab.site(branch).run(
        ["ping", "-c1", "-w60", str(lab.node("hub-host").address(4))], seconds=70
    )


async def test_a_hub_with_branches_that_come_and_go(case: Case) -> None:
    """All branches come up; one reaches another by way of the hub; one is removed and added again
    while the others lose nothing."""
    names = [f"b{number}" for number in range(1, BRANCHES + 1)]
    async with open_sites(hub(BRANCHES)) as lab:
        slots = trio.CapacityLimiter(2)
        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(join, lab, name, slots)
        for name in names:
            await wait_active(lab, "hub", name, seconds=120)
            await ping_hub(lab, name)
        async with (
            counted(lab, "b1-host", "hub-host", rate=25) as to_hub,
            counted(lab, "b1-host", "b2-host", rate=25) as across,
        ):
            gone = names[-1]
            await lab.site("hub").vpnctl("peer", "remove", gone)
            target = str(lab.node("hub-host").address(4))
            refused = await lab.site(gone).run(["ping", "-c2", "-W1", target], check=False)
            assert refused.returncode == 1
            await lab.add_peer("hub", gone)
            await wait_active(lab, "hub", gone, seconds=120)
            await ping_hub(lab, gone)
            for meter, name in ((to_hub, "branch to hub"), (across, "branch to branch")):
                await meter.wait_received(25)
                traffic = await meter.stop()
                case.traffic(traffic, f"{BRANCHES} branches, {name}")
                assert traffic.lost == traffic.repeated == 0
        status = await lab.site("hub").status()
        assert {link["state"] for link in status["links"]} == {"active"}
        assert len(status["links"]) == BRANCHES


TWO_CARRIERS = f"""
[routers.one]
[routers.two]
[sites.fra]
uplinks = ["one", "two"]
[sites.ams]
uplinks = ["one", "two"]
{TUNNEL}
"""
SECOND = {"fra": "10.254.0.1", "ams": "10.254.0.2"}
"""Addresses in the tunnel over the second carrier."""


async def add_second_carrier(lab: Lab) -> None:
    """A tunnel of its own at each end, with an identity of its own, over the second uplink."""
    identities = {}
    for name in SECOND:
        site = lab.site(name)
        identities[name] = (await site.vpnctl("id", "new", "second"))["identity"]["text"]
        with site.config_path.open("a", encoding="utf-8") as file:
            file.write(
                f"\n[tunnels.second]\ninterface = 'wg1'\nlisten_port = 51822\n"
                f"addresses = ['{SECOND[name]}/24']\nbackend = '{BACKEND}'\n"
            )
        await site.vpnctl("reload")
    for name, peer in (("fra", "ams"), ("ams", "fra")):
        there = address_towards(lab, peer, "two")
        way = address_towards(lab, "two", name)
        await lab.site(name).run(["ip", "route", "add", f"{there}/32", "via", str(way)])
        await lab.site(name).vpnctl(
            *("peer", "add", f"{peer}-2", "--identity", identities[peer]),
            *("--local-identity", "second", "--tunnel", "second"),
            *("--endpoint", f"{there}:51821", "--allow", f"{SECOND[peer]}/32"),
        )
    for name, peer in (("fra", "ams"), ("ams", "fra")):
        await lab.site(name).wait_state(f"{peer}-2", "active")


async def test_one_of_two_carriers_is_cut(case: Case) -> None:
    """The link over the other carrier loses nothing; the cut one carries traffic again within
    10 s of the end of the cut, and the exchange that the cut held up is completed."""
    cut_seconds = 20.0
    async with linked(TWO_CARRIERS) as lab:
        await add_second_carrier(lab)
        addresses = ip_address(SECOND["fra"]), ip_address(SECOND["ams"])
        async with (
            counted(lab) as untouched,
            lab.traffic("fra", "ams", rate=50, addresses=addresses) as cut,
        ):
            await cut.wait_received(20)
            before = await installed(lab, "fra", "ams")
            second = (await lab.site("fra").link_status("ams-2"))["key_installed"]["key_id"]
            await firewall(lab.node("two"), DROP_ALL)
            start = await cut.mark("cut")
            await lab.site("fra").vpnctl("peer", "rekey", "ams-2")
            await trio.sleep(cut_seconds)
            during = await cut.between(start, None)
            assert during.received < during.sent / 2
            await firewall(lab.node("two"), "")
            recovered = await back_after(cut, seconds=60)
            await wait_another_key(lab, second)
            case.traffic(await cut.stop(), "the cut one", recovered=recovered)
            await untouched.wait_received(20)
            traffic = await untouched.stop()
            case.traffic(traffic, "the other one")
            assert traffic.lost == traffic.repeated == 0
        assert await installed(lab, "fra", "ams") == before
        assert await same_preshared_key(lab, "fra", "ams", interface="wg1")


async def wait_another_key(lab: Lab, before: str) -> None:
    """Wait until both ends of the second link have installed a key that is not the one before."""

    def fresh(status: Any) -> bool:
        return key_id(status, "key_installed") not in ("", before)

    for name, peer in (("fra", "ams-2"), ("ams", "fra-2")):
        await lab.site(name).wait_link(peer, fresh, what="given a new key")

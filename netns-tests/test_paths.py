"""What lies between two gateways: NAT, a small MTU, random loss."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

import pytest
import trio
from linking import (
    TUNNEL,
    TWO,
    address_towards,
    back_after,
    counted,
    firewall,
    open_sites,
    renewed,
    wait_active,
)
from plain_wireguard import ADDRESSES, plain_tunnel
from report import Case

from vpnd_lab.lab import Lab
from vpnd_lab.meter import Meter, Report
from vpnd_lab.node import Node
from vpnd_lab.patience import patient
from vpnd_lab.plan import Address
from vpnd_lab.proof import installed, prove, wait_new_key

pytestmark = [pytest.mark.netns, pytest.mark.kernel_long]

# ---- NAT

KEEPALIVE = 5
BEHIND_NAT = f"""
[routers.internet]
[routers.nat]
neighbours = ["internet"]
[sites.fra]
uplinks = ["internet"]
[sites.ams]
uplinks = ["nat"]
{TUNNEL}
[[links]]
sites = ["fra", "ams"]
endpoints = ["fra"]
keepalive = {KEEPALIVE}
"""


async def masquerade(nat: Node, first_port: int) -> None:
    """Let what goes out have the router's address and one of a hundred ports; nobody calls in."""
    await firewall(
        nat,
        f"""
        table ip nat {{
            chain out {{
                type nat hook postrouting priority srcnat;
                oifname "internet" meta l4proto udp masquerade to :{first_port}-{first_port + 99}
            }}
        }}
        table inet filter {{
            chain pass {{
                type filter hook forward priority 0;
                iifname "internet" ct state new drop
            }}
        }}
        """,
    )


@asynccontextmanager
async def behind_nat() -> AsyncIterator[tuple[Lab, Address]]:
    """Two linked sites, one of them behind NAT; the router's outside address."""
    async with open_sites(BEHIND_NAT) as lab:
        await masquerade(lab.node("nat"), 40000)
        await lab.link("fra", "ams")
        await wait_active(lab, "fra", "ams")
        yield lab, address_towards(lab, "nat", "internet")


async def seen_at(lab: Lab) -> tuple[str, int]:
    """Where fra's WireGuard sends what is for ams."""
    shown = (await lab.site("fra").run(["wg", "show", "wg0", "endpoints"])).stdout
    host, _, port = shown.split()[1].rpartition(":")
    return host, int(port)


async def test_a_site_behind_nat_whose_outside_changes(case: Case) -> None:
    """Bar: one keepalive and 5 s. First address and port change, then the port alone, then the
    address while the site behind NAT has nothing to send."""
    async with behind_nat() as (lab, outside):
        nat, other = lab.node("nat"), outside + 50
        host, port = await seen_at(lab)
        assert (host, port in range(40000, 40100)) == (str(outside), True)

        async def address_and_port() -> None:
            await masquerade(nat, 41000)
            await nat.change_address(outside, other)

        async def port_alone() -> None:
            # The translations of an address end with it, also where it comes back
            await masquerade(nat, 42000)
            await nat.change_address(other, outside)
            await nat.change_address(outside, other)

        async with counted(lab) as meter:
            for name, change, ports in (
                ("address and port", address_and_port, range(41000, 41100)),
                ("port", port_alone, range(42000, 42100)),
            ):
                start = await meter.mark(name)
                await change()
                await back_after(meter, seconds=KEEPALIVE + 60)
                await meter.wait_received(20)
                traffic = await meter.between(start, await meter.mark("back"))
                case.traffic(traffic, name, recovered=traffic.longest_gap)
                host, port = await seen_at(lab)
                assert (host, port in ports) == (str(other), True)
        recovered = await silent(lab, outside)
        case.result("address, silent site", sent=0, lost=0, repeated=0, recovered=recovered)
        await renewed_behind_nat(lab, case)


async def silent(lab: Lab, outside: Address) -> float:
    """Change the outside address while only fra sends; the seconds until fra's WireGuard knows it
    and is answered."""
    fra, there = lab.site("fra"), str(lab.site("ams").tunnel_address(4))
    await lab.node("nat").change_address(outside + 50, outside)
    start = trio.current_time()
    # From now on only: an answer to an earlier one would tell fra of the new address
    async with fra.background(["ping", "-q", "-i0.5", there]):
        with trio.fail_after(patient(KEEPALIVE + 60)):
            while True:
                if (await seen_at(lab))[0] == str(outside):
                    break
                await trio.sleep(0.1)
        await fra.run(["ping", "-c1", "-w30", there])
    return trio.current_time() - start


async def renewed_behind_nat(lab: Lab, case: Case) -> None:
    async with counted(lab) as meter:
        key = await renewed(lab, "ams", "fra")
        await meter.wait_received(20)
        traffic = await meter.stop()
        case.traffic(traffic, "renewal")
        assert await prove(lab, "fra", "ams", traffic) == key


# ---- a small MTU

SMALL = 1280
INNER = SMALL - 60
"""The largest packet in a tunnel over IPv4: 20 bytes of IP, 8 of UDP, 32 of WireGuard."""
SMALL_MTU = f"""
[sites.fra.uplinks.internet]
mtu = {SMALL}
[sites.fra]
lan = ["10.1.0.0/16"]
[sites.ams.uplinks.internet]
mtu = {SMALL}
[sites.ams]
lan = ["10.2.0.0/16"]
{TUNNEL}
networks = ["10.255.0.0/24"]
"""
NO_FRAGMENTS = """
table ip t {
    chain c { type filter hook forward priority 0; ip frag-off & 0x3fff != 0 counter drop; }
}
"""


@pytest.mark.parametrize("suite", [1, 2])
async def test_a_path_with_an_mtu_of_1280_bytes(case: Case, suite: Literal[1, 2]) -> None:
    """Key exchange and full-size packets, over a path on which no fragment of IP gets through."""
    async with open_sites(SMALL_MTU, start="network") as lab:
        await firewall(lab.node("internet"), NO_FRAGMENTS)
        for site in lab.sites.values():
            await site.init(suite=suite)
            text = site.config_path.read_text()
            table = "[tunnels.backbone]\n"
            assert table in text
            site.config_path.write_text(text.replace(table, f"{table}mtu = {INNER}\n"))
            await site.start_daemon()
        await lab.link("fra", "ams")
        await wait_active(lab, "fra", "ams")
        assert (await lab.site("fra").link_status("ams"))["suite"] == suite
        # 28 bytes of IP and UDP are the meter's
        async with counted(lab, size=INNER - 28) as meter:
            before = await installed(lab, "fra", "ams")
            await lab.site("fra").vpnctl("peer", "rekey", "ams")
            await wait_new_key(lab, "fra", "ams", before=before)
            await meter.wait_received(50)
            traffic = await meter.stop()
        case.traffic(traffic)
        assert traffic.lost == traffic.repeated == 0
        shown = await lab.node("internet").run(["nft", "list", "chain", "ip", "t", "c"])
        assert "counter packets 0 " in shown.stdout


# ---- random loss

LOSS = 0.3
THIRTY_PERCENT = """
table inet t {
    chain c { type filter hook forward priority 0; numgen random mod 100 < 30 drop; }
}
"""


async def test_no_more_is_lost_than_plain_wireguard_loses(case: Case) -> None:
    """30 % of all datagrams between the gateways are dropped at random, in both directions, from
    before the first exchange: the link comes up and renews, and beside it a WireGuard tunnel made
    by hand carries the same traffic over the same path."""
    async with open_sites(TWO) as lab:
        await firewall(lab.node("internet"), THIRTY_PERCENT)
        start = trio.current_time()
        await lab.link("fra", "ams")
        await wait_active(lab, "fra", "ams", seconds=300)
        print(f"active {trio.current_time() - start:.1f} s after the second peer was added")
        await plain_tunnel(lab, "fra", "ams")
        fra, ams = lab.site("fra"), lab.site("ams")
        async with (
            lab.traffic(
                "fra", "ams", rate=25, addresses=(fra.tunnel_address(), ams.tunnel_address())
            ) as ours,
            lab.traffic("fra", "ams", rate=25, addresses=ADDRESSES) as plain,
        ):
            await renewed(lab, "fra", "ams", slack=240)
            reports = await stopped(ours, plain)
        for name, report in zip(("vpnd", "plain WireGuard"), reports, strict=True):
            case.traffic(report, name)
        tunnel, reference = (report.lost / report.sent for report in reports)
        print(f"lost {100 * tunnel:.1f} % in the tunnel, {100 * reference:.1f} % without vpnd")
        assert reports[0].repeated == 0
        assert tunnel <= reference + margin(reports)


async def stopped(*meters: Meter) -> list[Report]:
    """Stop them at the same time."""
    async with trio.open_nursery() as nursery:
        for meter in meters:
            nursery.start_soon(meter.stop)
    return [await meter.between(None, None) for meter in meters]


def margin(reports: list[Report]) -> float:
    """Six standard deviations of the difference of two shares of LOSS, and one part in fifty."""
    variance = LOSS * (1 - LOSS) * sum(1 / report.sent for report in reports)
    return 6 * math.sqrt(variance) + 0.02

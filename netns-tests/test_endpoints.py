"""Where the other gateway is: addresses that change, names with two families, names that come."""

from __future__ import annotations

import pytest
import trio
from linking import (
    TUNNEL,
    back_after,
    counted,
    firewall,
    linked,
    open_sites,
    renewed,
    settled,
    wait_active,
)
from report import Case

from vpnd_lab.lab import Lab
from vpnd_lab.plan import Address
from vpnd_lab.proof import prove

pytestmark = [pytest.mark.netns, pytest.mark.kernel_long]

KEEPALIVE = 25
NAME = "ams.test"
FIXED = {"both": '["fra", "ams"]', "the one that moves": '["ams"]', "the other one": '["fra"]'}
"""Which of the two ends has an endpoint in the other's configuration; ams is the one that moves."""


def two(endpoints: str) -> str:
    return f"""
[sites.fra]
[sites.ams]
{TUNNEL}
[[links]]
sites = ["fra", "ams"]
endpoints = {endpoints}
keepalive = {KEEPALIVE}
"""


async def endpoint_of(lab: Lab, site: str) -> str:
    """Where a site's WireGuard sends what is for its one peer."""
    shown = (await lab.site(site).run(["wg", "show", "wg0", "endpoints"])).stdout
    return shown.split()[1].rpartition(":")[0]


@pytest.mark.parametrize("fixed", FIXED)
async def test_a_gateway_changes_its_address(case: Case, fixed: str) -> None:
    """Bar: one keepalive and 5 s. Where only the end that moves is called, its name resolves anew;
    else the numeric address that the other end knows holds no longer, and the moved end calls.

    The kernel's WireGuard changes its source address with the next datagram. Debian's wireguard-go
    sends from the old one until it has heard nothing for 15 s: a newer Linux refuses that with
    ENETUNREACH, and it takes EINVAL alone for a reason to choose another.
    """
    async with linked(two(FIXED[fixed])) as lab:
        ams = lab.site("ams")
        old, new = ams.address(4), ams.address(4) + 50
        if fixed == "the one that moves":
            await lab.site("fra").know_names({NAME: [old]})
            await lab.site("fra").vpnctl("peer", "set", "ams", "--endpoint", f"{NAME}:51821")
        await settled(lab, "fra", "ams")
        async with counted(lab) as meter:
            start = await meter.mark("change")
            await ams.change_address(old, new)
            if fixed == "the one that moves":
                await lab.site("fra").know_names({NAME: [new]})
            await back_after(meter, seconds=KEEPALIVE + 60)
            await meter.wait_received(20)
            traffic = await meter.between(start, await meter.mark("back"))
            case.traffic(traffic, recovered=traffic.longest_gap)
            assert await endpoint_of(lab, "fra") == str(new)
            await meter.stop()
        async with counted(lab) as meter:
            caller = "fra" if fixed == "the one that moves" else "ams"
            key = await renewed(lab, caller, "ams" if caller == "fra" else "fra")
            await meter.wait_received(20)
            traffic = await meter.stop()
            case.traffic(traffic, "renewal")
            assert await prove(lab, "fra", "ams", traffic) == key
            assert await endpoint_of(lab, "fra") == str(new)


def named() -> str:
    """fra has a name to call, and ams waits to be called."""
    return two(FIXED["the one that moves"])


async def add_by_name(lab: Lab) -> None:
    await lab.add_peer("ams", "fra")
    arguments = lab.peer_add_arguments("fra", "ams", endpoint=f"{NAME}:51821")
    await lab.site("fra").vpnctl(*arguments)


async def carries_traffic(lab: Lab, case: Case, *, recovered: float) -> None:
    async with counted(lab) as meter:
        await meter.wait_received(50)
        traffic = await meter.stop()
    case.traffic(traffic, recovered=recovered)
    assert traffic.lost == traffic.repeated == 0


@pytest.mark.parametrize("dead", ["ip", "ip6"])
async def test_a_name_with_two_families_of_which_one_is_dead(case: Case, dead: str) -> None:
    """IPv6 is tried first, and IPv4 when the exchange got no answer; the other way round if need
    be. The exchange that gets no answer takes 15 s."""
    async with open_sites(named()) as lab:
        ams = lab.site("ams")
        addresses: list[Address] = [ams.address(4), ams.address(6)]
        await lab.site("fra").know_names({NAME: addresses})
        await firewall(
            lab.node("internet"),
            f"""
            table {dead} t {{
                chain c {{ type filter hook forward priority 0; policy drop; }}
            }}
            """,
        )
        start = trio.current_time()
        await add_by_name(lab)
        await wait_active(lab, "fra", "ams", seconds=120)
        recovered = trio.current_time() - start
        alive = addresses[0 if dead == "ip6" else 1]
        assert (await endpoint_of(lab, "fra")).strip("[]") == str(alive)
        await carries_traffic(lab, case, recovered=recovered)


async def test_a_name_that_cannot_be_resolved_at_the_start(case: Case) -> None:
    """The state says so; once the name is there the link comes up by itself."""
    async with open_sites(named()) as lab:
        fra, ams = lab.site("fra"), lab.site("ams")
        await fra.know_names({})
        await add_by_name(lab)

        def unknown(status: dict[str, str]) -> bool:
            return f"{NAME}: cannot be looked up" in status["reason"]

        status = await fra.wait_link("ams", unknown, what="waiting for the name")
        print(f"{status['state']}: {status['reason']}")
        assert status["state"] == "down"
        await fra.kill_daemon()
        await fra.start_daemon()
        await fra.wait_link("ams", unknown, what="waiting for the name")
        await fra.know_names({NAME: [ams.address(4)]})
        start = trio.current_time()
        await wait_active(lab, "fra", "ams", seconds=120)
        await carries_traffic(lab, case, recovered=trio.current_time() - start)

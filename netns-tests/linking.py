"""What tests of links have in common: sites that are linked, their traffic, a renewal, a firewall.

The environment variable VPND_TEST_BACKEND says which WireGuard they run on: userspace (here) or
the kernel's (in the emulator).
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio

from vpnd_lab.lab import Lab, Start, open_lab
from vpnd_lab.meter import Meter
from vpnd_lab.node import Node
from vpnd_lab.plan import Address
from vpnd_lab.proof import (
    HANDSHAKE_SECONDS,
    KeyPair,
    in_force,
    installed,
    wait_in_force,
    wait_new_key,
)
from vpnd_lab.site import Site
from vpnd_lab.spec import LabSpec

BACKEND = os.environ.get("VPND_TEST_BACKEND", "userspace")
TUNNEL = f"""
[tunnels.backbone]
backend = "{BACKEND}"
"""
TWO = f"""
[sites.fra]
[sites.ams]
{TUNNEL}
"""
THREE = f"""
{TWO}
[sites.lon]
[[links]]
sites = ["fra", "ams"]
[[links]]
sites = ["fra", "lon"]
"""
"""fra with two links, one of which is to mind nothing that happens to the other."""


def open_sites(text: str, *, start: Start = "daemons") -> Any:
    """A lab from a lab file's text, with daemons that do not know each other yet."""
    return open_lab(LabSpec.parse(text, name="case"), start=start)


@asynccontextmanager
async def linked(text: str = TWO) -> AsyncIterator[Lab]:
    """A lab whose links are all active at both ends, on the backend that was asked for."""
    async with open_sites(text, start="links") as lab:
        for link in lab.plan.links:
            await wait_active(lab, *link.sites)
        for site in lab.sites.values():
            assert (await site.status())["tunnels"][0]["backend"] == BACKEND
        yield lab


async def wait_active(lab: Lab, one: str, other: str, *, seconds: float = 60) -> None:
    """Wait until both ends say so."""
    for site, peer in ((one, other), (other, one)):
        await lab.site(site).wait_state(peer, "active", seconds=seconds)


@asynccontextmanager
async def counted(
    lab: Lab, one: str = "fra-host", other: str = "ams-host", *, rate: float = 50, size: int = 200
) -> AsyncIterator[Meter]:
    """Traffic between two nodes that has begun to flow, both ways."""
    async with lab.traffic(one, other, rate=rate, size=size) as meter:
        await meter.wait_received(20)
        yield meter


async def at_rest(site: Site, peer: str, *, ahead: float = 30, seconds: float = 60) -> None:
    """Wait until the site has no exchange with the peer under way, or begins one by itself within
    the time that is `ahead`."""

    def calm(status: Any) -> bool:
        due = status["next_renewal_seconds"]
        return isinstance(due, float) and due > ahead

    await site.wait_link(peer, calm, what="at rest", seconds=seconds)


async def settled(lab: Lab, one: str, other: str, *, seconds: float = 60) -> KeyPair:
    """The key once no exchange of the start is under way any more."""
    for site, peer in ((one, other), (other, one)):
        await at_rest(lab.site(site), peer, seconds=seconds)
    return await installed(lab, one, other)


async def renewed(lab: Lab, one: str, other: str, *, slack: float = 0) -> KeyPair:
    """Have `one` begin an exchange, and wait until a WireGuard handshake has taken the new key up.

    `slack`: seconds more that the exchange, and the handshake, may take.
    """
    before = await settled(lab, one, other, seconds=60 + slack)
    old = await in_force(lab, one, other)
    await lab.site(one).vpnctl("peer", "rekey", other)
    await wait_new_key(lab, one, other, before=before, seconds=60 + slack)
    return await wait_in_force(lab, one, other, before=old, seconds=HANDSHAKE_SECONDS + slack)


async def back_after(meter: Meter, *, seconds: float) -> float:
    """Wait until traffic passes both ways; the seconds that it took. Raises WaitTimeout."""
    start = trio.current_time()
    await meter.wait_received(5, seconds=seconds)
    return trio.current_time() - start


async def firewall(node: Node, rules: str) -> None:
    """Replace the node's nftables rules by these."""
    await node.run(["nft", "-f", "-"], stdin=f"flush ruleset\n{rules}\n")


DROP_ALL = """
table inet t {
    chain c { type filter hook forward priority 0; policy drop; }
}
"""


def address_towards(lab: Lab, node: str, neighbour: str) -> Address:
    """A node's IPv4 address on the cable to a neighbour."""
    for cable in lab.plan.cables:
        for end, opposite in cable.ends():
            if (end.node, opposite.node) == (node, neighbour):
                return next(each.ip for each in end.addresses if each.version == 4)
    raise AssertionError(f"no cable from {node} to {neighbour}")

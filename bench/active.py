"""Two sites of a lab with real daemons, far apart: how long a link takes to `active`."""

from __future__ import annotations

import ipaddress
import os
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

import trio

from bench.result import NotRun, Row
from vpnd_lab.errors import LabError
from vpnd_lab.lab import Lab, open_lab
from vpnd_lab.site import Site
from vpnd_lab.spec import LabSpec

GROUP = "From the first datagram to active"
DELAY_MS = 50
GOAL_ROUND_TRIPS = 4
ROUNDS = 5
LAB = """
[sites.fra]
[sites.ams]
[tunnels.backbone]
[[links]]
sites = ["fra", "ams"]
"""


def measure() -> Iterator[Row | NotRun]:
    if os.geteuid() != 0:
        yield NotRun(GROUP, "network namespaces need root")
        return
    try:
        yield from trio.run(_round_trips)
    except (LabError, BaseExceptionGroup) as error:
        yield NotRun(GROUP, str(error))


async def _round_trips() -> list[Row]:
    first: list[float] = []
    again: list[float] = []
    for _ in range(ROUNDS):
        async with open_lab(LabSpec.parse(LAB, name="bench"), start="daemons") as lab:
            first.append(await _until_active(lab))
            for site, peer in (("fra", "ams"), ("ams", "fra")):
                await lab.site(site).vpnctl("peer", "remove", peer)
            again.append(await _until_active(lab))
    return [
        _trips("the peer's public key known from before", again, GOAL_ROUND_TRIPS),
        _trips("first contact: its public key is fetched", first, GOAL_ROUND_TRIPS + 1),
    ]


def _trips(name: str, times: list[float], goal: int) -> Row:
    took, trip = statistics.median(times), 2 * DELAY_MS / 1000
    return Row(
        GROUP,
        f"{DELAY_MS} ms each way, WireGuard's handshake included; {name}",
        took * 1e3,
        "ms",
        trip * 1e3,
        "a round trip",
        f"ratio ≤ {goal}",
        took / trip <= goal,
        f"the median of {len(times)}, from {min(times) * 1e3:.0f} to {max(times) * 1e3:.0f} ms; "
        "the state is asked for every 30 ms",
    )


async def _until_active(lab: Lab) -> float:
    """Seconds from the first datagram between two sites to `active` where it was sent."""
    fra, ams = lab.site("fra"), lab.site("ams")
    near, far = gate(lab, fra), gate(lab, ams)
    proxy = [
        *(sys.executable, "-m", "bench.delay", str(DELAY_MS)),
        *(near, str(fra.address(4)), far, str(ams.address(4))),
        *(str(fra.plan.listen_port), str(fra.plan.tunnels[0].listen_port)),
    ]
    async with lab.node("internet").background(proxy) as process:
        assert process.stdout is not None  # noqa: S101
        said = lines(process.stdout)
        await anext(said)
        # ams waits, fra calls: so the first datagram is the exchange's own
        await lab.add_peer("ams", "fra", endpoint=None)
        await lab.add_peer("fra", "ams", endpoint=f"{near}:{ams.plan.listen_port}")
        _, first = (await anext(said)).split()
        await fra.wait_state("ams", "active")
        return time.monotonic() - float(first)


def gate(lab: Lab, site: Site) -> str:
    """The router's address on the cable to a site."""
    for address in lab.node("internet").addresses:
        if ipaddress.ip_address(site.address(4)) in address.network:
            return str(address.ip)
    raise LabError(f"the router has no address beside {site.name}")


async def lines(stream: trio.abc.ReceiveStream) -> Any:
    """What a process prints, line by line."""
    buffer = b""
    async for chunk in stream:
        buffer += chunk
        while b"\n" in buffer:
            line, _, buffer = buffer.partition(b"\n")
            yield line.decode()

"""Two sites of a lab with real daemons: time to `active` over a long way, and throughput."""

from __future__ import annotations

import ipaddress
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

import trio

from bench.result import NotRun, Row
from lab.errors import LabError
from lab.lab import Lab, open_lab
from lab.site import Site
from lab.spec import LabSpec

ROUND_TRIPS = "From the first datagram to active"
THROUGHPUT = "Throughput of the tunnel"
DELAY_MS = 50
GOAL_ROUND_TRIPS = 4
ROUNDS = 5
SECONDS = 3
MEASURED = f"{SECONDS} s of iperf3 each, in turn, {ROUNDS} times; the medians"
LAB = """
[sites.fra]
[sites.ams]
[tunnels.backbone]
[[links]]
sites = ["fra", "ams"]
"""
HAND = "wg-hand"
HAND_PORT = 51900


def measure() -> Iterator[Row | NotRun]:
    if os.geteuid() != 0:
        yield NotRun(ROUND_TRIPS, "network namespaces need root")
        return
    for part, group in ((_round_trips, ROUND_TRIPS), (_throughput, THROUGHPUT)):
        try:
            yield from trio.run(part)
        except (LabError, BaseExceptionGroup) as error:
            yield NotRun(group, str(error))


async def _round_trips() -> list[Row]:
    async with open_lab(LabSpec.parse(LAB, name="bench"), start="daemons") as lab:
        first = await _until_active(lab)
        for site, peer in (("fra", "ams"), ("ams", "fra")):
            await lab.site(site).vpnctl("peer", "remove", peer)
        again = await _until_active(lab)
    return [
        _trips("the peer's public key known from before", again, GOAL_ROUND_TRIPS),
        _trips("first contact: its public key is fetched", first, GOAL_ROUND_TRIPS + 1),
    ]


def _trips(name: str, took: float, goal: int) -> Row:
    trip = 2 * DELAY_MS / 1000
    return Row(
        ROUND_TRIPS,
        f"{DELAY_MS} ms each way, WireGuard's handshake included; {name}",
        took * 1e3,
        "ms",
        trip * 1e3,
        "a round trip",
        f"ratio ≤ {goal}",
        took / trip <= goal,
        "asked every 30 ms",
    )


async def _until_active(lab: Lab) -> float:
    """Seconds from the first datagram between two sites to `active` where it was sent."""
    fra, ams = lab.site("fra"), lab.site("ams")
    near, far = _gate(lab, fra), _gate(lab, ams)
    proxy = [
        *(sys.executable, "-m", "bench.delay", str(DELAY_MS)),
        *(near, str(fra.address(4)), far, str(ams.address(4))),
        *(str(fra.plan.listen_port), str(fra.plan.tunnels[0].listen_port)),
    ]
    async with lab.node("internet").background(proxy) as process:
        assert process.stdout is not None  # noqa: S101
        lines = _lines(process.stdout)
        await anext(lines)
        # ams waits, fra calls: so the first datagram is the exchange's own
        await lab.add_peer("ams", "fra", endpoint=None)
        await lab.add_peer("fra", "ams", endpoint=f"{near}:{ams.plan.listen_port}")
        _, first = (await anext(lines)).split()
        await fra.wait_state("ams", "active")
        return time.monotonic() - float(first)


def _gate(lab: Lab, site: Site) -> str:
    """The router's address on the cable to a site."""
    for address in lab.node("internet").addresses:
        if ipaddress.ip_address(site.address(4)) in address.network:
            return str(address.ip)
    raise LabError(f"the router has no address beside {site.name}")


async def _lines(stream: trio.abc.ReceiveStream) -> Any:
    buffer = b""
    async for chunk in stream:
        buffer += chunk
        while b"\n" in buffer:
            line, _, buffer = buffer.partition(b"\n")
            yield line.decode()


async def _throughput() -> list[Row]:
    async with open_lab(LabSpec.parse(LAB, name="bench"), start="links") as lab:
        fra, ams = lab.site("fra"), lab.site("ams")
        for site, peer in ((fra, "ams"), (ams, "fra")):
            await site.wait_state(peer, "active")
        backend = (await fra.status())["tunnels"][0]["backend"]
        await _by_hand(fra, ams, backend)
        ours: list[float] = []
        hand: list[float] = []
        async with ams.background(["iperf3", "--server", "--json"]):
            for _ in range(ROUNDS):
                ours.append(await _iperf(fra, str(ams.tunnel_address(4))))
                hand.append(await _iperf(fra, "10.99.0.2"))
    return [
        Row(
            THROUGHPUT,
            f"one TCP stream, {backend} WireGuard",
            statistics.median(ours) / 1e6,
            "Mbit/s",
            statistics.median(hand) / 1e6,
            "configured by hand",
            "ratio 1.00",
            statistics.median(ours) / statistics.median(hand) >= 0.95,
            f"{MEASURED}; met means 0.95 or more: single runs differ by "
            f"{(max(hand) - min(hand)) / statistics.median(hand):.0%}",
        )
    ]


async def _by_hand(one: Site, other: Site, backend: str) -> None:
    """The same WireGuard between the same sites, without vpnd: keys, a PSK, addresses."""
    keys = {}
    psk = (await one.run(["wg", "genpsk"])).stdout
    for site, address in ((one, "10.99.0.1/24"), (other, "10.99.0.2/24")):
        private = (await site.run(["wg", "genkey"])).stdout
        keys[site] = (await site.run(["wg", "pubkey"], stdin=private)).stdout.strip()
        if backend == "kernel":
            await site.run(["ip", "link", "add", HAND, "type", "wireguard"])
        else:
            await site.run(["wireguard-go", HAND], env={"LOG_LEVEL": "silent"})
        await site.run(
            ["wg", "set", HAND, "listen-port", str(HAND_PORT), "private-key", "/dev/stdin"],
            stdin=private,
        )
        await site.run(["ip", "address", "add", address, "dev", HAND])
        await site.run(["ip", "link", "set", HAND, "mtu", "1420", "up"])
    for site, peer, allowed in ((one, other, "10.99.0.2/32"), (other, one, "10.99.0.1/32")):
        await site.run(
            [
                *("wg", "set", HAND, "peer", keys[peer], "preshared-key", "/dev/stdin"),
                *("endpoint", f"{peer.address(4)}:{HAND_PORT}", "allowed-ips", allowed),
            ],
            stdin=psk,
        )


async def _iperf(site: Site, to: str) -> float:
    """Bits per second at the receiver."""
    for _ in range(50):
        done = await site.run(
            ["iperf3", "--client", to, "--time", str(SECONDS), "--json"], check=False, seconds=60
        )
        report = json.loads(done.stdout)
        if "error" not in report:
            return float(report["end"]["sum_received"]["bits_per_second"])
        await trio.sleep(0.1)  # the server is still at its start, or at the one before
    raise LabError(f"iperf3: {report['error']}")

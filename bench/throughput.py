"""How much the tunnel of two sites carries, beside the same WireGuard configured by hand.

    fra ── internet ── ams       wg0: vpnd's; wg-hand: of `wg` and `ip` alone

One TCP stream through either in turn, ours first and second by turns, so that what else the machine
does meets both alike; what counts is the median of the ratios of such pairs. Where WireGuard is a
process, its CPU for what it carried stands beside it, which a busy machine changes less.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from bench.process import cpu_of
from bench.result import NotRun, Row
from vpnd_lab.errors import LabError
from vpnd_lab.lab import open_lab
from vpnd_lab.patience import patient
from vpnd_lab.site import Site
from vpnd_lab.spec import LabSpec

GROUP: Final = "Throughput of the tunnel"
IPERF: Final = ("env", "TMPDIR=/tmp", "iperf3")
"""It wants a temporary file, and what is a folder outside may be none in a site, which has a /run
of its own."""
PAIRS: Final = 10
SECONDS: Final = 3
GOAL: Final = 0.95
LAB: Final = """
[sites.fra]
[sites.ams]
[tunnels.backbone]
[[links]]
sites = ["fra", "ams"]
"""
OURS: Final = "wg0"
HAND: Final = "wg-hand"
HAND_PORT: Final = 51900
HAND_ADDRESSES: Final = ("10.99.0.1", "10.99.0.2")


def measure() -> Iterator[Row | NotRun]:
    if os.geteuid() != 0:
        yield NotRun(GROUP, "network namespaces need root")
        return
    try:
        yield from trio.run(_measured)
    except (LabError, BaseExceptionGroup) as error:
        yield NotRun(GROUP, str(error))


@dataclass(frozen=True, slots=True)
class _Way:
    """The address of the far end, and the processes that carry what goes there."""

    to: str
    processes: list[int]


@dataclass(frozen=True, slots=True)
class _Run:
    """One stream: bits a second, and CPU seconds of the interface's processes for a gigabyte."""

    rate: float
    cpu: float


async def _measured() -> list[Row]:
    async with open_lab(LabSpec.parse(LAB, name="bench"), start="links") as lab:
        fra, ams = lab.site("fra"), lab.site("ams")
        for site, peer in ((fra, "ams"), (ams, "fra")):
            await site.wait_state(peer, "active")
        backend = (await fra.status())["tunnels"][0]["backend"]
        await _by_hand(fra, ams, backend)
        ways = {
            OURS: _Way(str(ams.tunnel_address(4)), await _processes(OURS, fra, ams)),
            HAND: _Way(HAND_ADDRESSES[1], await _processes(HAND, fra, ams)),
        }
        runs: dict[str, list[_Run]] = {OURS: [], HAND: []}
        # What it says of each run would fill a pipe that nobody reads
        async with ams.background(
            ["sh", "-c", f"exec {' '.join(IPERF)} --server > /dev/null 2>&1"]
        ):
            for way in ways.values():
                await _iperf(fra, way)  # whatever happens once
            for number in range(PAIRS):
                for interface in (OURS, HAND) if number % 2 else (HAND, OURS):
                    runs[interface].append(await _iperf(fra, ways[interface]))
    return list(_rows(backend, runs[OURS], runs[HAND]))


def _rows(backend: str, ours: list[_Run], hand: list[_Run]) -> Iterator[Row]:
    ratios = [a.rate / b.rate for a, b in zip(ours, hand, strict=True)]
    low, ratio, high = statistics.quantiles(ratios, n=4)
    yield Row(
        GROUP,
        f"one TCP stream, {backend} WireGuard",
        statistics.median(run.rate for run in ours) / 1e6,
        "Mbit/s",
        statistics.median(run.rate for run in hand) / 1e6,
        "configured by hand",
        "ratio 1.00",
        ratio >= GOAL,
        f"{PAIRS} pairs of {SECONDS} s of iperf3; the ratio is the median of theirs, the middle "
        f"half of which is {low:.2f} to {high:.2f}; met means {GOAL} or more",
        paired=ratio,
    )
    if backend == "userspace":
        yield Row(
            GROUP,
            "CPU of wireguard-go at both ends for a gigabyte",
            statistics.median(run.cpu for run in ours),
            "s",
            statistics.median(run.cpu for run in hand),
            "configured by hand",
            paired=statistics.median(a.cpu / b.cpu for a, b in zip(ours, hand, strict=True)),
        )


async def _by_hand(one: Site, other: Site, backend: str) -> None:
    """The same WireGuard between the same sites, without vpnd: keys, a PSK, addresses."""
    keys = {}
    psk = (await one.run(["wg", "genpsk"])).stdout
    for site, address in zip((one, other), HAND_ADDRESSES, strict=True):
        private = (await site.run(["wg", "genkey"])).stdout
        keys[site] = (await site.run(["wg", "pubkey"], stdin=private)).stdout.strip()
        if backend == "kernel":
            await site.run(["ip", "link", "add", HAND, "type", "wireguard"])
        else:
            await _start_wireguard_go(site)
        await site.run(
            ["wg", "set", HAND, "listen-port", str(HAND_PORT), "private-key", "/dev/stdin"],
            stdin=private,
        )
        await site.run(["ip", "address", "add", f"{address}/24", "dev", HAND])
        await site.run(["ip", "link", "set", HAND, "mtu", "1420", "up"])
    near, far = HAND_ADDRESSES
    for site, peer, allowed in ((one, other, far), (other, one, near)):
        await site.run(
            [
                *("wg", "set", HAND, "peer", keys[peer], "preshared-key", "/dev/stdin"),
                *("endpoint", f"{peer.address(4)}:{HAND_PORT}", "allowed-ips", f"{allowed}/32"),
            ],
            stdin=psk,
        )


async def _start_wireguard_go(site: Site) -> None:
    """In a session of its own, as vpnd's has one: the kernel shares out the processor by sessions
    (sched(7), autogroup), so that with iperf3's it would get another share."""
    start = f"exec setsid --fork wireguard-go -f {HAND} < /dev/null > /dev/null 2>&1"
    await site.run(["sh", "-c", start], env={"LOG_LEVEL": "error"})
    with trio.fail_after(patient(30)):
        while (await site.run(["wg", "show", HAND], check=False)).returncode:  # noqa: ASYNC110
            await trio.sleep(0.1)


async def _processes(interface: str, *sites: Site) -> list[int]:
    """The pids of an interface's wireguard-go in each site; none where the kernel does it."""
    links = [(await site.run(["readlink", "/proc/self/ns/net"])).stdout.strip() for site in sites]
    return _wireguard_go(interface, set(links))


def _wireguard_go(interface: str, spaces: set[str]) -> list[int]:
    """Those of an interface in these network namespaces, each as /proc/PID/ns/net names it."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            command = (folder / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
            if command[-1] == interface.encode() and (
                (folder / "comm").read_text().strip() == "wireguard-go"
                and str((folder / "ns" / "net").readlink()) in spaces
            ):
                found.append(int(folder.name))
    return found


async def _iperf(site: Site, way: _Way) -> _Run:
    """One stream to the server, as much as gets there."""
    command = [*IPERF, "--client", way.to, "--time", str(SECONDS), "--json"]
    for _ in range(50):
        before = sum(map(cpu_of, way.processes))
        done = await site.run(command, check=False, seconds=60)
        report = json.loads(done.stdout)
        if "error" not in report:
            received = report["end"]["sum_received"]
            used = sum(map(cpu_of, way.processes)) - before
            return _Run(float(received["bits_per_second"]), used / received["bytes"] * 1e9)
        await trio.sleep(patient(0.1))  # the server is still at its start, or at the one before
    raise LabError(f"iperf3: {report['error']}")

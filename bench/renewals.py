"""Packets lost over renewals while the tunnels carry all that they can.

    site00 … site09 ── internet ── hub         a link each, all on the hub's one interface

On each link a TCP stream takes what it gets, and numbered datagrams are counted both ways. Every
link is renewed by `vpnctl peer rekey`, and again once a WireGuard handshake has taken the new key
up, which happens every two minutes: side by side, the links make many renewals in that time. What
is lost for want of room is told apart twice: the streams' windows are so small that no queue on
the way overflows, and the same traffic runs for a minute before anything is renewed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Final

import trio

from bench.result import NotRun, Row
from vpnd_lab.errors import LabError
from vpnd_lab.lab import Lab, open_lab
from vpnd_lab.meter import Mark, Meter
from vpnd_lab.proof import in_force, installed, wait_in_force, wait_new_key
from vpnd_lab.spec import LabSpec

GROUP: Final = "Renewals under full load"
HUB: Final = "hub"
LINKS: Final = 10
ROUNDS: Final = 2
QUIET_SECONDS: Final = 45.0
"""Less than from the first handshake to the first renewal of the daemon's own accord."""
HANDSHAKE_SECONDS: Final = 200.0
"""In which WireGuard, which does so every 120 s, makes a handshake; on a machine at its limit."""
RATE: Final = 50
WINDOW: Final = "8K"
"""Of each stream, so that all of them together fit into the smallest buffer on the way: that of
wireguard-go's UDP socket, 208 KiB, in which a packet takes 2.3 KiB."""
PORT: Final = 5201


def measure() -> Iterator[Row | NotRun]:
    if os.geteuid() != 0:
        yield NotRun(GROUP, "network namespaces need root")
        return
    try:
        yield from trio.run(_measured)
    except (LabError, BaseExceptionGroup) as error:
        yield NotRun(GROUP, str(error))


@dataclass(slots=True)
class _Count:
    """Datagrams, both ways."""

    sent: int = 0
    lost: int = 0
    repeated: int = 0


def _lab_file() -> str:
    sites = "".join(f"[sites.{name}]\n" for name in (HUB, *_names()))
    links = "".join(f'[[links]]\nsites = ["{name}", "{HUB}"]\n' for name in _names())
    return f"{sites}[tunnels.backbone]\n{links}"


def _names() -> list[str]:
    return [f"site{number:02}" for number in range(LINKS)]


async def _measured() -> list[Row]:
    async with open_lab(LabSpec.parse(_lab_file(), name="bench"), start="links") as lab:
        for name in _names():
            await lab.site(name).wait_state(HUB, "active")
            await lab.site(HUB).wait_state(name, "active")
        async with contextlib.AsyncExitStack() as stack:
            meters = await _traffic(lab, stack)
            return await _with_renewals(lab, meters)


async def _traffic(lab: Lab, stack: contextlib.AsyncExitStack) -> dict[str, Meter]:
    """The streams and the counted datagrams, by the link's site; all of them flow."""
    meters: dict[str, Meter] = {}
    for number, name in enumerate(_names()):
        await stack.enter_async_context(_stream(lab, name, PORT + number))
        addresses = lab.site(name).tunnel_address(4), lab.site(HUB).tunnel_address(4)
        meters[name] = await stack.enter_async_context(
            lab.traffic(name, HUB, rate=RATE, addresses=addresses)
        )
    for meter in meters.values():
        await meter.wait_received(50)
    return meters


@contextlib.asynccontextmanager
async def _stream(lab: Lab, name: str, port: int) -> AsyncIterator[None]:
    """A TCP stream from a site to the hub, for as long as the block takes."""
    server = ["iperf3", "--server", "--json", "--port", str(port)]
    client = [
        *("iperf3", "--client", str(lab.site(HUB).tunnel_address(4)), "--port", str(port)),
        *("--time", "0", "--window", WINDOW, "--json"),
    ]
    async with lab.site(HUB).background(server):
        for _ in range(50):
            async with lab.site(name).background(client) as process:
                with trio.move_on_after(1.0):
                    await process.wait()  # the server is still at its start
                if process.returncode is None:
                    yield
                    return
        raise LabError(f"iperf3 from {name} to {HUB} does not start")


async def _with_renewals(lab: Lab, meters: dict[str, Meter]) -> list[Row]:
    start = {name: await meter.mark("quiet") for name, meter in meters.items()}
    carried, began = await _carried(lab), trio.current_time()
    await trio.sleep(QUIET_SECONDS)
    rate = (await _carried(lab) - carried) * 8 / (trio.current_time() - began)
    middle = {name: await meter.mark("renewals") for name, meter in meters.items()}
    renewals = await _renewals(lab)
    for _ in range(ROUNDS):
        async with trio.open_nursery() as nursery:
            for name in meters:
                nursery.start_soon(_renew, lab, name)
    renewals = await _renewals(lab) - renewals
    for meter in meters.values():
        await meter.stop()
    before, after = await _counted(meters, start, middle), await _counted(meters, middle, None)
    forced = LINKS * ROUNDS
    return [
        Row(
            GROUP,
            f"datagrams lost over {forced} renewals, each taken up by a WireGuard handshake",
            after.lost,
            "",
            None,
            "",
            "0",
            after.lost == 0,
            f"of {after.sent:,} sent, {after.repeated} repeated; {LINKS} links side by side carry "
            f"{rate / 1e6:,.0f} Mbit/s of TCP beside them; {renewals} keys installed in all, "
            "those that the daemons renewed of their own accord included",
        ),
        Row(
            GROUP,
            "datagrams lost by the same traffic without renewals",
            before.lost,
            "",
            None,
            "",
            "",
            None,
            f"of {before.sent:,} sent, before the renewals began",
        ),
    ]


async def _renew(lab: Lab, name: str) -> None:
    """A new key for a link, in force at both ends."""
    old, running = await installed(lab, name, HUB), await in_force(lab, name, HUB)
    await lab.site(name).vpnctl("peer", "rekey", HUB)
    await wait_new_key(lab, name, HUB, before=old, seconds=60)
    await wait_in_force(lab, name, HUB, before=running, seconds=HANDSHAKE_SECONDS)


async def _counted(
    meters: dict[str, Meter], start: dict[str, Mark], end: dict[str, Mark] | None
) -> _Count:
    count = _Count()
    for name, meter in meters.items():
        report = await meter.between(start[name], None if end is None else end[name])
        count.sent += report.sent
        count.lost += report.lost
        count.repeated += report.repeated
    return count


async def _carried(lab: Lab) -> int:
    """Bytes that the hub has received through its tunnel."""
    status = await lab.site(HUB).status()
    return sum(link["wireguard"]["rx_bytes"] for link in status["links"])


async def _renewals(lab: Lab) -> int:
    status = await lab.site(HUB).status()
    return sum(link["counters"].get("key_installed", 0) for link in status["links"])

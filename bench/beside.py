"""CPU of both daemons over natural renewals: vpnd's and Rosenpass's, side by side in one lab.

    fra0 ── internet ── ams0      on each pair of sites a link of vpnd, with WireGuard and all,
    fra1 ──    │    ── ams1       and one of Rosenpass, which writes its key into a file
    …

Both renew by their own clocks, about every two minutes. What is measured is all that the four
processes of a pair use in that time, and, for a while in which nothing is renewed, what they use
at rest.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from bench import rosenpass
from bench.exchange import over_sockets
from bench.process import cpu_of
from bench.result import NotRun, Row
from vpnd_lab.errors import LabError
from vpnd_lab.lab import Lab, open_lab
from vpnd_lab.spec import LabSpec

GROUP: Final = "CPU of both daemons over natural renewals"
PAIRS: Final = 4
REST_AFTER: Final = 145.0
REST_SECONDS: Final = 50.0
"""Begins when a WireGuard handshake, at 120 s, has taken the first renewal up, and ends before the
second one."""
SECONDS: Final = 360.0
GOAL: Final = 0.25


@dataclass(slots=True)
class _Side:
    """One of the two programs, all its daemons."""

    pids: list[int]
    rest: float = 0.0
    """CPU seconds, of all daemons, for each second at rest."""
    cpu: float = 0.0
    renewals: int = 0

    def used(self) -> float:
        return sum(map(cpu_of, self.pids))


def measure() -> Iterator[Row | NotRun]:
    if os.geteuid() != 0:
        yield NotRun(GROUP, "network namespaces need root")
        return
    try:
        vpnd, other = trio.run(_measured)
    except (LabError, BaseExceptionGroup) as error:
        yield NotRun(GROUP, str(error))
        return
    yield from _rows(vpnd, other)


def _rows(vpnd: _Side, other: _Side) -> Iterator[Row]:
    about = (
        f"{SECONDS:.0f} s, {PAIRS} pairs: {vpnd.renewals} renewals of vpnd's, {other.renewals} of "
        "Rosenpass's. vpnd's includes putting each key into WireGuard and watching for its "
        "handshakes, Rosenpass's a file for each key. The looks at the interface, its routes and "
        "its handshakes cost vpnd many times what its exchanges do; the links of one daemon share "
        "them"
    )
    each = [side.cpu / side.renewals * 1e3 for side in (vpnd, other)]
    yield Row(
        GROUP,
        "for each renewal, everything included",
        each[0],
        "ms",
        each[1],
        "Rosenpass",
        f"ratio ≤ {GOAL}",
        each[0] / each[1] <= GOAL,
        about,
    )
    alone = [
        max(0.0, side.cpu - side.rest * SECONDS) / side.renewals * 1e3 for side in (vpnd, other)
    ]
    yield Row(
        GROUP,
        "for each renewal, less what the daemons use at rest",
        alone[0],
        "ms",
        alone[1],
        "Rosenpass",
    )
    exchange = over_sockets(1, "openssl") * 1e3
    yield Row(
        GROUP,
        "the key exchange alone: both ends over sockets, without WireGuard and the daemon around",
        exchange,
        "ms",
        alone[1],
        "Rosenpass, as above",
        f"ratio ≤ {GOAL}",
        exchange / alone[1] <= GOAL,
    )
    yield Row(
        GROUP,
        "of one daemon at rest, for a minute",
        vpnd.rest / len(vpnd.pids) * 60e3,
        "ms",
        other.rest / len(other.pids) * 60e3,
        "Rosenpass",
    )


async def _measured() -> tuple[_Side, _Side]:
    names = [(f"fra{number}", f"ams{number}") for number in range(PAIRS)]
    sites = "".join(f"[sites.{name}]\n" for pair in names for name in pair)
    links = "".join(f'[[links]]\nsites = ["{one}", "{other}"]\n' for one, other in names)
    spec = LabSpec.parse(f"{sites}[tunnels.backbone]\n{links}", name="beside")
    async with open_lab(spec, start="links") as lab, contextlib.AsyncExitStack() as stack:
        other = _Side([])
        keys: list[Path] = []
        for one, far in names:
            for name, peer in ((one, far), (far, one)):
                await lab.site(name).wait_state(peer, "active")
            other.pids += await _rosenpass(lab, stack, one, far)
            keys.append(_outfile(lab, one))
        daemons = [lab.site(name).daemon for pair in names for name in pair]
        vpnd = _Side([daemon.pid for daemon in daemons if daemon is not None])
        await trio.sleep(REST_AFTER)
        await _rest(vpnd, other)
        await _over_renewals(lab, names, keys, vpnd, other)
        return vpnd, other


async def _rosenpass(lab: Lab, stack: contextlib.AsyncExitStack, one: str, far: str) -> list[int]:
    """Start a pair of daemons; returns their pids once they have a key."""
    made = {
        name: await trio.to_thread.run_sync(rosenpass.Keys.make, lab.site(name).folder, "rp")
        for name in (one, far)
    }
    pids = []
    for name, peer in ((far, one), (one, far)):
        site = lab.site(name)
        endpoint = f"{lab.site(peer).address(4)}:{rosenpass.PORT}" if name == one else None
        there = rosenpass.peer(made[peer].public, _outfile(lab, name), endpoint)
        command = rosenpass.daemon(made[name], f"{site.address(4)}:{rosenpass.PORT}", there)
        pids.append((await stack.enter_async_context(site.background(command))).pid)
    with trio.fail_after(60):
        while not await trio.Path(_outfile(lab, one)).exists():  # noqa: ASYNC110  # it tells nobody
            await trio.sleep(0.1)
    return pids


def _outfile(lab: Lab, name: str) -> Path:
    return lab.site(name).folder / "rp.key"


async def _rest(*sides: _Side) -> None:
    for side in sides:
        side.rest = -side.used()
    began = trio.current_time()
    await trio.sleep(REST_SECONDS)
    for side in sides:
        side.rest = (side.rest + side.used()) / (trio.current_time() - began)


async def _over_renewals(
    lab: Lab, names: list[tuple[str, str]], keys: list[Path], vpnd: _Side, other: _Side
) -> None:
    vpnd.cpu, other.cpu = -vpnd.used(), -other.used()
    vpnd.renewals = -await _installed(lab, names)
    until = trio.current_time() + SECONDS
    last = [key.read_bytes() for key in keys]
    while trio.current_time() < until:
        await trio.sleep(min(5.0, until - trio.current_time()))
        now = [key.read_bytes() for key in keys]
        other.renewals += sum(a != b for a, b in zip(last, now, strict=True))
        last = now
    vpnd.cpu += vpnd.used()
    other.cpu += other.used()
    vpnd.renewals += await _installed(lab, names)


async def _installed(lab: Lab, names: list[tuple[str, str]]) -> int:
    """Keys that were installed at the first of each pair."""
    count = 0
    for one, far in names:
        status = await lab.site(one).link_status(far)
        count += status["counters"].get("key_installed", 0)
    return count

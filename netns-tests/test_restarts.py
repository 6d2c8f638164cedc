"""Ends of a link that go away and come back, under traffic that is counted (see pair.py)."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Awaitable, Callable

import pytest
import trio
from linking import BACKEND, counted, linked
from pair import ENDS, logged, nothing_lost, passes_again, processes, settled
from report import Case

from vpnd_lab.lab import Lab
from vpnd_lab.patience import patient
from vpnd_lab.proof import HANDSHAKE_SECONDS, KeyPair, in_force, same_preshared_key, wait_in_force
from vpnd_lab.site import Site

pytestmark = [pytest.mark.netns, pytest.mark.kernel_long]

AWAY_SECONDS = 40.0
"""How long a daemon is away; docs/operations.md promises that nothing is lost within 45 s."""
PROGRAM = "wireguard-go"
AGAIN_SECONDS = 5.0
"""The goal for traffic where the interface is gone; asserted with a margin."""


RESTARTS = [
    (number, victims)
    for number in (signal.SIGTERM, signal.SIGKILL)
    for victims in ("fra", "ams", "both")
]
IN_SHORT = [(signal.SIGKILL, "fra"), (signal.SIGKILL, "both")]
"""What `make test` does on kernel WireGuard as well."""


@pytest.mark.parametrize(
    ("number", "victims"),
    [
        pytest.param(
            *each,
            marks=[pytest.mark.kernel] if each in IN_SHORT else [],
            id=f"{each[0].name}-{each[1]}",
        )
        for each in RESTARTS
    ],
)
async def test_restart(number: signal.Signals, victims: str, case: Case) -> None:
    async with linked() as lab, nothing_lost(lab, case):
        sites = [lab.site(name) for name in ("fra", "ams") if victims in (name, "both")]
        gone = trio.current_time()
        async with trio.open_nursery() as nursery:
            for site in sites:
                nursery.start_soon(site.kill_daemon, number)
        await trio.sleep(AWAY_SECONDS - (trio.current_time() - gone))
        async with trio.open_nursery() as nursery:
            for site in sites:
                nursery.start_soon(site.start_daemon)
        away = trio.current_time() - gone
        print(f"away for {away:.1f} s")
        for site in sites:
            # Taken over at once; degraded where WireGuard made a handshake just as a key was set
            (status,) = (await site.status())["links"]
            assert status["state"] in ("active", "degraded"), status["reason"]


@pytest.mark.skipif(BACKEND == "kernel", reason="kernel WireGuard has no process to be killed")
async def test_sigkill_of_wireguard_go(case: Case) -> None:
    async with linked() as lab:
        (pid,) = [pid for pid, name in processes(lab.site("fra")).items() if name == PROGRAM]

        async def kill() -> None:
            os.kill(pid, signal.SIGKILL)

        await interrupted(lab, case, kill)
        assert list(processes(lab.site("fra")).values()).count(PROGRAM) == 1


async def test_interface_deleted_by_hand(case: Case) -> None:
    async with linked() as lab:

        async def delete() -> None:
            await lab.site("fra").run(["ip", "link", "delete", "wg0"])

        await interrupted(lab, case, delete)


async def interrupted(lab: Lab, case: Case, fault: Callable[[], Awaitable[None]]) -> None:
    """A fault that takes fra's interface away, until traffic passes again with a new key."""
    fra = lab.site("fra")
    async with counted(lab) as meter:
        await settled(lab)
        old = await in_force(lab, "fra", "ams")
        start = await meter.mark("fault")
        await fault()
        await logged(fra, '"event": "tunnel_lost"')
        await passes_again(meter, 60)
        recovered = (await meter.between(start, await meter.mark("again"))).longest_gap
        await wait_in_force(lab, "fra", "ams", before=old, seconds=HANDSHAKE_SECONDS)
        await settled(lab)
        await meter.wait_received(50)
        after = await meter.mark("after")
        traffic = await meter.stop()
        case.traffic(traffic, recovered=recovered)
        assert (await meter.between(after, None)).lost == 0
        assert traffic.repeated == 0
        assert await same_preshared_key(lab, "fra", "ams")
        assert recovered < patient(5 * AGAIN_SECONDS)
        assert "internal_error" not in fra.daemon_log.read_text()


async def test_both_sites_rebooted_at_once(case: Case) -> None:
    """What a reboot takes: processes, interfaces, routes, all of /run. Not the configuration."""
    async with linked() as lab:
        sites = [lab.site(name) for name, _ in ENDS]
        async with counted(lab) as meter:
            await settled(lab)
            for site in sites:
                await site.kill_daemon()
            for site in sites:
                await switch_off(site)
            start = await meter.mark("off")
            began = trio.current_time()
            async with trio.open_nursery() as nursery:
                for site in sites:
                    nursery.start_soon(site.start_daemon)
            recovered = trio.current_time() - began + await passes_again(meter, 60)
            key = await settled(lab)
            await wait_in_force(
                lab, "fra", "ams", before=KeyPair("", ""), seconds=HANDSHAKE_SECONDS
            )
            await meter.wait_received(50)
            traffic = await meter.stop()
            lost = await meter.between(start, None)
            case.traffic(traffic, recovered=recovered)
            print(f"{lost.lost} of them lost from the start of the daemons on; key {key}")
            assert traffic.repeated == 0
            assert await same_preshared_key(lab, "fra", "ams")


async def switch_off(site: Site) -> None:
    """Take away what a reboot takes of a site whose daemon is dead."""
    await site.run(["ip", "link", "delete", "wg0"])
    for family in ("-4", "-6"):
        await site.run(["ip", family, "route", "flush", "proto", "157"], check=False)
    for name in ("vpnd", "wireguard"):
        for path in (site.folder / "run" / name).iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

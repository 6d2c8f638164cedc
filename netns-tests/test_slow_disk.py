"""A disk that takes its time holds up who wants something written on it, and no link.

fra-host ── fra ══ internet ══ ams ── ams-host      counted
             ╚═══════╩════════ lon                  removed and added, while the disk is slow
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from linking import THREE, counted, linked
from report import Case

from vpnd_lab.lab import Lab
from vpnd_lab.patience import patient
from vpnd_lab.proof import installed, wait_new_key
from vpnd_lab.site import Site

pytestmark = pytest.mark.netns


async def test_a_slow_disk_delays_no_exchange(case: Case, tmp_path: Path) -> None:
    """`peer set`, `peer remove` and `peer add` wait for the disk; meanwhile another link renews
    its key and the status is told. Then all of it is done, and the file is whole."""
    disk = trio.Path(tmp_path / "busy")
    slow = [sys.executable, str(Path(__file__).parent / "slow_disk_vpnd.py")]
    async with linked(THREE) as lab, counted(lab) as meter:
        fra = lab.site("fra")
        await fra.stop_daemon()
        await fra.start_daemon(program=slow, env={"VPND_TEST_DISK": str(disk)})
        await fra.wait_state("ams", "active")
        file = fra.config_path.parent / "peers.d" / "lon.toml"

        async def change() -> None:
            await fra.vpnctl("peer", "set", "lon", "--keepalive", "7")

        async def remove() -> None:
            await fra.vpnctl("peer", "remove", "lon")

        async def add() -> None:
            await lab.add_peer("fra", "lon")

        for work in (change, remove, add):
            await while_it_is_slow(lab, fra, disk, work)
            assert file.exists() == (work is not remove)
            if work is change:
                assert "keepalive = 7" in file.read_text()
        assert [each.name for each in file.parent.iterdir() if each.name.startswith(".")] == []
        await fra.wait_state("lon", "active")
        await meter.wait_received(20)
        traffic = await meter.stop()
        case.traffic(traffic)
        assert traffic.lost == traffic.repeated == 0
        assert "internal_error" not in fra.daemon_log.read_text()


async def while_it_is_slow(
    lab: Lab, site: Site, disk: trio.Path, work: Callable[[], Awaitable[None]]
) -> None:
    """Begin the work on a disk that stands still, and renew another link's key before it ends."""
    said = site.daemon_log.read_text().count("slow_disk_vpnd: waiting")
    done = trio.Event()

    async def do() -> None:
        await work()
        done.set()

    async with trio.open_nursery() as nursery:
        await disk.touch()
        try:
            nursery.start_soon(do)
            with trio.fail_after(patient(30)):
                while site.daemon_log.read_text().count("slow_disk_vpnd: waiting") == said:  # noqa: ASYNC110  # a log
                    await trio.sleep(0.05)
            before = await installed(lab, "fra", "ams")
            await lab.site("ams").vpnctl("peer", "rekey", "fra")
            await wait_new_key(lab, "fra", "ams", before=before)
            assert not done.is_set()
        finally:
            with trio.CancelScope(shield=True):  # else the daemon waits for ever
                await disk.unlink()
    assert done.is_set()

"""Labs with daemons: they start, are linked, are killed, and are gone with the lab."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vpnd_lab import DaemonFailed, LabError, WaitTimeout, commands
from vpnd_lab.pytest_plugin import LabFactory
from vpnd_lab.state import LabState
from vpnd_lab.teardown import members

pytestmark = pytest.mark.netns

BACKEND = os.environ.get("VPND_TEST_BACKEND", "userspace")
TWO_SITES = f"""
[sites.fra]
[sites.ams]
[tunnels.backbone]
backend = "{BACKEND}"
"""


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A folder for labs, out of the way of other tests' cleaning; empty again after a failure."""
    yield tmp_path / "labs"
    for left in commands.status(root=tmp_path / "labs"):
        commands.down(left["name"], root=tmp_path / "labs")


def names(state: LabState) -> list[str]:
    """The programs that run in a lab."""
    return sorted(Path(f"/proc/{p.pid}/comm").read_text().strip() for p in members(state))


async def test_linked_sites_and_a_killed_daemon(lab_factory: LabFactory) -> None:
    async with lab_factory(TWO_SITES, start="links") as lab:
        fra, ams = lab.site("fra"), lab.site("ams")
        await fra.wait_state("ams", "installed", "active")
        for family in (4, 6):
            address = lab.node("ams-host").address(4 if family == 4 else 6)
            await lab.node("fra-host").run(["ping", "-c1", "-W10", str(address)])
        assert (await fra.wait_state("ams", "active"))["peer"] == "ams"
        assert (await fra.vpnctl("status", "ams"))["schema"] == 1
        first = fra.daemon
        with pytest.raises(LabError, match="runs already"):
            await fra.start_daemon()
        await fra.kill_daemon(signal.SIGKILL)
        assert fra.daemon is None
        with pytest.raises(DaemonFailed, match="no daemon runs in fra"):
            await fra.kill_daemon()
        with pytest.raises(WaitTimeout, match="fra: the link to ams is not active after"):
            await fra.wait_state("ams", "active", seconds=0.1)
        # The data plane outlives the daemon.
        address = lab.node("fra-host").address(6)
        await lab.node("ams-host").run(["ping", "-c1", "-W10", str(address)])
        assert await fra.start_daemon() != first
        await fra.wait_state("ams", "active")
        await ams.stop_daemon()
        state = LabState.load(lab.folder)
        assert "vpnd" in names(state)
    assert members(state) == set()


def test_daemons_and_data_planes_are_gone_after_a_crash(root: Path) -> None:
    program = """if True:
        import math, sys, trio, vpnd_lab
        async def main():
            spec = vpnd_lab.LabSpec.parse(sys.argv[1])
            async with vpnd_lab.open_lab(spec, name="crash", start="links") as opened:
                await opened.site("fra").wait_state("ams", "installed", "active")
                print("ready", flush=True)
                await trio.sleep(math.inf)
        trio.run(main)
    """
    with subprocess.Popen(
        [sys.executable, "-c", program, TWO_SITES],
        env={**os.environ, "VPND_LAB_ROOT": str(root)},
        stdout=subprocess.PIPE,
        text=True,
    ) as harness:
        try:
            assert harness.stdout is not None
            assert harness.stdout.readline() == "ready\n"
        finally:
            harness.kill()
    state = LabState.load(root / "crash")
    assert names(state).count("vpnd") == 2
    if BACKEND == "userspace":
        assert names(state).count("wireguard-go") == 2
    commands.down("crash", root=root)
    assert members(state) == set()
    assert not root.exists()

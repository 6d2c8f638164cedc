"""Whatever kills a harness, its lab can be taken away, and nothing else is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vpnd_lab import LabError, LabSpec, commands, open_lab
from vpnd_lab.process import ProcessId
from vpnd_lab.state import LabState, NodeState, boot_id, claim, locked
from vpnd_lab.teardown import members

pytestmark = pytest.mark.netns

# Opens a lab, starts what is hardest to find in it, and waits for the end.
HARNESS = """
import math, sys, trio, vpnd_lab
async def main():
    spec = vpnd_lab.LabSpec.parse("[sites.fra]\\n[sites.ams]")
    async with vpnd_lab.open_lab(spec, name="crash") as opened:
        # Its own session, no environment, no parent left: as a data plane that outlives a daemon.
        hidden = "env -i setsid -f sleep 1000 < /dev/null > /dev/null 2>&1"
        await opened.site("fra").run(["sh", "-c", hidden])
        # A namespace of its own within the site's.
        inner = "unshare --net setsid -f sleep 1000 < /dev/null > /dev/null 2>&1"
        await opened.site("ams").run(["sh", "-c", inner])
        print("ready", flush=True)
        await trio.sleep(math.inf)
trio.run(main)
"""


@contextmanager
def harness(root: Path) -> Iterator[subprocess.Popen[str]]:
    """The harness as a process of its own, killed at the latest at the block's end."""
    with subprocess.Popen(
        [sys.executable, "-c", HARNESS],
        env={**os.environ, "VPND_LAB_ROOT": str(root)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for_lab(root: Path, stage: str) -> LabState:
    """Wait until the state file says that the lab has come so far."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            state = LabState.load(root / "crash")
        except LabError:
            continue
        nodes = state.nodes.values()
        if stage == "claimed" or (
            nodes and all(getattr(node, stage) is not None for node in nodes)
        ):
            return state
    raise TimeoutError(stage)


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A folder for labs, out of the way of other tests' cleaning; empty again after a failure."""
    yield tmp_path / "labs"
    for left in commands.status(root=tmp_path / "labs"):
        commands.down(left["name"], root=tmp_path / "labs")


def test_down_after_kill_leaves_nothing(root: Path) -> None:
    with harness(root) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        state = LabState.load(root / "crash")
        assert len(members(state)) == 7
        process.kill()
    # It stands, without its harness, until somebody takes it away.
    assert len(members(state)) == 7
    (shown,) = commands.status(root=root)
    assert shown["state"] == "abandoned"
    assert commands.down("crash", root=root)["processes_ended"] == 7
    assert members(state) == set()
    assert not root.exists()


async def test_the_next_start_takes_the_rest_away(root: Path) -> None:
    with harness(root) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        state = LabState.load(root / "crash")
        process.kill()
    async with open_lab(LabSpec.parse("[sites.fra]"), root=root) as lab:
        assert sorted(os.listdir(root)) == [".lock", lab.name]
        assert members(state) == set()
    assert not os.path.exists(root)  # noqa: ASYNC240 nothing else runs here


@pytest.mark.parametrize("stage", ["claimed", "holder", "netns"])
def test_killed_while_building(root: Path, stage: str) -> None:
    with harness(root) as process:
        state = wait_for_lab(root, stage)
        process.kill()
        process.wait()
        state = LabState.load(root / "crash")
    commands.down("crash", root=root)
    assert members(state) == set()
    assert not root.exists()


def test_a_lab_whose_holders_were_killed_is_found_by_its_mark(root: Path) -> None:
    with harness(root) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        state = LabState.load(root / "crash")
        for node in state.nodes.values():
            assert node.holder is not None
            node.holder.send_signal(signal.SIGKILL)
        process.kill()
    left = [Path(f"/proc/{process.pid}/comm").read_text().strip() for process in members(state)]
    # On a busy machine, setsid has not become the other program yet
    assert len(left) == 2
    assert set(left) <= {"sleep", "setsid"}
    commands.down("crash", root=root)
    assert members(state) == set()


def test_processes_of_others_are_never_ended(root: Path) -> None:
    """A state file that names a pid which is now another's, and the host's own namespace."""
    with subprocess.Popen(["sleep", "1000"]) as other:
        try:
            process = ProcessId.of(other.pid)
            with locked(root):
                state = claim(root, "wrong", owner=None)
            elder = ProcessId(other.pid, process.start_time - 1)
            own = os.stat("/proc/self/ns/net").st_ino
            state.nodes["a"] = NodeState("site", holder=elder, netns=own)
            state.nodes["b"] = NodeState("site", holder=ProcessId(2**22, 1), netns=own)
            state.save()
            assert members(state) == set()
            assert commands.down("wrong", root=root)["processes_ended"] == 0
            assert process.alive()
            # And of another boot: not even the right pid and start time.
            with locked(root):
                state = claim(root, "wrong", owner=None)
            document = json.loads((root / "wrong/state.json").read_text())
            assert document["boot_id"] == boot_id()
            state.boot_id = "another"
            state.nodes["a"] = NodeState("site", holder=process, netns=own)
            state.save()
            assert commands.down("wrong", root=root)["processes_ended"] == 0
            assert process.alive()
        finally:
            other.kill()


def test_taking_down_from_inside_is_refused(root: Path) -> None:
    with harness(root) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        program = "from vpnd_lab import commands; commands.down('crash')"
        os.environ["VPND_LAB_ROOT"] = str(root)
        try:
            code = commands.exec("crash", "fra", [sys.executable, "-c", program])
        finally:
            del os.environ["VPND_LAB_ROOT"]
        assert code == 1
        assert len(members(LabState.load(root / "crash"))) == 7
        process.send_signal(signal.SIGINT)
        process.wait(timeout=120)
    assert not root.exists()

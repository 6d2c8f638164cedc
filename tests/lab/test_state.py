"""The state file, the lock and process identities: without root, without namespaces."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from vpnd_lab import commands
from vpnd_lab.errors import LabError
from vpnd_lab.process import ProcessId, kill_all
from vpnd_lab.state import LabState, NodeState, claim, find, locked


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    with locked(tmp_path):
        state = claim(tmp_path, "one", owner=ProcessId.of(os.getpid()))
    state.nodes["fra"] = NodeState("site", ["10.0.0.1/24"], ProcessId(1, 2), 3, ProcessId(4, 5))
    state.nodes["r"] = NodeState("router")
    state.save()
    assert LabState.load(tmp_path / "one") == state
    assert find(tmp_path) == [state]
    assert not state.abandoned


def test_a_name_is_taken_once(tmp_path: Path) -> None:
    with locked(tmp_path):
        claim(tmp_path, "one", owner=None)
        with pytest.raises(LabError, match=r"already a lab one .*lab down one"):
            claim(tmp_path, "one", owner=None)


@pytest.mark.parametrize("name", ["", ".", "..", "../one", "a/b", "-a", "A", "a\n", "a" * 41])
def test_a_name_is_never_a_path(tmp_path: Path, name: str) -> None:
    with locked(tmp_path), pytest.raises(LabError, match="cannot be the name of a lab"):
        claim(tmp_path, name, owner=None)
    with pytest.raises(LabError, match="cannot be the name of a lab"):
        commands.down(name, root=tmp_path)


def test_a_claim_that_was_killed_halfway_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    with locked(tmp_path):
        assert claim(tmp_path, "one", owner=None).name == "one"


def test_a_lab_of_another_boot_or_a_dead_harness_is_abandoned(tmp_path: Path) -> None:
    with locked(tmp_path):
        state = claim(tmp_path, "one", owner=ProcessId.of(os.getpid()))
    assert not state.abandoned
    state.owner = ProcessId(os.getpid(), 1)  # our pid, but not our start time
    assert state.abandoned
    state.owner = None
    assert not state.abandoned
    state.boot_id = "another"
    assert state.abandoned


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 1}', '{"schema": 99}'])
def test_a_damaged_state_file_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "state.json").write_text(text)
    with pytest.raises(LabError, match=r"state\.json"):
        LabState.load(tmp_path / "one")


def test_the_lock_goes_with_the_last_lab_and_still_locks(tmp_path: Path) -> None:
    root = tmp_path / "labs"
    inside = 0
    most = 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(50):
            with locked(root):
                inside += 1
                most = max(most, inside)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert not root.exists()


def test_a_process_is_more_than_its_pid() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        process = ProcessId.of(child.pid)
        other = ProcessId(child.pid, process.start_time - 1)
        assert process.alive()
        assert not other.alive()
        with pytest.raises(ProcessLookupError):
            other.send_signal(signal.SIGKILL)
        assert kill_all([other], seconds=1) == []
        assert child.poll() is None
        assert kill_all([process], seconds=10) == []
        assert not process.alive()
    with pytest.raises(ProcessLookupError):
        ProcessId.of(child.pid)

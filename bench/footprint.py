"""Memory of a daemon with one peer and with many: vpnd's and Rosenpass's."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bench import rosenpass
from bench.links import HubFailed, run_hub
from bench.nodes import LOOPBACK, free_port
from bench.process import memory_of
from bench.result import NotRun, Row

GROUP: Final = "Memory"
PEERS: Final = (1, 200)
START_SECONDS: Final = 60.0


def measure() -> Iterator[Row | NotRun]:
    for peers in PEERS:
        try:
            vpnd = run_hub(peers, 0)["memory"]
        except HubFailed as failed:
            yield NotRun(GROUP, str(failed))
            return
        yield Row(
            GROUP,
            f"a daemon with {peers} peer{'s' if peers > 1 else ''}",
            vpnd / 1e6,
            "MB",
            _rosenpass(peers) / 1e6,
            "Rosenpass",
            note="vpnd's peers are active; Rosenpass's are configured, and never spoken to"
            if peers > 1
            else "",
        )


def _rosenpass(peers: int) -> int:
    """Bytes resident of a daemon that has read the keys of so many peers."""
    with tempfile.TemporaryDirectory(prefix="vpnd-bench-") as name:
        folder = Path(name)
        keys = rosenpass.Keys.make(folder, "own")
        port = free_port()
        known = [
            rosenpass.peer(rosenpass.stranger(folder, f"p{number}"), folder / f"k{number}")
            for number in range(peers)
        ]
        daemon = subprocess.Popen(
            rosenpass.daemon(keys, f"{LOOPBACK}:{port}", *known), stdout=subprocess.DEVNULL
        )
        try:
            return _settled(daemon)
        finally:
            daemon.kill()
            daemon.wait()


def _settled(daemon: subprocess.Popen[bytes]) -> int:
    """Its memory once that has not grown for a second: the keys are read. Raises RuntimeError."""
    seen, since = 0, time.monotonic()
    until = since + START_SECONDS
    while time.monotonic() < min(until, since + 1) or seen == 0:
        if daemon.poll() is not None:
            raise RuntimeError(f"Rosenpass ended with {daemon.returncode}")
        if (now := memory_of(daemon.pid)) > seen:
            seen, since = now, time.monotonic()
        time.sleep(0.05)
    return seen

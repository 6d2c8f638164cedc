"""Many links in one daemon: what they cost, and whether anything has to wait for them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from bench.result import NotRun, Row

GROUP: Final = "1,000 links in one daemon"
LINKS: Final = 1000
INTERVAL: Final = 120
PATIENCE: Final = 600.0
OF_ITS_OWN: Final = (
    "unshare",
    *("--net", "--mount", "--pid", "--mount-proc", "--fork", "--kill-child"),
)


class HubFailed(Exception):
    """The daemon with many links did not do what it was to; the message says what it said."""


def measure() -> Iterator[Row | NotRun]:
    if os.geteuid() != 0:
        yield NotRun(GROUP, "network namespaces need root")
        return
    if shutil.which("wireguard-go") is None:
        yield NotRun(GROUP, "wireguard-go is not installed")
        return
    try:
        measured = run_hub(LINKS, INTERVAL)
    except HubFailed as failed:
        yield NotRun(GROUP, str(failed))
        return
    yield from _rows(measured)


def run_hub(links: int, seconds: float) -> Any:
    """Let the links come up, and look on for so long while they renew. Raises HubFailed."""
    done = subprocess.run(
        [*OF_ITS_OWN, sys.executable, "-m", "bench.hub", str(links), str(seconds)],
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        cwd=Path(__file__).resolve().parent.parent,
    )
    if done.returncode != 0:
        raise HubFailed(done.stderr[-3000:])
    return json.loads(done.stdout)


def _rows(measured: Any) -> Iterator[Row]:
    share = measured["cpu_seconds"] / measured["seconds"] * 100
    per_second = measured["renewals"] / measured["seconds"]
    by_clock, by_cpu = measured["pause_with_status"]
    memory = measured["memory"] / 1e6
    yield Row(GROUP, "from the start until all are active", measured["active_after"], "s")
    yield Row(
        GROUP,
        f"CPU of the daemon, {per_second:.1f} renewals a second",
        share,
        "% of a core",
        measured["wireguard_cpu_seconds"] / measured["seconds"] * 100,
        "wireguard-go",
        "≤ 5 %",
        share <= 5,
        f"{measured['seconds']:.0f} s of natural renewals at {INTERVAL} s, userspace WireGuard",
    )
    yield Row(
        GROUP,
        "renewals a second that one core could do",
        measured["renewals"] / measured["cpu_seconds"],
        "",
        LINKS / INTERVAL,
        "needed",
    )
    yield Row(GROUP, "memory of the daemon", memory, "MB", None, "", "≤ 150 MB", memory <= 150)
    yield Row(
        GROUP,
        "longest pause of the event loop, in its own CPU time",
        by_cpu,
        "ms",
        None,
        "",
        "≤ 50 ms",
        by_cpu <= 50,
        f"start, renewals and `vpnctl status` included; by the clock {by_clock:.0f} ms, with what "
        f"else the machine did (load {os.getloadavg()[0]:.1f})",
    )
    yield Row(GROUP, "vpnctl status, by the clock", measured["vpnctl_seconds"], "s")

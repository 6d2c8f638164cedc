"""The parts that need WireGuard in the kernel, in the emulator: `netns-tests/in-emulator`.

Absolute figures from there mean little, since every instruction is emulated where there is no KVM;
what stands beside each other was measured in there, too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from bench.report import Measured
from bench.result import NotRun, Row

GROUP: Final = "WireGuard in the kernel, in the emulator"
ROOT: Final = Path(__file__).resolve().parent.parent
PARTS: Final = ("throughput",)
SECONDS: Final = 1500


def measure() -> Iterator[Row | NotRun]:
    if os.geteuid() != 0:
        yield NotRun(GROUP, "network namespaces need root")
        return
    done = subprocess.run(
        [
            *(str(ROOT / "netns-tests" / "in-emulator"), "--timeout", str(SECONDS), "--"),
            *(sys.executable, "-m", "bench", "--json", *PARTS),
        ],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    if done.returncode != 0:
        yield NotRun(GROUP, _why(done.stderr) or f"exit status {done.returncode}")
        return
    yield from told(done.stdout)


def told(printed: str) -> Iterator[Row | NotRun]:
    """What `bench --json` printed in there, in its last line."""
    for part, document in json.loads(printed.strip().rpartition("\n")[2]).items():
        there = Measured.of_document(part, document)
        for row in there.rows:
            yield replace(row, group=GROUP)
        for gap in there.missing:
            yield NotRun(GROUP, f"{gap.group}: {gap.reason}")


def _why(said: str) -> str:
    """The emulator's own error, without the guest's console behind it; else the last words."""
    errors = [line for line in said.splitlines() if line.startswith("in-emulator: error:")]
    return errors[-1].partition("; ")[0] if errors else said.strip()[-1500:]

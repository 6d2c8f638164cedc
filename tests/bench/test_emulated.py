"""What `bench --json` prints in the emulator is read as it was measured there."""

from __future__ import annotations

import json

from bench.emulated import GROUP, told
from bench.report import Measured
from bench.result import NotRun, Row


def test_rows_and_gaps_come_through() -> None:
    row = Row("Throughput", "one stream", 120.0, "Mbit/s", 121.0, "by hand", "1.00", True, "why")
    measured = Measured("throughput", {"day": "2026-01-02"}, [row], [NotRun("CPU", "no clock")])
    printed = f"the guest is up\n{json.dumps({measured.part: measured.document()})}\n"
    there, gap = told(printed)
    assert isinstance(there, Row)
    assert (there.group, there.name, there.ratio) == (GROUP, row.name, row.ratio)
    assert (there.goal, there.met, there.note) == (row.goal, row.met, row.note)
    assert gap == NotRun(GROUP, "CPU: no clock")

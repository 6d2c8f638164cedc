"""The table of cases: what each test saw of its traffic, told at the end of the run.

    async def test_a_cut(case: Case) -> None:
        ...
        case.result(sent=traffic.sent, lost=traffic.lost, repeated=traffic.repeated, recovered=3.2)

`case` is a fixture (conftest.py). A row is a property of the test: it comes through from the
processes of pytest-xdist, and stands in the JUnit XML as well.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vpnd_lab.meter import Report

PROPERTY = "case"
HEADER = ("case", "backend", "sent", "lost", "repeated", "recovered")
TITLE = "traffic, case by case"


class Case:
    """Takes down what one test saw; a test may tell several results, each with a name."""

    def __init__(self, test: str, record: Callable[[str, object], None]) -> None:
        """`test`: the name it has in the table; `record`: pytest's record_property."""
        self._test = test
        self._record = record

    def result(
        self,
        name: str = "",
        *,
        sent: int,
        lost: int,
        repeated: int,
        recovered: float | None = None,
    ) -> None:
        """One row. `recovered`: seconds until traffic passed again, where it was interrupted."""
        row = {
            "case": f"{self._test}: {name}" if name else self._test,
            "backend": os.environ.get("VPND_TEST_BACKEND", "userspace"),
            "sent": str(sent),
            "lost": str(lost),
            "repeated": str(repeated),
            "recovered": "" if recovered is None else f"{recovered:.1f} s",
        }
        self._record(PROPERTY, json.dumps(row))
        # For who looks at this one test: pytest shows it where the test fails, or with -s.
        print("  ".join(value for value in row.values() if value))

    def traffic(self, report: Report, name: str = "", *, recovered: float | None = None) -> None:
        """One row, from what the meter counted."""
        self.result(
            name,
            sent=report.sent,
            lost=report.lost,
            repeated=report.repeated,
            recovered=recovered,
        )


def table(properties: Iterable[tuple[str, Any]]) -> list[str]:
    """The lines of the table of all rows among these properties; none where there is no row."""
    found = [json.loads(value) for key, value in properties if key == PROPERTY]
    if not found:
        return []
    rows = [HEADER, *sorted(tuple(row[column] for column in HEADER) for row in found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if number < 2 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]

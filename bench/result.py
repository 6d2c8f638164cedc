"""What a measurement gives, and how it is shown."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. `reference` is in the same unit; the ratio of both is what can be compared."""

    group: str
    name: str
    value: float
    unit: str
    reference: float | None = None
    reference_name: str = ""
    goal: str = ""
    met: bool | None = None
    note: str = ""
    paired: float | None = None
    """The median of the ratios of pairs, where both were measured in pairs."""

    @property
    def ratio(self) -> float | None:
        if self.paired is not None:
            return self.paired
        return self.value / self.reference if self.reference else None


@dataclass(frozen=True, slots=True)
class NotRun:
    """A measurement that could not be made here, and why."""

    group: str
    reason: str


def cpu_seconds(call: Callable[[], object], *, count: int, rounds: int = 5) -> float:
    """CPU time of one call: the median over rounds of the mean over `count` calls.

    CPU of this process, not time by the clock: the machine may be busy with other things.
    """
    call()
    means = []
    for _ in range(rounds):
        before = time.process_time()
        for _ in range(count):
            call()
        means.append((time.process_time() - before) / count)
    return statistics.median(means)


def table(rows: Sequence[Row], missing: Sequence[NotRun]) -> str:
    """The figures as a Markdown table for each group."""
    lines: list[str] = []
    groups = [*(row.group for row in rows), *(gap.group for gap in missing)]
    for group in dict.fromkeys(groups):
        lines += ["", f"## {group}", ""]
        of_group = [row for row in rows if row.group == group]
        if of_group:
            lines += [
                "| what | measured | beside it | ratio | goal | |",
                "|---|---:|---:|---:|---|---|",
                *map(_line, of_group),
            ]
            lines += [f"\n{row.name}: {row.note}" for row in of_group if row.note]
        lines += [f"not run: {gap.reason}" for gap in missing if gap.group == group]
    return "\n".join(lines[1:]) + "\n"


def _line(row: Row) -> str:
    reference = ratio = ""
    if row.reference is not None and row.ratio is not None:
        reference = f"{number(row.reference)} {row.unit} ({row.reference_name})"
        ratio = f"{row.ratio:.2f}"
    verdict = {None: "", True: "met", False: "**not met**"}[row.met]
    measured = f"{number(row.value)} {row.unit}"
    return f"| {row.name} | {measured} | {reference} | {ratio} | {row.goal} | {verdict} |"


def number(value: float) -> str:
    """Three figures that count; whole numbers whole."""
    if value == int(value) or value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"

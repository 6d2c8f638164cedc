"""What holds for all tests of this folder: the table of cases (report.py)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from report import TITLE, Case, table


@pytest.fixture
def case(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Case:
    """Takes down what this test sees of its traffic, for the table at the end of the run."""
    name: str = request.node.name
    return Case(name.removeprefix("test_").replace("_", " "), record_property)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    properties = [
        each
        for reports in terminalreporter.stats.values()
        for report in reports
        if isinstance(report, pytest.TestReport) and report.when == "call"
        for each in report.user_properties
    ]
    if lines := table(properties):
        terminalreporter.section(TITLE)
        for line in lines:
            terminalreporter.write_line(line)

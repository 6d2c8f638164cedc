"""What holds for all tests of this folder: their order, and the table of cases (report.py)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

import pytest
from report import TITLE, Case, table

from lab import fork_server


@pytest.fixture
def case(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Case:
    """Takes down what this test sees of its traffic, for the table at the end of the run."""
    name: str = request.node.name
    return Case(name.removeprefix("test_").replace("_", " "), record_property)


def pytest_configure(config: pytest.Config) -> None:
    """One fork server (lab.fork_server) for all workers of pytest-xdist."""
    controls_workers = config.getoption("numprocesses", None) and not hasattr(config, "workerinput")
    if controls_workers and os.environ.get(fork_server.ENVIRONMENT) == "1":
        stack = contextlib.ExitStack()
        stack.enter_context(fork_server.sharing())
        config.add_cleanup(stack.close)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Cases first: they wait minutes for a handshake, and the others run meanwhile."""
    items.sort(key=lambda item: "case" not in getattr(item, "fixturenames", ()))


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

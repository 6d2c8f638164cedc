"""What holds for all tests of this folder: their order, and the table of cases (report.py)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from report import TITLE, Case, table
from xdist.remote import Producer  # type: ignore[import-untyped]
from xdist.scheduler import (  # type: ignore[import-untyped]
    LoadScopeScheduling,
    Scheduling,
)

from lab import fork_server

TOGETHER = ("test_tun_backends", "test_tun_routes", "test_tun_tunnel")
"""Modules whose tests share sites, and their processes: each worker would start them anew."""


class _Scheduling(LoadScopeScheduling):  # type: ignore[misc]
    """The tests of a module of TOGETHER go to one worker, and those first; others one by one."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return file if Path(file).stem in TOGETHER else nodeid


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


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling:
    return _Scheduling(config, log)


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

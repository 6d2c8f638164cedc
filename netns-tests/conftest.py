"""What holds for all tests of this folder: their order, and the table of cases (report.py)."""

from __future__ import annotations

import argparse
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

from vpnd_lab import fork_server

TOGETHER = ("test_tun_backends", "test_tun_routes", "test_tun_tunnel")
"""Modules whose tests share sites, and their processes: each worker would start them anew."""


def _scope(nodeid: str) -> str:
    """What is not divided: a module of TOGETHER, or else a single test."""
    file = nodeid.partition("::")[0]
    return file if Path(file).stem in TOGETHER else nodeid


class _Scheduling(LoadScopeScheduling):  # type: ignore[misc]
    """The tests of a module of TOGETHER go to one worker, and those first; others one by one."""

    def _split_scope(self, nodeid: str) -> str:
        return _scope(nodeid)


@pytest.fixture
def case(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Case:
    """Takes down what this test sees of its traffic, for the table at the end of the run."""
    name: str = request.node.name
    return Case(name.removeprefix("test_").replace("_", " "), record_property)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--part",
        type=_part,
        default=(1, 1),
        metavar="N/M",
        help="run the Nth of M parts of the tests, as on one of several machines",
    )


def _part(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError("is not of the form 1/2")
    return int(number), int(count)


def pytest_configure(config: pytest.Config) -> None:
    """One fork server (vpnd_lab.fork_server) for all workers of pytest-xdist."""
    controls_workers = config.getoption("numprocesses", None) and not hasattr(config, "workerinput")
    if controls_workers and os.environ.get(fork_server.ENVIRONMENT) == "1":
        stack = contextlib.ExitStack()
        stack.enter_context(fork_server.sharing())
        config.add_cleanup(stack.close)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling:
    return _Scheduling(config, log)


@pytest.hookimpl(trylast=True)  # After -m and -k, so that the parts are of what is left
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Cases first: they wait minutes for a handshake, and the others run meanwhile."""
    items.sort(key=lambda item: "case" not in getattr(item, "fixturenames", ()))
    number, count = config.getoption("--part")
    scopes = list(dict.fromkeys(_scope(item.nodeid) for item in items))
    kept = set(scopes[number - 1 :: count])
    config.hook.pytest_deselected(items=[i for i in items if _scope(i.nodeid) not in kept])
    items[:] = [item for item in items if _scope(item.nodeid) in kept]


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

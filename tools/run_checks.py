"""Runs the project's checks and tests side by side and sums them up: `make test` and its kin.

Checks stand in lanes. Lanes of one stage run at the same time, the checks of one lane after each
other; a stage begins when the one before has ended. A check that fails stops nothing: at the end
one table tells it all. Exit status 0 only if every check passed.

What a check prints is passed on line by line behind its name.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from priority import share_as_nice

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / ".setup" / "results"
SHORT_FOLDER = tempfile.mkdtemp(prefix="vpnd-")
"""Where the labs of tests lie: a socket's path has at most 107 bytes, and pytest's are long."""
BIN = ROOT / ".venv" / "bin"

MINUTE = 60.0
LINES_OF_A_FAILURE = 25
EXIT_NO_TESTS = 5  # pytest's
EXIT_INTERRUPTED = 130  # what a shell shows after Ctrl-C
SIDE_BY_SIDE = "-n10"
"""Tests that wait two minutes for a WireGuard handshake cost little but time: they wait as one."""
GUESTS = 2
"""Emulated machines, of one processor each, and the tests that run side by side in one of them."""
SIDE_BY_SIDE_IN_GUEST = "-n4"
NICE = 19
"""Of what others shall not be disturbed by: nothing in it depends on how soon it is done."""


@dataclass(frozen=True)
class Check:
    """One program to run.

    `results`: where it writes JUnit XML, if it runs tests. `nice`: how much it leaves to others.
    """

    name: str
    command: tuple[str, ...]
    timeout: float
    environment: Mapping[str, str] = field(default_factory=dict)
    results: Path | None = None
    nice: int = 0


@dataclass(frozen=True)
class Outcome:
    """How a check ended. Counts are of tests; a check that is not made of tests counts as one."""

    check: Check
    seconds: float
    passed: int
    failed: int
    skipped: int
    trouble: str | None
    failures: Sequence[Failure] = ()
    skips: Mapping[str, int] = field(default_factory=dict)
    """Why tests were not run, and how many each."""


@dataclass(frozen=True)
class Failure:
    """A test that failed, and the last lines of what it said."""

    test: str
    said: str


Lane = Sequence[Check]
Stage = Sequence[Lane]


# ---------------------------------------------------------------- what is run


def static_checks() -> list[Check]:
    """What needs no test to be run. In the order of how soon they answer."""
    return [
        Check("ruff format", (f"{BIN}/ruff", "format", "--check", "."), 2 * MINUTE),
        Check("ruff check", (f"{BIN}/ruff", "check", "."), 2 * MINUTE),
        Check("import rules", (f"{BIN}/lint-imports",), 2 * MINUTE),
        Check("mypy", (f"{BIN}/mypy",), 10 * MINUTE),
    ]


def pytest(name: str, folder: str, *options: str, timeout: float, **environment: str) -> Check:
    """A run of pytest over `folder` whose results can be counted."""
    results = RESULTS / f"{name.replace(' ', '-')}.xml"
    return Check(
        name,
        (f"{BIN}/pytest", folder, f"--junitxml={results}", "--color=no", *options),
        timeout,
        environment,
        results,
    )


def in_emulator(check: Check) -> Check:
    """The same check on an emulated machine with kernel WireGuard."""
    emulator = (
        str(ROOT / "netns-tests/in-emulator"),
        # A little less than the check's own time, so that the guest's end is told by its runner.
        f"--timeout={check.timeout - 30:.0f}",
        f"--writable={RESULTS}",
        "--",
    )
    return Check(
        check.name, emulator + check.command, check.timeout, check.environment, check.results
    )


def nicely(check: Check) -> Check:
    """The same check, which leaves the processors to others that want them."""
    return replace(check, nice=NICE)


def stages(mode: str) -> list[Stage]:
    """What `mode` (fast, full, long) is made of."""
    if mode == "fast":
        tests = pytest(
            "tests",
            "tests",
            "-q",
            "-n2",
            "-m",
            "not slow and not long and not netns",
            timeout=5 * MINUTE,
            # Fewer examples of the explorations and simulations
            VPND_TEST_FAST="1",
        )
        return [[static_checks(), [tests]]]
    long = mode == "long"
    factor = 4 if long else 1
    also = () if long else ("-m", "not long")
    tests = pytest("tests", "tests", "-q", "-n2", *also, timeout=factor * 40 * MINUTE)
    userspace = pytest(
        "netns userspace",
        "netns-tests",
        "-v",
        SIDE_BY_SIDE,
        f"--basetemp={SHORT_FOLDER}/t",
        *also,
        timeout=factor * 25 * MINUTE,
        VPND_TEST_BACKEND="userspace",
    )
    guests = [
        in_emulator(
            pytest(
                f"netns kernel {number}",
                "netns-tests",
                "-v",
                SIDE_BY_SIDE_IN_GUEST,
                f"--part={number}/{GUESTS}",
                *("-m", "kernel or kernel_long" if long else "kernel and not long"),
                timeout=factor * 50 * MINUTE,
            )
        )
        for number in range(1, GUESTS + 1)
    ]
    # The namespace tests on this machine count lost packets and seconds: what shares it with them
    # takes what they leave. The guests' world is slower, and their tests wait longer accordingly.
    rest = [nicely(check) for check in (*static_checks(), tests)]
    return [[[guest] for guest in guests], [[userspace], rest]]


# ---------------------------------------------------------------- running


class Printer:
    """Lines of several programs on one standard output, whole and each with its origin."""

    def __init__(self, names: Sequence[str]) -> None:
        self._lock = threading.Lock()
        self._width = max(map(len, names))

    def line(self, origin: str, text: str) -> None:
        with self._lock:
            print(f"{origin:<{self._width}} | {text}".rstrip(), flush=True)


class Running:
    """The programs that run just now, so that an interruption can end them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._processes: set[subprocess.Popen[str]] = set()
        self._stopped = False

    def start(self, check: Check) -> subprocess.Popen[str]:
        """Starts the check's program. Raises Interrupted after `stop`."""
        with self._lock:
            if self._stopped:
                raise Interrupted
            process = subprocess.Popen(
                # If this program dies, the check is told to end and cleans up after itself.
                ("setpriv", "--pdeathsig", "INT", "nice", f"-n{check.nice}", *check.command),
                cwd=ROOT,
                env=environment(check),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
            share_as_nice(process.pid, check.nice)
            self._processes.add(process)
            return process

    def end(self, process: subprocess.Popen[str]) -> None:
        """Makes sure that the program has ended."""
        end(process)
        with self._lock:
            self._processes.discard(process)

    def stop(self) -> None:
        """Ends what runs and lets nothing start any more."""
        with self._lock:
            self._stopped = True
            processes = list(self._processes)
        for process in processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT)
        for process in processes:
            end(process)


class Interrupted(Exception):
    """The run as a whole was interrupted before this check began."""


def run_check(check: Check, printer: Printer, running: Running) -> Outcome:
    """Runs one check to its end or to its time's end."""
    started = time.monotonic()
    if check.results is not None:
        check.results.unlink(missing_ok=True)
    printer.line(check.name, f"$ {shlex.join(short(check.command))}")
    process = running.start(check)
    overdue = threading.Timer(check.timeout, end, [process])
    overdue.start()
    try:
        assert process.stdout is not None  # noqa: S101  # Popen was given a pipe
        for line in process.stdout:
            printer.line(check.name, line.rstrip())
        status = process.wait()
    finally:
        timed_out = not overdue.is_alive()
        overdue.cancel()
        running.end(process)
    seconds = time.monotonic() - started
    if timed_out:
        trouble: str | None = f"not done within {check.timeout:.0f} s"
    elif status == EXIT_NO_TESTS and check.results is not None:
        trouble = "found no test to run"
    else:
        trouble = f"exit status {status}" if status else None
    outcome = counted(check, seconds, trouble)
    printer.line(check.name, f"{verdict(outcome)} in {seconds:.1f} s")
    return outcome


def environment(check: Check) -> dict[str, str]:
    """This program's environment with the check's own additions."""
    inherited = dict(os.environ)
    # Tests start the project's programs hundreds of times; each would compile it anew.
    inherited.pop("PYTHONDONTWRITEBYTECODE", None)
    return {**inherited, **check.environment}


def end(process: subprocess.Popen[str]) -> None:
    """Ends the check's own process group; first as Ctrl-C would, so that pytest cleans up."""
    for number, patience in ((signal.SIGINT, 30), (signal.SIGKILL, 5)):
        if process.poll() is not None:
            return
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience)


def short(command: Sequence[str]) -> list[str]:
    """The command as one would type it in the checkout."""
    return [part.replace(f"{ROOT}/", "") for part in command]


def counted(check: Check, seconds: float, trouble: str | None) -> Outcome:
    """The outcome with its tests counted; never without a failure when there was trouble."""
    if check.results is None:
        return Outcome(check, seconds, int(not trouble), int(bool(trouble)), 0, trouble)
    passed = failed = skipped = 0
    failures: list[Failure] = []
    skips: Mapping[str, int] = {}
    if check.results.exists():
        tree = ElementTree.parse(check.results)  # noqa: S314  # our own
        failures = failures_in(tree)
        skips = Counter(skip.get("message", "no reason given") for skip in tree.iter("skipped"))
        for suite in tree.iter("testsuite"):
            bad = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
            omitted = int(suite.get("skipped", 0))
            failed += bad
            skipped += omitted
            passed += max(0, int(suite.get("tests", 0)) - bad - omitted)
    if trouble is None and passed == 0:
        trouble = "no test ran"
    return Outcome(
        check,
        seconds,
        passed,
        max(failed, int(bool(trouble))),
        skipped,
        trouble,
        failures,
        skips,
    )


def failures_in(tree: ElementTree.ElementTree[ElementTree.Element]) -> list[Failure]:
    """The tests that failed, or whose preparation did."""
    failures = []
    for case in tree.iter("testcase"):
        for bad in (*case.findall("failure"), *case.findall("error")):
            said = (bad.text or bad.get("message") or "").strip().splitlines()
            failures.append(
                Failure(
                    f"{case.get('classname', '')}::{case.get('name', '')}",
                    "\n".join(said[-LINES_OF_A_FAILURE:]),
                )
            )
    return failures


def run_lane(lane: Lane, printer: Printer, running: Running, outcomes: list[Outcome]) -> None:
    with suppress(Interrupted):
        for check in lane:
            outcomes.append(run_check(check, printer, running))  # list.append is atomic


def run_stages(todo: Sequence[Stage]) -> list[Outcome]:
    """Runs it all. KeyboardInterrupt ends every program before it passes."""
    printer = Printer([check.name for stage in todo for lane in stage for check in lane])
    running = Running()
    outcomes: list[Outcome] = []
    try:
        for stage in todo:
            threads = [
                threading.Thread(target=run_lane, args=(lane, printer, running, outcomes))
                for lane in stage
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    except KeyboardInterrupt:
        running.stop()
        raise
    return outcomes


# ---------------------------------------------------------------- summing up


def verdict(outcome: Outcome) -> str:
    return f"FAILED: {outcome.trouble}" if outcome.trouble else "passed"


def tests_in_words(outcome: Outcome) -> str:
    if outcome.check.results is None:
        return ""
    parts = [f"{outcome.passed} passed"]
    if outcome.failed:
        parts.append(f"{outcome.failed} failed")
    if outcome.skipped:
        parts.append(f"{outcome.skipped} skipped")
    return ", ".join(parts)


def print_summary(outcomes: Sequence[Outcome], seconds: float) -> None:
    """What failed, a table, and a last line that counts every test and every other check once.

    A log is often read from its end, and may be cut: failures are told once more, close to it.
    """
    width = max(len(outcome.check.name) for outcome in outcomes)
    for outcome in outcomes:
        for failure in outcome.failures:
            print(f"\n{outcome.check.name}: FAILED {failure.test}")
            print(textwrap.indent(failure.said, "    "))
    print()
    for outcome in outcomes:
        words = tests_in_words(outcome)
        print(
            f"  {outcome.check.name:<{width}}  {outcome.seconds:7.1f} s  {verdict(outcome)}"
            + (f" ({words})" if words else "")
        )
        for reason, count in outcome.skips.items():
            print(f"  {'':<{width}}  not run: {count}, {reason}")
    print(f"  {'all together':<{width}}  {seconds:7.1f} s\n")
    passed, failed, skipped = (
        sum(getattr(outcome, kind) for outcome in outcomes)
        for kind in ("passed", "failed", "skipped")
    )
    print(f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the project's checks and tests.")
    parser.add_argument("mode", choices=("fast", "full", "long"))
    mode = parser.parse_args().mode
    if mode != "fast" and os.geteuid() != 0:
        print("test: error: network namespaces need root", file=sys.stderr)
        print("test: hint: run as root, or only the rest: make test-fast", file=sys.stderr)
        return 1
    RESULTS.mkdir(parents=True, exist_ok=True)
    # Whoever ends this program politely wants the same as who presses Ctrl-C. A shell starts what
    # is to run in the background with SIGINT ignored, and all that a check starts would ignore it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    started = time.monotonic()
    try:
        outcomes = run_stages(stages(mode))
    except KeyboardInterrupt:
        print("test: error: interrupted; what ran was ended", file=sys.stderr)
        return EXIT_INTERRUPTED
    finally:
        shutil.rmtree(SHORT_FOLDER, ignore_errors=True)
    print_summary(outcomes, time.monotonic() - started)
    return int(any(outcome.trouble for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())

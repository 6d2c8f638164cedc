#!/usr/bin/env python3
"""Run ProVerif over the models in this folder and say whether every query gave what it has to.

    make prove                                  all cases but the long ones
    docs/formal/prove.py [CASE ...]             some of them, by name
    PROVERIF=/path/to/proverif make prove       where it is not on PATH

Exit status: 0 if all is as expected, 1 if not, 2 for a wrong command line, 3 without ProVerif.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import selectors
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Final

import proof_output
import proof_results
import proof_tables
from proof_cases import CASES, HERE, Case
from proof_results import Result

EXIT_NO_PROVERIF: Final = 3
VERSION: Final = "2.05"
MAX_OUTPUT: Final = 64 * 1024 * 1024
"""Bytes; a derivation that is told in full has some megabytes."""
LIMIT: Final = 600.0
"""Seconds of one case."""
HOW_TO_GET_IT: Final = f"""\
ProVerif {VERSION} is needed to run the proofs, and there is none on PATH. To get it:
    apt install opam && opam init && opam install proverif.{VERSION} && eval $(opam env)
or name the program: PROVERIF=/path/to/proverif make prove
What the proofs gave when they were run last is in docs/formal/README.md."""


class Stop(Enum):
    """Why a program was ended before its own end."""

    TIME = auto()
    OUTPUT = auto()


@dataclass(frozen=True)
class Run:
    """A result, and what went wrong besides; with errors it is no result to keep.

    `note`: that it was stopped at its limit, which leaves queries undecided and is no error.
    """

    result: Result
    errors: tuple[str, ...] = ()
    note: str = ""

    def as_expected(self, case: Case) -> bool:
        return not self.errors and proof_output.as_expected(self.result.got, case.expected)


# ---- one run


def run(case: Case, proverif: str, *, limit: float = LIMIT, version: str = VERSION) -> Run:
    """Run one case. What ProVerif started is ended when its time or its output is over."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    text, status, stop = _output_of(case.command(proverif), limit)
    wall = time.monotonic() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = proof_output.read(text)
    errors = list(found.errors)
    if stop is Stop.OUTPUT:
        errors.append(f"stopped after {MAX_OUTPUT >> 20} MiB of output")
    elif stop is None and status != 0:
        errors.append(f"exit status {status}")
    queries = len(case.expected)
    if len(found.verdicts) > queries:
        errors.append(f"{len(found.verdicts)} verdicts for {queries} queries")
    elif stop is None and len(found.verdicts) < queries:
        errors.append(f"only {len(found.verdicts)} verdicts for {queries} queries")
    return Run(
        Result(
            inputs=case.digest(),
            proverif=version,
            got=found.verdicts[:queries].ljust(queries, "-"),
            cpu=round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
            wall=round(wall, 1),
            limit=limit,
        ),
        tuple(errors),
        note=f"stopped after {limit:g} s" if stop is Stop.TIME else "",
    )


def _output_of(command: Sequence[str], limit: float) -> tuple[str, int, Stop | None]:
    """What a program prints, its exit status, and why it was stopped, if it was."""
    process = subprocess.Popen(
        command,
        cwd=HERE,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    if process.stdout is None:
        raise RuntimeError("Popen was given a pipe")
    deadline = time.monotonic() + limit
    with process.stdout as pipe:
        try:
            printed, stop = _read(pipe.fileno(), deadline)
            if stop is None:
                try:
                    process.wait(max(0.0, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    stop = Stop.TIME
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            status = process.wait()
    return printed.decode(errors="replace"), status, stop


def _read(descriptor: int, deadline: float) -> tuple[bytearray, Stop | None]:
    """Read a pipe to its end, to the deadline, or to as much as is taken."""
    printed = bytearray()
    with selectors.DefaultSelector() as waiting:
        waiting.register(descriptor, selectors.EVENT_READ)
        while len(printed) <= MAX_OUTPUT:
            left = deadline - time.monotonic()
            if left <= 0 or not waiting.select(left):
                return printed, Stop.TIME
            some = os.read(descriptor, 1 << 16)
            if not some:
                return printed, None
            printed += some
    return printed, Stop.OUTPUT


# ---- ProVerif itself


def find_proverif(named: str | None) -> str | None:
    """The program: as named in PROVERIF, else on PATH; None where there is none."""
    found = shutil.which(named or "proverif")
    return None if found is None else str(Path(found).absolute())


def version_of(proverif: str) -> str:
    """What `proverif -help` says of its version; empty if nothing."""
    text, _, _ = _output_of([proverif, "-help"], 10.0)
    found = re.search(r"proverif\s+(\d+(?:\.\w+)*)", text, re.IGNORECASE)
    return found.group(1) if found else ""


# ---- the command line


def chosen(names: Sequence[str], *, all_of_them: bool) -> dict[str, Case]:
    """The cases that are named, or those that are run by default. Raises KeyError."""
    if names:
        return {name: CASES[name] for name in names}
    return {name: case for name, case in CASES.items() if all_of_them or not case.long}


def verdict_line(name: str, case: Case, ran: Run, earlier: Result | None) -> str:
    """One case in one line, and what there is to say against it below."""
    result = ran.result
    whether = "as expected    " if ran.as_expected(case) else "NOT AS EXPECTED"
    lines = [f"{whether} {name}: {result.got}, {result.cpu} s"]
    lines += [f"    {said}" for said in (*ran.errors, ran.note) if said]
    if not ran.as_expected(case):
        lines += [
            f"    [{label}] has to be {wanted}, is {got}"
            for label, got, wanted in zip(case.labels, result.got, case.expected, strict=True)
            if not proof_output.as_expected(got, wanted)
        ]
    if earlier is not None and earlier.inputs == result.inputs and earlier.got != result.got:
        lines.append(f"    the result that is kept says {earlier.got}")
    return "\n".join(lines)


def arguments(command_line: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run the proofs of docs/formal with ProVerif.")
    parser.add_argument("--all", action="store_true", help="the long cases, too")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds of a case")
    parser.add_argument(
        "--keep", action="store_true", help="write results.json, and the tables made from it, anew"
    )
    parser.add_argument("--show", action="store_true", help="print the commands, run nothing")
    parser.add_argument("cases", nargs="*", metavar="CASE")
    options = parser.parse_args(command_line)
    unknown = [name for name in options.cases if name not in CASES]
    if unknown:
        parser.error(f"no such case: {', '.join(unknown)}; --show --all lists them")
    if not options.limit > 0:
        parser.error("--limit has to be more than 0 seconds")
    return options


def main(command_line: Sequence[str] | None = None) -> int:
    options = arguments(command_line)
    cases = chosen(options.cases, all_of_them=options.all)
    if options.show:
        for name, case in cases.items():
            print(f"# {name}\n{shlex.join(case.command('proverif'))}")
        return 0
    named = os.environ.get("PROVERIF")
    proverif = find_proverif(named)
    if proverif is None:
        if named:
            print(f"PROVERIF={named}: no program that can be run", file=sys.stderr)
        print(HOW_TO_GET_IT, file=sys.stderr)
        return EXIT_NO_PROVERIF
    try:
        version = version_of(proverif)
    except OSError as error:
        print(f"{proverif}: {error.strerror}\n{HOW_TO_GET_IT}", file=sys.stderr)
        return EXIT_NO_PROVERIF
    if version != VERSION:
        print(f"note: {proverif} is version {version or 'unknown'}; proved with {VERSION}")
    results = proof_results.kept_results(proof_results.KEPT)
    failed = []
    for name, case in cases.items():
        ran = run(case, proverif, limit=options.limit, version=version or "unknown")
        print(verdict_line(name, case, ran, results.get(name)), flush=True)
        if not ran.as_expected(case):
            failed.append(name)
        if options.keep and not ran.errors:
            results[name] = ran.result
            proof_results.keep(results, proof_results.KEPT)
    if options.keep:
        proof_tables.refresh(results, proof_tables.DOCUMENTS)
    print(f"{len(cases) - len(failed)} of {len(cases)} cases as expected")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""`make bench-peers`: vpnd beside Rosenpass, kept in docs/benchmarks-peers.json and .md."""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import Final

from bench import beside, footprint, refused, rosenpass
from bench.report import Part, keep, measured, this_machine
from bench.result import table

PARTS: Final[dict[str, Part]] = {
    "refused": refused.measure,
    "footprint": footprint.measure,
    "beside": beside.measure,
}
PREFACE: Final = """# Benchmarks beside Rosenpass

The last run of `make bench-peers`, which takes about a quarter of an hour when Rosenpass has been
built (six minutes more), and wants a machine that does nothing else. Rosenpass is the other key
exchange that gives WireGuard post-quantum keys; both are measured in the same run.
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.peers", description=__doc__)
    parser.add_argument("part", nargs="*", help=f"one or more of {', '.join(PARTS)}; default: all")
    chosen = parser.parse_args().part
    if unknown := [part for part in chosen if part not in PARTS]:
        parser.error(f"no such part: {', '.join(unknown)}")
    if not rosenpass.PROGRAM.exists():
        sys.exit("bench: error: there is no Rosenpass\nbench: hint: tools/rosenpass builds it")
    machine, started = this_machine(), time.monotonic()
    machine["Rosenpass"] = rosenpass.version()
    rows, missing = measured({name: PARTS[name] for name in chosen or PARTS})
    machine["load at the end"] = f"{os.getloadavg()[0]:.1f}"
    machine["minutes taken"] = round((time.monotonic() - started) / 60)
    print(table(rows, missing), end="")
    if not chosen:
        keep("benchmarks-peers", PREFACE, machine, rows, missing)


if __name__ == "__main__":
    main()

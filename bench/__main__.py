"""`make bench`: measure, print a table, keep it in docs/benchmarks.json and docs/benchmarks.md.

`python -m bench PART…` measures some parts only, and keeps nothing; with --json it prints the
figures as one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from typing import Final

from bench import (
    active,
    emulated,
    exchange,
    external_keys,
    junk,
    links,
    renewals,
    status,
    throughput,
)
from bench.report import Part, document, keep, measured, this_machine
from bench.result import table

PARTS: Final[dict[str, Part]] = {
    "exchange": exchange.measure,
    "external-keys": external_keys.measure,
    "junk": junk.measure,
    "status": status.measure,
    "active": active.measure,
    "throughput": throughput.measure,
    "emulated": emulated.measure,
    "renewals": renewals.measure,
    "links": links.measure,
}
PREFACE: Final = """# Benchmarks

The last run of `make bench`, which takes about half an hour and wants a machine that does nothing
else; `.venv/bin/python -m bench PART` measures one part. Figures depend on the machine and on what
else it does; what can be compared are the ratios, each of two things measured in the same run. CPU
is the median of several rounds; processes that share a core with others need more of it. Beside
Rosenpass: `make bench-peers`, [benchmarks-peers.md](benchmarks-peers.md).
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("part", nargs="*", help=f"one or more of {', '.join(PARTS)}; default: all")
    parser.add_argument("--json", action="store_true", help="print JSON; keep nothing")
    arguments = parser.parse_args()
    if unknown := [part for part in arguments.part if part not in PARTS]:
        parser.error(f"no such part: {', '.join(unknown)}")
    machine, started = this_machine(), time.monotonic()
    rows, missing = measured({name: PARTS[name] for name in arguments.part or PARTS})
    machine["load at the end"] = f"{os.getloadavg()[0]:.1f}"
    machine["minutes taken"] = round((time.monotonic() - started) / 60)
    if arguments.json:
        print(json.dumps(document(machine, rows, missing)))
        return
    print(table(rows, missing), end="")
    if not arguments.part:
        keep("benchmarks", PREFACE, machine, rows, missing)


if __name__ == "__main__":
    main()

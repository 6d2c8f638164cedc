"""`make bench`: measure, print a table, keep it in docs/benchmarks.json and docs/benchmarks.md.

`python -m bench PART…` measures some parts only; with --keep their figures take the place of those
that they had in these files, and with --json they are printed as one line of JSON.
"""

from __future__ import annotations

import argparse
import json
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
from bench.report import Part, keep, measured, sum_up

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

What `make bench` measured last, which takes about half an hour and wants a machine that does
nothing else; `.venv/bin/python -m bench PART --keep` measures one part anew. Figures depend on the
machine and on what else it does; what can be compared are the ratios, each of two things measured
in the same run. CPU is the median of several rounds; processes that share a core with others need
more of it. Beside Rosenpass: `make bench-peers`, [benchmarks-peers.md](benchmarks-peers.md).

The machine, when a part was last measured:
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("part", nargs="*", help=f"one or more of {', '.join(PARTS)}; default: all")
    parser.add_argument("--json", action="store_true", help="print JSON; keep nothing")
    parser.add_argument("--keep", action="store_true", help="keep the figures of these parts")
    arguments = parser.parse_args()
    if unknown := [part for part in arguments.part if part not in PARTS]:
        parser.error(f"no such part: {', '.join(unknown)}")
    done = []
    for each in measured({name: PARTS[name] for name in arguments.part or PARTS}):
        done.append(each)
        if not arguments.json:
            print(each.table(), flush=True)
            if arguments.keep or not arguments.part:
                # Now: what comes after it may fail, or be interrupted
                keep("benchmarks", PREFACE, PARTS, each)
    if arguments.json:
        print(json.dumps({each.part: each.document() for each in done}))
    else:
        sum_up(done)


if __name__ == "__main__":
    main()

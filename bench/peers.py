"""`make bench-peers`: vpnd beside Rosenpass, kept in docs/benchmarks-peers.json and .md."""

from __future__ import annotations

import argparse
import sys
from typing import Final

from bench import beside, footprint, refused, rosenpass
from bench.report import Part, keep, measured, sum_up

PARTS: Final[dict[str, Part]] = {
    "refused": refused.measure,
    "footprint": footprint.measure,
    "beside": beside.measure,
}
PREFACE: Final = """# Benchmarks beside Rosenpass

What `make bench-peers` measured last, which takes about a quarter of an hour when Rosenpass has
been built (six minutes more), and wants a machine that does nothing else. Rosenpass is the other
key exchange that gives WireGuard post-quantum keys; both are measured in the same run.

The machine:
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.peers", description=__doc__)
    parser.add_argument("part", nargs="*", help=f"one or more of {', '.join(PARTS)}; default: all")
    chosen = parser.parse_args().part
    if unknown := [part for part in chosen if part not in PARTS]:
        parser.error(f"no such part: {', '.join(unknown)}")
    if not rosenpass.PROGRAM.exists():
        sys.exit("bench: error: there is no Rosenpass\nbench: hint: tools/rosenpass builds it")
    done = []
    parts = {name: PARTS[name] for name in chosen or PARTS}
    for each in measured(parts, Rosenpass=rosenpass.version()):
        done.append(each)
        print(each.table(), flush=True)
        if not chosen:
            keep("benchmarks-peers", PREFACE, PARTS, each)
    sum_up(done)


if __name__ == "__main__":
    main()

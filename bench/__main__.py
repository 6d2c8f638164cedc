"""`make bench`: measure, print a table, keep it in docs/benchmarks.json and docs/benchmarks.md.

`python -m bench PART…` measures some parts only, and keeps nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.backends.openssl import backend

from bench import exchange, external_keys, junk, links, status, tunnel
from bench.liboqs import available
from bench.result import NotRun, Row, table

DOCS: Final = Path(__file__).resolve().parent.parent / "docs"
PARTS: Final[dict[str, Callable[[], Iterable[Row | NotRun]]]] = {
    "exchange": exchange.measure,
    "external-keys": external_keys.measure,
    "junk": junk.measure,
    "status": status.measure,
    "tunnel": tunnel.measure,
    "links": links.measure,
}
PREFACE: Final = """# Benchmarks

The last run of `make bench`. Figures depend on the machine and on what else it does; what can be
compared are the ratios, each of two things measured in the same run. CPU is the median of several
rounds; processes that share a core with others need more of it.
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("part", nargs="*", help=f"one or more of {', '.join(PARTS)}; default: all")
    chosen = parser.parse_args().part
    if unknown := [part for part in chosen if part not in PARTS]:
        parser.error(f"no such part: {', '.join(unknown)}")
    rows: list[Row] = []
    missing: list[NotRun] = []
    machine = _machine()
    for name in chosen or PARTS:
        print(f"bench: {name}", file=sys.stderr, flush=True)
        for entry in PARTS[name]():
            if isinstance(entry, Row):
                rows.append(entry)
            else:
                missing.append(entry)
    text = table(rows, missing)
    print(text, end="")
    if chosen:
        return
    machine["load at the end"] = f"{os.getloadavg()[0]:.1f}"
    document = {
        "machine": machine,
        "rows": [asdict(row) | {"ratio": row.ratio} for row in rows],
        "not_run": [asdict(gap) for gap in missing],
    }
    (DOCS / "benchmarks.json").write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    facts = "\n".join(f"- {name}: {value}" for name, value in machine.items())
    (DOCS / "benchmarks.md").write_text(f"{PREFACE}\n{facts}\n\n{text}")
    unmet = [row.name for row in rows if row.met is False]
    print(f"\nbench: {len(rows)} figures, {len(unmet)} goals not met, {len(missing)} not run")


def _machine() -> dict[str, Any]:
    return {
        "day": time.strftime("%Y-%m-%d", time.gmtime()),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "Python": platform.python_version(),
        "cryptography": f"{version('cryptography')} ({backend.openssl_version_text()})",
        "liboqs": available()[1],
        "trio": version("trio"),
        "wireguard-go": _wireguard_go(),
        "vpnd": version("vpnd"),
        "load at the start": f"{os.getloadavg()[0]:.1f}",
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _wireguard_go() -> str:
    try:
        said = subprocess.run(
            ["wireguard-go", "--version"], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return "not installed"
    return said.stdout.partition("\n")[0] or "unknown version"


if __name__ == "__main__":
    main()

"""Running parts of a benchmark, and keeping what they gave: a table and JSON in docs/."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.backends.openssl import backend

from bench.liboqs import available
from bench.result import NotRun, Row, table

DOCS: Final = Path(__file__).resolve().parent.parent / "docs"

Part = Callable[[], Iterable[Row | NotRun]]


def measured(parts: Mapping[str, Part]) -> tuple[list[Row], list[NotRun]]:
    """The figures of all parts, and those that could not be had."""
    rows: list[Row] = []
    missing: list[NotRun] = []
    for name, measure in parts.items():
        started = time.monotonic()
        print(f"bench: {name}", file=sys.stderr, flush=True)
        for entry in measure():
            if isinstance(entry, Row):
                rows.append(entry)
            else:
                missing.append(entry)
        took = time.monotonic() - started
        print(f"bench: {name} took {took:.0f} s", file=sys.stderr, flush=True)
    return rows, missing


def document(
    machine: Mapping[str, Any], rows: Sequence[Row], missing: Sequence[NotRun]
) -> dict[str, Any]:
    """All of it, for JSON."""
    return {
        "machine": machine,
        "rows": [asdict(row) | {"ratio": row.ratio} for row in rows],
        "not_run": [asdict(gap) for gap in missing],
    }


def keep(
    name: str,
    preface: str,
    machine: Mapping[str, Any],
    rows: Sequence[Row],
    missing: Sequence[NotRun],
) -> None:
    """Write docs/NAME.md and docs/NAME.json, and say what is not met."""
    text = json.dumps(document(machine, rows, missing), indent=1, ensure_ascii=False)
    (DOCS / f"{name}.json").write_text(text + "\n")
    facts = "\n".join(f"- {fact}: {value}" for fact, value in machine.items())
    (DOCS / f"{name}.md").write_text(f"{preface}\n{facts}\n\n{table(rows, missing)}")
    unmet = [row for row in rows if row.met is False]
    print(f"\nbench: {len(rows)} figures, {len(unmet)} goals not met, {len(missing)} not run")
    for row in unmet:
        print(f"bench: not met: {row.group}: {row.name}")
    for gap in missing:
        print(f"bench: not run: {gap.group}: {gap.reason.splitlines()[0]}")


def this_machine() -> dict[str, Any]:
    """What the figures depend on."""
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
    """The one that is used: the first on PATH."""
    try:
        said = subprocess.run(
            ["wireguard-go", "--version"], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return "not installed"
    name = said.stdout.partition("\n")[0] or "unknown version"
    return f"{name} ({'built by make wireguard-go' if _is_built() else 'as installed'})"


def _is_built() -> bool:
    found = shutil.which("wireguard-go")
    return found is not None and Path(found).resolve().is_relative_to(DOCS.parent / ".setup")

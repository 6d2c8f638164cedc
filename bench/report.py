"""Running parts of a benchmark, and keeping what they gave: a table and JSON in docs/."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.backends.openssl import backend

from bench.liboqs import available
from bench.result import NotRun, Row, table

DOCS: Final = Path(__file__).resolve().parent.parent / "docs"

OF_THE_MOMENT: Final = ("day", "load at the start", "load at the end", "seconds")
"""Facts that stand below each part's figures."""
Part = Callable[[], Iterable[Row | NotRun]]


@dataclass(frozen=True, slots=True)
class Measured:
    """What one part gave, and what the machine was like meanwhile."""

    part: str
    machine: Mapping[str, Any]
    rows: Sequence[Row]
    missing: Sequence[NotRun]

    def table(self) -> str:
        """Its figures, and when they were measured."""
        when = (
            f"Measured {self.machine['day']} in {self.machine['seconds']} s; load "
            f"{self.machine['load at the start']} before, {self.machine['load at the end']} after."
        )
        return f"{table(self.rows, self.missing)}\n{when}\n"

    def document(self) -> dict[str, Any]:
        """The same for JSON."""
        return {
            "machine": self.machine,
            "rows": [asdict(row) | {"ratio": row.ratio} for row in self.rows],
            "not_run": [asdict(gap) for gap in self.missing],
        }

    @classmethod
    def of_document(cls, part: str, document: Mapping[str, Any]) -> Measured:
        rows = [Row(**{k: v for k, v in row.items() if k != "ratio"}) for row in document["rows"]]
        missing = [NotRun(**gap) for gap in document["not_run"]]
        return cls(part, document["machine"], rows, missing)


def measured(parts: Mapping[str, Part], **facts: str) -> Iterator[Measured]:
    """The figures of each part, as soon as they are there. `facts`: more on the machine."""
    for name, measure in parts.items():
        machine, started = {**this_machine(), **facts}, time.monotonic()
        print(f"bench: {name}", file=sys.stderr, flush=True)
        entries = list(measure())
        took = time.monotonic() - started
        print(f"bench: {name} took {took:.0f} s", file=sys.stderr, flush=True)
        machine |= {"load at the end": _load(), "seconds": round(took)}
        rows = [entry for entry in entries if isinstance(entry, Row)]
        missing = [entry for entry in entries if isinstance(entry, NotRun)]
        yield Measured(name, machine, rows, missing)


def keep(name: str, preface: str, parts: Iterable[str], new: Measured) -> None:
    """Put what a part gave into docs/NAME.json and docs/NAME.md; other parts' figures stay.

    `parts` is the order in which they stand there.
    """
    file = DOCS / f"{name}.json"
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    known[new.part] = new.document()
    documents = {part: known[part] for part in parts if part in known}
    file.write_text(json.dumps(documents, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    facts = "\n".join(
        f"- {fact}: {value}" for fact, value in new.machine.items() if fact not in OF_THE_MOMENT
    )
    tables = [Measured.of_document(*each).table() for each in documents.items()]
    text = "\n".join([f"{preface}\n{facts}\n", *tables])
    (DOCS / f"{name}.md").write_text(text, encoding="utf-8")


def sum_up(all_parts: Sequence[Measured]) -> None:
    """Say what is not met, and what was not run."""
    rows = [row for each in all_parts for row in each.rows]
    missing = [gap for each in all_parts for gap in each.missing]
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
        "load at the start": _load(),
    }


def _load() -> str:
    return f"{os.getloadavg()[0]:.1f}"


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

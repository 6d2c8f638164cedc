"""The results of earlier runs: results.json.

A result belongs to the inputs that it was had from, and to no others: where a model has changed
since, it is none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from proof_cases import CASES, HERE

KEPT: Final = HERE / "results.json"


@dataclass(frozen=True)
class Result:
    """What a case gave. `inputs`: the digest of what was read (Case.digest). Times in seconds."""

    inputs: str
    proverif: str
    got: str
    cpu: float
    wall: float
    limit: float


def kept_results(path: Path = KEPT) -> dict[str, Result]:
    """The results that are kept, by case."""
    return {name: Result(**fields) for name, fields in json.loads(path.read_text()).items()}


def keep(results: Mapping[str, Result], path: Path = KEPT) -> None:
    """Write results in the order of the cases; those of cases that are gone are left out."""
    ordered = {name: asdict(results[name]) for name in CASES if name in results}
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n")
    fresh.replace(path)

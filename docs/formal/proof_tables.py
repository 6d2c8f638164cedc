"""The tables of README.md, and of any other document that says what was proved: the columns with
results are made from results.json."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from proof_cases import CASES, HERE, Case
from proof_results import Result

README: Final = HERE / "README.md"
DOCUMENTS: Final = (README, HERE.parent / "threat-model.md")
"""The documents with such tables."""
CLAIMS: Final = "| claim | model: queries | case | result | s |"
PROVED: Final = "| claim | model: queries | case | result |"
"""The same without seconds."""
CONTROLS: Final = "| left out | case | no longer proved | s |"
NOT_RUN: Final = "not run"
UNDECIDED: Final = "–"


def result_of(name: str, results: Mapping[str, Result]) -> Result | None:
    """The result that is kept of a case; None where there is none, or its inputs have changed."""
    result = results.get(name)
    return result if result is not None and result.inputs == CASES[name].digest() else None


def verdicts(name: str, queries: str, results: Mapping[str, Result]) -> str:
    """One letter for each query, or one for all where they are the same. `queries`: `MODEL: LABEL,
    LABEL …`, or `MODEL: all` for those that have to be proved. Raises ValueError for others."""
    places = _places(CASES[name], queries)
    result = result_of(name, results)
    if result is None:
        return NOT_RUN
    letters = [result.got[place].replace("-", UNDECIDED) for place in places]
    return letters[0] if len(set(letters)) == 1 else " ".join(letters)


def _places(case: Case, queries: str) -> list[int]:
    model, _, labels = queries.partition(": ")
    if model != case.model:
        raise ValueError(f"{queries}: the case is one of {case.model}")
    if labels == "all":
        return [place for place, wanted in enumerate(case.expected) if wanted == "T"]
    return [case.labels.index(label) for label in labels.split(", ")]


def seconds(name: str, results: Mapping[str, Result]) -> str:
    """The CPU seconds of a case, all of its queries together."""
    result = result_of(name, results)
    if result is None:
        return ""
    return f"> {result.cpu:.0f}" if "-" in result.got else f"{result.cpu:.1f}"


def not_proved(name: str, results: Mapping[str, Result]) -> str:
    """The queries of a control that are not proved any more, each with its letter."""
    result = result_of(name, results)
    if result is None:
        return NOT_RUN
    return ", ".join(
        f"{label} {letter}"
        for label, letter in zip(CASES[name].labels, result.got, strict=True)
        if letter != "T" and label not in ("reached", "keys leak")
    )


def refreshed(text: str, results: Mapping[str, Result]) -> str:
    """A document with the columns of its tables as the results say. Raises KeyError for a case
    that there is not, ValueError for a query."""
    lines, header = [], ""
    for line in text.splitlines():
        if line in (CLAIMS, PROVED, CONTROLS):
            header = line
        elif not line.startswith("| "):
            header = header if line.startswith("|-") else ""
        elif header:
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            line = f"| {' | '.join(_row(header, cells, results))} |"
        lines.append(line)
    return "\n".join(lines) + "\n"


def _row(header: str, cells: list[str], results: Mapping[str, Result]) -> list[str]:
    if header in (CLAIMS, PROVED):
        claim, queries, name = cells[:3]
        row = [claim, queries, name, verdicts(name, queries, results)]
        return [*row, seconds(name, results)] if header == CLAIMS else row
    left_out, name = cells[:2]
    return [left_out, name, not_proved(name, results), seconds(name, results)]


def refresh(results: Mapping[str, Result], documents: Iterable[Path] = DOCUMENTS) -> None:
    """Write documents anew as the results say."""
    for path in documents:
        path.write_text(refreshed(path.read_text(), results))

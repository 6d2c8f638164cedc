"""The tables of docs/formal/README.md and of the threat model say what results.json says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import proof_tables
import pytest
from proof_cases import CASES
from proof_results import kept_results
from proof_tables import README

from tests.architecture.imports import ROOT

THREAT_MODEL = ROOT / "docs" / "threat-model.md"


def rows(text: str, *headers: str) -> list[list[str]]:
    """The cells of all rows of tables with one of these headers."""
    found, within = [], False
    for line in text.splitlines():
        if not line.startswith("|"):
            within = False
        elif line in headers:
            within = True
        elif within and not line.startswith("|-"):
            found.append([cell.strip() for cell in line.strip("|").split("|")])
    return found


@pytest.mark.parametrize("path", [README, THREAT_MODEL], ids=lambda path: path.name)
def test_the_tables_say_what_was_found(path: Path) -> None:
    """`docs/formal/prove.py --keep` writes them anew."""
    text = path.read_text()
    assert rows(text, proof_tables.CLAIMS, proof_tables.PROVED)
    assert proof_tables.refreshed(text, kept_results()) == text


def test_every_case_is_in_a_table() -> None:
    told = {row[2] for row in rows(README.read_text(), proof_tables.CLAIMS)}
    controls = {row[1] for row in rows(README.read_text(), proof_tables.CONTROLS)}
    assert told | controls == set(CASES)
    assert controls == {name for name in CASES if name.startswith("control: ")}


def test_every_claim_of_the_threat_model_but_one_has_its_queries() -> None:
    text = THREAT_MODEL.read_text()
    claims = {row[0].strip("*") for row in rows(text, "| | claim | rests on | ends where |")}
    assert claims == {f"P{n}" for n in range(1, 8)}
    proved = {row[0].split(":")[0] for row in rows(text, proof_tables.PROVED)}
    assert claims - proved == {"P4"}
    assert "What they do not prove:\n\n- P4" in text


def test_a_changed_model_counts_as_not_run() -> None:
    results = kept_results()
    stale = {name: replace(result, inputs="0" * 64) for name, result in results.items()}
    for row in rows(
        proof_tables.refreshed(README.read_text(), stale),
        proof_tables.CLAIMS,
        proof_tables.CONTROLS,
    ):
        assert row[-2:] == [proof_tables.NOT_RUN, ""]


def test_a_result_that_is_another_is_written_into_the_tables() -> None:
    results = kept_results()
    results["silence"] = replace(results["silence"], got="F-", cpu=12.3)
    text = proof_tables.refreshed(README.read_text(), results)
    told = [row[-2:] for row in rows(text, proof_tables.CLAIMS) if row[2] == "silence"]
    assert told == [["F", "> 12"], ["–", "> 12"]]


def test_a_query_that_there_is_not_is_an_error() -> None:
    with pytest.raises(ValueError, match="the case is one of silence"):
        proof_tables.verdicts("silence", "agreement: UKS", kept_results())
    with pytest.raises(ValueError, match="no such query"):
        proof_tables.verdicts("silence", "silence: no such query", kept_results())

"""docs/formal without ProVerif: cases, queries and files agree, and results are of these models."""

from __future__ import annotations

import re
from pathlib import Path

import proof_cases
import proof_output
import pytest
from proof_cases import CASES, DEFAULTS, HERE, Case, without_comments
from proof_results import Result, keep, kept_results
from proof_tables import NOT_RUN, README

each_case = pytest.mark.parametrize("name", CASES)
QUERY = re.compile(r"^query\b(.*?)\.$", re.MULTILINE | re.DOTALL)
OTHER_QUESTION = re.compile(r"^weaksecret\b|\bchoice\[", re.MULTILINE)


def queries_in(model: str) -> int:
    """How many verdicts ProVerif gives for a model: one a query, or one for the whole."""
    text = without_comments((HERE / f"{model}.pv").read_text())
    # `query` VARIABLES `;` QUERY `;` QUERY …
    found = sum(len(block.split(";")) - 1 for block in QUERY.findall(text))
    return found or bool(OTHER_QUESTION.search(text))


@each_case
def test_a_case_has_its_files_and_an_expectation_for_each_query(name: str) -> None:
    case = CASES[name]
    assert [each for each in case.inputs if not (HERE / each).is_file()] == []
    assert len(case.labels) == len(set(case.labels)) == len(case.expected)
    assert queries_in(case.model) == len(case.expected)
    assert set(case.expected) <= {"T", "F"}
    assert set(case.libraries) <= {*DEFAULTS, proof_cases.ADDED}


def test_every_file_is_used() -> None:
    used = {each for case in CASES.values() for each in case.inputs}
    there = [*HERE.glob("*.pv"), *HERE.glob("lib/*.pvl")]
    assert {str(path.relative_to(HERE)) for path in there} == used


def test_no_two_cases_are_the_same() -> None:
    assert len({case.digest() for case in CASES.values()}) == len(CASES)


def test_something_has_to_fail_in_every_model() -> None:
    """A model of which all is proved may be one in which nothing happens."""
    models = {case.model for case in CASES.values()}
    assert {case.model for case in CASES.values() if "F" in case.expected} == models


def test_a_weakened_library_is_in_a_control_alone_and_each_is_in_one() -> None:
    weak = {path.stem for path in HERE.glob("lib/weak_*.pvl")} | {"often"}
    controls = {name for name in CASES if name.startswith("control: ")}
    of_controls = {
        value for name in controls for value in CASES[name].libraries.values() if value in weak
    }
    assert of_controls == weak
    for name, case in CASES.items():
        if name not in controls:
            # Where a number may be used often, the attacker can do more, and it is proved anyway
            assert not {*case.libraries.values()} & (weak - {"often"}), name


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("control: ")])
def test_a_control_fails_where_what_it_weakens_does_not(name: str) -> None:
    case = CASES[name]
    unweakened = [
        other.expected
        for title, other in CASES.items()
        if other.model == case.model and not title.startswith("control: ")
    ]
    for expected in unweakened or ["T" * len(case.expected)]:
        if case.expected != expected:
            break
    else:
        pytest.fail("nothing fails in it that is proved without it")


# ---- results that are kept


@each_case
def test_a_kept_result_is_of_just_these_inputs(name: str) -> None:
    """Where a model has changed and there is no ProVerif, the result is taken out of results.json:
    then README.md has to say that the case was not run (test_tables.py compares it)."""
    result = kept_results().get(name)
    if result is None:
        told = [line for line in README.read_text().splitlines() if f"| {name} |" in line]
        assert told
        assert all(f"| {name} | {NOT_RUN} |" in line for line in told)
        return
    assert result.inputs == CASES[name].digest(), "the model has changed: prove.py --keep"
    assert len(result.got) == len(CASES[name].expected)
    assert set(result.got) <= set("TF?-")
    assert result.proverif


@each_case
def test_a_kept_result_is_as_expected_or_undecided(name: str) -> None:
    case, result = CASES[name], kept_results().get(name)
    if result is not None and "-" not in result.got:
        assert proof_output.as_expected(result.got, case.expected)
    elif result is not None:
        assert case.long, "what ends at its limit is not run by default"
        decided = [(g, e) for g, e in zip(result.got, case.expected, strict=True) if g != "-"]
        assert all(proof_output.as_expected(got, expected) for got, expected in decided)


def test_no_result_is_of_a_case_that_there_is_not() -> None:
    assert set(kept_results()) <= set(CASES)


# ---- digests


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("a (* b *) c", "a   c"),
        ("a (* b (* c *) d *) e", "a   e"),
        ("(* [label] *)", " "),
        ("no comment", "no comment"),
    ],
)
def test_comments_are_left_out(text: str, left: str) -> None:
    assert without_comments(text).split() == left.split()


@pytest.mark.parametrize("text", ["a (* b", "a *) b", "(* (* *)"])
def test_a_comment_that_does_not_end_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="a comment"):
        without_comments(text)


def test_a_digest_follows_the_models_and_not_their_comments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path
    case = Case("silence", "TF", {"random": "random_unsaid"})
    for name in case.inputs:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text((HERE / name).read_text())
    before = case.digest()
    monkeypatch.setattr(proof_cases, "HERE", folder)
    assert case.digest() == before
    model, library = folder / "silence.pv", folder / "lib" / "plain.pvl"
    text = model.read_text()
    model.write_text("(* another comment *)\n" + text.replace("\n", "\n  "))
    assert case.digest() == before
    model.write_text(text.replace("inj-event(Asked(m))", "event(Asked(m))"))
    assert case.digest() != before
    model.write_text(text)
    library.write_text(library.read_text() + "free more.\n")
    assert case.digest() != before


def test_results_are_kept_in_the_order_of_the_cases(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    results = kept_results()
    gone = Result("", "2.05", "T", 1.0, 1.0, 1.0)
    keep({"a case that is gone": gone, **dict(reversed(results.items()))}, path)
    assert list(kept_results(path)) == [name for name in CASES if name in results]
    assert kept_results(path) == results

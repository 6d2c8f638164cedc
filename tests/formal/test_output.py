"""What ProVerif prints is read query by query, and what cannot be read is an error."""

from __future__ import annotations

import proof_output
import pytest

RULE = "-" * 62
WHOLE = f"""\
Linear part:
Completing equations...
Process 0 (that is, the initial process):
{{1}}!
Translating the process into Horn clauses...
Termination warning: v ≠ v_1 && attacker_p1(v) -> attacker_p1(v_1)
-- Query inj-event(RInstall(a)) ==> inj-event(ISent(a)) in process 0.
Completing...
RESULT inj-event(RInstall(a)) ==> inj-event(ISent(a)) is true.
-- Query event(Done) ==> event(Leak) in process 0.
goal reachable: b-event(Done) -> end(Done)
A trace has been found, assuming the following hypothesis:
RESULT event(Done) ==> event(Leak) is false.
-- Query attacker(psk) ==> false in process 0.
RESULT attacker(psk) ==> false cannot be proved.

{RULE}
Verification summary:

Query inj-event(RInstall(a)) ==> inj-event(ISent(a)) is true.

Query event(Done) ==> event(Leak) is false.

Query attacker(psk) ==> false cannot be proved.

{RULE}
"""


def test_a_whole_run_is_read_from_its_summary() -> None:
    assert proof_output.read(WHOLE) == proof_output.Found("TF?")


def test_a_run_that_was_stopped_is_read_as_far_as_it_came() -> None:
    assert proof_output.read(WHOLE.partition("-- Query event(Done)")[0]).verdicts == "T"
    assert proof_output.read(WHOLE.partition("RESULT")[0]).verdicts == ""
    assert proof_output.read("") == proof_output.Found("")


def test_weaker_forms_of_a_query_are_no_verdicts() -> None:
    """Of an injective query that fails ProVerif also tells what the plain one gives."""
    text = (
        "RESULT inj-event(A) ==> inj-event(B) is false.\n"
        "RESULT (even event(A) ==> event(B) is false.)\n"
        "RESULT inj-event(C) ==> inj-event(D) cannot be proved.\n"
        "RESULT (but event(C) ==> event(D) is true.)\n"
    )
    assert proof_output.read(text).verdicts == "F?"


@pytest.mark.parametrize("prefix", ["", " - "])
@pytest.mark.parametrize(
    ("line", "verdict"),
    [
        ("Observational equivalence is true.", "T"),
        ("Observational equivalence cannot be proved.", "?"),
        ("Weak secret weakkey is true.", "T"),
        ("Weak secret weakkey is false.", "F"),
        ("Query not attacker_p1(new x) is false.", "F"),
    ],
)
def test_other_questions(prefix: str, line: str, verdict: str) -> None:
    summary = f"Verification summary:\n\n{prefix}{line}\n\n{RULE}\n"
    assert proof_output.read(summary).verdicts == verdict
    assert proof_output.read(f"RESULT {line}\n").verdicts == verdict


def test_errors_are_told() -> None:
    text = 'File "agreement.pv", line 3, character 5:\nError: identifier kpub not defined.\n'
    assert proof_output.read(text).errors == ("Error: identifier kpub not defined.",)
    assert proof_output.read("Fatal error: exception Out_of_memory\n").errors


def test_a_line_without_a_verdict_is_an_error_and_not_a_gap() -> None:
    found = proof_output.read("Verification summary:\n\nQuery event(A) ==> event(B) is tru")
    assert found.verdicts == ""
    assert found.errors == ("no verdict in: Query event(A) ==> event(B) is tru",)


@pytest.mark.parametrize(
    ("got", "expected", "is_so"),
    [
        ("TTF", "TTF", True),
        ("TT?", "TTF", True),
        ("T?F", "TTF", False),
        ("FTF", "TTF", False),
        ("TTT", "TTF", False),
        ("TT-", "TTF", False),
        ("T-F", "TTF", False),
        ("TT", "TTF", False),
        ("TTFF", "TTF", False),
        ("", "T", False),
    ],
)
def test_as_expected(got: str, expected: str, is_so: bool) -> None:
    """Undecided is never as expected; a derivation without a run is, where an attack is."""
    assert proof_output.as_expected(got, expected) is is_so

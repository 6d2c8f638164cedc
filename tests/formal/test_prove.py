"""The runner, with stand-ins for ProVerif: only what is printed as proved is taken for it."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import proof_results
import proof_tables
import prove
import pytest
from proof_cases import CASES, HERE

from tests.architecture.imports import ROOT

CASE = "silence"
TRUE, FALSE, OPEN = "is true.", "is false.", "cannot be proved."
RIGHT = (TRUE, FALSE)
PATIENCE = 30.0


def stand_in(folder: Path, script: str) -> str:
    """A program that answers `-help` as ProVerif does, and else runs a few lines of sh."""
    path = folder / "proverif"
    banner = 'if [ "$1" = -help ]; then echo "Proverif 2.05. A verifier"; exit 0; fi'
    path.write_text(f"#!/bin/sh\n{banner}\n{script}\n")
    path.chmod(0o755)
    return str(path)


def summary(*verdicts: str) -> str:
    """Lines of sh that print a summary."""
    lines = [
        "Verification summary:",
        *(f"Query attacker(s{n}) {v}" for n, v in enumerate(verdicts)),
    ]
    return "\n".join(f"echo '{line}'" for line in lines)


def proved(monkeypatch: pytest.MonkeyPatch, program: str, *options: str) -> int:
    monkeypatch.setenv("PROVERIF", program)
    return prove.main([CASE, *options])


def test_as_expected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert proved(monkeypatch, stand_in(tmp_path, summary(*RIGHT))) == 0
    out = capsys.readouterr().out
    assert "as expected     silence: TF" in out
    assert "1 of 1 cases as expected" in out
    assert "note:" not in out


def test_what_it_is_given_is_the_libraries_and_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = tmp_path / "given"
    script = f'pwd > "{given}"; printf "%s\\n" "$@" >> "{given}"\n{summary(*RIGHT)}'
    assert proved(monkeypatch, stand_in(tmp_path, script)) == 0
    folder, *arguments = given.read_text().split()
    assert Path(folder) == HERE
    assert arguments == CASES[CASE].command("")[1:]
    assert arguments[-1] == "silence.pv"
    assert all((HERE / each).is_file() for each in arguments if each != "-lib")


@pytest.mark.parametrize(
    ("script", "told"),
    [
        (summary(FALSE, FALSE), "[own question] has to be T, is F"),
        (summary(OPEN, FALSE), "[own question] has to be T, is ?"),
        (summary(TRUE, TRUE), "[replayed question] has to be F, is T"),
        (summary(TRUE), "only 1 verdicts for 2 queries"),
        (summary(*RIGHT, TRUE), "3 verdicts for 2 queries"),
        ("true", "only 0 verdicts for 2 queries"),
        (summary(*RIGHT) + "\nexit 3", "exit status 3"),
        (summary(*RIGHT) + "\nkill -9 $$", "exit status -9"),
        (summary(*RIGHT) + "\necho 'Error: out of ideas.'", "Error: out of ideas."),
        ("echo 'Error: no such file.' >&2; exit 2", "Error: no such file."),
        (summary(TRUE, "is fal"), "no verdict in: Query attacker(s1) is fal"),
        (r"printf '\377\376\000'; exit 1", "exit status 1"),
    ],
)
def test_everything_else_is_not(
    script: str,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert proved(monkeypatch, stand_in(tmp_path, script)) == 1
    out = capsys.readouterr().out
    assert "NOT AS EXPECTED silence" in out
    assert told in out
    assert "0 of 1 cases as expected" in out


def test_what_does_not_end_is_ended_with_all_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    child = tmp_path / "child"
    script = f"echo 'RESULT attacker(s) is true.'; sleep 1000 & echo $! > '{child}'; wait"
    assert proved(monkeypatch, stand_in(tmp_path, script), "--limit", "1") == 1
    out = capsys.readouterr().out
    assert "silence: T-" in out
    assert "stopped after 1 s" in out
    assert_ended(int(child.read_text()))


def test_endless_output_is_not_kept_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prove, "MAX_OUTPUT", 1 << 20)
    assert proved(monkeypatch, stand_in(tmp_path, "exec yes 'still thinking'")) == 1
    assert "stopped after 1 MiB of output" in capsys.readouterr().out


def test_output_that_is_closed_is_not_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = f"{summary(*RIGHT)}\nexec >&- 2>&-\nsleep 1000"
    started = time.monotonic()
    proved(monkeypatch, stand_in(tmp_path, script), "--limit", "1")
    assert "stopped after 1 s" in capsys.readouterr().out
    assert time.monotonic() - started < 500


def assert_ended(pid: int) -> None:
    """The process is gone, or nothing but its exit status is left."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return
        if state == "Z":
            return
        time.sleep(0.01)
    pytest.fail("it still runs")


# ---- keeping results


def test_results_are_kept_where_that_is_asked_for_and_only_without_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, document = tmp_path / "results.json", tmp_path / "table.md"
    kept.write_text("{}")
    row = "| a | silence: own question | silence | {} |"
    table = f"{proof_tables.PROVED}\n|---|---|---|---|\n{row}\n"
    document.write_text(table.format(""))
    monkeypatch.setattr(proof_results, "KEPT", kept)
    monkeypatch.setattr(proof_tables, "DOCUMENTS", (document,))
    right = stand_in(tmp_path, summary(*RIGHT))
    assert proved(monkeypatch, right) == 0
    assert proof_results.kept_results(kept) == {}
    assert proved(monkeypatch, right, "--keep") == 0
    (result,) = proof_results.kept_results(kept).values()
    assert (result.got, result.inputs) == ("TF", CASES[CASE].digest())
    assert result.proverif == "2.05"
    assert document.read_text() == table.format("T")
    wrong = stand_in(tmp_path, summary(FALSE, FALSE) + "\nexit 1")
    assert proved(monkeypatch, wrong, "--keep") == 1
    assert proof_results.kept_results(kept) == {CASE: result}


def test_a_result_other_than_the_one_that_is_kept_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    proved(monkeypatch, stand_in(tmp_path, summary(TRUE, OPEN)))
    assert "the result that is kept says TF" in capsys.readouterr().out


# ---- without ProVerif


def test_without_proverif_it_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("PROVERIF", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert prove.main([]) == prove.EXIT_NO_PROVERIF
    told = capsys.readouterr().err
    assert "opam install proverif.2.05" in told
    assert "PROVERIF=/path/to/proverif make prove" in told


@pytest.mark.parametrize("kind", ["missing", "folder", "not executable", "not a program"])
def test_a_proverif_that_cannot_be_run(
    kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "proverif"
    if kind == "folder":
        path.mkdir()
    elif kind != "missing":
        path.write_bytes(b"\x7fELF but not really")
        path.chmod(0o755 if kind == "not a program" else 0o644)
    assert proved(monkeypatch, str(path)) == prove.EXIT_NO_PROVERIF
    told = capsys.readouterr().err
    assert str(path) in told
    assert "opam install proverif" in told


def test_another_version_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "proverif"
    program.write_text(f"#!/bin/sh\n{summary(*RIGHT)}\n")
    program.chmod(0o755)
    proved(monkeypatch, str(program))
    assert "is version unknown; proved with 2.05" in capsys.readouterr().out


def test_make_prove_fails_without_proverif() -> None:
    made = subprocess.run(
        ["make", "prove"],
        cwd=ROOT,
        env={**os.environ, "PROVERIF": "/nonexistent/proverif"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert made.returncode != 0
    assert "opam install proverif" in made.stderr


# ---- the command line


def test_a_case_that_there_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        prove.main(["agreement", "no such case"])
    assert ended.value.code == 2
    assert "no such case: no such case" in capsys.readouterr().err


@pytest.mark.parametrize("limit", ["0", "-1", "nan", "soon"])
def test_a_limit_that_is_none(limit: str) -> None:
    with pytest.raises(SystemExit) as ended:
        prove.main(["--limit", limit])
    assert ended.value.code == 2


def test_what_would_be_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert prove.main(["--show"]) == 0
    shown = capsys.readouterr().out
    assert [line[2:] for line in shown.splitlines() if line.startswith("# ")] == [
        name for name, case in CASES.items() if not case.long
    ]
    assert prove.main(["--show", "--all"]) == 0
    assert capsys.readouterr().out.count("proverif -lib ") == len(CASES)

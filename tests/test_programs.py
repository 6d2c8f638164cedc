"""The installed programs import what was installed, whatever stands on PYTHONPATH."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOREIGN = ("cli", "kex", "tun", "vpnd", "vpnd_lab", "typer", "trio", "structlog")


@pytest.fixture
def harness(tmp_path: Path) -> Path:
    """A project whose folders are named like ours, and end whoever imports them."""
    for name in FOREIGN:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise SystemExit('{name} of the harness')\n")
    return tmp_path


@pytest.mark.parametrize("program", ["vpnctl", "vpnd", "vpnd-lab-kme"])
@pytest.mark.parametrize("path", [".", "absolute", "first of two"])
def test_pythonpath_is_not_theirs(program: str, path: str, harness: Path) -> None:
    named = {".": ".", "absolute": str(harness), "first of two": f"{harness}:/usr/share"}[path]
    done = subprocess.run(
        [Path(sys.executable).with_name(program), "--help"],
        cwd=harness,
        env={**os.environ, "PYTHONPATH": named},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert program in done.stdout


def test_the_plugin_loads_nothing_of_ours_but_itself(harness: Path) -> None:
    (harness / "test_it.py").write_text(
        "import sys\n"
        "def test_it():\n"
        "    ours = {name.partition('.')[0] for name in sys.modules}\n"
        "    assert not ours & {'cli', 'kex', 'tun', 'vpnd', 'lab', 'pydantic'}\n"
        "    assert {n for n in sys.modules if n.startswith('vpnd_lab')} == "
        "{'vpnd_lab', 'vpnd_lab.pytest_plugin'}\n"
    )
    for name in ("trio", "typer", "structlog", "vpnd_lab"):
        (harness / name / "__init__.py").unlink()
        (harness / name).rmdir()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-pno:cacheprovider", "test_it.py"],
        cwd=harness,
        env={**os.environ, "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "1 passed" in done.stdout, done.stdout + done.stderr

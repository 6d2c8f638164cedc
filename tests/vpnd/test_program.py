"""The program `vpnd` at its edges: where nothing can be written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.vpnd.config_files import Site


@pytest.mark.parametrize("arguments", [("--version",), ("--help",), ("--check",)])
def test_a_full_disk_under_stdout_is_told(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    tmp_path.chmod(0o755)
    site = Site(tmp_path)
    site.write()
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run(
            [sys.executable, "-m", "vpnd", "--config", site.path, *arguments],
            stdout=full, stderr=subprocess.PIPE, encoding="utf-8", check=False, timeout=60,
        )  # fmt: skip
    said = "vpnd: error: the output cannot be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, said)

"""The daemon as a program, as far as it needs no network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.vpnd.config_files import LON1, Site


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


def test_check_tells_of_what_is_noted_in_the_files_and_not_of_this_host_alone(
    tmp_path: Path,
) -> None:
    site = Site(tmp_path)
    site.peers["lon1"] = {"identity": LON1, "allowed_ips": ["10.20.30.0/24"]}
    site.write()
    command = [sys.executable, "-m", "vpnd", "--config", str(site.path), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "10.20.30.0/24 lies within 10.20.0.0/16 at peer ams1" in done.stdout

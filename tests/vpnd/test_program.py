"""The daemon as a program, as far as it needs no network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.vpnd.config_files import LON1, Site


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

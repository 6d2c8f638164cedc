"""What the fork server has imported before it forks: else each start imports it again."""

from __future__ import annotations

import subprocess
import sys

LOADED = """
import sys
from vpnd_lab import fork_server
print(*sorted(fork_server._load()))
print(*sorted({"vpnd.program", "vpnd.node", "cli.main", "cli.status"} - set(sys.modules)))
"""


def test_every_program_is_loaded_with_its_package() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADED], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    programs, missing = done.stdout.splitlines()
    assert programs.split() == ["vpnctl", "vpnd", "vpnd_lab.sniffer", "vpnd_lab.traffic"]
    assert missing == ""

"""The demo, and two sites, on the programs of a newer Debian: its Python, its wireguard-go.

Debian 13's wireguard-go, which is Ubuntu 26.04's as well, expects another TUN device than Debian
12's and says it were older than it is.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

pytestmark = [pytest.mark.netns, pytest.mark.long]

IN_DEBIAN = Path(__file__).parent / "in-debian"
SECONDS = 1800


@pytest.mark.parametrize(
    "command",
    [
        ("make", "demo"),
        (".venv/bin/pytest", "-q", "-n7", "--color=no", "netns-tests/test_two_sites.py"),
    ],
    ids=["demo", "two sites"],
)
def test_on_debian_13(command: tuple[str, ...]) -> None:
    done = subprocess.run(
        [IN_DEBIAN, "trixie", *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    print(done.stdout[-20_000:])
    assert done.returncode == 0

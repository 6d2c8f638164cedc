"""vpnctl as a person meets it: a process with arguments, an exit code, stdout and stderr."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cli.fake_daemon import FakeDaemon, fake_daemon

PROGRAM = Path(sys.executable).with_name("vpnctl")
TIMEOUT_SECONDS = 60


@dataclass(frozen=True)
class Ended:
    """A vpnctl that has ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def document(self) -> Any:
        """stdout as the one JSON document that it has to be."""
        return json.loads(self.stdout)

    @property
    def errors(self) -> list[str]:
        return self._said("error")

    @property
    def hints(self) -> list[str]:
        return self._said("hint")

    def _said(self, kind: str) -> list[str]:
        start = f"vpnctl: {kind}: "
        return [
            line.removeprefix(start) for line in self.stderr.splitlines() if line.startswith(start)
        ]

    def assert_refused(self, code: int) -> None:
        """It ended with `code`, told error and hint in the agreed form, and printed no data."""
        assert self.code == code, self
        if self.stdout:  # where --json was among the arguments
            assert self.document["error"]["message"]
        assert "Traceback" not in self.stderr
        lines = self.stderr.splitlines()
        assert all(line.startswith(("vpnctl: error: ", "vpnctl: hint: ")) for line in lines), lines
        assert self.errors
        assert self.hints


class Vpnctl:
    """Runs the installed program, away from this machine's own configuration."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.config = home / "etc" / "vpnd.toml"
        self.socket = home / "control.sock"
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "VPND_SOCKET": str(self.socket),
            "VPND_CONFIG": str(self.config),
        }

    def __call__(self, *arguments: str | Path, **environment: str) -> Ended:
        done = subprocess.run(
            [PROGRAM, *arguments],
            env={**self.environment, **environment},
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    def start(self, *arguments: str | Path) -> "subprocess.Popen[str]":
        """For a command that runs until it is told to stop; the caller ends and reaps it."""
        return subprocess.Popen(
            [PROGRAM, *arguments],
            env=self.environment,
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )


@pytest.fixture
def vpnctl(tmp_path: Path) -> Vpnctl:
    return Vpnctl(tmp_path)


@pytest.fixture
def daemon(vpnctl: Vpnctl) -> Iterator[FakeDaemon]:
    with fake_daemon(vpnctl.socket) as running:
        yield running


def files_below(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Mode and content of everything in `folder`: equal before and after, if nothing changed."""
    return {
        str(path.relative_to(folder)): (
            path.lstat().st_mode,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in folder.rglob("*")
    }

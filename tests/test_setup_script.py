"""`tools/setup` in a folder with a few files of the checkout, and programs that only pretend."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 30.0
PATIENT_APT = "trap '' INT; sleep 1"
"""As apt is while dpkg works: it ends what it has begun, and says that all is well."""


@dataclass
class Checkout:
    folder: Path

    @property
    def started(self) -> Path:
        """Made by the program that takes long: its process."""
        return self.folder / "started"

    def program(self, name: str, script: str) -> Path:
        path = self.folder / "programs" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)
        return path

    def long(self, how: str) -> str:
        return f"echo $$ >'{self.started}.new'; mv '{self.started}.new' '{self.started}'; {how}"

    def interrupted(self, send: Callable[[int, int], None], number: int) -> tuple[int, str]:
        """Exit code and stderr of a set-up that gets a signal while something takes long."""
        path = f"{self.folder}/programs:{os.environ['PATH']}"
        process = subprocess.Popen(
            ["tools/setup"],
            cwd=self.folder,
            env=os.environ | {"PATH": path, "PYTHON": str(self.folder / "programs" / "python3")},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            wait_until(self.started.exists)
            send(process.pid, number)
            _, said = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
        return process.returncode, said

    def is_left_alone(self) -> bool:
        """Whether what took long has ended, and no mark says that it is complete."""
        worker = int(self.started.read_text())
        return not Path(f"/proc/{worker}").exists() and not list(self.folder.glob(".venv/.comp*"))


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it has not come to that"
        time.sleep(0.01)


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "setup", tmp_path / "tools")
    for name in ("requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    made = Checkout(tmp_path)
    made.program("dpkg-query", 'for p in "${@:3}"; do echo "installed=$p"; done')
    made.program("apt-get", "exit 1")
    made.program("python3", "exit 1")
    return made


SENT = pytest.mark.parametrize("send", [os.killpg, os.kill], ids=["Ctrl-C", "a signal to it alone"])


@SENT
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_while_pip_works(
    checkout: Checkout, send: Callable[[int, int], None], number: int
) -> None:
    pip = checkout.long("echo line; exec sleep 600")
    venv = f'mkdir -p "$3/bin"; printf \'#!/bin/bash\\n%s\\n\' {quoted(pip)} >"$3/bin/python"'
    python = checkout.program("python3", "")
    checkout.program(
        "python3",
        f'[[ $1 == -c ]] && {{ echo "{python} 3.11"; exit; }}; {venv}; chmod +x "$3"/bin/*',
    )
    code, said = checkout.interrupted(send, number)
    assert (code, said) == (130, "setup: interrupted; run it again\n")
    assert checkout.is_left_alone()


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone installs packages")
@SENT
@pytest.mark.parametrize("how", ["exec sleep 600", PATIENT_APT], ids=["a download", "dpkg"])
@pytest.mark.parametrize("command", ["update", "install"])
def test_an_interruption_while_apt_works(
    checkout: Checkout, send: Callable[[int, int], None], how: str, command: str
) -> None:
    checkout.program("dpkg-query", "exit 1")
    checkout.program("dpkg", "true")
    checkout.program("apt-get", f'[[ " $* " != *" {command} "* ]] || {{ {checkout.long(how)}; }}')
    code, said = checkout.interrupted(send, signal.SIGINT)
    assert (code, said) == (130, "setup: interrupted; run it again\n")
    assert checkout.is_left_alone()


def quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"

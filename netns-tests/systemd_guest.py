"""A small Debian with systemd running, booted in seconds, gone without a trace afterwards.

systemd-nspawn over a file system that `netns-tests/systemd-root` made; what the guest writes is
kept in memory. It has a network of its own, without a way out.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent
BOOT_SECONDS = 60.0
STOP_SECONDS = 30.0
COMMAND_SECONDS = 300.0
POLL_SECONDS = 0.2
_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
    "PIP_NO_INDEX": "1",
    "PIP_FIND_LINKS": "/wheels",
}


class Guest:
    """The booted guest; commands run in it as root."""

    def __init__(self, leader: int) -> None:
        self._enter = ["nsenter", f"--target={leader}", "--all", "--"]

    def run(self, *command: str, check: bool = True) -> str:
        """The standard output of a command; AssertionError with all it said if it failed."""
        done = self._run(command)
        if check:
            assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def succeeds(self, *command: str) -> bool:
        """Whether a command ends with 0."""
        return self._run(command).returncode == 0

    def _run(self, command: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self._enter, *command],
            env=_ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )

    def json(self, *command: str) -> Any:
        return json.loads(self.run(*command, check=False) or "null")

    def wait(self, what: str, seconds: float, ready: Callable[[], object]) -> None:
        """Look again and again until `ready` says yes."""
        deadline = time.monotonic() + seconds
        while not ready():
            assert time.monotonic() < deadline, f"not within {seconds} s: {what}\n{self.journal()}"
            time.sleep(POLL_SECONDS)

    def journal(self) -> str:
        return self.run("journalctl", "--no-pager", "-o", "cat", "-n", "60", check=False)


@contextmanager
def booted(made: Path) -> Iterator[Guest]:
    """Boot what `netns-tests/systemd-root` made in the folder `made`."""
    # Where this machine's systemd is in charge, the guest is given a scope of its own, and has to
    # be allowed the device there.
    if Path("/run/systemd/system").exists():
        unit = ["--property=DeviceAllow=/dev/net/tun rwm"]
    else:
        unit = ["--keep-unit"]
    nspawn_command = (
        "systemd-nspawn --quiet --register=no --boot --volatile=overlay --console=pipe"
        " --private-network --machine=vpnd-test"
        f" --bind=/dev/net/tun --directory={made}/root"
        f" --bind-ro={CHECKOUT}:/src --bind-ro={made}/wheels:/wheels"
    ).split()
    log = made.with_suffix(".boot.log")
    with log.open("wb") as console:
        nspawn = subprocess.Popen(
            # If the tests are killed, the guest is told to shut down.
            ["setpriv", "--pdeathsig", "TERM", *nspawn_command, *unit],
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        guest = Guest(_leader(nspawn, log))
        guest.wait("systemd running", BOOT_SECONDS, lambda: _is_running(guest))
        yield guest
    finally:
        nspawn.terminate()
        try:
            nspawn.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            nspawn.kill()
            nspawn.wait()


def _leader(nspawn: subprocess.Popen[bytes], log: Path) -> int:
    """The guest's process 1, as this machine counts: the child of nspawn."""
    children = Path(f"/proc/{nspawn.pid}/task/{nspawn.pid}/children")
    deadline = time.monotonic() + BOOT_SECONDS
    while time.monotonic() < deadline and nspawn.poll() is None:
        with suppress(OSError):
            for child in children.read_text().split():
                if Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
                    return int(child)
        time.sleep(POLL_SECONDS)
    raise AssertionError(f"the guest did not boot:\n{log.read_text(errors='replace')}")


def _is_running(guest: Guest) -> bool:
    state = guest.run("systemctl", "is-system-running", check=False).strip()
    assert state != "degraded", guest.run("systemctl", "--failed", "--no-pager")
    return state == "running"

"""Signals while vpnd starts, from the first moment in which it can take any."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tun_site import Site

pytestmark = pytest.mark.netns

DEADLINE = 120.0
"""Seconds that a start may take on a busy machine."""
CHECKOUT = Path(__file__).parent.parent
ENV = {**os.environ, "PYTHONPATH": str(CHECKOUT)}


@pytest.fixture
def site() -> Iterator[Site]:
    with Site("signals") as site:
        yield site


@pytest.fixture
def config(tmp_path: Path) -> Path:
    tmp_path.chmod(0o755)
    path = tmp_path / "vpnd.toml"
    subprocess.run(
        [sys.executable, "-c", "from cli.main import main; main()", "--config", str(path), "init",
         "--name", "fra", "--address", "10.255.0.1/24", "--backend", "userspace",
         "--state-dir", str(tmp_path / "state"), "--runtime-dir", str(tmp_path / "run")],
        env=ENV, check=True, capture_output=True,
    )  # fmt: skip
    return path


class Starting:
    """A vpnd that was started just now."""

    def __init__(self, site: Site, config: Path, *more: str) -> None:
        self.log = config.parent / "log"
        self.socket = config.parent / "run" / "control.sock"
        # Not into the site's PID namespace: nsenter would start a child for that
        self._output = self.log.open("wb")
        self.process = subprocess.Popen(
            ["nsenter", f"--target={site.pid}", "--net", "--mount", "--",
             sys.executable, "-m", "vpnd", "--config", str(config), *more],
            env=ENV, stdout=self._output, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def __enter__(self) -> Starting:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(DEADLINE)
        finally:
            self.process.kill()
            self.process.wait()
            self._output.close()

    def catches(self, number: int) -> bool:
        """Whether the program takes a signal by now (proc(5), SigCgt)."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next((line for line in status.splitlines() if line.startswith("SigCgt")), "0 0")
        return bool(int(line.split()[1], 16) >> (number - 1) & 1)

    def until(self, condition: object, *, what: str) -> None:
        end = time.monotonic() + DEADLINE
        while not condition():  # type: ignore[operator]
            assert self.process.poll() is None, f"vpnd ended: {self.said}"
            assert time.monotonic() < end, f"{what}: {self.said}"
            time.sleep(0.005)

    @property
    def said(self) -> str:
        return self.log.read_text()


def test_hangups_and_user_signals_while_it_starts_end_nothing(site: Site, config: Path) -> None:
    with Starting(site, config) as vpnd:
        vpnd.until(lambda: vpnd.catches(signal.SIGHUP), what="no handler")

        def started() -> bool:
            for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM):
                vpnd.process.send_signal(number)
            return '"started"' in vpnd.said

        vpnd.until(started, what="did not start")
        # The reload that was asked for is made up for
        vpnd.until(lambda: '"reloaded"' in vpnd.said, what="no reload")
        vpnd.process.send_signal(signal.SIGUSR1)
        vpnd.until(lambda: '"signal_ignored"' in vpnd.said, what="not told")
        vpnd.process.send_signal(signal.SIGTERM)
        assert vpnd.process.wait(DEADLINE) == 0
        assert "Traceback" not in vpnd.said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda one: one.name)
def test_a_stop_while_it_starts_is_quiet(site: Site, config: Path, number: int) -> None:
    for when in ("at once", "in the event loop"):
        with Starting(site, config) as vpnd:
            vpnd.until(lambda vpnd=vpnd: vpnd.catches(signal.SIGHUP), what="no handler")
            if when == "in the event loop":
                vpnd.until(lambda vpnd=vpnd: vpnd.catches(signal.SIGTERM), what="no loop")
            vpnd.process.send_signal(number)
            assert vpnd.process.wait(DEADLINE) in (0, -number)
            assert "Traceback" not in vpnd.said
            assert not vpnd.socket.exists()


def test_guards_are_set_whatever_signal_comes(site: Site, config: Path) -> None:
    peer = config.parent / "peers.d" / "ams.toml"
    peer.write_text('allowed_ips = ["10.20.0.0/16"]\n')
    with Starting(site, config, "--guard-only") as vpnd:
        vpnd.until(lambda: vpnd.catches(signal.SIGHUP), what="no handler")
        end = time.monotonic() + DEADLINE
        while vpnd.process.poll() is None and time.monotonic() < end:
            vpnd.process.send_signal(signal.SIGHUP)
            vpnd.process.send_signal(signal.SIGUSR1)
            time.sleep(0.01)
        assert vpnd.process.returncode == 2
        assert "guard routes of 1 peer(s) stand" in vpnd.said
    assert "unreachable 10.20.0.0/16" in site.run("ip", "route")


def test_with_run_emptied_there_is_still_one_daemon(site: Site, config: Path) -> None:
    with Starting(site, config) as vpnd:
        vpnd.until(lambda: '"started"' in vpnd.said, what="did not start")
        site.run("rm", "-r", str(config.parent / "run"))
        second = subprocess.run(
            ["nsenter", f"--target={site.pid}", "--net", "--mount", "--",
             sys.executable, "-m", "vpnd", "--config", str(config)],
            env=ENV, capture_output=True, text=True, check=False, timeout=DEADLINE,
        )  # fmt: skip
        assert second.returncode == 1
        assert "another vpnd runs with the state directory" in second.stderr
        vpnd.until(vpnd.socket.exists, what="no socket")
        asked = subprocess.run(
            [sys.executable, "-c", "from cli.main import main; main()", "--socket",
             str(vpnd.socket), "status"],
            env=ENV, capture_output=True, text=True, check=False, timeout=DEADLINE,
        )  # fmt: skip
        assert asked.returncode == 0, asked.stderr

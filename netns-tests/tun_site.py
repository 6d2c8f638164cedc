"""A site for the tests of `tun`: network, mount and process namespaces that end with the test.

The first process of a site waits for the end of its standard input, and the kernel ends every
process of a site with its first one: so a test that dies, however it dies, leaves nothing behind.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

_CHECKOUT = Path(__file__).resolve().parent.parent
_VISIBLE = "/run/checkout"
"""The checkout for users who may not go where it lies, such as below /root."""
# A /run of its own: wireguard-go's sockets are named by interface alone.
_FIRST_PROCESS = (
    "mount -t tmpfs none /run && mkdir -m 700 /run/wireguard && mkdir $1 && mount --rbind $0 $1 "
    "&& ip link set lo up && echo ready && cat"
)
# One process: each costs a second where the machine is an emulated one.
_CLEAR = """
ip link delete wg0 2>/dev/null
for family in -4 -6; do for protocol in 157 99; do
    ip $family route flush table all proto $protocol 2>/dev/null
done; done
for try in $(seq 1000); do
    [ -n "$(ls /run/wireguard)" ] || exit 0
    sleep 0.01
done
echo "wireguard-go does not end" >&2
exit 1
"""


class Refused(Exception):
    """A call of `tun` raised one of its errors; args are the error's name and message."""

    @property
    def name(self) -> str:
        return str(self.args[0])


class Ping(NamedTuple):
    sent: int
    received: int


class Site:
    """A host of its own; runs commands, and the driver through which `tun` is called."""

    def __init__(self, name: str, *, driver_runs_by: tuple[str, ...] = ()) -> None:
        """`driver_runs_by`: a command line that the driver's is put behind."""
        self.name = name
        self._driver_runs_by = driver_runs_by
        self._driver: subprocess.Popen[str] | None = None
        self._first = subprocess.Popen(
            ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
             "sh", "-c", _FIRST_PROCESS, str(_CHECKOUT), _VISIBLE],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._first.stdout is not None
        assert self._first.stdout.readline() == "ready\n"
        children = Path(f"/proc/{self._first.pid}/task/{self._first.pid}/children").read_text()
        self.pid = int(children.split()[0])

    def __enter__(self) -> Site:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._driver is not None:
            self._end_driver()
        self._first.communicate()

    def command(self, *command: str) -> list[str]:
        """The command line that runs `command` in this site."""
        return ["nsenter", f"--target={self.pid}", "--net", "--mount", "--pid", "--", *command]

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command to its end; returns what it wrote to stdout."""
        done = subprocess.run(self.command(*command), capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, f"{command} in {self.name}: {done.stderr}"
        return done.stdout

    def python(self, script: str, *, behind: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        """Start a script of this folder in this site; `behind`: a command that runs it."""
        python = sys.executable.replace(f"{_CHECKOUT}/", f"{_VISIBLE}/")
        return subprocess.Popen(
            self.command(*behind, python, f"{_VISIBLE}/netns-tests/{script}"),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": _VISIBLE},
        )  # fmt: skip

    def succeeds(self, *command: str) -> bool:
        return subprocess.run(self.command(*command), capture_output=True).returncode == 0  # noqa: PLW1510

    def connect(self, other: Site, number: int) -> None:
        """A cable to another site: 192.0.2.0/24 (TEST-NET-1) and 2001:db8::/64 on it."""
        subprocess.run(
            ["nsenter", f"--target={self.pid}", "--net", "--", "ip", "link", "add", "eth0", "type",
             "veth", "peer", "name", "eth0", "netns", str(other.pid)],
            check=True,
        )  # fmt: skip
        for site, host in ((self, number), (other, number + 1)):
            site.run("ip", "address", "add", f"192.0.2.{host}/24", "dev", "eth0")
            site.run("ip", "address", "add", f"2001:db8::{host}/64", "dev", "eth0", "nodad")
            site.run("ip", "link", "set", "eth0", "up")

    def ping(self, address: str, *, count: int = 1, interval: float = 0.02) -> Ping:
        """Send pings at a fixed pace, and wait 10 s for the last answer."""
        done = subprocess.run(
            self.command("ping", "-q", "-n", f"-c{count}", f"-i{interval}", "-W10", address),
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        return _ping_result(done.stdout)

    def start_pings(self, address: str, *, count: int, interval: float) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command("ping", "-q", "-n", f"-c{count}", f"-i{interval}", "-W10", address),
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def end_pings(self, pings: subprocess.Popen[str]) -> Ping:
        """Wait for pings started before."""
        return _ping_result(pings.communicate()[0])

    def data_planes(self) -> list[str]:
        """Process id and command line of the wireguard-go processes of this site."""
        shown = self.run("ps", "-eo", "pid=,args=").splitlines()
        running = [line.strip() for line in shown if "<defunct>" not in line]
        return [line for line in running if "wireguard-go" in line.split()[1]]

    def clear(self) -> None:
        """Take away what a test left: interface, process, routes of ours (157) and foreign (99)."""
        self.run("sh", "-c", _CLEAR)

    def call(self, name: str, **values: Any) -> Any:
        """Call `tun` through the driver; raises Refused."""
        if self._driver is None:
            self._driver = self.python("tun_driver.py", behind=self._driver_runs_by)
        assert self._driver.stdin is not None
        assert self._driver.stdout is not None
        self._driver.stdin.write(json.dumps([name, values]) + "\n")
        self._driver.stdin.flush()
        line = self._driver.stdout.readline()
        assert line, f"the driver of {self.name} died"
        answer = json.loads(line)
        if "error" in answer:
            raise Refused(answer["error"], answer["message"])
        return answer["result"]

    def kill_driver(self) -> None:
        """SIGKILL to the process that holds the tunnel; the next call starts another."""
        pid = self.call("pid")
        self.run("kill", "-KILL", str(pid))
        self._end_driver()

    def _end_driver(self) -> None:
        if self._driver is not None:
            self._driver.communicate()
            self._driver = None


def _ping_result(output: str) -> Ping:
    words = next(line for line in output.splitlines() if "packets transmitted" in line).split()
    return Ping(sent=int(words[0]), received=int(words[3]))

"""A real daemon with many links on one WireGuard interface: `python -m bench.hub LINKS SECONDS`.

To be run by `unshare` in namespaces of its own (network, mounts, processes): all that it makes
ends with it. Around the daemon stand its far ends (bench.far_ends). Prints a line of JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from bench.far_ends import PORT
from bench.process import cpu_of, memory_of
from kex.identity import Identity
from vpnd.identity_store import create_identity, system_suite
from vpnd_lab.control import NotAnswering, get
from vpnd_lab.programs import program

FOLDER: Final = Path("/run/bench")
SOCKET: Final = Path("/run/vpnd/control.sock")
HUB_PORT: Final = 51821
START_SECONDS: Final = 180.0
LOOK_SECONDS: Final = 3.0
CONFIG: Final = f"""
[node]
name = "hub"
listen = ["127.0.0.1:{HUB_PORT}"]
state_dir = "{FOLDER}/state"
runtime_dir = "/run/vpnd"

[tunnels.backbone]
interface = "wg0"
listen_port = 51820
addresses = ["10.0.0.1/32"]
backend = "userspace"
"""


def main() -> None:
    links, seconds = int(sys.argv[1]), float(sys.argv[2])
    _private_host()
    identity = Identity.generate(system_suite(1))
    FOLDER.mkdir()
    (FOLDER / "peers.d").mkdir()
    create_identity(FOLDER / "state", identity)
    (FOLDER / "vpnd.toml").write_text(CONFIG)
    (FOLDER / "hub.pub").write_bytes(identity.public_key)
    ends = subprocess.Popen(
        [sys.executable, "-m", "bench.far_ends", str(HUB_PORT), str(links), str(FOLDER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert ends.stdout is not None  # noqa: S101
    ends.stdout.readline()
    _write_peers()
    with (FOLDER / "log").open("wb") as log:
        started = time.monotonic()
        daemon = subprocess.Popen(
            [program("vpnd"), "--config", str(FOLDER / "vpnd.toml")], stdout=log, stderr=log
        )
    measured = _measure(daemon.pid, links, seconds, started)
    listed = time.monotonic()
    shown = subprocess.run(
        [program("vpnctl"), "--socket", str(SOCKET), "status"],
        check=False,
        capture_output=True,
        text=True,
    )
    measured["vpnctl_seconds"] = time.monotonic() - listed
    measured["vpnctl_lines"] = shown.stdout.count("\n")
    daemon.terminate()
    measured["exit"] = daemon.wait()
    measured["far_ends"] = json.loads(ends.communicate("")[0])
    events = _events()
    measured["log"] = Counter(event["event"] for event in events)
    measured["troubles"] = Counter(
        f"{event['event']}: {event.get('reason', '')}"
        for event in events
        if event["level"] != "info" and event["event"] != "state_changed"
    )
    print(json.dumps(measured))


def _private_host() -> None:
    """This mount namespace gets a /run of its own, and loopback is up in this network's."""
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def _write_peers() -> None:
    ends = json.loads((FOLDER / "ends.json").read_text())
    for number, (host, identity) in enumerate(ends):
        (FOLDER / "peers.d" / f"end{number:04}.toml").write_text(
            f'identity = "{identity}"\n'
            f'endpoint = "{host}:{PORT}"\n'
            f'allowed_ips = ["10.{1 + (number >> 8)}.{number & 255}.0/24"]\n'
        )


def _measure(pid: int, links: int, seconds: float, started: float) -> dict[str, Any]:
    status = _wait(links, started)
    measured: dict[str, Any] = {
        "links": links,
        "installed_after": time.monotonic() - started,
        "pause_at_start": _pauses(status),
    }
    status = _wait(links, started, in_force=True)
    measured["active_after"] = time.monotonic() - started
    # Renewals begin when the sessions are 105 s old: from then on there is an even stream of them
    if seconds:
        time.sleep(max(0.0, started + 110 - time.monotonic()))
    renewed, cpu, wireguard = _renewed(_status()), cpu_of(pid), cpu_of(_wireguard())
    began = time.monotonic()
    time.sleep(seconds)
    elapsed = time.monotonic() - began
    measured["seconds"] = elapsed
    measured["cpu_seconds"] = cpu_of(pid) - cpu
    measured["wireguard_cpu_seconds"] = cpu_of(_wireguard()) - wireguard
    status = _status()
    measured["renewals"] = _renewed(status) - renewed
    measured["pause"] = _pauses(status)
    measured["states"] = Counter(link["state"] for link in status["links"])
    measured["memory"] = memory_of(pid)
    measured["counters"] = status["counters"]
    began = time.monotonic()
    _status()
    measured["status_seconds"] = time.monotonic() - began
    measured["pause_with_status"] = _pauses(_status())
    return measured


def _wait(links: int, started: float, *, in_force: bool = False) -> Any:
    status: Any = {"links": []}
    while time.monotonic() < started + START_SECONDS:
        with suppress(NotAnswering):
            status = _status()
            known = [
                link
                for link in status["links"]
                if (link["key_in_force"] if in_force else link["key_installed"]) is not None
            ]
            if len(known) == links:
                return status
            print(f"{len(known)} of {links}", file=sys.stderr)
        time.sleep(LOOK_SECONDS)
    states = Counter((link["state"], link["reason"]) for link in status["links"])
    said = (FOLDER / "log").read_text()[-2000:]
    raise SystemExit(f"not all of {links} links came up in {START_SECONDS:.0f} s: {states}\n{said}")


def _status() -> Any:
    return get(SOCKET, "/v1/status")


def _pauses(status: Any) -> tuple[float, float]:
    """The longest so far, in milliseconds: by the clock, and in CPU time."""
    return status["longest_pause_ms"], status["longest_pause_cpu_ms"]


def _renewed(status: Any) -> int:
    return sum(link["counters"].get("key_installed", 0) for link in status["links"])


def _wireguard() -> int:
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (folder / "comm").read_text().strip() == "wireguard-go":
                return int(folder.name)
    raise SystemExit("there is no wireguard-go")


def _events() -> list[Any]:
    events = []
    for line in (FOLDER / "log").read_text().splitlines():
        with suppress(ValueError):
            events.append(json.loads(line))
    return events


if __name__ == "__main__":
    main()

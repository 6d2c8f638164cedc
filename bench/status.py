"""Start of `vpnctl status` with few and with many links, against canned answers."""

from __future__ import annotations

import copy
import http.server
import json
import os
import resource
import socketserver
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from bench.result import NotRun, Row

GROUP = "vpnctl status"
GOALS: Final = {1: 0.3, 1000: 0.6}
RUNS = 7


def measure() -> Iterator[Row | NotRun]:
    python = _median([sys.executable, "-c", "pass"])
    for links, goal in GOALS.items():
        with tempfile.TemporaryDirectory() as folder, _served(Path(folder), links) as path:
            vpnctl = str(Path(sys.executable).with_name("vpnctl"))
            for name, more in (("a table", []), ("--json", ["--json"])):
                seconds = _median([vpnctl, "--socket", str(path), "status", *more])
                yield Row(
                    GROUP,
                    f"{links:,} {'link' if links == 1 else 'links'}, {name}, CPU",
                    seconds,
                    "s",
                    python,
                    "python -c pass",
                    f"≤ {goal} s",
                    seconds <= goal,
                )


def _median(command: list[str]) -> float:
    """Seconds of CPU: what somebody waits on a machine that has nothing else to do."""
    taken = []
    for _ in range(RUNS):
        before = _children()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        taken.append(_children() - before)
    return statistics.median(taken)


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _status(links: int) -> dict[str, Any]:
    key = {
        "key_id": "0badc0de",
        "installed_at": "2020-01-02T03:04:05Z",
        "in_force_since": "2020-01-02T03:04:05Z",
        "age_seconds": 61.0,
    }
    one = {
        "schema": 1,
        "state": "active",
        "reason": "a key is in force",
        "since": "2020-01-02T03:04:05Z",
        "adopted": False,
        "identity": "vpnd1" + "q" * 59,
        "suite": 1,
        "tunnel": "backbone",
        "key_in_force": key,
        "key_installed": key,
        "next_renewal_seconds": 44.0,
        "expires_seconds": 539.0,
        "endpoint": "192.0.2.7:51821",
        "wireguard": {
            "public_key": "A" * 43 + "=",
            "peer_public_key": "B" * 43 + "=",
            "endpoint": "192.0.2.7:51820",
            "last_handshake_seconds": 20.0,
            "rx_bytes": 123456,
            "tx_bytes": 123456,
        },
        "external_keys": {"mode": "off", "mixed": []},
        "last_error": None,
        "counters": {"exchange_started": 3, "key_installed": 3},
        "allowed_ips": ["10.0.0.0/24"],
        "warnings": [],
    }
    return {
        "schema": 1,
        "node": "bench",
        "version": "0",
        "identities": [],
        "pid": os.getpid(),
        "uptime_seconds": 100.0,
        "listen": ["[::]:51821"],
        "tunnels": [],
        "links": [{**copy.deepcopy(one), "peer": f"site{n:04}"} for n in range(links)],
        "counters": {},
        "warnings": [],
    }


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


@contextmanager
def _served(folder: Path, links: int) -> Iterator[Path]:
    """A control socket that answers every question with this status."""
    body = json.dumps(_status(links)).encode()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

        def address_string(self) -> str:
            return "local"

    path = folder / "control.sock"
    server = _Server(str(path), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield path
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

"""sd_notify(3): tell the service manager that we are ready, alive, or about to stop."""

from __future__ import annotations

import os
import socket

_MICROSECONDS = 1_000_000
SEND_SECONDS = 0.1
"""What a manager that stands still may cost."""


def notify(*lines: str) -> None:
    """Send state lines such as `READY=1`; without a service manager nothing happens."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        # Its queue may be full, while it stands still: the event loop does not wait for that
        channel.settimeout(SEND_SECONDS)
        try:
            channel.sendto("\n".join(lines).encode(), address)
        except OSError:
            # The manager has gone away or does not listen: nothing that we could do better
            return


def watchdog_seconds() -> float | None:
    """How often the manager wants WATCHDOG=1: half of its limit, in seconds; None for never."""
    limit = os.environ.get("WATCHDOG_USEC", "")
    owner = os.environ.get("WATCHDOG_PID", str(os.getpid()))
    if not limit.isdigit() or owner != str(os.getpid()):
        return None
    return int(limit) / _MICROSECONDS / 2

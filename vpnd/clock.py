"""The two clocks: one that runs on in suspend and never jumps, and one for people."""

from __future__ import annotations

import time
from datetime import UTC, datetime


def boottime() -> float:
    """Seconds since boot, suspend included (CLOCK_BOOTTIME): what everything is measured by."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def wall() -> float:
    """Seconds since 1970: shown, and compared with WireGuard's stamps at adoption; no more."""
    return time.time()


def rfc3339(at_wall: float) -> str:
    """A moment for people and programs: RFC 3339, UTC, milliseconds."""
    moment = datetime.fromtimestamp(at_wall, tz=UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def wall_of(at_boottime: float) -> float:
    """The wall clock's reading, as of now, for a moment on the boot clock."""
    return wall() - (boottime() - at_boottime)

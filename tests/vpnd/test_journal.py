"""What becomes of a record where the log cannot be written."""

from __future__ import annotations

import subprocess
import sys

RECORDS = """
import structlog
from vpnd.event_feed import EventFeed
from vpnd.journal import Journal, configure_logging

configure_logging("info")
try:
    structlog.get_logger("vpnd").info("as it is without the journal")
except OSError as error:
    print(error.strerror)
journal = Journal(EventFeed())
journal.record("key_installed", peer="ams")
print(journal.counters["key_installed"])
"""


def test_a_full_disk_below_the_log_stops_nobody() -> None:
    # /dev/full: every write fails for want of room
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", RECORDS],
            stdout=subprocess.PIPE,
            stderr=full,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.stdout.splitlines() == ["No space left on device", "1"]

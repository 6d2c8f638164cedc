"""Where prefixes and peers lead: what the watch does where the host gives it no socket."""

from __future__ import annotations

import os
import resource
from typing import Any

import trio

from vpnd.event_feed import EventFeed
from vpnd.journal import Journal
from vpnd.paths import PathWatch


async def test_without_a_socket_the_daemon_goes_on_and_says_so() -> None:
    free = os.dup(0)
    os.close(free)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    told = trio.Event()

    class Told(Journal):
        def record(self, event: str, **about: Any) -> None:
            super().record(event, **about)
            if event == "changes_unseen":
                # At once: the look that follows has its sockets again
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                told.set()

    guards: Any = None  # of no tunnel
    watch = PathWatch(guards, {}, {}, Told(EventFeed()))
    async with trio.open_nursery() as nursery:
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
        try:
            nursery.start_soon(watch.run)
            with trio.fail_after(60):
                await told.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        nursery.cancel_scope.cancel()

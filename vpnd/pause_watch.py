"""How long the event loop was not there for anybody: between two looks at what has come in.

An operator sees by it whether a slow disk, a busy machine or a bug of ours delays the links.
"""

from __future__ import annotations

import time

import trio


class PauseWatch(trio.abc.Instrument):
    """Watches the loop that it is added to; times are by the monotonic clock, not CPU."""

    def __init__(self) -> None:
        self._began: float | None = None
        self.longest = 0.0
        """Seconds, since the start."""

    def after_io_wait(self, timeout: float) -> None:
        self._began = time.perf_counter()

    def before_io_wait(self, timeout: float) -> None:
        if self._began is not None:
            self.longest = max(self.longest, time.perf_counter() - self._began)

"""How long the event loop was not there for anybody: between two looks at what has come in.

An operator sees by it whether a slow disk, a busy machine or a bug of ours delays the links.
"""

from __future__ import annotations

import math
import time

import trio


class PauseWatch(trio.abc.Instrument):
    """Watches the loop that it is added to; all in seconds, since the start."""

    def __init__(self) -> None:
        self._began = self._began_cpu = math.inf
        self.longest = 0.0
        """By the clock: what others on the machine took is in it."""
        self.longest_cpu = 0.0
        """CPU of the loop's own thread."""

    def after_io_wait(self, timeout: float) -> None:
        self._began, self._began_cpu = time.perf_counter(), time.thread_time()

    def before_io_wait(self, timeout: float) -> None:
        self.longest = max(self.longest, time.perf_counter() - self._began)
        self.longest_cpu = max(self.longest_cpu, time.thread_time() - self._began_cpu)

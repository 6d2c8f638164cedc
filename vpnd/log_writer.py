"""The way to stderr that never holds anybody up: a bounded queue, and a thread that writes.

Whoever reads the other end (a pipe that nobody drains, a journald that stands still, a full disk)
decides how fast a write is, or whether it ends at all. So writes are made by a thread of their
own, blocking as they may be. The descriptor's flags stay as they are: it is shared with whoever
gave it to this process. What there is no room for is dropped and counted, and the count is told
where the log goes on.
"""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

QUEUE_BYTES: Final = 2**20
"""What waits to be written, at most: some 4,000 records."""
FLUSH_SECONDS: Final = 2.0
"""How long an end of the program waits for what is not written yet."""

_Item = bytes | int
"""Whole lines; or how many records were dropped between the lines before and after."""


class LogWriter:
    """Takes records for a descriptor; no call blocks, and none fails."""

    def __init__(self, descriptor: int, *, tell_dropped: Callable[[int], str]) -> None:
        """`tell_dropped` makes the line about so many dropped records, with its end."""
        self._descriptor = descriptor
        self._tell_dropped = tell_dropped
        self._changed = threading.Condition()
        self._queue: deque[_Item] = deque()
        self._size = 0
        self._overflown = 0
        """Records dropped since the last one that found room."""
        self._unwritten = 0
        """Records whose writing failed since the last that succeeded; the thread's own."""
        self._busy = False
        self._thread: threading.Thread | None = None
        self._dropped = 0

    @property
    def dropped(self) -> int:
        """Records that were lost since the start."""
        return self._dropped

    def write(self, text: str) -> int:
        """Queue one record: one or more whole lines."""
        record = text.encode("utf-8", "backslashreplace")
        with self._changed:
            if self._size + len(record) > QUEUE_BYTES:
                self._overflown += 1
                self._dropped += 1
            else:
                self._mark_gap()
                self._queue.append(record)
                self._size += len(record)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="log", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return len(text)

    def flush(self, seconds: float = 0.0) -> bool:
        """Wait for what is queued, but never longer than this; whether all is written."""
        with self._changed:
            return self._changed.wait_for(lambda: not (self._queue or self._busy), seconds)

    def _mark_gap(self) -> None:
        if self._overflown:
            self._queue.append(self._overflown)
            self._overflown = 0

    # ---- the thread

    def _run(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                if not self._queue:
                    self._mark_gap()
                self._changed.notify_all()
                self._changed.wait_for(lambda: bool(self._queue))
                item = self._queue.popleft()
                self._busy = True
                if isinstance(item, bytes):
                    self._size -= len(item)
            self._put(item)

    def _put(self, item: _Item) -> None:
        if isinstance(item, int):
            self._unwritten += item
        elif not self._unwritten or self._tell():
            try:
                self._write_all(item)
            except OSError:
                self._lose()
            return
        else:
            self._lose()
            return
        self._tell()

    def _lose(self) -> None:
        self._unwritten += 1
        with self._changed:
            self._dropped += 1

    def _tell(self) -> bool:
        """Say how many records are missing here; whether that could be written."""
        try:
            self._write_all(self._tell_dropped(self._unwritten).encode())
        except OSError:
            return False
        self._unwritten = 0
        return True

    def _write_all(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._descriptor, view) :]
            except BlockingIOError:
                # Somebody else has made the description non-blocking
                poll = select.poll()
                poll.register(self._descriptor, select.POLLOUT)
                poll.poll()


class LogStream:
    """A text file for who prints to stderr: hands whole lines on, and never blocks."""

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, descriptor: int, write_line: Callable[[str], object]) -> None:
        self._descriptor = descriptor
        self._write_line = write_line
        self._part = ""
        self._lock = threading.RLock()

    def write(self, text: str) -> int:
        with self._lock:
            *lines, self._part = (self._part + text).split("\n")
        for line in lines:
            self._write_line(line)
        return len(text)

    def flush(self) -> None:
        """Nothing waits here but an unfinished line."""

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        return True

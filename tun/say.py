"""A line to stderr from a small helper, which must not hang because nobody takes it."""

from __future__ import annotations

import os
import select

__all__ = ["Sayer"]

_STDERR = 2
_WHOLE = 4096
"""PIPE_BUF: a pipe that is ready takes so many bytes at once, without waiting."""


class Sayer:
    """Says lines, or drops them where there is no room now, and tells how many with the next."""

    def __init__(self, program: str, descriptor: int = _STDERR) -> None:
        self._program = program
        self._descriptor = descriptor
        self._dropped = 0

    def say(self, text: str) -> None:
        """Write `PROGRAM: text`; never waits, never fails."""
        lost = f"{self._program}: lines that could not be written: {self._dropped}\n"
        line = f"{self._program}: {text}".replace("\n", " ")
        whole = f"{lost if self._dropped else ''}{line}".encode("utf-8", "backslashreplace")
        if self._write(whole[: _WHOLE - 1] + b"\n"):
            self._dropped = 0
        else:
            self._dropped += 1

    def _write(self, data: bytes) -> bool:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        if not any(event & select.POLLOUT for _, event in poll.poll(0)):
            return False
        try:
            return os.write(self._descriptor, data) == len(data)
        except OSError:
            return False

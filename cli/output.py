"""stdout whose failures can be told from every other one."""

import io
import os
from typing import TextIO


class OutputFailed(OSError):
    """stdout takes nothing more: its disk is full, its reader is gone."""


class Output(io.TextIOWrapper):
    """A text stream that raises OutputFailed where another one raises OSError."""

    @classmethod
    def around(cls, stream: io.TextIOWrapper) -> "Output":
        """Takes the place of `stream`, which holds nothing yet and has to be kept."""
        return cls(
            stream.buffer,
            encoding=stream.encoding,
            errors=stream.errors,
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as failure:
            raise OutputFailed(failure.errno, failure.strerror) from None

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as failure:
            raise OutputFailed(failure.errno, failure.strerror) from None


def discard(stream: TextIO) -> None:
    """Lead what a stream still holds to nowhere, so that the interpreter's last flush succeeds."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)

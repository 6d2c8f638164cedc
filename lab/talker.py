"""The lab's own processes in nodes, asked over their pipes: a JSON line each way."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import trio

from lab.errors import LabError, WaitTimeout, last_lines
from lab.node import Node
from lab.patience import patient

_ANSWER_SECONDS = 60.0


class Talker:
    """A process in a node that speaks JSON lines, and the pipes to it."""

    def __init__(self, node: Node, process: trio.Process) -> None:
        self._node = node
        self._process = process
        self._buffer = b""
        self._lock = trio.Lock()

    async def ask(self, do: str, **arguments: Any) -> Any:
        """One command, one answer."""
        line = json.dumps({"do": do, **arguments}).encode() + b"\n"
        async with self._lock:
            assert self._process.stdin is not None  # noqa: S101 given by Node.background
            with contextlib.suppress(trio.BrokenResourceError):  # read() says why
                await self._process.stdin.send_all(line)
            return await self.read()

    async def read(self) -> Any:
        """The next answer. Raises LabError with its stderr where the process has ended."""
        assert self._process.stdout is not None  # noqa: S101 given by Node.background
        assert self._process.stderr is not None  # noqa: S101
        with trio.move_on_after(patient(_ANSWER_SECONDS)):
            while b"\n" not in self._buffer:
                data = await self._process.stdout.receive_some()
                if not data:
                    said = await self._process.stderr.receive_some()
                    quoted = last_lines(said.decode(errors="replace"))
                    raise LabError(f"a helper process in {self._node.name} ended:\n{quoted}")
                self._buffer += data
            line, self._buffer = self._buffer.split(b"\n", 1)
            return json.loads(line)
        raise WaitTimeout(f"a helper process in {self._node.name} does not answer")

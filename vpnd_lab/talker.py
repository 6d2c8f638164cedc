"""The lab's own processes in nodes, asked over their pipes: a JSON line each way."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import trio

from vpnd_lab.errors import LabError, WaitTimeout, last_lines
from vpnd_lab.fork_server import Background
from vpnd_lab.node import Node
from vpnd_lab.patience import patient
from vpnd_lab.process import ProcessId

_ANSWER_SECONDS = 60.0


class Talker:
    """A process in a node that speaks JSON lines, and the pipes to it."""

    def __init__(self, node: Node, background: Background) -> None:
        self._node = node
        self._background = background
        self._buffer = b""
        self._lock = trio.Lock()
        self._owed = 0
        """Answers to questions whose asker was cancelled."""

    @property
    def process(self) -> ProcessId:
        """The process itself, to be sent signals."""
        return self._background.process

    async def ask(self, do: str, **arguments: Any) -> Any:
        """One command, one answer."""
        line = json.dumps({"do": do, **arguments}).encode() + b"\n"
        async with self._lock:
            while self._owed:
                await self.read()
                self._owed -= 1
            with (
                contextlib.suppress(trio.BrokenResourceError),  # read() says why
                trio.CancelScope(shield=True),
            ):
                await self._background.stdin.send_all(line)
            self._owed = 1
            answer = await self.read()
            self._owed = 0
            return answer

    async def read(self) -> Any:
        """The next answer. Raises LabError with its stderr where the process has ended."""
        with trio.move_on_after(patient(_ANSWER_SECONDS)):
            while b"\n" not in self._buffer:
                data = await self._background.stdout.receive_some()
                if not data:
                    said = await self._background.stderr.receive_some()
                    quoted = last_lines(said.decode(errors="replace"))
                    raise LabError(f"a helper process in {self._node.name} ended:\n{quoted}")
                self._buffer += data
            line, self._buffer = self._buffer.split(b"\n", 1)
            return json.loads(line)
        raise WaitTimeout(f"a helper process in {self._node.name} does not answer")

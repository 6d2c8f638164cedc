"""Clients of a control socket, for tests: real HTTP over the real socket, and raw bytes."""

from __future__ import annotations

import http.client
import json
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

TIMEOUT = 20.0  # of a client that would hang else; no test waits for it


class UnixConnection(http.client.HTTPConnection):
    """http.client over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT)
        self.sock.connect(str(self._path))


@dataclass(frozen=True)
class Answer:
    status: int
    content_type: str | None
    body: bytes

    def json(self) -> Any:
        assert self.content_type == "application/json"
        return json.loads(self.body)

    def error(self) -> dict[str, Any]:
        """The error's body, whose shape is checked here for every refusal of every test."""
        whole = self.json()
        assert set(whole) == {"error"}
        error: dict[str, Any] = whole["error"]
        assert set(error) == {"code", "message", "hint", "details"}
        assert error["message"]
        for detail in error["details"]:
            assert detail["reason"]
        return error


def ask(path: Path, method: str, target: str, body: bytes | None = None) -> Answer:
    """One request on a connection of its own."""
    connection = UnixConnection(path)
    try:
        connection.request(method, target, body)
        response = connection.getresponse()
        return Answer(response.status, response.getheader("content-type"), response.read())
    finally:
        connection.close()


async def request(
    path: Path, method: str, target: str, body: bytes | dict[str, Any] | None = None
) -> Answer:
    """The same from a trio task."""
    content = json.dumps(body).encode() if isinstance(body, dict) else body
    return await trio.to_thread.run_sync(ask, path, method, target, content)


async def everything(stream: trio.SocketStream) -> bytes:
    """All that comes until the other end closes."""
    received = b""
    with suppress(trio.BrokenResourceError):  # it closed with bytes of ours unread
        async for chunk in stream:
            received += chunk
    return received


async def raw(path: Path, data: bytes) -> bytes:
    """Send these bytes; the answer is all that comes until the other end closes."""
    async with await trio.open_unix_socket(str(path)) as stream:
        with suppress(trio.BrokenResourceError):
            await stream.send_all(data)
        return await everything(stream)

"""HTTP/1.1 on one connection, with answers that can go wrong on purpose (h11, trio).

h11 keeps the protocol right; what is to be wrong is said in an `Answer`: how long it waits, how
fast it goes, after how many bytes it breaks off.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote

import h11
import trio

REQUEST_BODY_MAX = 1 << 20
_CHUNK = 1 << 16


class BadRequest(Exception):
    """The request cannot be used; the message says why."""


class BrokenOff(Exception):
    """The connection is to be closed without a word."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request: path segments and query, both decoded."""

    method: str
    path: tuple[str, ...]
    query: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    def json(self) -> dict[str, Any]:
        """The body, a JSON object; nothing at all is an empty one. Raises BadRequest."""
        if not self.body.strip():
            return {}
        try:
            document = json.loads(self.body.decode("utf-8"))
        except ValueError as error:
            raise BadRequest(f"the body is not JSON: {error}") from None
        if not isinstance(document, dict):
            raise BadRequest("the body is not a JSON object")
        return document


@dataclass(slots=True)
class Answer:
    """An answer, and how it goes out."""

    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    wait: float = 0.0
    """Seconds before it goes out."""
    pace: float | None = None
    """Bytes of the body a second, one by one."""
    padding: int = 0
    """Bytes put in front of the body: white space, which JSON allows."""
    chunked: bool = False
    """Without a Content-Length."""
    cut: int | None = None
    """Bytes of the body after which the connection is closed."""
    lost: bool = False
    """The connection is closed instead."""
    silent: bool = False
    """Nothing ever comes, and the connection stays open."""

    @classmethod
    def of(cls, status: int, document: Any) -> Answer:
        """A JSON answer."""
        return cls(status=status, body=json.dumps(document).encode())

    def pieces(self) -> Iterator[bytes]:
        """The body as it goes out."""
        left = self.padding
        while left > 0:
            yield b" " * min(left, _CHUNK)
            left -= _CHUNK
        if self.pace is not None:
            yield from (self.body[i : i + 1] for i in range(len(self.body)))
        elif self.body:
            yield self.body


Handler = Callable[[Request], Awaitable[Answer]]


async def serve_connection(stream: trio.abc.Stream, handle: Handler) -> None:
    """Answer the requests of one connection until either side ends it. Does not close it.

    Raises trio.BrokenResourceError where the other side breaks off, BrokenOff where this one is to.
    """
    connection = h11.Connection(h11.SERVER)
    while True:
        try:
            request = await _receive(stream, connection)
        except h11.RemoteProtocolError as error:
            if connection.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
                message = {"message": f"not HTTP as expected: {error}"}
                await _send(stream, connection, Answer.of(400, message))
            return
        if request is None:
            return
        answer = await handle(request)
        if answer.silent:
            await trio.sleep_forever()
        await trio.sleep(answer.wait)
        if answer.lost:
            raise BrokenOff
        await _send(stream, connection, answer)
        if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
            return
        connection.start_next_cycle()


async def _receive(stream: trio.abc.Stream, connection: h11.Connection) -> Request | None:
    """The next request, whole; None where the other side has ended the connection."""
    head: h11.Request | None = None
    body = b""
    while True:
        event = connection.next_event()
        match event:
            case h11.NEED_DATA:
                if connection.they_are_waiting_for_100_continue:
                    go_on = h11.InformationalResponse(status_code=100, headers=[])
                    await stream.send_all(connection.send(go_on))
                connection.receive_data(bytes(await stream.receive_some(_CHUNK)))
            case h11.Request():
                head = event
            case h11.Data():
                body += event.data
                if len(body) > REQUEST_BODY_MAX:
                    raise h11.RemoteProtocolError("the body is too long", 413)
            case h11.EndOfMessage() if head is not None:
                return _request(head, body)
            case _:  # ConnectionClosed, PAUSED
                return None


def _request(head: h11.Request, body: bytes) -> Request:
    path, _, query = head.target.decode("ascii").partition("?")
    return Request(
        method=head.method.decode("ascii"),
        # Split first: a %2F in a name is part of the name.
        path=tuple(unquote(segment) for segment in path.split("/")[1:]),
        query=dict(parse_qsl(query, keep_blank_values=True)),
        body=body,
    )


async def _send(stream: trio.abc.Stream, connection: h11.Connection, answer: Answer) -> None:
    headers = [("Content-Type", answer.content_type)]
    if answer.chunked:
        headers.append(("Transfer-Encoding", "chunked"))
    else:
        headers.append(("Content-Length", str(answer.padding + len(answer.body))))
    await _write(stream, connection, h11.Response(status_code=answer.status, headers=headers))
    sent = 0
    for piece in answer.pieces():
        if answer.cut is not None and sent + len(piece) >= answer.cut:
            await _write(stream, connection, h11.Data(data=piece[: answer.cut - sent]))
            raise BrokenOff
        await _write(stream, connection, h11.Data(data=piece))
        sent += len(piece)
        if answer.pace is not None:
            await trio.sleep(1 / answer.pace)
    await _write(stream, connection, h11.EndOfMessage())


async def _write(
    stream: trio.abc.Stream,
    connection: h11.Connection,
    event: h11.Response | h11.Data | h11.EndOfMessage,
) -> None:
    data = connection.send(event)
    if data:
        await stream.send_all(data)

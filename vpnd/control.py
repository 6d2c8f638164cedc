"""The control server: HTTP over a Unix socket, inside the daemon's own nursery.

hypercorn speaks HTTP, Starlette finds the route (`control_routes`), and what happens is the
daemon's (`NodeControl`). hypercorn's own server is not used: the accept loop, the credentials of
each connection, its limits and the stop are here.

    accept ──▶ _serve (credentials, limits) ──▶ TCPServer ──▶ _Gate (who, how much) ──▶ routes
"""

from __future__ import annotations

import math
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, cast

import structlog
import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState, Framework
from hypercorn.utils import wrap_app
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vpnd.api import MAX_REQUEST_BYTES, ErrorCode
from vpnd.control_routes import control_app, internal_error, refusal
from vpnd.control_socket import ControlSocket, ControlSocketError, caller_of, open_control_socket
from vpnd.journal import Journal
from vpnd.node_control import Caller, ControlError, NodeControl, no_such_peer

__all__ = [
    "Caller",
    "ControlError",
    "ControlServer",
    "ControlSocket",
    "ControlSocketError",
    "NodeControl",
    "no_such_peer",
    "open_control_socket",
]

MAX_CONNECTIONS: Final = 64
IDLE_SECONDS: Final = 5.0
"""For the head of a request, and between two requests."""
BODY_SECONDS: Final = 10.0
SEND_SECONDS: Final = 10.0
"""A reader that takes nothing for so long is cut off."""
STOP_SECONDS: Final = 5.0
LOOK_SECONDS: Final = 1.0
"""Between two looks at the socket's file."""
_DRAINED_BYTES: Final = 16 * MAX_REQUEST_BYTES

_TURNED_AWAY_BYTES: Final = 4096
_BUSY: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nconnection: close\r\n"
)

_NEVER: Final = 10**9

_log = structlog.get_logger("vpnd.control")


@dataclass(frozen=True, slots=True)
class ControlStatistics:
    connections: int
    """Open now."""
    accepted: int
    refused: int
    """Over MAX_CONNECTIONS."""


class ControlServer:
    """Serves a control socket until `stop` is called; then open requests get a short time.

    Root and the daemon's own user may call: the socket's mode sees to it, and it is checked again
    for each request.
    """

    def __init__(
        self, node: NodeControl, control_socket: ControlSocket, journal: Journal | None = None
    ) -> None:
        self._socket = control_socket
        self._journal = journal
        self._stopping = trio.Event()
        self._context = WorkerContext(None)
        self._config = HypercornConfig()
        # Its own clock stops for good at some beginnings of HTTP/2; _Connection has one
        self._config.keep_alive_timeout = _NEVER
        self._config.include_server_header = False
        # Its loggers write tracebacks and request lines to stderr; ours is told by the routes
        self._config.accesslog = None
        self._config.errorlog = None
        app = _Gate(control_app(node, self._stopping), allowed=frozenset({0, os.geteuid()}))
        self._app = wrap_app(cast(Framework, app), wsgi_max_body_size=0, mode="asgi")
        self._connections: set[_Connection] = set()
        self._accepted = 0
        self._refused = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until `stop`, then at most STOP_SECONDS more; removes the socket's file."""
        try:
            async with trio.open_nursery() as outer:
                async with trio.open_nursery() as connections:
                    accepting = await outer.start(self._accept, connections)
                    task_status.started()
                    try:
                        await self._stopping.wait()
                    except trio.Cancelled:
                        self._cut()
                        raise
                    accepting.cancel()
                    await self._context.terminated.set()
                    outer.start_soon(self._cut_after, STOP_SECONDS, connections.cancel_scope)
                outer.cancel_scope.cancel()
        finally:
            self._socket.close()

    def stop(self) -> None:
        """Take no more connections, end event streams, let requests in flight finish."""
        self._stopping.set()

    def statistics(self) -> ControlStatistics:
        """Counts since the start."""
        return ControlStatistics(len(self._connections), self._accepted, self._refused)

    async def _accept(
        self,
        connections: trio.Nursery,
        *,
        task_status: trio.TaskStatus[trio.CancelScope] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        with trio.CancelScope() as scope:
            task_status.started(scope)
            while True:
                listener = trio.SocketListener(
                    trio.socket.from_stdlib_socket(self._socket.listener)
                )
                serve = partial(trio.serve_listeners, handler_nursery=connections)
                async with trio.open_nursery() as accepting:
                    accepting.start_soon(serve, self._serve, [listener])
                    self._socket = await self._made_again()
                    accepting.cancel_scope.cancel()

    async def _made_again(self) -> ControlSocket:
        """Wait until somebody takes the socket's file away (a cleaner of /run), and make it anew:
        else nobody could reach a daemon that is well."""
        told = ""
        while True:
            await trio.sleep(LOOK_SECONDS)
            if not self._socket.lost():
                continue
            try:
                made = self._socket.made_again()
            except ControlSocketError as error:
                if str(error) != told:
                    self._record("control_socket_lost", "error", f"{error}; it is tried again")
                told = str(error)
                continue
            self._record("control_socket_remade", "warning", f"{made.path} or its lock was gone")
            return made

    def _record(self, event: str, level: str, reason: str) -> None:
        if self._journal is not None:
            self._journal.record(event, level=level, reason=reason)

    async def _serve(self, stream: trio.SocketStream) -> None:
        """One connection. Whatever goes wrong in it ends with it."""
        if len(self._connections) >= MAX_CONNECTIONS:
            self._refused += 1
            await _turn_away(stream)
            return
        self._accepted += 1
        connection = _Connection(stream)
        self._connections.add(connection)
        try:
            state = {"peer": caller_of(stream.socket), "connection": connection}
            server = TCPServer(
                self._app,
                self._config,
                self._context,
                ConnectionState(cast(Any, state)),
                cast(Any, connection),
            )
            connection.ended = server.idle_task.stop
            with connection.scope:
                await server.run()
        except Exception as error:  # hypercorn's reaction to bytes that nobody foresaw
            internal_error("connection", error)
        finally:
            self._connections.discard(connection)

    async def _cut_after(self, seconds: float, requests: trio.CancelScope) -> None:
        await trio.sleep(seconds)
        if self._connections:
            _log.warning("control_connections_cut", connections=len(self._connections))
        self._cut()
        requests.cancel()

    def _cut(self) -> None:
        # hypercorn shields its sending: a deadline alone would not end it
        for connection in tuple(self._connections):
            connection.cut()


class _Connection:
    """A connection as hypercorn uses it, with bounds on its idle times and on its sending."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self.socket = stream.socket
        self.scope = trio.move_on_after(IDLE_SECONDS)
        self._requests = 0  # HTTP/2 can have several at a time
        self._at_end = False
        self.ended: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
        """Called when nothing more can come: else hypercorn would sit out its idle time."""

    @contextmanager
    def request(self) -> Iterator[None]:
        """While this lasts, the time between two requests does not run."""
        self._requests += 1
        self.scope.deadline = math.inf
        try:
            yield
        finally:
            self._requests -= 1
            if not self._requests:
                left = 0.0 if self._at_end else IDLE_SECONDS
                self.scope.deadline = trio.current_time() + left

    def abort(self) -> None:
        """End the connection, with all that happens in it."""
        self.scope.cancel()

    def cut(self) -> None:
        """Close it under hypercorn's hands: who waits in a method gets ClosedResourceError."""
        self._at_end = True
        self.socket.close()

    async def send_all(self, data: bytes) -> None:
        try:
            with trio.fail_after(SEND_SECONDS):
                await self._stream.send_all(data)
        except trio.TooSlowError:
            self.cut()
            raise trio.BrokenResourceError("the reader takes nothing") from None

    async def receive_some(self, max_bytes: int) -> bytes:
        data = b""
        try:
            data = bytes(await self._stream.receive_some(max_bytes))
        finally:
            if not data:
                self._at_end = True
                await self.ended()
        return data

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()


class _Gate:
    """Before every route: the whole body, bounded in size and time, and who may call."""

    def __init__(self, app: ASGIApp, *, allowed: frozenset[int]) -> None:
        self._app = app
        self._allowed = allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await send({"type": "websocket.close"})
            return
        connection: _Connection = scope["state"]["connection"]
        with connection.request():
            try:
                body = await _read_body(receive)
                self._check_caller(scope["state"]["peer"])
            except _ClientGone:
                return
            except ControlError as error:
                await refusal(error, {"connection": "close"})(scope, receive, send)
                # Bytes of the request may be under way, and nobody will take them
                connection.abort()
                return
            await self._app(scope, _replayed(body, receive), send)

    def _check_caller(self, caller: Caller) -> None:
        if caller.uid not in self._allowed:
            raise ControlError(
                ErrorCode.NOT_ALLOWED,
                f"uid {caller.uid} may not control this daemon",
                "run it as root or as the daemon's user",
            )


class _ClientGone(Exception):
    """Before its request was complete."""


async def _read_body(receive: Receive) -> bytes:
    """The request's body; ControlError if it is too long or does not come."""
    body = bytearray()
    length = 0
    with trio.move_on_after(BODY_SECONDS):
        while length <= _DRAINED_BYTES:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _ClientGone
            chunk = message.get("body", b"")
            length += len(chunk)
            # What is too much is taken for a while and dropped: many clients read no answer
            # before they have sent everything
            if length <= MAX_REQUEST_BYTES:
                body += chunk
            if not message.get("more_body", False):
                if length <= MAX_REQUEST_BYTES:
                    return bytes(body)
                break
    if length > MAX_REQUEST_BYTES:
        raise ControlError(
            ErrorCode.TOO_LARGE,
            f"the request's body is longer than {MAX_REQUEST_BYTES} bytes",
            "send less: one peer, or one change, at a time",
        )
    raise ControlError(
        ErrorCode.BAD_REQUEST,
        f"the request's body did not come within {BODY_SECONDS:.0f} s",
        "try again; is the machine overloaded?",
    )


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body once, and after it what comes on the connection."""
    waiting = [body]

    async def replay() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return replay


async def _turn_away(stream: trio.SocketStream) -> None:
    error = ControlError(
        ErrorCode.UNAVAILABLE,
        f"{MAX_CONNECTIONS} clients are connected already",
        "close some of them, and try again",
    )
    body = bytes(refusal(error).body)
    with trio.move_on_after(1), suppress(trio.BrokenResourceError):
        await stream.send_all(_BUSY + f"content-length: {len(body)}\r\n\r\n".encode() + body)
        await stream.send_eof()
        # Who could not send the request to its end would not come to read the answer
        while await stream.receive_some(_TURNED_AWAY_BYTES):
            pass

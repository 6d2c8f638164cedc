"""A TLS server on loopback that says, byte by byte, what a test wants a key manager to say."""

from __future__ import annotations

import json
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from tests.vpnd.keysource.authority import Authority, Issued

Stream = trio.SSLStream[trio.SocketStream]


@dataclass
class Received:
    """A request as it came."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


Script = Callable[[Received, Stream], Awaitable[None]]


def http(status: int, body: object = b"", content_type: str = "application/json") -> bytes:
    """An answer: bytes as they are, anything else as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = (
        f"HTTP/1.1 {status} Whatever\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


@dataclass
class TlsServer:
    """`answers` are given one after the other, the last one for ever; a callable has the stream."""

    authority: Authority
    folder: Path
    issued: Issued
    answers: list[bytes | Script] = field(default_factory=list)
    received: list[Received] = field(default_factory=list)
    connections: int = 0
    port: int = 0
    client_authority: Authority | None = None
    change_context: Callable[[ssl.SSLContext], None] = lambda context: None
    """What is different about its TLS."""
    _scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def targets(self) -> list[str]:
        return [one.target for one in self.received]

    async def start(self, nursery: trio.Nursery) -> None:
        """Listen, at the same port as before if it was stopped."""
        context = self.context()
        listeners = await trio.open_tcp_listeners(self.port, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        self._scope = trio.CancelScope()
        nursery.start_soon(self._serve, listeners, context)

    def context(self) -> ssl.SSLContext:
        """Mutual TLS, as a KME has it."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate, key = self.folder / "server.pem", self.folder / "server.key"
        self.issued.write(certificate, key)
        context.verify_mode = ssl.CERT_REQUIRED
        trusted = self.client_authority or self.authority
        context.load_verify_locations(cadata=trusted.pem.decode())
        self.change_context(context)
        context.load_cert_chain(certificate, key)
        return context

    def stop(self) -> None:
        self._scope.cancel()

    async def _serve(self, listeners: list[trio.SocketListener], context: ssl.SSLContext) -> None:
        async def handle(stream: trio.SocketStream) -> None:
            self.connections += 1
            secure = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
            try:
                await self._one(secure)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                # The client went away, or was refused: OpenSSL has put the alert for it there,
                # and trio leaves it
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    await stream.send_all(secure._outgoing.read())
            finally:
                await trio.aclose_forcefully(secure)

        with self._scope:
            try:
                await trio.serve_listeners(handle, listeners)
            finally:
                for listener in listeners:
                    await trio.aclose_forcefully(listener)

    async def _one(self, stream: Stream) -> None:
        request = await _request(stream)
        if request is None:
            return
        self.received.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, bytes):
            await stream.send_all(answer)
            # The end of the connection is told, as TLS asks for
            await stream.aclose()
        else:
            await answer(request, stream)


async def _request(stream: Stream) -> Received | None:
    data = b""
    while b"\r\n\r\n" not in data:
        more = await stream.receive_some()
        if not more:
            return None
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {
        name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }
    while len(body) < int(headers.get("content-length", "0")):
        body += await stream.receive_some()
    method, target, _ = first.split(" ")
    return Received(method, target, headers, body)

"""One call to a key manager: a connection of its own, checked before anything is asked on it.

Each call has a new connection. So a certificate that was replaced, withdrawn or has expired counts
from the next call on, and no answer is lost on a connection that the other end had closed already:
a lost answer is a lost key. What is read is bounded in bytes, and in time as a whole.

httpcore speaks HTTP; here is what has to happen around it, between TLS and the first byte that is
asked. It is used without httpx, which has no place for that.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

import httpcore
import trio

from kex.secret import Secret
from vpnd.keysource.base import SourceFault
from vpnd.keysource.call_failed import (
    CallFailed,
    Limits,
    Progress,
    broken,
    header_text,
    slow,
    stage_of,
    timed_out,
)

MAX_ANSWER_BYTES: Final = 64 * 1024
"""Headers and body: four keys of 1,024 bytes with their extensions have a tenth of it."""

# It logs requests and headers, never bodies; nothing of it is wanted all the same
logging.getLogger("httpcore").setLevel(logging.WARNING)


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked: `body` makes it a POST."""

    call: str
    """What the call is named in messages: status, enc_keys."""
    path: str
    """From the base URL on, percent-encoded, with its query."""
    body: bytes | None = None
    method: str = ""
    """Where it is neither GET nor POST."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came: any status, and a body within bounds."""

    status: int
    content_type: str
    location: str
    body: bytearray = field(repr=False)
    """May hold keys: `wipe` it after reading."""
    asked: str = ""
    """Method and path, as they were asked, without a query."""
    allow: str = ""
    """The methods that it says it takes."""

    def wipe(self) -> None:
        self.body[:] = bytes(len(self.body))


class _Backend(httpcore.AsyncNetworkBackend):
    """trio's, with a look at the certificate between TLS and HTTP."""

    def __init__(self, watch: Progress) -> None:
        self._inner = httpcore.TrioBackend()
        self._watch = watch

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 -- httpcore's interface
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        stream = await self._inner.connect_tcp(host, port, timeout, local_address, socket_options)
        self._watch.connected = True
        return _Stream(stream, self._watch)

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)


class _Stream(httpcore.AsyncNetworkStream):
    def __init__(self, inner: httpcore.AsyncNetworkStream, watch: Progress) -> None:
        self._inner = inner
        self._watch = watch

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 -- httpcore's interface
    ) -> httpcore.AsyncNetworkStream:
        try:
            secure = await self._inner.start_tls(ssl_context, server_hostname, timeout)
            found = secure.get_extra_info("ssl_object")
            self._watch.version = str(found.version())
            self._watch.check(found.getpeercert(binary_form=True))
        except BaseException:
            with trio.CancelScope() as at_once:
                at_once.cancel()
                await self._inner.aclose()
            raise
        self._watch.secured = True
        return _Stream(secure, self._watch)

    async def read(
        self,
        max_bytes: int,
        timeout: float | None = None,  # noqa: ASYNC109 -- httpcore's interface
    ) -> bytes:
        data = await self._inner.read(max_bytes, timeout)
        self._watch.read += len(data)
        if self._watch.read > MAX_ANSWER_BYTES:
            # Here, where it goes through all that httpcore has under way, and ends it
            raise CallFailed(
                SourceFault.BAD_ANSWER,
                f"expected at most {MAX_ANSWER_BYTES} bytes; more came, and the rest was not read",
                "is this the address of a key manager?",
            )
        return data

    async def write(
        self,
        buffer: bytes,
        timeout: float | None = None,  # noqa: ASYNC109 -- httpcore's interface
    ) -> None:
        self._watch.asked = True
        try:
            await self._inner.write(buffer, timeout)
        except httpcore.WriteError:
            # A request is far shorter than what the kernel takes at once: it did not leave whole
            self._watch.asked = False
            raise

    async def aclose(self) -> None:
        await self._inner.aclose()

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class _Body:
    """What is sent, once. No generator, which would have to be closed where sending breaks off."""

    def __init__(self, body: bytes) -> None:
        self._rest = [body] if body else []

    def __aiter__(self) -> _Body:
        return self

    async def __anext__(self) -> bytes:
        if not self._rest:
            raise StopAsyncIteration
        return self._rest.pop()


async def call(
    base_url: str,
    request: Request,
    *,
    context: ssl.SSLContext,
    limits: Limits,
    server_name: str | None,
    watch: Progress,
    headers: Sequence[tuple[str, Secret]] = (),
) -> Answer:
    """Ask once, with `headers` besides its own. `watch` is told how far the call comes.

    Raises CallFailed, and what the check in `watch` raises about the certificate (DER) that it is
    given. Redirections are not followed, and nothing is unpacked.
    """
    try:
        with trio.fail_after(limits.call):
            async with httpcore.AsyncConnectionPool(
                ssl_context=context,
                max_connections=1,
                max_keepalive_connections=0,
                retries=0,
                network_backend=_Backend(watch),
            ) as pool:
                return await _ask(pool, base_url, request, limits, server_name, headers)
    except CallFailed as failed:
        failed.reached = watch.asked
        raise
    except trio.TooSlowError:
        reason = f"no whole answer within {limits.call:g} s"
        raise timed_out(reason if watch.asked else stage_of(watch, limits), watch) from None
    except httpcore.TimeoutException as error:
        raise timed_out(slow(error, watch, limits), watch) from None
    except (httpcore.NetworkError, httpcore.ProtocolError) as error:
        raise broken(error, watch) from None


async def handshake(
    base_url: str,
    *,
    context: ssl.SSLContext,
    limits: Limits,
    server_name: str | None,
    watch: Progress,
) -> None:
    """Connect, and ask nothing. Raises CallFailed, and what the check in `watch` raises."""
    parts = urlsplit(base_url)
    host = parts.hostname or ""
    try:
        with trio.fail_after(limits.call):
            stream = await _Backend(watch).connect_tcp(host, parts.port or 443, limits.connect)
            secure = await stream.start_tls(context, server_name or host, limits.connect)
            await secure.aclose()
    except (trio.TooSlowError, httpcore.TimeoutException):
        raise timed_out(stage_of(watch, limits), watch) from None
    except httpcore.NetworkError as error:
        raise broken(error, watch) from None


async def _ask(
    pool: httpcore.AsyncConnectionPool,
    base_url: str,
    request: Request,
    limits: Limits,
    server_name: str | None,
    others: Sequence[tuple[str, Secret]],
) -> Answer:
    extensions: dict[str, Any] = {
        "timeout": {"connect": limits.connect, "read": limits.read, "write": limits.read}
    }
    if server_name is not None:
        extensions["sni_hostname"] = server_name
    headers: list[tuple[str, str | bytes]] = [
        ("Host", urlsplit(base_url).netloc),
        ("Accept", "application/json"),
        ("Accept-Encoding", "identity"),
        ("Connection", "close"),
        *((name, value.expose()) for name, value in others),
    ]
    if request.body is not None:
        headers.append(("Content-Type", "application/json"))
        headers.append(("Content-Length", str(len(request.body))))
    asked = httpcore.Request(
        request.method or ("GET" if request.body is None else "POST"),
        base_url + request.path,
        headers=headers,
        content=_Body(request.body or b""),
        extensions=extensions,
    )
    response = await pool.handle_async_request(asked)
    try:
        return await _read(response, f"{asked.method.decode()} {_path_of(asked)}")
    finally:
        await response.aclose()


def _path_of(request: httpcore.Request) -> str:
    return request.url.target.partition(b"?")[0].decode("ascii", "replace")


async def _read(response: httpcore.Response, asked: str) -> Answer:
    found = {name.lower(): value for name, value in response.headers}
    encoding = found.get(b"content-encoding", b"identity").strip().lower()
    if encoding not in (b"", b"identity"):
        raise CallFailed(
            SourceFault.BAD_ANSWER,
            f"expected an answer as it is; it is packed ({header_text(encoding)})",
            "it must not send Content-Encoding where Accept-Encoding is identity",
        )
    body = bytearray()
    async for chunk in response.aiter_stream():
        body += chunk
    return Answer(
        status=response.status,
        content_type=header_text(found.get(b"content-type", b"")),
        location=header_text(found.get(b"location", b"")),
        body=body,
        asked=asked,
        allow=header_text(found.get(b"allow", b"")),
    )

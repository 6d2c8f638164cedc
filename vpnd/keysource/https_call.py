"""One call to a key manager: a connection of its own, checked before anything is asked on it.

Each call has a new connection. So a certificate that was replaced, withdrawn or has expired counts
from the next call on, and no answer is lost on a connection that the other end had closed already:
a lost answer is a lost key. What is read is bounded in bytes, and in time as a whole.

httpcore speaks HTTP; here is what has to happen around it, between TLS and the first byte that is
asked. It is used without httpx, which has no place for that.
"""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

import httpcore
import trio

from vpnd.keysource.base import SourceFault

MAX_ANSWER_BYTES: Final = 64 * 1024
"""Headers and body: four keys of 1,024 bytes with their extensions have a tenth of it."""

# It logs requests and headers, never bodies; nothing of it is wanted all the same
logging.getLogger("httpcore").setLevel(logging.WARNING)

_Checker = Callable[[bytes], None]


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds."""

    connect: float
    """For TCP and TLS each."""
    read: float
    """Without a byte of the answer."""
    call: float
    """All together."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked: `body` makes it a POST."""

    call: str
    """What the call is named in messages: status, enc_keys."""
    path: str
    """From the base URL on, percent-encoded, with its query."""
    body: bytes | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What came: any status, and a body within bounds."""

    status: int
    content_type: str
    location: str
    body: bytearray = field(repr=False)
    """May hold keys: `wipe` it after reading."""

    def wipe(self) -> None:
        self.body[:] = bytes(len(self.body))


class CallFailed(Exception):
    """No answer. `reached` says whether the key manager may have seen the request."""

    def __init__(
        self, fault: SourceFault, reason: str, hint: str = "", *, reached: bool = False
    ) -> None:
        super().__init__(reason)
        self.fault = fault
        self.reason = reason
        self.hint = hint
        self.reached = reached


class _Watch:
    """How far a connection came, and who is at its other end."""

    def __init__(self, check: _Checker) -> None:
        self.check = check
        self.connected = False
        self.secured = False
        self.asked = False
        self.read = 0
        """Bytes, headers included."""


class _Backend(httpcore.AsyncNetworkBackend):
    """trio's, with a look at the certificate between TLS and HTTP."""

    def __init__(self, watch: _Watch) -> None:
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
    def __init__(self, inner: httpcore.AsyncNetworkStream, watch: _Watch) -> None:
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
            self._watch.check(secure.get_extra_info("ssl_object").getpeercert(binary_form=True))
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
    check: _Checker,
) -> Answer:
    """Ask once. Raises CallFailed, and what `check` raises about the certificate (DER) it is given.

    Redirections are not followed, and nothing is unpacked.
    """
    watch = _Watch(check)
    try:
        with trio.fail_after(limits.call):
            async with httpcore.AsyncConnectionPool(
                ssl_context=context,
                max_connections=1,
                max_keepalive_connections=0,
                retries=0,
                network_backend=_Backend(watch),
            ) as pool:
                return await _ask(pool, base_url, request, limits, server_name)
    except CallFailed as failed:
        failed.reached = watch.asked
        raise
    except trio.TooSlowError:
        reason = f"no whole answer within {limits.call:g} s"
        raise _timeout(reason if watch.asked else _stage(watch, limits), watch) from None
    except httpcore.TimeoutException as error:
        raise _timeout(_slow(error, watch, limits), watch) from None
    except (httpcore.NetworkError, httpcore.ProtocolError) as error:
        raise _broken(error, watch) from None


async def handshake(
    base_url: str,
    *,
    context: ssl.SSLContext,
    limits: Limits,
    server_name: str | None,
    check: _Checker,
) -> str:
    """Connect, and ask nothing; the version of TLS. Raises CallFailed, and what `check` raises."""
    watch = _Watch(check)
    parts = urlsplit(base_url)
    host = parts.hostname or ""
    try:
        with trio.fail_after(limits.call):
            stream = await _Backend(watch).connect_tcp(host, parts.port or 443, limits.connect)
            secure = await stream.start_tls(context, server_name or host, limits.connect)
            version = secure.get_extra_info("ssl_object").version()
            await secure.aclose()
    except (trio.TooSlowError, httpcore.TimeoutException):
        raise _timeout(_stage(watch, limits), watch) from None
    except httpcore.NetworkError as error:
        raise _broken(error, watch) from None
    return str(version)


async def _ask(
    pool: httpcore.AsyncConnectionPool,
    base_url: str,
    request: Request,
    limits: Limits,
    server_name: str | None,
) -> Answer:
    extensions: dict[str, Any] = {
        "timeout": {"connect": limits.connect, "read": limits.read, "write": limits.read}
    }
    if server_name is not None:
        extensions["sni_hostname"] = server_name
    headers = [
        ("Host", urlsplit(base_url).netloc),
        ("Accept", "application/json"),
        ("Accept-Encoding", "identity"),
        ("Connection", "close"),
    ]
    if request.body is not None:
        headers.append(("Content-Type", "application/json"))
        headers.append(("Content-Length", str(len(request.body))))
    asked = httpcore.Request(
        "GET" if request.body is None else "POST",
        base_url + request.path,
        headers=headers,
        content=_Body(request.body or b""),
        extensions=extensions,
    )
    response = await pool.handle_async_request(asked)
    try:
        return await _read(response)
    finally:
        await response.aclose()


async def _read(response: httpcore.Response) -> Answer:
    found = {name.lower(): value for name, value in response.headers}
    encoding = found.get(b"content-encoding", b"identity").strip().lower()
    if encoding not in (b"", b"identity"):
        raise CallFailed(
            SourceFault.BAD_ANSWER,
            f"expected an answer as it is; it is packed ({_text(encoding)})",
            "it must not send Content-Encoding where Accept-Encoding is identity",
        )
    body = bytearray()
    async for chunk in response.aiter_stream():
        body += chunk
    return Answer(
        status=response.status,
        content_type=_text(found.get(b"content-type", b"")),
        location=_text(found.get(b"location", b"")),
        body=body,
    )


def _text(header: bytes) -> str:
    shown = header[:200].decode("latin-1")
    return "".join(c if c.isprintable() else "?" for c in shown)


def _timeout(reason: str, watch: _Watch) -> CallFailed:
    hint = (
        "it is slow, or waits for its peer; read_timeout and call_timeout say how long is waited"
        if watch.asked
        else "is it running, and does a firewall let TCP through?"
    )
    return CallFailed(SourceFault.TIMEOUT, reason, hint, reached=watch.asked)


def _stage(watch: _Watch, limits: Limits) -> str:
    if not watch.connected:
        return f"no TCP connection within {limits.connect:g} s"
    return f"no TLS connection within {limits.connect:g} s"


def _slow(error: httpcore.TimeoutException, watch: _Watch, limits: Limits) -> str:
    if not watch.asked:
        return _stage(watch, limits)
    what = "taken" if isinstance(error, httpcore.WriteTimeout) else "came"
    return f"not a byte {what} for {limits.read:g} s"


def _broken(error: Exception, watch: _Watch) -> CallFailed:
    """A connection that could not be made, or that broke off."""
    cause = _tls_cause(error)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return _not_verified(cause)
    if isinstance(cause, ssl.SSLError):
        name = (cause.reason or "unknown error").lower().replace("_", " ")
        # TLS 1.3 tells of our certificate when we have asked already: it was not looked at then
        refused = "alert" in name
        return CallFailed(
            SourceFault.TLS,
            f"the TLS connection was refused: {name}" if refused else f"no TLS connection: {name}",
            "does it know this end's certificate, and the CA of it?"
            if refused
            else "is this an https port? TLS 1.2 is the least",
            reached=watch.asked and not refused,
        )
    if not watch.connected:
        return CallFailed(
            SourceFault.UNREACHABLE,
            f"no TCP connection: {_os_reason(error)}",
            "is it running, is the name right, is there a route?",
        )
    if not watch.secured:
        return CallFailed(
            SourceFault.TLS,
            "the connection broke off during the TLS handshake",
            "is this an https port, and does it know this end's certificate?",
        )
    if isinstance(error, httpcore.ProtocolError) and "complete message body" in str(error):
        return CallFailed(
            SourceFault.BAD_ANSWER,
            "expected a whole answer; it was cut off",
            "its log, or that of a proxy before it, says why",
            reached=True,
        )
    if isinstance(error, httpcore.ProtocolError) and "without sending" not in str(error):
        return CallFailed(
            SourceFault.BAD_ANSWER,
            f"expected HTTP/1.1: {_text(str(error).encode('latin-1', 'replace'))}",
            "is this the address of a key manager?",
            reached=True,
        )
    if not watch.asked:
        return CallFailed(
            SourceFault.TLS,
            "the connection broke off before the request was sent",
            "does it know this end's certificate, and the CA of it?",
        )
    return CallFailed(
        SourceFault.TLS,
        "the connection broke off before the answer",
        "its log says why; a certificate that it does not know is one reason",
        reached=True,
    )


def _tls_cause(error: BaseException) -> ssl.SSLError | None:
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, ssl.SSLError):
            return found
        found = found.__cause__ or found.__context__
    return None


_VERIFY: Final[dict[int, tuple[str, str]]] = {
    # X509_V_ERR_… of OpenSSL
    9: ("is not valid yet", "is this host's clock right, and the key manager's certificate?"),
    10: ("has expired", "renew the key manager's certificate"),
    62: ("is for another name", "use the name in the certificate in `urls`, or set server_name"),
    64: ("is for another address", "use the name in the certificate in `urls`, or set server_name"),
}


def _not_verified(error: ssl.SSLCertVerificationError) -> CallFailed:
    reason, hint = _VERIFY.get(
        error.verify_code,
        (
            f"is not of the CA that `ca` names ({_text(error.verify_message.encode())})",
            "`ca` must hold the CA that signed the key manager's certificate",
        ),
    )
    return CallFailed(SourceFault.CERTIFICATE, f"its certificate {reason}", hint)


def _os_reason(error: BaseException) -> str:
    found: BaseException | None = error
    while found is not None:
        nested = getattr(found, "exceptions", ())
        if isinstance(found, OSError) and found.errno:
            # trio writes the address into strerror; a name that is not found has a code < 0
            return os.strerror(found.errno) if found.errno > 0 else str(found.strerror)
        found = nested[0] if nested else (found.__cause__ or found.__context__)
    return "unknown error"

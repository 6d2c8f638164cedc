"""The routes of the control API: JSON in, JSON out, and one shape for everything that fails."""

from __future__ import annotations

import json
import traceback
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NoReturn

import structlog
import trio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from vpnd.api import CONTENT_TYPE_EVENTS, SCHEMA, ErrorCode, Event
from vpnd.atomic_file import FileExists
from vpnd.clock import rfc3339, wall
from vpnd.config_errors import ConfigErrors, printable
from vpnd.config_fields import FieldError
from vpnd.config_fields import name as parse_name
from vpnd.config_model import PeerRequest, validate
from vpnd.config_source import Source
from vpnd.event_feed import Subscription, TooManySubscribers, encode
from vpnd.file_trust import FileFault
from vpnd.node_control import Caller, ControlError, NodeControl, no_such_peer, no_such_source
from vpnd.source_requests import fallback_extension, source_test_request

MAX_DETAILS: Final = 100
LINES_AT_ONCE: Final = 100
"""Records of the past that go out in one piece."""

_log = structlog.get_logger("vpnd.control")

Handler = Callable[[Request], Awaitable[Response]]


def control_app(node: NodeControl, stopping: trio.Event) -> Starlette:
    """The application; event streams end when `stopping` is set.

    The server puts a Caller into each request's `state.peer`.
    """
    routes = _Routes(node, stopping)
    app = Starlette(
        routes=[
            Route("/v1/status", _answering(routes.status), methods=["GET"]),
            Route("/v1/links/{peer}", _answering(routes.link), methods=["GET"]),
            Route("/v1/peers", _answering(routes.peers), methods=["GET", "POST"]),
            Route("/v1/peers/{peer}", _answering(routes.peer), methods=["PATCH", "DELETE"]),
            Route("/v1/peers/{peer}/rekey", _answering(routes.rekey), methods=["POST"]),
            Route("/v1/peers/{peer}/fallback", _answering(routes.fallback), methods=["POST"]),
            Route("/v1/keysources", _answering(routes.key_sources), methods=["GET"]),
            Route("/v1/keysources/{source}", _answering(routes.key_source), methods=["GET"]),
            Route("/v1/keysources/{source}/test", _answering(routes.test_source), methods=["POST"]),
            Route("/v1/reload", _answering(routes.reload), methods=["POST"]),
            Route("/v1/events", _answering(routes.events), methods=["GET"]),
        ],
        exception_handlers={HTTPException: _no_route},
    )
    # Another path is another thing: a redirect would hide a client's mistake
    app.router.redirect_slashes = False
    return app


class Answer(JSONResponse):
    """JSON that may quote names of files and interfaces, which may be any bytes: see
    `vpnd.event_feed.encode`."""

    def render(self, content: Any) -> bytes:
        text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode("utf-8", "backslashreplace")


def refusal(error: ControlError, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The answer to a request that is refused."""
    return Answer(error.body(), status_code=error.http_status, headers=headers)


def internal_error(where: str, error: Exception) -> ControlError:
    """A bug: type and place go to the log, and nothing of it to the client.

    Not the exception's text, nor its frames' variables: either could hold a secret.
    """
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "unknown"
    _log.error("control_request_failed", where=where, error=type(error).__name__, at=place)
    return ControlError(
        ErrorCode.INTERNAL,
        "the daemon failed at this request",
        "a bug: its log says where (journalctl -u vpnd), please report it",
    )


class _Routes:
    """One method for each route; what it raises is told to the client by `_answering`."""

    def __init__(self, node: NodeControl, stopping: trio.Event) -> None:
        self._node = node
        self._stopping = stopping

    async def status(self, request: Request) -> Response:
        return Answer(await self._node.status())

    async def link(self, request: Request) -> Response:
        return Answer(await self._node.link(_peer_name(request)))

    async def peers(self, request: Request) -> Response:
        if request.method != "POST":
            return Answer(await self._node.peers())
        values = _json_object(await request.body())
        wanted = validate(PeerRequest, values, Source(None))
        return Answer(await self._node.add_peer(wanted, _caller(request)), status_code=201)

    async def peer(self, request: Request) -> Response:
        name = _peer_name(request)
        if request.method == "PATCH":
            change = _json_object(await request.body())
            return Answer(await self._node.change_peer(name, change, _caller(request)))
        return Answer(await self._node.remove_peer(name, _caller(request)))

    async def rekey(self, request: Request) -> Response:
        return Answer(await self._node.rekey(_peer_name(request), _caller(request)))

    async def fallback(self, request: Request) -> Response:
        extension = fallback_extension(_json_object(await request.body()))
        name = _peer_name(request)
        return Answer(await self._node.extend_fallback(name, extension, _caller(request)))

    async def key_sources(self, request: Request) -> Response:
        return Answer(await self._node.key_sources())

    async def key_source(self, request: Request) -> Response:
        return Answer(await self._node.key_source(_source_name(request)))

    async def test_source(self, request: Request) -> Response:
        body = await request.body()
        peer, consume, deep = source_test_request(_json_object(body) if body else {})
        name = _source_name(request)
        return Answer(
            await self._node.test_key_source(
                name, peer=peer, consume_one=consume, deep=deep, caller=_caller(request)
            )
        )

    async def reload(self, request: Request) -> Response:
        body = await request.body()
        asked = _json_object(body) if body else {}
        dry_run = asked.pop("dry_run", False)
        remove_all = asked.pop("remove_all_peers", False)
        if asked or not (isinstance(dry_run, bool) and isinstance(remove_all, bool)):
            raise ControlError(
                ErrorCode.BAD_REQUEST,
                "a reload takes dry_run and remove_all_peers alone: true or false",
                "{}",
            )
        more = {"remove_all": True} if remove_all else {}
        caller = _caller(request)
        return Answer(await self._node.reload(dry_run=dry_run, caller=caller, **more))

    async def events(self, request: Request) -> Response:
        asked = _asked_events(request.query_params.multi_items())
        # Nothing in between: no record is missing between the past and what follows, or twice
        past: list[bytes] = []
        if asked.since is not None or asked.last is not None:
            past = self._node.kept_events(since=asked.since, last=asked.last, peer=asked.peer)
        if not asked.follow:
            return Response(b"".join(past), media_type=CONTENT_TYPE_EVENTS)
        return EventStream(self._node.subscribe_events(), self._stopping, past, asked.peer)


@dataclass(frozen=True, slots=True, kw_only=True)
class _AskedEvents:
    since: float | None = None
    """Wall clock; None is from now on."""
    last: int | None = None
    follow: bool = True
    peer: str | None = None


def _asked_events(query: list[tuple[str, str]]) -> _AskedEvents:
    """What of the events is asked for. Raises ControlError."""
    asked: dict[str, Any] = {}
    for name, value in query:
        if name == "since":
            asked[name] = None if value == "now" else _moment(value)
        elif name == "last":
            asked[name] = _number_of_events(value)
        elif name == "follow" and value in ("true", "false"):
            asked[name] = value == "true"
        elif name == "peer":
            try:
                asked[name] = parse_name(value)
            except FieldError:
                raise no_such_peer(printable(value)) from None
        else:
            raise ControlError(
                ErrorCode.INVALID,
                f"events cannot be selected by {printable(name)}={printable(value)}",
                "since=now or a time, last=NUMBER, peer=NAME, follow=true or false",
            )
    return _AskedEvents(**asked)


def _moment(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is not None:
            return moment.timestamp()
    except (ValueError, OverflowError):
        pass
    raise ControlError(
        ErrorCode.INVALID,
        f"since={printable(text)} is no moment",
        "now, or RFC 3339 with its zone: 2026-01-31T12:00:00Z",
    )


def _number_of_events(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) <= 9 and int(text) > 0:
        return int(text)
    raise ControlError(
        ErrorCode.INVALID, f"last={printable(text)} is no number of events", "1 or more"
    )


class EventStream(Response):
    """Records as JSON lines, past ones first, until the reader goes or the daemon stops."""

    media_type = CONTENT_TYPE_EVENTS

    def __init__(
        self,
        subscription: Subscription,
        stopping: trio.Event,
        past: list[bytes],
        peer: str | None,
    ) -> None:
        super().__init__()
        self._past = past
        self._peer = peer
        # Its length is not known
        del self.headers["content-length"]
        self._subscription = subscription
        self._stopping = stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._subscription:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._end_with_daemon)
                nursery.start_soon(self._end_with_reader, receive, nursery.cancel_scope)
                await self._send_lines(send)
                nursery.cancel_scope.cancel()

    async def _send_lines(self, send: Send) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": self.raw_headers,
            }
        )
        for start in range(0, len(self._past), LINES_AT_ONCE):
            await send(_body(b"".join(self._past[start : start + LINES_AT_ONCE])))
        # At once, so that a reader knows from when on it misses nothing
        await send(_body(encode(Event(schema=SCHEMA, at=rfc3339(wall()), event="subscribed"))))
        async for event in self._subscription:
            if self._peer is None or event.get("peer", self._peer) == self._peer:
                await send(_body(encode(event)))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _end_with_daemon(self) -> None:
        await self._stopping.wait()
        self._subscription.close()

    async def _end_with_reader(self, receive: Receive, scope: trio.CancelScope) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        scope.cancel()


def _body(data: bytes) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": True}


def _answering(handler: Handler) -> Handler:
    """Whatever the handler raises becomes an error's body: here one request's failure ends."""

    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except ControlError as error:
            return refusal(error)
        except ConfigErrors as errors:
            return refusal(_invalid(errors))
        except FileExists as fault:
            return refusal(ControlError(ErrorCode.CONFLICT, str(fault), fault.hint))
        except FileFault as fault:
            return refusal(ControlError(ErrorCode.BACKEND_FAILED, str(fault), fault.hint))
        except TooManySubscribers as error:
            return refusal(ControlError(ErrorCode.UNAVAILABLE, str(error), "close some of them"))
        except Exception as error:
            return refusal(internal_error(f"{request.method} {request.url.path}", error))

    return answer


def _invalid(errors: ConfigErrors) -> ControlError:
    count = len(errors.problems)
    first = errors.problems[0]
    message = str(first) if count == 1 else f"{count} values are wrong"
    details = [problem.detail() for problem in errors.problems[:MAX_DETAILS]]
    return ControlError(ErrorCode.INVALID, message, first.hint if count == 1 else "", details)


def _no_route(request: Request, error: Exception) -> Response:
    asked = f"{printable(request.method)} {printable(request.url.path)}"
    if isinstance(error, HTTPException) and error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        return refusal(
            ControlError(ErrorCode.METHOD_NOT_ALLOWED, f"{asked} cannot be done", f"use {allowed}"),
            headers=error.headers,
        )
    return refusal(
        ControlError(
            ErrorCode.NO_SUCH_ROUTE,
            f"there is nothing at {asked}",
            "paths begin with /v1/: status, links/PEER, peers, keysources, reload, events",
        )
    )


def _caller(request: Request) -> Caller:
    caller = request.state.peer
    if not isinstance(caller, Caller):
        raise TypeError("the server did not say who called")
    return caller


def _peer_name(request: Request) -> str:
    try:
        return parse_name(request.path_params["peer"])
    except FieldError:
        raise no_such_peer(printable(request.path_params["peer"])) from None


def _source_name(request: Request) -> str:
    try:
        return parse_name(request.path_params["source"])
    except FieldError:
        raise no_such_source(printable(request.path_params["source"])) from None


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        values = json.loads(
            body, object_pairs_hook=_without_duplicates, parse_constant=_no_constant
        )
    except (ValueError, RecursionError):
        # Not the parser's words: they can quote the body
        raise ControlError(
            ErrorCode.BAD_REQUEST,
            "the request's body is not JSON",
            "one object, in UTF-8, each key once",
        ) from None
    if not isinstance(values, dict):
        raise ControlError(ErrorCode.BAD_REQUEST, "the request's body is not a JSON object", "{…}")
    return values


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key stands there twice")
    return values


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")

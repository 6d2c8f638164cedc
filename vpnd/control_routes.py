"""The routes of the control API: JSON in, JSON out, and one shape for everything that fails."""

from __future__ import annotations

import json
import traceback
from collections.abc import Awaitable, Callable, Mapping
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
from vpnd.event_feed import Subscription, TooManySubscribers
from vpnd.file_trust import FileFault
from vpnd.node_control import Caller, ControlError, NodeControl, no_such_peer, no_such_source
from vpnd.source_requests import fallback_extension, source_test_request

MAX_DETAILS: Final = 100

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


def refusal(error: ControlError, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The answer to a request that is refused."""
    return JSONResponse(error.body(), status_code=error.http_status, headers=headers)


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
        return JSONResponse(await self._node.status())

    async def link(self, request: Request) -> Response:
        return JSONResponse(await self._node.link(_peer_name(request)))

    async def peers(self, request: Request) -> Response:
        if request.method != "POST":
            return JSONResponse(await self._node.peers())
        values = _json_object(await request.body())
        wanted = validate(PeerRequest, values, Source(None))
        return JSONResponse(await self._node.add_peer(wanted, _caller(request)), status_code=201)

    async def peer(self, request: Request) -> Response:
        name = _peer_name(request)
        if request.method == "PATCH":
            change = _json_object(await request.body())
            return JSONResponse(await self._node.change_peer(name, change, _caller(request)))
        return JSONResponse(await self._node.remove_peer(name, _caller(request)))

    async def rekey(self, request: Request) -> Response:
        return JSONResponse(await self._node.rekey(_peer_name(request), _caller(request)))

    async def fallback(self, request: Request) -> Response:
        extension = fallback_extension(_json_object(await request.body()))
        name = _peer_name(request)
        return JSONResponse(await self._node.extend_fallback(name, extension, _caller(request)))

    async def key_sources(self, request: Request) -> Response:
        return JSONResponse(await self._node.key_sources())

    async def key_source(self, request: Request) -> Response:
        return JSONResponse(await self._node.key_source(_source_name(request)))

    async def test_source(self, request: Request) -> Response:
        body = await request.body()
        peer, consume, deep = source_test_request(_json_object(body) if body else {})
        name = _source_name(request)
        return JSONResponse(
            await self._node.test_key_source(
                name, peer=peer, consume_one=consume, deep=deep, caller=_caller(request)
            )
        )

    async def reload(self, request: Request) -> Response:
        body = await request.body()
        asked = _json_object(body) if body else {}
        dry_run = asked.pop("dry_run", False)
        if asked or not isinstance(dry_run, bool):
            raise ControlError(
                ErrorCode.BAD_REQUEST, "a reload takes dry_run alone: true or false", "{}"
            )
        return JSONResponse(await self._node.reload(dry_run=dry_run, caller=_caller(request)))

    async def events(self, request: Request) -> Response:
        since = request.query_params.get("since", "now")
        if since != "now":
            raise ControlError(
                ErrorCode.INVALID,
                f"events since {printable(since)} are not kept",
                "since=now is the one that there is",
            )
        return EventStream(self._node.subscribe_events(), self._stopping)


class EventStream(Response):
    """Records as JSON lines, from now on, until the reader goes or the daemon stops."""

    media_type = CONTENT_TYPE_EVENTS

    def __init__(self, subscription: Subscription, stopping: trio.Event) -> None:
        super().__init__()
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
        # At once, so that a reader knows from when on it misses nothing
        await send(_line(Event(schema=SCHEMA, at=rfc3339(wall()), event="subscribed")))
        async for event in self._subscription:
            await send(_line(event))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _end_with_daemon(self) -> None:
        await self._stopping.wait()
        self._subscription.close()

    async def _end_with_reader(self, receive: Receive, scope: trio.CancelScope) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        scope.cancel()


def _line(event: Event) -> dict[str, Any]:
    text = json.dumps(event, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return {"type": "http.response.body", "body": text.encode() + b"\n", "more_body": True}


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

"""The control API as vpnctl calls it: HTTP over the daemon's Unix socket, nothing but the stdlib.

Source: vpnd/api.py. `http.client` starts in 30 ms where httpx takes 400.
"""

import http.client
import json
import os
import select
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final, cast
from urllib.parse import quote, urlencode

from cli.errors import CliError, DaemonUnreachable, Problem, UsageProblem
from cli.node_paths import NodePaths
from cli.options import Settings
from vpnd.api import (
    CONTENT_TYPE_JSON,
    SCHEMA,
    ErrorInfo,
    Event,
    FallbackExtension,
    KeySourceInfo,
    KeySourceTest,
    KeySourceTestRequest,
    LinkStatus,
    NodeStatus,
    PeerChange,
    PeerInfo,
    PeerRemoved,
    PeerRequest,
    RekeyStarted,
    ReloadRequest,
    ReloadResult,
)

TIMEOUT_SECONDS: Final = 30.0
"""Adding a peer may wait for netlink and for a name to resolve; nothing takes longer."""

TEST_SECONDS: Final = 160.0
"""A test of a key source waits for a slow key manager, and for an exchange."""

MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
"""Bounds what is read from whatever listens at the socket: some 10,000 links are a tenth of it."""

BURST_SECONDS: Final = 0.05
"""Events come in bursts: one look after the burst is enough."""

START_HINT: Final = "start it: systemctl start vpnd (or: vpnd --config FILE)"


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float | None) -> None:
        super().__init__("vpnd", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connected.settimeout(self.timeout)
            connected.connect(self._path)
        except BaseException:
            connected.close()
            raise
        self.sock = connected


class Client:
    """One daemon. Methods raise `DaemonUnreachable`, or `CliError` with the daemon's own words."""

    def __init__(self, socket_path: str, *, hint_if_unreachable: str = "") -> None:
        self.socket_path = socket_path
        self._hint = hint_if_unreachable

    @classmethod
    def of(cls, settings: Settings) -> "Client":
        """The daemon that the global options, or the configuration that they name, point to.

        Raises UsageProblem when a configuration was named and is not there.
        """
        if settings.socket is not None:
            return cls(settings.socket)
        paths = NodePaths.of(settings)
        return cls(paths.control_socket, hint_if_unreachable=paths.doubt)

    def status(self) -> NodeStatus:
        return cast(NodeStatus, self._object("GET", "/v1/status"))

    def link(self, peer: str) -> LinkStatus:
        return cast(LinkStatus, self._object("GET", f"/v1/links/{quote(peer, safe='')}"))

    def peers(self) -> list[PeerInfo]:
        answer = self._call("GET", "/v1/peers")
        if not isinstance(answer, list):
            raise self._not_vpnd("its list of peers is no list")
        return cast(list[PeerInfo], [self._checked(item) for item in answer])

    def add_peer(self, request: PeerRequest) -> LinkStatus:
        return cast(LinkStatus, self._object("POST", "/v1/peers", request))

    def change_peer(self, peer: str, change: PeerChange) -> LinkStatus:
        path = f"/v1/peers/{quote(peer, safe='')}"
        return cast(LinkStatus, self._object("PATCH", path, change))

    def reload(self, *, dry_run: bool, remove_all_peers: bool = False) -> ReloadResult:
        request = ReloadRequest(dry_run=dry_run)
        if remove_all_peers:
            request["remove_all_peers"] = True
        return cast(ReloadResult, self._object("POST", "/v1/reload", request))

    def remove_peer(self, peer: str) -> PeerRemoved:
        return cast(PeerRemoved, self._object("DELETE", f"/v1/peers/{quote(peer, safe='')}"))

    def rekey(self, peer: str) -> RekeyStarted:
        path = f"/v1/peers/{quote(peer, safe='')}/rekey"
        return cast(RekeyStarted, self._object("POST", path))

    def extend_fallback(self, peer: str, request: FallbackExtension) -> LinkStatus:
        path = f"/v1/peers/{quote(peer, safe='')}/fallback"
        return cast(LinkStatus, self._object("POST", path, request))

    def key_sources(self) -> list[KeySourceInfo]:
        answer = self._call("GET", "/v1/keysources")
        if not isinstance(answer, list):
            raise self._not_vpnd("its list of key sources is no list")
        return cast(list[KeySourceInfo], [self._checked(item) for item in answer])

    def key_source(self, name: str) -> KeySourceInfo:
        path = f"/v1/keysources/{quote(name, safe='')}"
        return cast(KeySourceInfo, self._object("GET", path))

    def test_key_source(self, name: str, request: KeySourceTestRequest) -> KeySourceTest:
        path = f"/v1/keysources/{quote(name, safe='')}/test"
        answer = self._object("POST", path, request, timeout=TEST_SECONDS)
        return cast(KeySourceTest, answer)

    def events(self, **asked: str) -> Iterator[Event]:
        """What happens from now on, one by one, until the daemon ends the stream; or what `asked`
        selects: `since`, `last`, `peer`, `follow` of /v1/events."""
        connection, response = self.open_events(**asked)
        try:
            for line in _lines(response):
                yield cast(Event, self._checked(self._decode(line)))
        except (OSError, http.client.HTTPException) as failure:
            raise self._unreachable(failure) from failure
        finally:
            connection.close()

    def open_events(
        self, **asked: str
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """The stream of events as it is; the caller closes the connection."""
        connection = _UnixConnection(self.socket_path, TIMEOUT_SECONDS)
        path = f"/v1/events?{urlencode(asked or {'since': 'now'})}"
        try:
            response = self._exchange(connection, "GET", path, None)
        except BaseException:
            connection.close()
            raise
        if connection.sock is not None:
            connection.sock.settimeout(None)  # a quiet hour is not an error
        return connection, response

    def _object(
        self, method: str, path: str, body: object = None, *, timeout: float = TIMEOUT_SECONDS
    ) -> dict[str, Any]:
        return self._checked(self._call(method, path, body, timeout=timeout))

    def _call(
        self, method: str, path: str, body: object = None, *, timeout: float = TIMEOUT_SECONDS
    ) -> Any:
        connection = _UnixConnection(self.socket_path, timeout)
        try:
            response = self._exchange(connection, method, path, body)
            return self._decode(response.read(MAX_ANSWER_BYTES))
        except (OSError, http.client.HTTPException) as failure:
            raise self._unreachable(failure) from failure
        finally:
            connection.close()

    def _exchange(
        self, connection: _UnixConnection, method: str, path: str, body: object
    ) -> http.client.HTTPResponse:
        """The answer to one request, its body not read yet; a refusal is raised."""
        headers = {"Accept": CONTENT_TYPE_JSON}
        encoded = None
        if body is not None:
            encoded = json.dumps(body).encode()
            headers["Content-Type"] = CONTENT_TYPE_JSON
        try:
            connection.request(method, path, body=encoded, headers=headers)
            response = connection.getresponse()
            told = response.read(MAX_ANSWER_BYTES) if response.status >= 400 else b""
        except (OSError, http.client.HTTPException) as failure:
            raise self._unreachable(failure) from failure
        if response.status >= 400:
            raise self._refusal(response.status, self._decode(told))
        return response

    def _decode(self, raw: bytes) -> Any:
        try:
            return json.loads(raw)
        except (ValueError, RecursionError) as failure:
            raise self._not_vpnd("its answer is no JSON") from failure

    def _checked(self, answer: Any) -> dict[str, Any]:
        if not isinstance(answer, dict):
            raise self._not_vpnd("its answer is no JSON object")
        if answer.get("schema") != SCHEMA:
            raise CliError(
                f"the daemon speaks schema {answer.get('schema')!r}, this vpnctl knows {SCHEMA}",
                "use the vpnctl that came with the daemon",
            )
        return answer

    def _not_vpnd(self, what: str) -> DaemonUnreachable:
        return DaemonUnreachable(
            f"what answers at {self.socket_path} is not vpnd: {what}",
            "name the daemon's control socket with --socket",
        )

    def _unreachable(self, failure: OSError | http.client.HTTPException) -> DaemonUnreachable:
        path = self.socket_path
        match failure:
            case FileNotFoundError() | NotADirectoryError():
                message, todo = f"vpnd is not running: there is no {path}", START_HINT
            case ConnectionRefusedError():
                message, todo = f"vpnd is not running: nobody listens at {path}", START_HINT
            case PermissionError():
                message = f"{path}: permission denied"
                todo = "run vpnctl as root or as the daemon's own user"
            case TimeoutError():
                message = f"vpnd gave no answer at {path} for {TIMEOUT_SECONDS:.0f} s"
                todo = "see what it is doing: journalctl -u vpnd"
            case ConnectionResetError() | BrokenPipeError() | http.client.IncompleteRead():
                message = f"vpnd at {path} hung up before it had answered"
                todo = "it may just have stopped: systemctl status vpnd"
            case http.client.HTTPException():
                return self._not_vpnd("it does not speak HTTP")
            case _:
                message = f"{path}: {failure.strerror or failure}"
                todo = "name the daemon's control socket with --socket"
        return DaemonUnreachable(message, f"{self._hint}; {todo}" if self._hint else todo)

    def _refusal(self, status: int, answer: Any) -> CliError:
        told = answer.get("error") if isinstance(answer, dict) else None
        if not isinstance(told, dict):
            return self._not_vpnd(f"HTTP status {status} without a reason")
        return refusal(status, cast(ErrorInfo, told))


class Refused(CliError):
    """The daemon said no; `slug` is one of `ErrorCode`."""

    told: ErrorInfo | None = None

    def document(self) -> dict[str, Any]:
        """The daemon's own error, whole: with files, lines and keys."""
        ours = super().document()
        return {**ours, "error": {**ours["error"], **(self.told or {})}}


class RefusedUsage(Refused, UsageProblem):
    """… because of what was asked for: 4xx, so nothing was changed."""


def refusal(status: int, told: ErrorInfo) -> Refused:
    """The daemon's refusal as an exception; each detail is a line of its own."""
    kind = RefusedUsage if 400 <= status < 500 and status != 403 else Refused
    more = [Problem.of(detail) for detail in told.get("details", [])]
    error = kind(str(told.get("message", f"HTTP status {status}")), told.get("hint", ""), more=more)
    error.slug = str(told.get("code", ""))
    error.told = told
    return error


class Wakeups:
    """Waits between two looks at the daemon, and ends the wait when something happens there.

    It holds one event stream, used only to be woken: what the events say is not read. Without a
    stream (the daemon is down, or refuses it) the time alone wakes.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._connection: http.client.HTTPConnection | None = None

    def __enter__(self) -> "Wakeups":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def wait(self, seconds: float, also: int | None = None) -> None:
        """Returns soon after an event, or after `seconds`; at once when the stream is new.

        (Something may have happened between the last look and the opening of the stream.)
        It returns, too, when the descriptor `also` can be read, and empties it.
        """
        stream = self._connection.sock if self._connection is not None else None
        if stream is None:
            with suppress(CliError):
                self._connection, _ = self._client.open_events()
            time.sleep(seconds if self._connection is None else min(seconds, BURST_SECONDS))
            return
        watched = [stream] if also is None else [stream, also]
        ready, _, _ = select.select(watched, [], [], seconds)
        if also is not None and also in ready:
            os.read(also, 1024)
        if stream in ready:
            time.sleep(min(seconds, BURST_SECONDS))
            try:
                told = stream.recv(1024 * 1024)
            except OSError:  # the daemon was killed
                told = b""
            if not told:
                self._close()

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _lines(response: http.client.HTTPResponse) -> Iterator[bytes]:
    while line := response.readline(MAX_ANSWER_BYTES):
        if line.strip():
            yield line

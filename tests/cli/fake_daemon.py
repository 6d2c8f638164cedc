"""A small stand-in for the daemon: a real HTTP server on a real Unix socket, with canned answers.

It keeps a list of links, so that adding and removing can be followed, and every request it saw.
"""

import json
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from vpnd.api import (
    SCHEMA,
    CallerInfo,
    ConfigurationStatus,
    ErrorBody,
    ErrorDetail,
    Event,
    KeyInfo,
    KeySourceInfo,
    KeySourceTest,
    LinkStatus,
    NodeStatus,
    PeerInfo,
    PeerRequest,
    ReloadResult,
)

IDENTITY = "vpnd1" + "q" * 59


def key(key_id: str = "0badc0de", age: float = 61.0, *, in_force: bool = True) -> KeyInfo:
    stamp = "2020-01-02T03:04:05Z"
    return KeyInfo(
        key_id=key_id,
        installed_at=stamp,
        in_force_since=stamp if in_force else None,
        age_seconds=age,
    )


def link(peer: str, state: str = "active", **changes: Any) -> LinkStatus:
    protected = state in ("active", "degraded")
    status = LinkStatus(
        schema=SCHEMA,
        peer=peer,
        state=state,
        reason="a key is in force" if state == "active" else f"the reason for {state}",
        since="2020-01-02T03:04:05Z",
        adopted=False,
        identity=IDENTITY,
        suite=1,
        tunnel="backbone",
        key_in_force=key() if protected else None,
        key_installed=key() if protected else None,
        next_renewal_seconds=44.0 if protected else None,
        expires_seconds=539.0 if protected else None,
        endpoint="192.0.2.7:51821",
        wireguard={
            "public_key": "A" * 43 + "=",
            "peer_public_key": "B" * 43 + "=" if protected else None,
            "endpoint": "192.0.2.7:51820" if protected else None,
            "last_handshake_seconds": 12.0 if protected else None,
            "rx_bytes": 2048 if protected else 0,
            "tx_bytes": 1536 if protected else 0,
        },
        external_keys={"mode": "off", "mixed": []},
        last_error=None,
        counters={},
        allowed_ips=["10.255.0.2/32"],
        warnings=[],
    )
    status.update(changes)  # type: ignore[typeddict-item]
    return status


def peer_info(status: LinkStatus) -> PeerInfo:
    return PeerInfo(
        schema=SCHEMA,
        name=status["peer"],
        identities=[status["identity"]],
        endpoint=status["endpoint"],
        tunnel=status["tunnel"],
        allowed_ips=status["allowed_ips"],
        keepalive=25,
        rekey_interval=105,
        key_lifetime=600,
        protect=None,
        external_keys="off",
        file=f"/etc/vpnd/peers.d/{status['peer']}.toml",
    )


class FakeDaemon:
    """What the server answers with; a test changes it at will, also while vpnctl runs."""

    def __init__(self, socket_path: Path) -> None:
        self.socket_path = socket_path
        self.links: list[LinkStatus] = []
        self.configuration: ConfigurationStatus | None = None
        self.callers: list[CallerInfo] = []
        self.events: list[Event] = []
        self.asked_events: list[dict[str, str]] = []
        """How it was asked for them."""
        self.requests: list[tuple[str, str, Any]] = []
        self.asked = threading.Event()
        """Set with every request."""
        self.raw_answer: bytes | None = None
        """Sent instead of any answer, as it stands."""
        self.refuses: tuple[int, ErrorBody] | None = None
        self.schema = SCHEMA
        self.activates_after: int | None = None
        """A link that was added becomes active when it has been asked about so many times."""
        self.reloaded = ReloadResult(
            schema=SCHEMA, dry_run=False, changes=[], restart=[], problems=[]
        )
        self.warnings_of_added: list[str] = []
        self.key_sources: list[KeySourceInfo] = []
        self.tested = KeySourceTest(
            schema=SCHEMA, source="", peer=None, done=True, steps=[], key_id=None, key_ids=[]
        )
        self._news = threading.Condition()
        self._events_ended = False

    def tell(self, *events: Event) -> None:
        """Sends events to every reader of the stream, now and later."""
        with self._news:
            self.events.extend(events)
            self._news.notify_all()

    def end_events(self) -> None:
        with self._news:
            self._events_ended = True
            self._news.notify_all()

    def wait_events(self, after: int) -> list[Event]:
        """The events after the first `after`, as soon as there are any; none at the end."""
        with self._news:
            self._news.wait_for(lambda: len(self.events) > after or self._events_ended)
            return self.events[after:]

    def find(self, peer: str) -> LinkStatus | None:
        return next((each for each in self.links if each["peer"] == peer), None)

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        self.requests.append((method, path, body))
        self.asked.set()
        if self.refuses is not None:
            return self.refuses
        match method, path.strip("/").split("/")[1:]:
            case "GET", ["status"]:
                return 200, self._node()
            case "GET", ["peers"]:
                return 200, [peer_info(each) for each in self.links]
            case "POST", ["peers"]:
                return self._add(body)
            case "GET", ["links", peer] if found := self.find(peer):
                return 200, self._asked_again(found)
            case "PATCH", ["peers", peer] if found := self.find(peer):
                return 200, found
            case "POST", ["reload"]:
                return 200, {**self.reloaded, "dry_run": body["dry_run"]}
            case "DELETE", ["peers", peer] if found := self.find(peer):
                self.links.remove(found)
                return 200, {"schema": self.schema, "peer": peer, "removed": True}
            case "POST", ["peers", peer, "rekey"] if self.find(peer):
                return 200, {"schema": self.schema, "peer": peer, "started": True}
            case "POST", ["peers", peer, "fallback"] if found := self.find(peer):
                return 200, found
            case "GET", ["keysources"]:
                return 200, self.key_sources
            case "GET", ["keysources", name] if source := self._source(name):
                return 200, source
            case "POST", ["keysources", name, "test"] if self._source(name):
                return 200, self.tested
            case _, ["keysources", name, *_]:
                return 404, error("no_such_source", f"there is no key source {name}")
            case _, ["links" | "peers", peer, *_]:
                return 404, error("no_such_peer", f"there is no peer {peer}")
        return 404, error("no_such_route", f"there is no {path}")

    def _source(self, name: str) -> KeySourceInfo | None:
        return next((each for each in self.key_sources if each["name"] == name), None)

    def _node(self) -> NodeStatus:
        status = self._plain_node()
        if self.configuration is not None:
            status["configuration"] = self.configuration
        return status

    def _plain_node(self) -> NodeStatus:
        return NodeStatus(
            schema=self.schema,
            node="fra1",
            version="0.1.0",
            identities=[{"suite": 1, "text": IDENTITY}],
            pid=4711,
            uptime_seconds=7265.0,
            longest_pause_ms=3.2,
            longest_pause_cpu_ms=2.1,
            listen=["[::]:51821"],
            tunnels=[],
            links=self.links,
            counters={},
            warnings=[],
            callers=self.callers,
        )

    def _add(self, request: PeerRequest) -> tuple[int, Any]:
        if self.find(request["name"]):
            return 409, error("peer_exists", f"there is a peer {request['name']} already")
        added = link(
            request["name"],
            "exchanging",
            allowed_ips=request["allowed_ips"],
            warnings=self.warnings_of_added,
        )
        self.links.append(added)
        return 201, added

    def _asked_again(self, found: LinkStatus) -> LinkStatus:
        if self.activates_after is not None:
            self.activates_after -= 1
            if self.activates_after <= 0:
                found.update(link(found["peer"]))
        return found


def error(
    code: str, message: str, hint: str = "", details: list[ErrorDetail] | None = None
) -> ErrorBody:
    return {"error": {"code": code, "message": message, "hint": hint, "details": details or []}}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "_Server"

    def handle_any(self) -> None:
        daemon = self.server.daemon
        length = int(self.headers.get("Content-Length", "0"))
        body = json.loads(self.rfile.read(length)) if length else None
        if daemon.raw_answer is not None:
            self.wfile.write(daemon.raw_answer)
            self.close_connection = True
            return
        path, _, query = self.path.partition("?")
        if path == "/v1/events":
            daemon.asked_events.append(dict(parse_qsl(query)))
            if "follow=false" in query:
                daemon.end_events()
            self._stream(daemon)
            return
        status, document = daemon.answer(self.command, path, body)
        encoded = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(encoded)))
        self.end_headers()
        self.wfile.write(encoded)

    do_GET = do_POST = do_PATCH = do_DELETE = handle_any

    def _stream(self, daemon: FakeDaemon) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        sent = 0
        while events := daemon.wait_events(sent):
            for event in events:
                line = json.dumps(event).encode() + b"\n"
                self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
            sent += len(events)
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: the base class writes a line to stderr for each request."""


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, daemon: FakeDaemon) -> None:
        super().__init__(str(daemon.socket_path), _Handler)
        self.daemon = daemon

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed by its test is no error."""


@contextmanager
def fake_daemon(socket_path: Path) -> Iterator[FakeDaemon]:
    """Answers at `socket_path` until the end of the block."""
    daemon = FakeDaemon(socket_path)
    with _Server(daemon) as server:
        serving = threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        serving.start()
        try:
            yield daemon
        finally:
            daemon.end_events()
            server.shutdown()
            serving.join()
    socket_path.unlink(missing_ok=True)

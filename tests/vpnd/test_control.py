"""The control socket: a real server on a real Unix socket, asked by real HTTP clients."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import stat
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs

from kex.identity import Fingerprint
from tests.vpnd.control_client import TIMEOUT, UnixConnection, everything, raw, request
from vpnd import control
from vpnd.api import (
    SCHEMA,
    ErrorCode,
    Event,
    FallbackExtension,
    KeySourceInfo,
    KeySourceTest,
    LinkStatus,
    NodeStatus,
    PeerInfo,
    PeerRemoved,
    RekeyStarted,
    ReloadResult,
)
from vpnd.atomic_file import FileExists
from vpnd.config_errors import ConfigErrors, ConfigProblem
from vpnd.config_model import PeerRequest
from vpnd.control import (
    Caller,
    ControlError,
    ControlServer,
    ControlSocketError,
    open_control_socket,
)
from vpnd.event_feed import EventFeed, Subscription
from vpnd.file_trust import FileFault
from vpnd.journal import Journal
from vpnd.node_control import HTTP_STATUS, NodeControl, no_such_peer, no_such_source
from vpnd.state_lock import state_locked

SECRET = "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0MDA="
LON1 = {
    "name": "lon1",
    "identity": Fingerprint.of(1, b"lon1").text(),
    "allowed_ips": ["10.30.0.0/16"],
}


class MemoryNode:
    """A node without links: peers in memory, and the caller of each change."""

    def __init__(self) -> None:
        self.feed = EventFeed()
        self.added: dict[str, PeerRequest] = {}
        self.callers: list[Caller] = []
        self.changes: list[dict[str, Any]] = []
        self.raises: Exception | None = None
        self.held: trio.Event | None = None
        """When set, `status` waits for it."""
        self.asked = trio.Event()
        self.padding = ""
        self.removed_all = False

    async def status(self) -> NodeStatus:
        if self.raises is not None:
            raise self.raises
        self.asked.set()
        if self.held is not None:
            await self.held.wait()
        return NodeStatus(
            schema=SCHEMA,
            node="fra1" + self.padding,
            version="0",
            identities=[],
            pid=os.getpid(),
            uptime_seconds=1.5,
            longest_pause_ms=3.2,
            longest_pause_cpu_ms=2.1,
            listen=[],
            tunnels=[],
            links=[_link(name) for name in self.added],
            counters={},
            warnings=[],
        )

    async def link(self, name: str) -> LinkStatus:
        self._check(name)
        return _link(name)

    async def peers(self) -> list[PeerInfo]:
        return [
            PeerInfo(
                schema=SCHEMA,
                name=name,
                identities=[one.text() for one in peer.identity],
                endpoint=None if peer.endpoint is None else str(peer.endpoint),
                tunnel=peer.tunnel or "backbone",
                allowed_ips=[str(prefix) for prefix in peer.allowed_ips],
                keepalive=peer.keepalive,
                rekey_interval=peer.rekey_interval,
                key_lifetime=600,
                protect=None,
                external_keys="off",
                file=f"/peers.d/{name}.toml",
            )
            for name, peer in self.added.items()
        ]

    async def add_peer(self, request: PeerRequest, caller: Caller) -> LinkStatus:
        if request.name in self.added:
            raise ControlError(ErrorCode.PEER_EXISTS, f"there is a peer {request.name}", "choose")
        self.callers.append(caller)
        self.added[request.name] = request
        return _link(request.name)

    async def remove_peer(self, name: str, caller: Caller) -> PeerRemoved:
        self._check(name)
        self.callers.append(caller)
        del self.added[name]
        return PeerRemoved(schema=SCHEMA, peer=name, removed=True)

    async def change_peer(self, name: str, change: Mapping[str, Any], caller: Caller) -> LinkStatus:
        self._check(name)
        self.callers.append(caller)
        self.changes.append(dict(change))
        return _link(name)

    async def reload(
        self, *, dry_run: bool, caller: Caller | None, remove_all: bool = False
    ) -> ReloadResult:
        self.removed_all = remove_all
        if caller is not None:
            self.callers.append(caller)
        return ReloadResult(schema=SCHEMA, dry_run=dry_run, changes=[], restart=[], problems=[])

    async def rekey(self, name: str, caller: Caller) -> RekeyStarted:
        self._check(name)
        self.callers.append(caller)
        return RekeyStarted(schema=SCHEMA, peer=name, started=True)

    async def extend_fallback(
        self, name: str, request: FallbackExtension, caller: Caller
    ) -> LinkStatus:
        self._check(name)
        self.callers.append(caller)
        self.changes.append(dict(request))
        return _link(name)

    async def key_sources(self) -> list[KeySourceInfo]:
        return []

    async def key_source(self, name: str) -> KeySourceInfo:
        raise no_such_source(name)

    async def test_key_source(
        self, name: str, *, peer: str | None, consume_one: bool, deep: bool, caller: Caller
    ) -> KeySourceTest:
        self.callers.append(caller)
        self.changes.append({"name": name, "peer": peer, "consume_one": consume_one or deep})
        return KeySourceTest(
            schema=SCHEMA, source=name, peer=peer, done=True, steps=[], key_id=None, key_ids=[]
        )

    def subscribe_events(self) -> Subscription:
        return self.feed.subscribe()

    def kept_events(
        self, *, since: float | None, last: int | None, peer: str | None
    ) -> list[bytes]:
        return self.feed.kept(since=since, last=last, peer=peer)

    def _check(self, name: str) -> None:
        if name not in self.added:
            raise no_such_peer(name)


def _link(name: str) -> LinkStatus:
    return LinkStatus(
        schema=SCHEMA,
        peer=name,
        state="down",
        reason="no exchange yet",
        since="2026-01-01T00:00:00.000Z",
        adopted=False,
        identity="",
        suite=1,
        tunnel="backbone",
        key_in_force=None,
        key_installed=None,
        next_renewal_seconds=None,
        expires_seconds=None,
        endpoint=None,
        wireguard={
            "public_key": "",
            "peer_public_key": None,
            "endpoint": None,
            "last_handshake_seconds": None,
            "rx_bytes": 0,
            "tx_bytes": 0,
        },
        external_keys={"mode": "off", "mixed": []},
        last_error=None,
        counters={},
        allowed_ips=[],
        warnings=[],
    )


class Running:
    def __init__(self, node: MemoryNode, server: ControlServer, path: Path) -> None:
        self.node = node
        self.server = server
        self.path = path

    async def ask(self, method: str, target: str, body: Any = None) -> Any:
        return await request(self.path, method, target, body)

    async def check_it_still_answers(self) -> None:
        assert (await self.ask("GET", "/v1/status")).json()["node"].startswith("fra1")

    async def wait_for_connections(self, number: int) -> None:
        """Until so many are open: a server's task ends a moment after its client is answered."""
        with trio.fail_after(TIMEOUT):
            while self.server.statistics().connections != number:
                await trio.lowlevel.checkpoint()


@pytest.fixture
def socket_path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


@pytest.fixture
async def running(socket_path: Path, nursery: trio.Nursery) -> AsyncIterator[Running]:
    node = MemoryNode()
    control_node: NodeControl = node
    server = ControlServer(control_node, open_control_socket(socket_path))
    await nursery.start(server.run)
    yield Running(node, server, socket_path)
    server.stop()


# Routes


async def test_a_peers_life(running: Running) -> None:
    added = await running.ask("POST", "/v1/peers", LON1)
    assert added.status == 201
    assert added.json()["peer"] == "lon1"
    assert (await running.ask("GET", "/v1/links/lon1")).json()["state"] == "down"
    [peer] = (await running.ask("GET", "/v1/peers")).json()
    assert (peer["name"], peer["allowed_ips"]) == ("lon1", ["10.30.0.0/16"])
    rekey = await running.ask("POST", "/v1/peers/lon1/rekey")
    assert (rekey.status, rekey.json()["started"]) == (200, True)
    assert len((await running.ask("GET", "/v1/status")).json()["links"]) == 1
    again = await running.ask("POST", "/v1/peers", LON1)
    assert (again.status, again.error()["code"]) == (409, "peer_exists")
    assert (await running.ask("DELETE", "/v1/peers/lon1")).json()["removed"] is True
    for method, target in (
        ("DELETE", "/v1/peers/lon1"),
        ("GET", "/v1/links/lon1"),
        ("POST", "/v1/peers/lon1/rekey"),
        ("GET", "/v1/links/%00"),
        ("GET", "/v1/links/%1b%5b31m"),
        ("GET", "/v1/links/" + "a" * 2000),
        ("GET", "/v1/links/..%20"),
    ):
        answer = await running.ask(method, target)
        assert (answer.status, answer.error()["code"]) == (404, "no_such_peer"), target
        assert answer.error()["message"].isprintable()
        assert len(answer.error()["message"]) < 200


async def test_each_change_knows_its_caller(running: Running) -> None:
    await running.ask("POST", "/v1/peers", LON1)
    await running.ask("POST", "/v1/peers/lon1/rekey")
    await running.ask("PATCH", "/v1/peers/lon1", {"keepalive": 10})
    await running.ask("POST", "/v1/reload", {"dry_run": True})
    await running.ask("DELETE", "/v1/peers/lon1")
    assert running.node.callers == [Caller(os.getpid(), os.geteuid(), os.getegid())] * 5


async def test_a_change_of_a_peer_says_what_is_given(running: Running) -> None:
    await running.ask("POST", "/v1/peers", LON1)
    answer = await running.ask("PATCH", "/v1/peers/lon1", {"keepalive": 10, "endpoint": None})
    assert (answer.status, answer.json()["peer"]) == (200, "lon1")
    assert running.node.changes == [{"keepalive": 10, "endpoint": None}]
    for body in (b"", b"[]", b"{"):
        answer = await running.ask("PATCH", "/v1/peers/lon1", body)
        assert answer.status == 400
    assert (await running.ask("PATCH", "/v1/peers/nobody", {})).status == 404


async def test_a_reload_is_for_real_unless_it_is_asked_for_dry(running: Running) -> None:
    assert (await running.ask("POST", "/v1/reload")).json()["dry_run"] is False
    assert (await running.ask("POST", "/v1/reload", {})).json()["dry_run"] is False
    assert (await running.ask("POST", "/v1/reload", {"dry_run": True})).json()["dry_run"] is True
    assert not running.node.removed_all
    await running.ask("POST", "/v1/reload", {"remove_all_peers": True})
    assert running.node.removed_all
    for body in ({"dry_run": "yes"}, {"dryrun": True}, {"remove_all_peers": "yes"}):
        assert (await running.ask("POST", "/v1/reload", body)).status == 400


NOBODY = 65534
AS_NOBODY = f"""
import os, socket, sys
# Here and not before: nobody may be unable to run a Python that lies below /root
os.setgroups([])
os.setresgid({NOBODY}, {NOBODY}, {NOBODY})
os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
client = socket.socket(socket.AF_UNIX)
client.connect(sys.argv[1])
client.sendall(b"POST /v1/peers/lon1/rekey HTTP/1.1\\r\\nhost: x\\r\\n\\r\\n")
sys.stdout.buffer.write(client.makefile("rb").read())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="runs a client as another user")
async def test_others_may_not_call_even_where_the_sockets_mode_lets_them(
    nursery: trio.Nursery,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "control.sock"
        node = MemoryNode()
        server = ControlServer(node, open_control_socket(path))
        await nursery.start(server.run)
        command = [sys.executable, "-I", "-c", AS_NOBODY, str(path)]
        os.chmod(folder, 0o755)  # noqa: S103
        answer = await trio.run_process(
            command, capture_stdout=True, capture_stderr=True, check=False
        )
        assert b"PermissionError" in answer.stderr
        os.chmod(path, 0o666)  # noqa: S103  # what the check is for
        answer = await trio.run_process(command, capture_stdout=True)
        assert answer.stdout.startswith(b"HTTP/1.1 403")
        assert b'"not_allowed"' in answer.stdout
        assert not node.callers
        server.stop()


@pytest.mark.parametrize(
    ("method", "target", "status", "code"),
    [
        ("GET", "/", 404, "no_such_route"),
        ("GET", "/v1", 404, "no_such_route"),
        ("GET", "/v1/status/", 404, "no_such_route"),
        ("GET", "/v1/peers/a/b", 404, "no_such_route"),
        ("GET", "/v2/status", 404, "no_such_route"),
        ("GET", "/v1/\x7f%0a", 404, "no_such_route"),
        ("POST", "/v1/status", 405, "method_not_allowed"),
        ("PATCH", "/v1/peers", 405, "method_not_allowed"),
        ("GET", "/v1/peers/lon1", 405, "method_not_allowed"),
        ("GET", "/v1/events?since=yesterday", 422, "invalid"),
        ("GET", "/v1/events?since=2026-01-01T00:00:00", 422, "invalid"),
        ("GET", "/v1/events?last=0", 422, "invalid"),
        ("GET", "/v1/events?last=x", 422, "invalid"),
        ("GET", "/v1/events?follow=maybe", 422, "invalid"),
        ("GET", "/v1/events?until=now", 422, "invalid"),
        ("GET", "/v1/events?peer=a%0ab", 404, "no_such_peer"),
    ],
)
async def test_what_is_not_there(
    running: Running, method: str, target: str, status: int, code: str
) -> None:
    answer = await running.ask(method, target.replace("\x7f", "%7f"))
    assert (answer.status, answer.error()["code"]) == (status, code)
    assert answer.error()["hint"]
    assert answer.error()["message"].isprintable()


# Bodies


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"name"',
        b"\xff\xfe",
        b"[" * 60_000,
        b'{"a":' * 10_000,
        b"1" * 60_000,
        b'{"keepalive": NaN}',
        b'{"keepalive": Infinity}',
        b'{"name": "a", "name": "b"}',
        b'{"keepalive": 1e999' + b"9" * 5000 + b"}" + b"}",
    ],
)
async def test_bodies_that_are_no_json_object(running: Running, body: bytes) -> None:
    answer = await running.ask("POST", "/v1/peers", body)
    assert (answer.status, answer.error()["code"]) == (400, "bad_request")
    assert not running.node.added
    await running.check_it_still_answers()


async def test_all_that_is_wrong_with_a_body_is_told_at_once(running: Running) -> None:
    body = {
        "name": "a/b",
        "identity": [LON1["identity"], "vpnd1qqqq"],
        "allowed_ips": ["10.0.0.1/8", 5],
        "keepalive": "25",
        "tunnl": "backbone",
        "external_keys": {"mode": "required"},
    }
    answer = await running.ask("POST", "/v1/peers", body)
    error = answer.error()
    assert (answer.status, error["code"]) == (422, "invalid")
    assert {detail["key"] for detail in error["details"]} == {
        "name",
        "identity[1]",
        "allowed_ips[0]",
        "allowed_ips[1]",
        "keepalive",
        "tunnl",
        "external_keys.mode",
    }
    assert not any("file" in detail for detail in error["details"])
    assert not running.node.added


async def test_one_thing_that_is_wrong_is_the_message(running: Running) -> None:
    error = (await running.ask("POST", "/v1/peers", LON1 | {"keepalive": -1})).error()
    assert error["message"] == "keepalive: -1 is out of range"
    assert error["hint"] == error["details"][0]["hint"]


async def test_very_many_things_that_are_wrong(running: Running) -> None:
    answer = await running.ask("POST", "/v1/peers", LON1 | {"allowed_ips": ["x"] * 5000})
    assert answer.error()["message"] == "5000 values are wrong"
    assert len(answer.error()["details"]) == 100


@pytest.mark.parametrize("key", [*PeerRequest.model_fields, SECRET, "psk"])
async def test_a_secret_in_the_wrong_place_is_not_repeated(running: Running, key: str) -> None:
    for value in (SECRET, [SECRET], {SECRET: SECRET}, f"vpnd-identity-v1 1 {SECRET}"):
        if key == "wireguard_key" and value == SECRET:
            continue  # 32 bytes in Base64 are what a WireGuard key is: nobody can tell
        answer = await running.ask("POST", "/v1/peers", LON1 | {key: value})
        assert answer.status == 422
        assert SECRET[:16].encode() not in answer.body


@pytest.mark.parametrize("target", ["/v1/peers", "/v1/status", "/v1/nowhere"])
async def test_a_body_that_is_too_long(running: Running, target: str) -> None:
    for length in (65_537, 600_000):
        answer = await running.ask("POST", target, b" " * length)
        assert (answer.status, answer.error()["code"]) == (413, "too_large")
    whole = json.dumps(LON1).encode()
    answer = await running.ask("POST", "/v1/peers", whole + b" " * (65_536 - len(whole)))
    assert answer.status == 201


async def send_for_ever(stream: trio.SocketStream, data: bytes) -> None:
    """Until the other end closes."""
    with contextlib.suppress(trio.BrokenResourceError), trio.fail_after(TIMEOUT):
        while True:
            await stream.send_all(data)


async def test_a_body_without_an_end(running: Running) -> None:
    """Whoever goes on sending is answered and cut off; the daemon takes no more of it."""
    async with await trio.open_unix_socket(str(running.path)) as stream:
        head = b"POST /v1/peers HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000000\r\n\r\n"
        await stream.send_all(head)
        await send_for_ever(stream, b" " * 65_536)
        assert (await everything(stream)).startswith(b"HTTP/1.1 413 ")
    await running.wait_for_connections(0)
    await running.check_it_still_answers()


async def test_a_chunked_body_without_an_end(running: Running) -> None:
    async with await trio.open_unix_socket(str(running.path)) as stream:
        head = b"POST /v1/peers HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        await stream.send_all(head)
        await send_for_ever(stream, b"8000\r\n" + b" " * 0x8000 + b"\r\n")
        assert (await everything(stream)).startswith(b"HTTP/1.1 413 ")
    await running.check_it_still_answers()


# Failures of the node


@pytest.mark.parametrize(
    ("raised", "status", "code"),
    [
        (
            ControlError(ErrorCode.BACKEND_FAILED, "no WireGuard", "install it"),
            500,
            "backend_failed",
        ),
        (ControlError(ErrorCode.UNAVAILABLE, "stopping"), 503, "unavailable"),
        (FileFault(Path("/peers.d/x"), "cannot be written", "make room"), 500, "backend_failed"),
        (FileExists(Path("/peers.d/x"), "exists already"), 409, "conflict"),
        (
            ConfigErrors([ConfigProblem(Path("/etc/x"), "a.b", "is wrong", "mend it", 3)]),
            422,
            "invalid",
        ),
        (RuntimeError(SECRET), 500, "internal"),
        (ExceptionGroup(SECRET, [ValueError(SECRET)]), 500, "internal"),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_failures_of_the_node_are_told(
    running: Running, raised: Exception, status: int, code: str
) -> None:
    running.node.raises = raised
    with capture_logs() as logs:
        answer = await running.ask("GET", "/v1/status")
    assert (answer.status, answer.error()["code"]) == (status, code)
    assert SECRET.encode() not in answer.body
    assert SECRET not in str(logs)
    assert bool(logs) == (code == "internal")
    running.node.raises = None
    await running.check_it_still_answers()


def test_each_code_has_its_status() -> None:
    assert set(HTTP_STATUS) == set(ErrorCode)


# Connections


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nhost: x\r\n\r\n",
        b"\xffET / HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: nonsense\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 10_000,
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        bytes(range(256)) * 100,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 500,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 100,
    ],
)
async def test_malformed_http(
    running: Running, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "IDLE_SECONDS", 0.2)
    with capture_logs():
        answer = await raw(running.path, data)
    assert answer == b"" or b" 4" in answer[:13] or not answer.startswith(b"HTTP/1.1 2"), answer
    await running.wait_for_connections(0)
    await running.check_it_still_answers()


async def test_a_websocket_is_refused(running: Running) -> None:
    data = (
        b"GET /v1/events HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
        b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    assert (await raw(running.path, data)).startswith(b"HTTP/1.1 403")
    await running.check_it_still_answers()


async def test_clients_that_go_at_once(running: Running) -> None:
    for data in (b"", b"GET", b"POST /v1/peers HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n{"):
        async with await trio.open_unix_socket(str(running.path)) as stream:
            await stream.send_all(data)
    await running.wait_for_connections(0)
    await running.check_it_still_answers()


async def test_a_client_that_goes_before_its_answer(running: Running) -> None:
    running.node.held = trio.Event()
    async with await trio.open_unix_socket(str(running.path)) as stream:
        await stream.send_all(b"GET /v1/status HTTP/1.1\r\nhost: x\r\n\r\n")
        await running.node.asked.wait()
    running.node.held.set()
    await running.wait_for_connections(0)
    await running.check_it_still_answers()


@pytest.mark.parametrize(
    "begin",
    [
        b"",
        b"GET /v1/status HT",
        b"GET /v1/status HTTP/1.1\r\nhost: x\r\n",
        b"POST /v1/peers HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{",
    ],
    ids=["nothing", "half a line", "half a head", "half a body"],
)
async def test_a_slow_client_is_cut_off_and_hinders_nobody(
    running: Running, begin: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "BODY_SECONDS", 0.2)
    monkeypatch.setattr(control, "IDLE_SECONDS", 0.2)
    async with await trio.open_unix_socket(str(running.path)) as stream:
        await stream.send_all(begin)
        await running.check_it_still_answers()
        answer = await everything(stream)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400")
    await running.wait_for_connections(0)


async def test_a_client_that_does_not_read_is_cut_off(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "SEND_SECONDS", 0.2)
    running.node.padding = "x" * 4_000_000  # more than the socket's buffers
    async with await trio.open_unix_socket(str(running.path)) as stream:
        await stream.send_all(b"GET /v1/status HTTP/1.1\r\nhost: x\r\n\r\n")
        await running.node.asked.wait()
        await running.wait_for_connections(0)
        assert 0 < len(await everything(stream)) < 4_000_000
    running.node.padding = ""
    await running.check_it_still_answers()


async def test_several_requests_on_one_connection(running: Running) -> None:
    def ask_thrice() -> list[int]:
        connection = UnixConnection(running.path)
        found = []
        for target in ("/v1/status", "/v1/nowhere", "/v1/peers"):
            connection.request("GET", target)
            response = connection.getresponse()
            response.read()
            found.append(response.status)
        connection.close()
        return found

    assert await trio.to_thread.run_sync(ask_thrice) == [200, 404, 200]
    assert running.server.statistics().accepted == 1


async def test_many_clients_at_once(running: Running) -> None:
    statuses: list[int] = []

    async def client() -> None:
        statuses.append((await running.ask("GET", "/v1/status")).status)

    async with trio.open_nursery() as nursery:
        for _ in range(40):
            nursery.start_soon(client)
    assert statuses == [200] * 40


async def test_more_connections_than_there_may_be(running: Running) -> None:
    async with trio.open_nursery() as nursery:
        streams = []
        for _ in range(control.MAX_CONNECTIONS):
            streams.append(await trio.open_unix_socket(str(running.path)))
        await running.wait_for_connections(control.MAX_CONNECTIONS)
        answer = await running.ask("GET", "/v1/status")
        assert (answer.status, answer.error()["code"]) == (503, "unavailable")
        assert running.server.statistics().refused == 1
        for stream in streams:
            await stream.aclose()
        nursery.cancel_scope.cancel()
    await running.wait_for_connections(0)
    await running.check_it_still_answers()


# Events


def event(number: int) -> Event:
    return Event(schema=SCHEMA, at="2026-01-01T00:00:00.000Z", event=f"e{number}", peer="lon1")


class Watcher:
    """A client of `/v1/events`, in a thread of its own as a program would be."""

    def __init__(self, path: Path, query: str = "since=now") -> None:
        self._connection = UnixConnection(path)
        self._connection.request("GET", f"/v1/events?{query}")
        self._response = self._connection.getresponse()
        assert self._response.status == 200
        assert self._response.getheader("content-type") == "application/x-ndjson"

    def line(self) -> Any:
        """The next record; None at the stream's end."""
        line = self._response.readline()
        return json.loads(line) if line else None

    def close(self) -> None:
        self._response.close()
        self._connection.close()


async def test_events_are_lines(running: Running) -> None:
    watcher = await trio.to_thread.run_sync(Watcher, running.path)
    assert (await trio.to_thread.run_sync(watcher.line))["event"] == "subscribed"
    for number in range(3):
        running.node.feed.publish(event(number))
        line = await trio.to_thread.run_sync(watcher.line)
        assert line == event(number)
    watcher.close()
    while running.node.feed.statistics().subscribers:
        await trio.lowlevel.checkpoint()
    await running.wait_for_connections(0)


async def test_events_of_the_past_are_kept(running: Running) -> None:
    for number in range(5):
        running.node.feed.publish(event(number))
    other = event(5)
    other["peer"] = "ams1"
    running.node.feed.publish(other)

    async def told(query: str) -> list[Any]:
        answer = await running.ask("GET", f"/v1/events?{query}&follow=false")
        assert answer.status == 200
        return [json.loads(line)["event"] for line in answer.body.splitlines()]

    assert await told("last=2") == ["e4", "e5"]
    assert await told("last=2&peer=lon1") == ["e3", "e4"]
    assert await told("since=2020-01-01T00:00:00Z&last=6") == [f"e{n}" for n in range(6)]
    assert await told("since=2020-01-01T01:00:00%2B01:00") == [
        "events_not_kept",
        *(f"e{n}" for n in range(6)),
    ]
    assert await told("since=2999-01-01T00:00:00Z") == []
    watcher = await trio.to_thread.run_sync(lambda: Watcher(running.path, "last=1"))
    assert (await trio.to_thread.run_sync(watcher.line))["event"] == "e5"
    assert (await trio.to_thread.run_sync(watcher.line))["event"] == "subscribed"
    running.node.feed.publish(event(6))
    assert (await trio.to_thread.run_sync(watcher.line))["event"] == "e6"
    watcher.close()


async def test_a_watcher_that_does_not_read_loses_events_and_is_told(running: Running) -> None:
    watcher = await trio.to_thread.run_sync(Watcher, running.path)
    assert (await trio.to_thread.run_sync(watcher.line))["event"] == "subscribed"
    long = event(0)
    long["reason"] = "x" * 10_000
    # More than queue and socket hold, and all at once: nothing of it waits for the reader
    for _ in range(1000):
        running.node.feed.publish(long)
    assert running.node.feed.statistics().dropped > 0
    await running.check_it_still_answers()
    got, dropped = 0, 0
    while got + dropped < 1000:
        line = await trio.to_thread.run_sync(watcher.line)
        got += line["event"] == "e0"
        dropped += line.get("dropped", 0)
    assert got + dropped == 1000
    assert dropped == running.node.feed.statistics().dropped
    watcher.close()


async def test_watchers_beyond_the_bound_are_refused(running: Running) -> None:
    subscriptions = [running.node.feed.subscribe() for _ in range(16)]
    answer = await running.ask("GET", "/v1/events")
    assert (answer.status, answer.error()["code"]) == (503, "unavailable")
    for subscription in subscriptions:
        subscription.close()


# Start and stop


async def test_a_stop_ends_streams_lets_requests_finish_and_removes_the_socket(
    socket_path: Path,
) -> None:
    node = MemoryNode()
    server = ControlServer(node, open_control_socket(socket_path))
    statuses: list[int] = []
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        watcher = await trio.to_thread.run_sync(Watcher, socket_path)
        assert (await trio.to_thread.run_sync(watcher.line))["event"] == "subscribed"
        idle = await trio.open_unix_socket(str(socket_path))
        node.held = trio.Event()

        async def client() -> None:
            statuses.append((await request(socket_path, "GET", "/v1/status")).status)

        async with trio.open_nursery() as clients:
            clients.start_soon(client)
            await node.asked.wait()
            node.feed.publish(event(1))
            server.stop()
            assert (await trio.to_thread.run_sync(watcher.line))["event"] == "e1"
            assert await trio.to_thread.run_sync(watcher.line) is None
            assert await everything(idle) == b""
            node.held.set()
        assert statuses == [200]
        watcher.close()
        await idle.aclose()
    with pytest.raises(OSError, match="No such file"):
        await trio.open_unix_socket(str(socket_path))


@pytest.mark.parametrize("stuck", ["client", "node"])
async def test_a_stop_does_not_wait_for_ever(
    socket_path: Path, monkeypatch: pytest.MonkeyPatch, stuck: str
) -> None:
    monkeypatch.setattr(control, "STOP_SECONDS", 0.1)
    node = MemoryNode()
    if stuck == "client":
        node.padding = "x" * 4_000_000
    else:
        node.held = trio.Event()
    server = ControlServer(node, open_control_socket(socket_path))
    with capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run)
            unread = await trio.open_unix_socket(str(socket_path))
            await unread.send_all(b"GET /v1/status HTTP/1.1\r\nhost: x\r\n\r\n")
            await node.asked.wait()
            server.stop()
    assert [log["event"] for log in logs] == ["control_connections_cut"]
    await unread.aclose()


async def test_a_cancelled_server_ends_at_once(socket_path: Path) -> None:
    node = MemoryNode()
    node.padding = "x" * 4_000_000
    server = ControlServer(node, open_control_socket(socket_path))
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        unread = await trio.open_unix_socket(str(socket_path))
        await unread.send_all(b"GET /v1/status HTTP/1.1\r\nhost: x\r\n\r\n")
        await node.asked.wait()
        nursery.cancel_scope.cancel()
    with pytest.raises(OSError, match="No such file"):
        await trio.open_unix_socket(str(socket_path))
    await unread.aclose()


def test_the_socket_is_for_its_owner_alone(socket_path: Path) -> None:
    before = os.umask(0)
    try:
        opened = open_control_socket(socket_path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(socket_path.stat().st_mode) == 0o600
    opened.close()
    opened.close()
    assert not socket_path.exists()


def test_a_dead_daemons_socket_is_taken_over(socket_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(socket_path))
    assert socket_path.exists()
    open_control_socket(socket_path).close()
    # Bound, and killed before it listened
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(socket_path))
        opened = open_control_socket(socket_path)
    opened.close()


def test_a_living_daemons_socket_is_left_alone(socket_path: Path) -> None:
    opened = open_control_socket(socket_path)
    before = socket_path.stat().st_ino
    with pytest.raises(ControlSocketError, match="another vpnd answers"):
        open_control_socket(socket_path)
    # Somebody else's socket, without our lock
    socket_path.with_name("control.sock.lock").unlink()
    with pytest.raises(ControlSocketError, match="another vpnd answers"):
        open_control_socket(socket_path)
    assert socket_path.stat().st_ino == before
    opened.close()


def test_of_many_that_start_at_once_one_wins(socket_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(socket_path))
    opened: list[control.ControlSocket] = []
    refused: list[str] = []

    def start() -> None:
        try:
            opened.append(open_control_socket(socket_path))
        except ControlSocketError as error:
            refused.append(error.reason)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(opened), len(refused)) == (1, 7)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(socket_path))
    opened[0].close()


def test_a_socket_that_another_took_over_is_not_removed(socket_path: Path) -> None:
    opened = open_control_socket(socket_path)
    socket_path.unlink()
    socket_path.write_text("somebody else's")
    opened.close()
    assert socket_path.read_text() == "somebody else's"


def test_what_is_no_socket_is_left_alone(socket_path: Path) -> None:
    socket_path.write_text("a file")
    with pytest.raises(ControlSocketError, match="is not a socket"):
        open_control_socket(socket_path)
    assert socket_path.read_text() == "a file"


def test_a_socket_that_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(ControlSocketError, match="does not exist"):
        open_control_socket(tmp_path / "nowhere" / "control.sock")
    with pytest.raises(ControlSocketError, match="too long"):
        open_control_socket(tmp_path / ("x" * 108))
    (tmp_path / "file").write_text("")
    with pytest.raises(ControlSocketError, match="cannot be made"):
        open_control_socket(tmp_path / "file" / "control.sock")


# Fallbacks and key sources


async def test_a_fallback_is_extended(running: Running) -> None:
    await running.ask("POST", "/v1/peers", LON1)
    target = f"/v1/peers/{LON1['name']}/fallback"
    answer = await running.ask("POST", target, {"seconds": 7200, "reason": " repair "})
    assert answer.status == 200
    assert running.node.changes == [{"seconds": 7200, "reason": "repair"}]
    assert running.node.callers[-1].uid == os.getuid()


@pytest.mark.parametrize(
    ("body", "keys"),
    [
        ({}, {"seconds", "reason"}),
        ({"seconds": 59, "reason": "x"}, {"seconds"}),
        ({"seconds": 604_801, "reason": "x"}, {"seconds"}),
        ({"seconds": "2h", "reason": ""}, {"seconds", "reason"}),
        ({"seconds": True, "reason": "x" * 201}, {"seconds", "reason"}),
        ({"seconds": 60, "reason": "two\nlines"}, {"reason"}),
        ({"seconds": 60, "reason": "x", "uid": 0}, {"uid"}),
    ],
)
async def test_an_extension_that_cannot_be(
    running: Running, body: dict[str, Any], keys: set[str]
) -> None:
    await running.ask("POST", "/v1/peers", LON1)
    answer = await running.ask("POST", f"/v1/peers/{LON1['name']}/fallback", body)
    assert answer.status == 422
    assert {detail["key"] for detail in answer.error()["details"]} == keys
    assert running.node.changes == []


async def test_key_sources_are_asked_about(running: Running) -> None:
    assert (await running.ask("GET", "/v1/keysources")).json() == []
    answer = await running.ask("GET", "/v1/keysources/kme")
    assert (answer.status, answer.error()["code"]) == (404, "no_such_source")
    answer = await running.ask("GET", "/v1/keysources/..")
    assert answer.status == 404
    body = {"peer": "ams1", "consume_one": True}
    assert (await running.ask("POST", "/v1/keysources/kme/test", body)).status == 200
    assert (await running.ask("POST", "/v1/keysources/kme/test")).status == 200
    body = {"peer": "ams1", "deep": True}
    assert (await running.ask("POST", "/v1/keysources/kme/test", body)).status == 200
    assert running.node.changes == [
        {"name": "kme", "peer": "ams1", "consume_one": True},
        {"name": "kme", "peer": None, "consume_one": False},
        {"name": "kme", "peer": "ams1", "consume_one": True},
    ]


@pytest.mark.parametrize("body", [{"consume_one": "yes"}, {"deep": 1}, {"peer": 5}, {"more": 1}])
async def test_a_test_of_a_source_that_cannot_be(running: Running, body: dict[str, Any]) -> None:
    answer = await running.ask("POST", "/v1/keysources/kme/test", body)
    assert (answer.status, answer.error()["code"]) == (400, "bad_request")
    assert running.node.changes == []


@pytest.mark.parametrize("gone", ["socket", "lock", "both", "folder", "replaced", "dangling"])
async def test_a_socket_that_a_cleaner_takes_away_is_made_again(
    tmp_path: Path, nursery: trio.Nursery, gone: str
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    path = folder / "control.sock"
    lock = folder / "control.sock.lock"
    feed = EventFeed()
    server = ControlServer(MemoryNode(), open_control_socket(path), Journal(feed))
    await nursery.start(server.run)
    running = Running(MemoryNode(), server, path)
    with feed.subscribe() as events:
        match gone:
            case "socket":
                path.unlink()
            case "lock":
                lock.unlink()
            case "both":
                path.unlink()
                lock.unlink()
            case "folder":
                shutil.rmtree(folder)
            case "replaced":
                path.unlink()
                path.write_text("not a socket")
            case "dangling":
                path.unlink()
                path.symlink_to(folder / "nowhere")
        with trio.fail_after(30):
            async for event in events:
                assert event["event"] != "control_socket_lost", event
                if event["event"] == "control_socket_remade":
                    break
    assert (await running.ask("GET", "/v1/status")).status == 200
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    aside = folder / "control.sock.moved-1"
    assert (aside.is_symlink(), aside.is_file()) == (gone == "dangling", gone == "replaced")
    with pytest.raises(ControlSocketError, match="another vpnd answers"):
        open_control_socket(path)
    server.stop()


def test_one_daemon_a_state_directory(tmp_path: Path) -> None:
    with (
        state_locked(tmp_path),
        pytest.raises(ControlSocketError, match="another vpnd runs with the state directory"),
        state_locked(tmp_path),
    ):
        pass
    with state_locked(tmp_path):  # given back
        pass
    with state_locked(tmp_path / "missing"):  # a start ends for other reasons then
        pass

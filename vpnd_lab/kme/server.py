"""A running key manager: its TLS listeners, and what each connection is answered."""

from __future__ import annotations

import contextlib
import datetime
import ssl
import tempfile
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import trio

from vpnd_lab.kme import etsi, skip
from vpnd_lab.kme.certificates import VALID_DAYS, Authority, CertificateKind
from vpnd_lab.kme.config import Address, KmeConfig
from vpnd_lab.kme.faults import FaultBook, instead, spoil, waits
from vpnd_lab.kme.pool import Ends, LinkSettings, Network
from vpnd_lab.kme.wire import Answer, BrokenOff, Request, serve_connection

Listening = Literal["up", "down", "silent"]
"""down: connections are refused; silent: they are accepted, and that is all."""

_HANDSHAKE_SECONDS = 30.0


class KeyManager:
    """One key manager, in this process."""

    def __init__(self, config: KmeConfig) -> None:
        """Open its network. Raises OSError, ValueError, sqlite3.Error."""
        self.config = config
        self.network = Network(Path(config.network))
        self.homes = dict(config.homes)
        self.faults = FaultBook()
        self.listening: Listening = "up"
        self.certificate: CertificateKind = "good"
        self.addresses: dict[str, list[Address]] = {
            etsi.API: list(config.etsi),
            skip.API: list(config.skip),
        }
        self._authority = Authority.load(Path(config.authority))
        self._context = self._new_context("good", VALID_DAYS)
        self._connections: set[trio.CancelScope] = set()
        self._nursery: trio.Nursery | None = None
        self._listeners = trio.CancelScope()
        self._all_closed = trio.Event()
        for far in set(self.homes.values()):
            self.network.introduce(Ends(config.name, far, "", ""))

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Listen while the block runs. Raises OSError where an address cannot be had."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await nursery.start(self._listen)
            try:
                yield
            finally:
                nursery.cancel_scope.cancel()
        self.network.close()

    async def listen(self, how: Listening) -> None:
        """Listen in another way from now on; connections that stand are closed."""
        if self._nursery is None:
            raise RuntimeError("the key manager does not run")
        was, self.listening = self.listening, how
        self._close_connections()
        if how == "down" and was != "down":
            self._listeners.cancel()
            await self._all_closed.wait()
        if how != "down" and was == "down":
            await self._nursery.start(self._listen)

    def show_certificate(self, kind: CertificateKind, days: float = VALID_DAYS) -> None:
        """Show a new certificate from now on; connections that stand are closed."""
        self._context = self._new_context(kind, days)
        self.certificate = kind
        self._close_connections()

    def settle(self, **changes: float) -> LinkSettings:
        """Change the settings of the quantum network. Raises ValueError."""
        return self.network.change(**changes)

    def _new_context(self, kind: CertificateKind, days: float) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(self._authority.ca_file)
        credentials = self._authority.server(self.config.names, kind=kind, days=days)
        with tempfile.TemporaryDirectory(prefix="vpnd-lab-kme-") as folder:
            files = Path(folder) / "kme.pem", Path(folder) / "kme.key"
            credentials.write(*files)
            context.load_cert_chain(*files)
        return context

    def _close_connections(self) -> None:
        for scope in self._connections:
            scope.cancel()

    async def _listen(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        self._all_closed = trio.Event()
        try:
            with trio.CancelScope() as self._listeners:
                async with trio.open_nursery() as nursery:
                    for api, addresses in self.addresses.items():
                        for number, (host, port) in enumerate(addresses):
                            listeners = await trio.open_tcp_listeners(port, host=host)
                            # From now on, also when it listens anew, with the port it has got
                            bound = listeners[0].socket.getsockname()[1]
                            addresses[number] = (host, bound)
                            handle = partial(self._serve, api)
                            nursery.start_soon(trio.serve_listeners, handle, listeners)
                    task_status.started()
        finally:
            self._all_closed.set()

    async def _serve(self, api: str, stream: trio.SocketStream) -> None:
        with trio.CancelScope() as scope:
            self._connections.add(scope)
            try:
                await self._serve_stream(api, stream)
            finally:
                self._connections.discard(scope)
                await trio.aclose_forcefully(stream)

    async def _serve_stream(self, api: str, stream: trio.SocketStream) -> None:
        if self.listening == "silent":
            await trio.sleep_forever()
        tls: trio.SSLStream[trio.SocketStream] = trio.SSLStream(
            stream, self._context, server_side=True, https_compatible=True
        )
        peer = str(stream.socket.getpeername()[0])
        try:
            with trio.fail_after(_HANDSHAKE_SECONDS):
                await tls.do_handshake()
            sae = _common_name(tls.getpeercert())
            await serve_connection(tls, partial(self._answer, api, sae, peer))
            await tls.aclose()
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError) as error:
            # OpenSSL says why, where it was not simply closed: for instance that the client does
            # not accept our certificate.
            if isinstance(error.__cause__, ssl.SSLError) or isinstance(error, trio.TooSlowError):
                reason = str(error.__cause__ or "no handshake in time")
                self._record(api, "tls-failed", peer=peer, reason=reason)
            await _send_alert(tls, stream)
        except BrokenOff:
            pass

    async def _answer(self, api: str, sae: str, peer: str, request: Request) -> Answer:
        module = etsi if api == etsi.API else skip
        kind = module.call_kind(request)
        began = time.monotonic()
        if kind is None:
            path = "/" + "/".join(request.path)
            self._record(api, "unknown", sae=sae, peer=peer, path=path, status=404)
            return Answer.of(404, {"message": f"there is nothing at {path}"})
        faults = self.faults.take(kind, sae)
        await trio.sleep(waits(faults))
        names = {fault.kind for fault in faults}
        key_ids: list[str] = []
        answer = instead(faults, request.method)
        if answer is None:
            caller = etsi.Caller(sae, self.config.name, self.homes)
            if api == etsi.API:
                bits = self.config.key_size
                result = etsi.answer(request, caller, self.network, key_bits=bits, faults=names)
            else:
                result = skip.answer(request, caller, self.network, faults=names)
            answer, key_ids = result.answer, result.key_ids
        answer = spoil(answer, faults)
        self._record(
            api,
            kind,
            sae=sae,
            peer=peer,
            other=request.path[3] if api == etsi.API else request.query.get("remoteSystemID", ""),
            method=request.method,
            key_ids=key_ids,
            status=answer.status,
            faults=[fault.kind for fault in faults],
            seconds=round(time.monotonic() - began, 6),
        )
        return answer

    def _record(self, api: str, kind: str, **what: Any) -> None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        call = {"at": time.monotonic(), "time": now, "api": api, "kind": kind, **what}
        self.network.record(self.config.name, call)


async def _send_alert(tls: trio.SSLStream[trio.SocketStream], stream: trio.SocketStream) -> None:
    # OpenSSL has put the alert for the other side there, and trio leaves it.
    alert = tls._outgoing.read()
    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        await stream.send_all(alert)


def _common_name(certificate: Any) -> str:
    """The subject's CN of what `getpeercert` gives."""
    for part in certificate["subject"]:
        for name, value in part:
            if name == "commonName":
                return str(value)
    return ""

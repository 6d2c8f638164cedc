"""Two key managers in this process, and calls of them: real TLS on loopback."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from vpnd_lab.kme.certificates import Authority, CertificateKind
from vpnd_lab.kme.config import KmeConfig
from vpnd_lab.kme.faults import Fault
from vpnd_lab.kme.pool import LinkSettings, Network
from vpnd_lab.kme.server import KeyManager

SECONDS = 20.0
"""More than any answer takes on a busy machine."""


@dataclass(frozen=True, slots=True)
class Got:
    """An answer."""

    status: int
    body: bytes
    content_type: str = ""

    @property
    def document(self) -> Any:
        return json.loads(self.body)


@dataclass(slots=True)
class Caller:
    """One end: its key manager, and an application that calls it."""

    kme: KeyManager
    sae: str
    folder: Path

    @property
    def authority(self) -> Authority:
        return Authority.load(Path(self.kme.config.authority))

    def fault(self, kind: str, **arguments: Any) -> None:
        """Have the key manager do wrong from now on."""
        self.kme.faults.add(Fault.parse({"kind": kind, **arguments}))

    def context(self, kind: CertificateKind = "good") -> ssl.SSLContext:
        """The application's side of TLS, with a certificate of its own."""
        context = ssl.create_default_context(cafile=str(self.authority.ca_file))
        files = self.folder / f"{self.sae}.pem", self.folder / f"{self.sae}.key"
        self.authority.client(self.sae, kind=kind).write(*files)
        context.load_cert_chain(*files)
        return context

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        api: str = "etsi",
        context: ssl.SSLContext | None = None,
        seconds: float = SECONDS,
    ) -> Got:
        """One call. Raises what http.client and ssl raise."""
        host, port = self.kme.addresses[api][0]
        used = context or self.context()
        text = body if body is None or isinstance(body, bytes) else json.dumps(body)

        def call() -> Got:
            connection = http.client.HTTPSConnection(host, port, context=used, timeout=seconds)
            try:
                connection.request(method, path, text)
                response = connection.getresponse()
                content_type = response.headers.get("Content-Type", "")
                return Got(response.status, response.read(), content_type)
            finally:
                connection.close()

        return await trio.to_thread.run_sync(call)

    async def keys(self, slave: str, body: Any = None) -> list[Any]:
        """New keys; the call has to succeed."""
        got = await self.call("POST", f"/api/v1/keys/{slave}/enc_keys", body)
        assert got.status == 200, got
        keys: list[Any] = got.document["keys"]
        return keys

    async def fetch(self, master: str, *key_ids: str) -> Got:
        """Keys by their IDs."""
        body = {"key_IDs": [{"key_ID": key_id} for key_id in key_ids]}
        return await self.call("POST", f"/api/v1/keys/{master}/dec_keys", body)


@asynccontextmanager
async def both(folder: Path, **settings: float) -> AsyncIterator[tuple[Caller, Caller]]:
    """sae-a at kme-a, sae-b at kme-b; sae-c, too, is known at kme-b."""
    authority = Authority.create(folder / "ca")
    file = folder / "network.sqlite"
    Network(file, LinkSettings(**settings)).close()  # type: ignore[arg-type]
    homes = {"sae-a": "kme-a", "sae-b": "kme-b", "sae-c": "kme-b"}

    def made(name: str) -> KeyManager:
        return KeyManager(
            KmeConfig(
                name=name,
                network=str(file),
                authority=str(authority.folder),
                control=str(folder / f"{name}.sock"),
                names=["localhost", "127.0.0.1"],
                homes=homes,
                etsi=[("127.0.0.1", 0)],
                skip=[("127.0.0.1", 0)],
            )
        )

    near, far = made("kme-a"), made("kme-b")
    async with near.running(), far.running():
        yield Caller(near, "sae-a", folder), Caller(far, "sae-b", folder)

"""The control address of a key manager: HTTP with JSON on a Unix socket.

GET    /v1/state                 name, pid, addresses, what is in force
GET    /v1/calls?after=N         every call (those after number N): when, by whom, IDs, answer
GET    /v1/statistics            calls counted by kind, by answer, by application; keys
POST   /v1/faults                one more fault: vpnd_lab.kme.faults
DELETE /v1/faults                none any more
POST   /v1/listener              {"state": "up" | "down" | "silent"}
POST   /v1/certificate           {"kind": "good" | "expired" | …, "days": 90}
POST   /v1/network               {"rate": …, "pool": …, "delay": …, "error_rate": …}
POST   /v1/drain                 empty its pools
POST   /v1/saes                  {"sae": …, "kme": … | null}: know, or forget, an application
POST   /v1/reset                 no faults, listener up, a good certificate
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, get_args

import trio

from vpnd_lab.kme.certificates import CERTIFICATE_KINDS, VALID_DAYS
from vpnd_lab.kme.faults import Fault, FaultError
from vpnd_lab.kme.server import KeyManager, Listening
from vpnd_lab.kme.wire import Answer, BadRequest, BrokenOff, Request, serve_connection


class Control:
    """Takes orders for a key manager."""

    def __init__(self, kme: KeyManager) -> None:
        self._kme = kme

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Take orders while the block runs. Raises OSError."""
        path = Path(self._kme.config.control)
        _remove(path)  # that of one that was killed
        bound = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        await bound.bind(str(path))
        bound.listen(64)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, self._serve, [trio.SocketListener(bound)])
            try:
                yield
            finally:
                nursery.cancel_scope.cancel()
                _remove(path)

    async def _serve(self, stream: trio.SocketStream) -> None:
        try:
            with contextlib.suppress(trio.BrokenResourceError, BrokenOff):
                await serve_connection(stream, self._answer)
        finally:
            await trio.aclose_forcefully(stream)

    async def _answer(self, request: Request) -> Answer:
        try:
            return Answer.of(200, await self._do(request))
        except (BadRequest, FaultError, ValueError) as error:
            return Answer.of(400, {"error": {"code": "bad_order", "message": str(error)}})
        except LookupError as error:
            return Answer.of(404, {"error": {"code": "not_found", "message": str(error)}})

    async def _do(self, request: Request) -> Any:
        kme = self._kme
        match (request.method, *request.path):
            case ("GET", "v1", "state"):
                return self._state()
            case ("GET", "v1", "calls"):
                after = int(request.query.get("after", "0"))
                return {"calls": kme.network.calls(kme.config.name, after=after)}
            case ("GET", "v1", "statistics"):
                return self._statistics()
            case ("POST", "v1", "faults"):
                fault = Fault.parse(request.json())
                kme.faults.add(fault)
                return fault.document()
            case ("DELETE", "v1", "faults"):
                kme.faults.clear()
            case ("POST", "v1", "listener"):
                await self._listen(request.json())
            case ("POST", "v1", "certificate"):
                self._certificate(request.json())
            case ("POST", "v1", "network"):
                kme.settle(**request.json())
            case ("POST", "v1", "drain"):
                kme.network.drain(kme=kme.config.name)
            case ("POST", "v1", "saes"):
                self._saes(request.json())
            case ("POST", "v1", "reset"):
                kme.faults.clear()
                kme.homes = dict(kme.config.homes)
                kme.show_certificate("good")
                await kme.listen("up")
            case _:
                raise LookupError(f"there is no {request.method} /{'/'.join(request.path)}")
        return self._state()

    def _state(self) -> dict[str, Any]:
        kme = self._kme
        settings = kme.network.settings
        return {
            "name": kme.config.name,
            "pid": os.getpid(),
            "addresses": kme.addresses,
            "listener": kme.listening,
            "certificate": kme.certificate,
            "faults": kme.faults.listed(),
            "saes": kme.homes,
            "network": {
                "rate": settings.rate,
                "pool": settings.pool,
                "delay": settings.delay,
                "error_rate": settings.error_rate,
            },
        }

    def _statistics(self) -> dict[str, Any]:
        kme = self._kme
        calls = kme.network.calls(kme.config.name)
        asked = Counter(
            key_id
            for call in calls
            if call["kind"] in {"dec_keys", "key_by_id"}
            for key_id in call["key_ids"]
        )
        return {
            "calls": Counter(call["kind"] for call in calls),
            "answers": Counter(
                f"{call['kind']} {call['status']}" for call in calls if "status" in call
            ),
            "by_sae": Counter(call["sae"] for call in calls if "sae" in call),
            "asked_more_than_once": sorted(key_id for key_id, n in asked.items() if n > 1),
            "keys": kme.network.key_counts(),
        }

    async def _listen(self, order: dict[str, Any]) -> None:
        state: Any = order.get("state")
        if state not in get_args(Listening):
            raise BadRequest(f"state = {state!r} is not one of {', '.join(get_args(Listening))}")
        await self._kme.listen(state)

    def _certificate(self, order: dict[str, Any]) -> None:
        kind, days = order.get("kind", "good"), order.get("days", VALID_DAYS)
        if kind not in CERTIFICATE_KINDS:
            raise BadRequest(f"kind = {kind!r} is not one of {', '.join(CERTIFICATE_KINDS)}")
        if isinstance(days, bool) or not isinstance(days, int | float) or not 0 < days < 10_000:
            raise BadRequest(f"days = {days!r} is not a number of days from now on")
        self._kme.show_certificate(kind, days)

    def _saes(self, order: dict[str, Any]) -> None:
        sae, kme = order.get("sae"), order.get("kme")
        if not isinstance(sae, str) or not (kme is None or isinstance(kme, str)):
            raise BadRequest("sae is a SAE ID, and kme the name of its key manager, or null")
        if kme is None:
            self._kme.homes.pop(sae, None)
        else:
            self._kme.homes[sae] = kme


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)

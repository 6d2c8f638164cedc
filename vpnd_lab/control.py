"""A control API, asked from outside its node: HTTP over the Unix socket in the lab folder.

A daemon's, or a key manager's.

Standard library only. Blocking: call it in a worker thread.
"""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any

from vpnd_lab.errors import LabError
from vpnd_lab.patience import patient

ANSWER_SECONDS = 5.0


class NotAnswering(LabError):
    """Nobody answers on the control socket."""


class Refused(LabError):
    """It answered with an error; `status` is HTTP's, `code` the API's own."""

    def __init__(self, status: int, body: Any, *, who: str = "the daemon") -> None:
        error = body.get("error", {}) if isinstance(body, dict) else {}
        message = error.get("message", str(body))
        super().__init__(f"{who} says {status}: {message}", hint=error.get("hint") or "")
        self.status = status
        self.code = error.get("code", "")


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=patient(ANSWER_SECONDS))
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(patient(ANSWER_SECONDS))
        self.sock.connect(str(self._path))


def get(control_socket: Path, path: str) -> Any:
    """GET `path`: the JSON it answers. Raises NotAnswering or Refused."""
    return ask(control_socket, "GET", path)


def ask(
    control_socket: Path, method: str, path: str, body: Any = None, *, who: str = "the daemon"
) -> Any:
    """Ask for anything, with a JSON body if one is given: the JSON answered.

    Raises NotAnswering or Refused; `who` says there who it is.
    """
    connection = _UnixConnection(control_socket)
    try:
        connection.request(method, path, None if body is None else json.dumps(body))
        response = connection.getresponse()
        answer = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise NotAnswering(f"no answer on {control_socket}: {error}") from error
    finally:
        connection.close()
    try:
        document = json.loads(answer)
    except ValueError as error:
        raise NotAnswering(f"{control_socket} does not speak JSON: {answer[:80]!r}") from error
    if response.status >= 400:
        raise Refused(response.status, document, who=who)
    return document

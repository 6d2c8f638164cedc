"""Two ways to start wireguard-go on a TUN link: as nobody's child, or in a unit of its own.

Each makes the link first and the process later, so that the caller marks the link as ours in
between; a caller that is killed meanwhile leaves no link behind.
"""

from __future__ import annotations

import os
import socket
import subprocess
from types import TracebackType
from typing import Protocol, Self

from tun.errors import BackendUnavailable, TunError
from tun.tun_link import open_tun_link

__all__ = ["PROGRAM", "UNIT_SOCKET_VARIABLE", "InSession", "InUnit", "Starter", "environment"]

PROGRAM = "wireguard-go"

UNIT_SOCKET_VARIABLE = "VPND_WIREGUARD_GO_SOCKET"
"""Set by vpnd.service: where `tun.wireguard_go` listens. Not looked for elsewhere: its links come
up in its own network namespace, which has to be that of who asks."""

# What goes over that socket, one packet each:
#   >  the interface's name
#   <  OK, with the descriptor of the TUN link; or UNAVAILABLE or FAILED, with the reason behind it
#   >  START, with the descriptors of the UAPI listener and of the log
#   <  OK, just before the process becomes wireguard-go
# The end of the connection would tell nothing: the service manager keeps it open, too.
OK = b"ok"
START = b"start"
UNAVAILABLE = b"unavailable "
FAILED = b"failed "
MAX_PACKET = 4096
_PATIENCE = 20.0  # seconds; a first start of Python from a cold disk takes a few


class Starter(Protocol):
    """A TUN link that stands, and the way to put a process on it. Blocking."""

    def start(self, listener: socket.socket, log: int) -> None:
        """Start the process; raises TunError. What it says goes to the descriptor `log`."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Let go of the link: it is the process's, or it vanishes."""


def environment(*, tun: int, listener: int) -> dict[str, str]:
    """All that wireguard-go is told: nothing of the caller's own (its notify socket, say)."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "WG_TUN_FD": str(tun),
        "WG_UAPI_FD": str(listener),
        "WG_PROCESS_FOREGROUND": "1",
        "LOG_LEVEL": "error",
        # A crash tells why, and shows no memory.
        "GOTRACEBACK": "none",
    }


class InSession:
    """A process in a session of its own; raises BackendUnavailable or TunError at once."""

    def __init__(self, name: str, program: str) -> None:
        self._name = name
        self._program = program
        self._tun = open_tun_link(name, program)

    def start(self, listener: socket.socket, log: int) -> None:
        """setsid(1) forks and is gone: so the process is never ours to wait for, whether this
        daemon started it or found it, and it leaves no zombie here.
        """
        started = subprocess.run(
            ["setsid", "--fork", self._program, "-f", self._name],
            env=environment(tun=self._tun, listener=listener.fileno()),
            pass_fds=(self._tun, listener.fileno()),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            check=False,
        )
        if started.returncode != 0:
            raise TunError(f"starting {self._program}: setsid ended with {started.returncode}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._tun)


class InUnit:
    """A process in a unit of the service manager, asked for over a Unix socket.

    Raises BackendUnavailable or TunError at once.
    """

    def __init__(self, name: str, path: str) -> None:
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._connection.settimeout(_PATIENCE)
        try:
            self._tun = self._ask_for_link(name, path)
        except OSError as error:
            self._connection.close()
            raise _broken(error) from error
        except BaseException:
            self._connection.close()
            raise

    def _ask_for_link(self, name: str, path: str) -> int:
        try:
            self._connection.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            raise BackendUnavailable(
                f"nobody starts {PROGRAM} at {path}: systemctl start vpnd-wireguard-go.socket"
            ) from None
        self._connection.send(name.encode("ascii"))
        answer, descriptors = self._receive(most=1)
        if answer != OK or not descriptors:
            raise _refusal(answer)
        return descriptors[0]

    def start(self, listener: socket.socket, log: int) -> None:
        """Hand over the rest. What goes wrong after the answer is in the log."""
        try:
            socket.send_fds(self._connection, [START], [listener.fileno(), log])
            answer, _ = self._receive(most=0)
        except OSError as error:
            raise _broken(error) from error
        if answer != OK:
            raise _refusal(answer)

    def _receive(self, *, most: int) -> tuple[bytes, list[int]]:
        answer, descriptors, _, _ = socket.recv_fds(
            self._connection, MAX_PACKET, most, socket.MSG_CMSG_CLOEXEC
        )
        return answer, descriptors

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._tun)
        self._connection.close()


def _refusal(answer: bytes) -> TunError:
    for prefix, error in ((UNAVAILABLE, BackendUnavailable), (FAILED, TunError)):
        if answer.startswith(prefix):
            return error(answer.removeprefix(prefix).decode("utf-8", "replace"))
    return TunError(f"starting {PROGRAM}: its unit ended (see journalctl -u 'vpnd-wireguard-go@*')")


def _broken(error: OSError) -> TunError:
    return TunError(f"starting {PROGRAM}: its unit does not answer: {error.strerror or error}")

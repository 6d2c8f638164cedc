"""`vpnd-wireguard-go`: becomes the wireguard-go of one interface, for who asks over a socket.

Started by the service manager with the connection as its standard input, in a control group and
with a device of its own (/dev/net/tun), neither of which vpnd has. The packets are described in
`tun.starters`. Once it has all that wireguard-go needs it becomes wireguard-go: nothing of this
program stays behind.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import sys

from tun.errors import BackendUnavailable, TunError
from tun.say import Sayer
from tun.starters import FAILED, MAX_PACKET, OK, PROGRAM, START, UNAVAILABLE, environment
from tun.tun_link import open_tun_link

__all__ = ["main"]

# A name that the kernel takes as it is: `%` would be its pattern for the next free number.
_INTERFACE = re.compile(rb"[A-Za-z0-9_.=+-]{1,15}")
_PATIENCE = 60.0  # seconds; the asker is a program in the middle of one call


def main() -> None:
    """Entry point of the program; does not return when all went well."""
    try:
        connection = socket.socket(fileno=os.dup(sys.stdin.fileno()))
    except OSError:
        print(f"{sys.argv[0]}: error: standard input is not a socket", file=sys.stderr)
        print(
            f"{sys.argv[0]}: hint: it is started by vpnd-wireguard-go.socket alone",
            file=sys.stderr,
        )
        sys.exit(2)
    with connection:
        connection.settimeout(_PATIENCE)
        try:
            _serve(connection)
        except BackendUnavailable as error:
            _refuse(connection, UNAVAILABLE, str(error))
        except (TunError, OSError) as error:
            _refuse(connection, FAILED, str(error))


def _serve(connection: socket.socket) -> None:
    """Make the link, and become wireguard-go; returns when the asker has gone away.

    Raises TunError or OSError.
    """
    name = connection.recv(MAX_PACKET)
    if not name:
        return
    if not _INTERFACE.fullmatch(name):
        raise TunError("this is not the name of an interface")
    program = shutil.which(PROGRAM)
    if program is None:
        raise BackendUnavailable(f"{PROGRAM} is not installed")
    tun = open_tun_link(name.decode("ascii"), program)
    socket.send_fds(connection, [OK], [tun])
    request, descriptors, _, _ = socket.recv_fds(connection, MAX_PACKET, 2, socket.MSG_CMSG_CLOEXEC)
    if not request:
        return  # the asker has thought better of it, or was killed; the link goes with us
    if request != START or len(descriptors) != 2:
        raise TunError("this is not a request to start")
    listener, log = descriptors
    connection.send(OK)
    os.dup2(log, 1)
    os.dup2(log, 2)
    _become(program, name.decode("ascii"), tun, listener)


def _become(program: str, name: str, tun: int, listener: int) -> None:
    os.dup2(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC), 0)
    os.set_inheritable(tun, True)
    os.set_inheritable(listener, True)
    os.chdir("/")
    os.execve(  # noqa: S606  # no shell is wanted: the name comes from outside
        program, [PROGRAM, "-f", name], environment(tun=tun, listener=listener)
    )


def _refuse(connection: socket.socket, kind: bytes, reason: str) -> None:
    Sayer(PROGRAM).say(reason)
    try:
        connection.send(kind + reason.encode("utf-8")[: MAX_PACKET - len(kind)])
    except OSError:
        return  # nobody is there to be told


if __name__ == "__main__":
    main()

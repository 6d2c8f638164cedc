"""`vpnd-nsfd`: opens netlink sockets in named network namespaces, for who asks over a socket.

Started by the service manager with the listening socket, with CAP_SYS_ADMIN and no other
capability. The packets are described in `tun.namespace`. It keeps nothing, and ends
when nobody has asked for a while: the service manager starts it again.
"""

from __future__ import annotations

import os
import socket
import sys

from tun.errors import NamespaceMissing, TunError
from tun.model import is_namespace_name
from tun.namespace import FAILED, MAX_PACKET, MISSING, OK, NetlinkKind, enter_and_open
from tun.say import Sayer

__all__ = ["main"]

_FIRST_DESCRIPTOR = 3  # sd_listen_fds(3)
_IDLE_SECONDS = 60.0
_PATIENCE = 5.0  # seconds; the asker is a program in the middle of one call

_log = Sayer("vpnd-nsfd")


class _Refused(Exception):
    """The request is none; the message says what is wrong with it."""


def main() -> None:
    """Entry point of the program: serve until nobody asks any more."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or os.environ.get("LISTEN_FDS") != "1":
        print(f"{sys.argv[0]}: error: there is no socket to listen on", file=sys.stderr)
        print(f"{sys.argv[0]}: hint: it is started by vpnd-nsfd.socket alone", file=sys.stderr)
        sys.exit(2)
    with socket.socket(fileno=_FIRST_DESCRIPTOR) as listener:
        listener.settimeout(_IDLE_SECONDS)
        while True:
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                return
            with connection:
                connection.settimeout(_PATIENCE)
                try:
                    _serve(connection)
                except OSError as error:  # the asker went away, or says nothing
                    _log.say(error.strerror or str(error))


def _serve(connection: socket.socket) -> None:
    """Answer one request. Raises OSError where nobody is there to be answered."""
    # One byte more than there may be: a longer packet is cut off by the kernel, and looks whole
    request = connection.recv(MAX_PACKET + 1)
    if not request:
        return
    try:
        kind, name = _parse_untrusted(request)
        opened = enter_and_open(name, kind)
    except NamespaceMissing:
        connection.send(MISSING)
    except (_Refused, TunError) as error:
        _refuse(connection, str(error))
    except OSError as error:
        _refuse(connection, error.strerror or str(error))
    else:
        with opened:
            socket.send_fds(connection, [OK], [opened.fileno()])


def _parse_untrusted(request: bytes) -> tuple[NetlinkKind, str]:
    """Kind and name of a request; raises _Refused."""
    word, _, rest = request.partition(b" ")
    try:
        kind, name = NetlinkKind(word), rest.decode("ascii")
    except ValueError:
        raise _Refused("this is not a request") from None
    if len(request) > MAX_PACKET or not is_namespace_name(name):
        raise _Refused("this is not the name of a network namespace")
    return kind, name


def _refuse(connection: socket.socket, reason: str) -> None:
    _log.say(reason)
    connection.send(FAILED + reason.encode("utf-8")[: MAX_PACKET - len(FAILED)])


if __name__ == "__main__":
    main()

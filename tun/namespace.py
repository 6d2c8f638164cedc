"""Netlink sockets in a network namespace that has a name: opened here, or by `vpnd-nsfd`.

Entering a namespace takes CAP_SYS_ADMIN, and a socket stays in the one that it was opened in. So
a daemon without that capability asks a helper that has no other one (`tun.nsfd`); all that is
done with the socket then takes CAP_NET_ADMIN, which the helper lacks.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import threading
from enum import Enum
from pathlib import Path

from tun.errors import NamespaceMissing, NamespaceOutOfReach, TunError
from tun.model import is_namespace_name

__all__ = [
    "FAILED",
    "HELPER_SOCKET",
    "MAX_PACKET",
    "MISSING",
    "OK",
    "NamespaceId",
    "NetlinkKind",
    "ask_helper",
    "enter_and_open",
    "id_of_name",
    "id_of_socket",
    "namespace_of_socket",
    "open_in_namespace",
]

NAMESPACES = "/run/netns"
HELPER_SOCKET = Path("/run/vpnd-nsfd.sock")
"""Where `vpnd-nsfd` listens; it and who asks it see the same /run."""

# What goes over that socket, one packet each; then the helper closes it:
#   >  the kind of socket, a blank, the name of the namespace
#   <  OK, with the descriptor of the socket; or MISSING; or FAILED, with the reason behind it
OK = b"ok"
MISSING = b"missing"
FAILED = b"failed "
MAX_PACKET = 512
_PATIENCE = 60.0  # seconds; a start of Python takes less than one, and on a starved host many

_CLONE_NEWNET = 0x40000000
_SIOCGSKNS = 0x894C

NamespaceId = tuple[int, int]
"""Device and inode: tells one namespace from another for as long as it exists."""


class NetlinkKind(Enum):
    """The families of netlink that interfaces are made of; the value is what a request says."""

    ROUTE = b"route"
    GENERIC = b"generic"
    NETFILTER = b"netfilter"

    @property
    def protocol(self) -> int:
        """The protocol of its sockets (linux/netlink.h)."""
        return {NetlinkKind.ROUTE: 0, NetlinkKind.GENERIC: 16, NetlinkKind.NETFILTER: 12}[self]


def open_in_namespace(name: str, kind: NetlinkKind) -> socket.socket:
    """A netlink socket in the namespace of that name. Blocking.

    Raises NamespaceMissing where there is none, NamespaceOutOfReach where this process has no way
    into it, TunError.
    """
    try:
        return enter_and_open(name, kind)
    except PermissionError:
        return ask_helper(name, kind)
    except OSError as error:
        raise TunError(f"entering the network namespace {name}: {error.strerror}") from error


def enter_and_open(name: str, kind: NetlinkKind) -> socket.socket:
    """The same by this process itself, in a thread that ends with it. Raises NamespaceMissing,
    TunError for what is no namespace, OSError."""
    with _open_namespace(name) as namespace:
        opened: list[socket.socket] = []
        failed: list[OSError] = []

        def enter() -> None:
            try:
                _set_namespace(namespace.fileno())
                opened.append(open_here(kind))
            except OSError as error:
                failed.append(error)

        # The namespace is the thread's alone, and ends with it: nothing has to be entered again
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
    if failed:
        if failed[0].errno == errno.EINVAL:  # a file that `ip netns` left without its mount
            raise NamespaceMissing(name)
        raise failed[0]
    return opened[0]


def open_here(kind: NetlinkKind) -> socket.socket:
    """A netlink socket in the namespace of the calling thread; of a type that asyncio takes."""
    return socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, kind.protocol)


class _Descriptor:
    """A file descriptor that is closed at the end of a block."""

    def __init__(self, number: int) -> None:
        self._number = number

    def fileno(self) -> int:
        return self._number

    def __enter__(self) -> _Descriptor:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._number)


def _open_namespace(name: str) -> _Descriptor:
    if not is_namespace_name(name):
        raise TunError("this is not the name of a network namespace")
    try:
        # Not through a link to somewhere else, and without waiting for anything
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        return _Descriptor(os.open(f"{NAMESPACES}/{name}", flags))
    except FileNotFoundError:
        raise NamespaceMissing(name) from None
    except OSError as error:
        if error.errno == errno.EACCES:
            # Everybody may read a namespace, nobody the file that `ip netns` mounts it on
            raise NamespaceMissing(name) from None
        if error.errno == errno.ELOOP:
            raise TunError(
                f"{NAMESPACES}/{name} is a symbolic link: give the namespace its name by "
                f"`ip netns attach {name} PID`"
            ) from None
        raise


def _set_namespace(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def ask_helper(name: str, kind: NetlinkKind, path: Path = HELPER_SOCKET) -> socket.socket:
    """The same by `vpnd-nsfd`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(_PATIENCE)
        try:
            connection.connect(str(path))
            connection.send(kind.value + b" " + name.encode("ascii"))
            answer, descriptors, _, _ = socket.recv_fds(
                connection, MAX_PACKET, 1, socket.MSG_CMSG_CLOEXEC
            )
        except (FileNotFoundError, ConnectionRefusedError):
            raise NamespaceOutOfReach(
                f"the network namespace {name} is out of reach: this process has no CAP_SYS_ADMIN, "
                f"and nobody answers at {path}: systemctl enable --now vpnd-nsfd.socket"
            ) from None
        except OSError as error:
            raise TunError(
                f"entering the network namespace {name}: vpnd-nsfd does not answer: "
                f"{error.strerror or error} (see journalctl -u vpnd-nsfd)"
            ) from error
    if answer == OK and descriptors:
        return socket.socket(fileno=descriptors[0])
    if answer == MISSING:
        raise NamespaceMissing(name)
    reason = answer.removeprefix(FAILED).decode("utf-8", "replace")
    raise TunError(f"entering the network namespace {name}: vpnd-nsfd: {reason or 'no answer'}")


def namespace_of_socket(opened: socket.socket) -> _Descriptor:
    """The namespace that a socket is in, as a descriptor. Raises OSError."""
    return _Descriptor(fcntl.ioctl(opened, _SIOCGSKNS))


def id_of_socket(opened: socket.socket) -> NamespaceId:
    """Which namespace a socket is in. Raises OSError."""
    with namespace_of_socket(opened) as namespace:
        found = os.fstat(namespace.fileno())
    return found.st_dev, found.st_ino


def id_of_name(name: str) -> NamespaceId | None:
    """Which namespace has the name now; another one's, or nothing's, if none has."""
    try:
        found = os.stat(f"{NAMESPACES}/{name}")
    except OSError:
        return None
    return found.st_dev, found.st_ino

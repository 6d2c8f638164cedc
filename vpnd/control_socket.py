"""The control socket's file: mode 0600, taken over from a dead daemon, never from a living one."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from vpnd.config_fields import MAX_SOCKET_PATH_BYTES
from vpnd.node_control import Caller

_BACKLOG: Final = 64
_PEER_CREDENTIALS: Final = struct.Struct("3i")  # unix(7), struct ucred: pid, uid, gid


class ControlSocketError(Exception):
    """The socket cannot be had: why, and what to do."""

    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint


@dataclass(slots=True)
class ControlSocket:
    """A listening Unix socket and the lock that says that its daemon lives."""

    path: Path
    listener: socket.socket
    _lock: int
    _inode: int

    def lost(self) -> bool:
        """Whether its file or its lock's was taken away, or something else put in its place."""
        return _inode(self.path) != self._inode or not self._lock_is_there()

    def _lock_is_there(self) -> bool:
        return self._lock >= 0 and _inode(_lock_path(self.path)) == os.fstat(self._lock).st_ino

    def made_again(self) -> ControlSocket:
        """The same anew, with its folder and its lock, after it was lost; this one is to be closed
        then. ControlSocketError where it cannot be had now."""
        try:
            self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            if not self._lock_is_there():
                lock = _take_lock(self.path)
                os.close(self._lock)
                self._lock = lock
            _move_away(self.path)
            _remove_stale(self.path, own=self._inode)
            listener = _listen(self.path)
        except (OSError, ValueError) as error:
            raise _as_refusal(self.path, error) from None
        made = ControlSocket(self.path, listener, self._lock, _inode(self.path))
        self._lock = -1
        return made

    def close(self) -> None:
        """Stop listening and remove the file, unless somebody else's stands there by now."""
        self.listener.close()
        with suppress(FileNotFoundError):
            if os.stat(self.path, follow_symlinks=False).st_ino == self._inode:
                self.path.unlink()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def open_control_socket(path: Path) -> ControlSocket:
    """Listen on `path`, for root and this user alone; ControlSocketError where it cannot be had.

    Its folder has to exist. The lock beside it, `PATH.lock`, is held as long as the socket is
    open and goes with the process, so that of two daemons that start at once one wins.
    """
    if len(bytes(path)) > MAX_SOCKET_PATH_BYTES:
        raise ControlSocketError(
            f"{path} is too long for a socket", f"at most {MAX_SOCKET_PATH_BYTES} bytes"
        )
    try:
        lock = _take_lock(path)
        try:
            _remove_stale(path)
            listener = _listen(path)
        except BaseException:
            os.close(lock)
            raise
    except (OSError, ValueError) as error:
        raise _as_refusal(path, error) from None
    return ControlSocket(path, listener, lock, _inode(path))


def caller_of(connection: trio.socket.SocketType) -> Caller:
    """Who connected (SO_PEERCRED): the ids of the moment of connect(2), which cannot be forged."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
    pid, uid, gid = _PEER_CREDENTIALS.unpack(raw)
    return Caller(pid=pid, uid=uid, gid=gid)


def _lock_path(path: Path) -> Path:
    return path.with_name(path.name + ".lock")


def _inode(path: Path) -> int:
    """0 where there is nothing."""
    try:
        return os.stat(path, follow_symlinks=False).st_ino
    except OSError:
        return 0


def _take_lock(path: Path) -> int:
    lock = os.open(
        _lock_path(path),
        os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW,
        0o600,
    )
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise _alive(path) from None
    return lock


def _move_away(path: Path) -> None:
    """Rename what somebody has put in the place of our socket: nothing of it is lost."""
    try:
        found = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return
    if stat.S_ISSOCK(found.st_mode):
        return
    number = 1
    while os.path.lexists(aside := path.with_name(f"{path.name}.moved-{number}")):
        number += 1
    path.rename(aside)


def _remove_stale(path: Path, *, own: int = 0) -> None:
    """Remove the socket of a daemon that is dead, or the one of this inode, which is ours."""
    try:
        found = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise ControlSocketError(
            f"{path} is there and is not a socket", "move it away, or set control_socket"
        )
    if found.st_ino == own:
        path.unlink()
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        result = probe.connect_ex(bytes(path))
    # A full backlog (EAGAIN) means that somebody listens, too
    if result in (0, errno.EAGAIN, errno.EINPROGRESS):
        raise _alive(path)
    path.unlink()


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        # Linux gives the file the mode of the unbound socket: at no moment is it wider
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(bytes(path))
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _alive(path: Path) -> ControlSocketError:
    return ControlSocketError(
        f"another vpnd answers at {path}",
        "stop it first, or give this one a runtime_dir of its own",
    )


def _as_refusal(path: Path, error: OSError | ValueError) -> ControlSocketError:
    if isinstance(error, FileNotFoundError):
        return ControlSocketError(
            f"the folder of {path} does not exist", "make it, or set runtime_dir"
        )
    if isinstance(error, PermissionError):
        return ControlSocketError(
            f"{path} cannot be made by this user", "the folder has to belong to the daemon's user"
        )
    reason = error.strerror if isinstance(error, OSError) else "not a possible name"
    return ControlSocketError(f"{path} cannot be made: {reason}")

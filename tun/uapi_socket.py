"""The Unix socket through which one wireguard-go process is driven."""

from __future__ import annotations

import errno
import os
import socket
from copy import copy
from dataclasses import dataclass
from pathlib import Path

import trio

from tun.device import DeviceChange, DeviceState
from tun.errors import InterfaceMissing, TunError, tun_error
from tun.model import BackendName
from tun.uapi import GET_REQUEST, UapiRefused, build_set, parse_get, parse_get_in_parts, parse_set

__all__ = ["UserspaceDevice", "bind_socket", "is_answered", "socket_path"]

# wireguard-go has no other place, and watches this file: it ends when the file goes.
_SOCKET_DIR = Path("/var/run/wireguard")

_FIRST_BUFFER = 65536
_MAX_ANSWER = 256 * 2**20  # 1,000 peers with 1,000 prefixes each are 30 MB
_ANSWER_TIMEOUT = 10.0
GONE_TIMEOUT = 10.0


def socket_path(interface: str) -> Path:
    """Where the socket of an interface is. By name, not by namespace: sites with interfaces of
    the same name on one host need a mount namespace each.
    """
    return _SOCKET_DIR / f"{interface}.sock"


def bind_socket(interface: str) -> socket.socket:
    """Make the listening socket for a new wireguard-go process; removes one that is stale.

    Raises FileExistsError where a process still answers on it.
    """
    path = socket_path(interface)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if is_answered(path):
        raise FileExistsError(errno.EEXIST, "a process answers on it", str(path))
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        # Linux gives the file the mode of the unbound socket. By its name it might be another
        # file by now: the folder belongs to the daemon's user.
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(str(path))
        listener.listen(16)
    except BaseException:
        listener.close()
        path.unlink(missing_ok=True)
        raise
    return listener


def is_answered(path: Path) -> bool:
    """Whether a process listens on a socket file. Blocking."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_ANSWER_TIMEOUT)
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except PermissionError:
            # Another user's: whether somebody listens cannot be told
            return True
    return True


@dataclass(eq=False, slots=True)
class _Change:
    change: DeviceChange
    done: bool = False
    error: Exception | None = None


@dataclass(eq=False, slots=True)
class _Read:
    only: bytes | None
    keys: bool
    state: DeviceState | None = None
    done: bool = False
    error: Exception | None = None


class UserspaceDevice:
    """A connection to one wireguard-go process, kept open: so it is always the same process,
    and its end is the end of the connection.
    """

    backend: BackendName = "userspace"

    def __init__(self, stream: trio.socket.SocketType, *, name: str) -> None:
        self._stream = stream
        self._name = name
        self._usable = True
        self._asked: list[_Change | _Read] = []
        """What the next round is to do."""
        self._round_over: trio.Event | None = None
        """While there is one."""
        self._room = _FIRST_BUFFER
        """Bytes for an answer, after those that came before."""

    @classmethod
    async def open(cls, *, name: str) -> UserspaceDevice:
        """Connect; raises InterfaceMissing where no process answers."""
        return cls(await _connect(name), name=name)

    async def apply(self, change: DeviceChange) -> None:
        await self._in_a_round(_Change(change))

    async def read(self, *, only: bytes | None = None, keys: bool = False) -> DeviceState:
        asked = _Read(only=only, keys=keys)
        await self._in_a_round(asked)
        if asked.state is None:
            raise AssertionError("a round without its dump")
        return asked.state

    async def _in_a_round(self, asked: _Change | _Read) -> None:
        """Have something done with all else that is wanted at the moment: the changes in one
        request, then one dump for all who want to read. Among many peers it is the dumps that
        take time, and the waiting for one another.

        A round is finished even when the caller who drives it is cancelled; what is not begun
        then is left undone.
        """
        self._asked.append(asked)
        try:
            while not asked.done:
                if self._round_over is not None:
                    await self._round_over.wait()
                    continue
                self._round_over = trio.Event()
                try:
                    with trio.CancelScope(shield=True):
                        await self._round()
                finally:
                    self._round_over.set()
                    self._round_over = None
        finally:
            if asked in self._asked:
                self._asked.remove(asked)
        if asked.error is not None:
            raise asked.error

    async def _round(self) -> None:
        asked, self._asked = self._asked, []
        changes = [each for each in asked if isinstance(each, _Change)]
        reads = [each for each in asked if isinstance(each, _Read)]
        try:
            await self._apply_all(changes)
            if reads:
                await self._read_for(reads)
        except TunError as error:
            for each in asked:
                if not each.done:
                    each.error, each.done = copy(error), True
        finally:
            # After a bug, too: who drove the round meets it, the others an end
            for each in asked:
                if not each.done:
                    each.error, each.done = TunError(f"{self._name}: the call was given up"), True

    async def _apply_all(self, changes: list[_Change]) -> None:
        together = [each for each in changes if each.change.peers_only]
        if len(together) > 1:
            peers = tuple(peer for each in together for peer in each.change.peers)
            try:
                await self._apply(DeviceChange(peers=peers))
            except UapiRefused:
                pass  # which of them was it? Each is made again, by itself
            else:
                for each in together:
                    each.done = True
        for each in changes:
            if not each.done:
                try:
                    await self._apply(each.change)
                except UapiRefused as error:
                    each.error = tun_error(error, f"configuring {self._name}")
                each.done = True

    async def _apply(self, change: DeviceChange) -> None:
        request = build_set(change)
        try:
            parse_set(await self._call(request, f"configuring {self._name}"))
        except UapiRefused:
            # It has left the rest of the request unread, and would take it for the next one.
            await self._reconnect()
            raise
        finally:
            request[:] = bytes(len(request))

    async def _read_for(self, reads: list[_Read]) -> None:
        answer = await self._call(bytearray(GET_REQUEST), f"reading {self._name}")
        try:
            for each in reads:
                each.state = await self._parse(answer, only=each.only, keys=each.keys)
                each.done = True
        except UapiRefused as error:
            raise TunError(f"reading {self._name}: {error.strerror}") from None
        finally:
            answer[:] = bytes(len(answer))

    @staticmethod
    async def _parse(answer: bytearray, *, only: bytes | None, keys: bool) -> DeviceState:
        if only is not None:
            return parse_get(answer, only=only, keys=keys)
        parts = parse_get_in_parts(answer, keys=keys)
        while True:
            try:
                next(parts)
            except StopIteration as whole:
                state: DeviceState = whole.value
                return state
            await trio.lowlevel.checkpoint()

    async def wait_gone(self, *, patience: float = GONE_TIMEOUT) -> None:
        """Wait until the process has ended; raises TunError if it does not.

        It ends by itself when its TUN link is deleted. When it does not notice, it ends when its
        socket file goes.
        """
        if not await self._wait_end(patience):
            socket_path(self._name).unlink(missing_ok=True)
            if not await self._wait_end(GONE_TIMEOUT):
                raise TunError(
                    f"wireguard-go of {self._name} does not end although its interface is gone: "
                    f"look for it with `pgrep -af 'wireguard-go .*{self._name}'`"
                )
        # A process that was killed leaves its socket file behind.
        path = socket_path(self._name)
        if not await trio.to_thread.run_sync(is_answered, path):
            path.unlink(missing_ok=True)

    async def aclose(self) -> None:
        self._usable = False
        self._stream.close()

    async def _wait_end(self, patience: float) -> bool:
        with trio.move_on_after(patience):
            try:
                while await self._stream.recv(4096):
                    pass
            except OSError:
                pass
            return True
        return False

    async def _call(self, request: bytearray, doing: str) -> bytearray:
        """Send a request and return the whole answer; both hold keys."""
        if not self._usable:
            raise InterfaceMissing(f"{doing}: the connection to wireguard-go was closed")
        self._usable = False
        try:
            with trio.move_on_after(_ANSWER_TIMEOUT):
                await self._send(request)
                answer = await self._receive()
                self._usable = True
                return answer
        except OSError as error:
            if error.errno in (errno.EPIPE, errno.ECONNRESET):
                raise InterfaceMissing(f"{doing}: wireguard-go has ended") from None
            raise tun_error(error, doing) from error
        raise TunError(f"{doing}: wireguard-go does not answer")

    async def _reconnect(self) -> None:
        self._usable = False
        self._stream.close()
        self._stream = await _connect(self._name)
        self._usable = True

    async def _send(self, request: bytearray) -> None:
        with memoryview(request) as view:
            sent = 0
            while sent < len(view):
                sent += await self._stream.send(view[sent:])

    async def _receive(self) -> bytearray:
        """The next whole answer; what was received of another is overwritten."""
        buffer = bytearray(self._room)
        used = 0
        try:
            while not buffer.endswith(b"\n\n", 0, used):
                if used == len(buffer):
                    buffer = self._longer(buffer)
                with memoryview(buffer) as view:
                    size = await self._stream.recv_into(view[used:])
                if size == 0:
                    raise ConnectionResetError(errno.ECONNRESET, "end of stream")  # noqa: TRY301
                used += size
        except BaseException:
            buffer[:] = bytes(len(buffer))
            raise
        del buffer[used:]
        return buffer

    def _longer(self, buffer: bytearray) -> bytearray:
        used = len(buffer)
        if used >= _MAX_ANSWER:
            raise TunError(f"reading {self._name}: the answer is too long")
        longer = bytearray(2 * used)
        self._room = len(longer)
        longer[:used] = buffer
        buffer[:] = bytes(used)
        return longer


async def _connect(name: str) -> trio.socket.SocketType:
    stream = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        await stream.connect(str(socket_path(name)))
    except (FileNotFoundError, ConnectionRefusedError):
        stream.close()
        raise InterfaceMissing(f"no wireguard-go answers for {name}") from None
    except PermissionError:
        stream.close()
        raise TunError(f"the wireguard-go of {name} belongs to another user") from None
    except BaseException:
        stream.close()
        raise
    return stream

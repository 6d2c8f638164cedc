"""Starts vpnd, vpnctl and the lab's own modules by forking a process that has imported them.

A lab starts its programs as anybody would, by name. On an emulated processor that is dear:
importing what vpnd needs takes half a minute there, and a lab of two sites starts six programs.
Python alone takes a second or two, and four processes of it count a test's traffic. Where the
environment variable VPND_LAB_FORK_SERVER is "1", one process (`python -m vpnd_lab.fork_server`)
imports everything once, and each start is a fork of it. What is forked is a process like any
other: of its own session, in its node's namespaces, with its own arguments, environment and
descriptors, and killed with real signals.

The two talk over a socket that is the server's standard input; others that the first one started
(workers of pytest-xdist) connect to a socket that is its standard output, where `sharing` put one
there. A request is one JSON datagram with five descriptors (stdin, stdout, stderr, a pipe to report
on, a pidfd of the node's holder). On the pipe come two lines: pid and start time, and, if anybody
still reads, the exit status.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import importlib
import importlib.metadata
import json
import os
import pkgutil
import select
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from vpnd_lab.errors import LabError
from vpnd_lab.process import ProcessId, spawn

ENVIRONMENT = "VPND_LAB_FORK_SERVER"
SHARED = "VPND_LAB_FORK_SERVER_SOCKET"
"""Path of the socket on which a server shared by several processes takes connections."""
PROGRAMS = {"vpnd": "vpnd", "vpnctl": "cli"}
"""By name, and the package that each is made of."""
_PYTHON_MODULE = [sys.executable, "-I", "-m"]
MODULES = ("vpnd_lab.traffic", "vpnd_lab.sniffer")
"""What is started by `python -m`."""

_REQUEST_BYTES = 1 << 17
_DESCRIPTORS = 5
# Imported by vpnctl only where it needs them.
_LATE = ("rich.console", "rich.table", "typer.rich_utils", "http.client")
# sched.h
_CLONE_NEWNS = 0x00020000
_CLONE_NEWUTS = 0x04000000
_CLONE_NEWNET = 0x40000000
_PR_SET_NAME = 15  # sys/prctl.h

# ---------------------------------------------------------------- the client's side


@dataclass(frozen=True, slots=True)
class Start:
    """A program to start in a node: as for execve, in the namespaces of the node's holder."""

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: str
    holder: ProcessId


@dataclass(frozen=True, slots=True)
class Background:
    """A process in the background, and the pipes to it."""

    process: ProcessId
    stdin: trio.abc.SendStream
    stdout: trio.abc.ReceiveStream
    stderr: trio.abc.ReceiveStream


def module_argv(module: str, arguments: Iterable[object]) -> list[str]:
    """The command line of a module of ours.

    Isolated (-I): a harness may have folders of its own with the names of modules in its working
    folder or on PYTHONPATH.
    """
    return [*_PYTHON_MODULE, module, *map(str, arguments)]


def forks(argv: Sequence[str]) -> bool:
    """Whether this command line is started by the fork server, here and now."""
    known = (*PROGRAMS, *MODULES)
    return os.environ.get(ENVIRONMENT) == "1" and _words(argv)[0] in known


def _words(argv: Sequence[str]) -> list[str]:
    """The command line from the name of its program or module on."""
    start = len(_PYTHON_MODULE)
    if len(argv) > start and list(argv[:start]) == _PYTHON_MODULE:
        return list(argv[start:])
    return [Path(argv[0]).name, *argv[1:]]


class _ForkServer:
    def __init__(self, listener: socket.socket | None = None) -> None:
        """Connect to the server that is shared, else start one, which has `listener`."""
        if shared := os.environ.get(SHARED):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._socket.connect(shared)
            return
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            spawn(
                module_argv("vpnd_lab.fork_server", ()),
                env=os.environ,
                stdin=theirs.fileno(),
                stdout=null if listener is None else listener.fileno(),
                stderr=sys.__stderr__.fileno() if sys.__stderr__ else null,
            )
        finally:
            os.close(null)
            theirs.close()

    def close(self) -> None:
        """The server ends, if it is our own."""
        self._socket.close()

    def request(self, start: Start, descriptors: Sequence[int]) -> None:
        """Raises OSError where the server has gone."""
        message = {"argv": list(start.argv), "env": dict(start.env), "cwd": start.cwd}
        socket.send_fds(self._socket, [json.dumps(message).encode()], descriptors)


_making = threading.Lock()  # a cache alone lets two threads make two
_cached_server = functools.cache(_ForkServer)


def _server() -> _ForkServer:
    """This process's own server; it ends when this process does."""
    with _making:
        return _cached_server()


@contextlib.contextmanager
def sharing() -> Iterator[None]:
    """Start a server now, for all processes that this one starts until the end of the block."""
    with tempfile.TemporaryDirectory(prefix="vpnd-fork-server-") as folder:
        path = f"{folder}/socket"
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(path)
            listener.listen()
            server = _ForkServer(listener)
        os.environ[SHARED] = path
        try:
            yield
        finally:
            del os.environ[SHARED]
            server.close()


def _fork(start: Start, stdin: int, stdout: int, stderr: int) -> tuple[ProcessId, int]:
    """Start it: the process, and a pipe on which its exit status comes. Blocks; raises LabError."""
    holder = start.holder.open_pidfd()
    report, child_report = os.pipe()
    try:
        _server().request(start, (stdin, stdout, stderr, child_report, holder))
    except OSError as error:
        os.close(report)
        raise LabError(f"the fork server does not take {start.argv[0]}: {error}") from error
    finally:
        os.close(child_report)
        os.close(holder)
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(report, 1)
        if not byte:
            os.close(report)
            raise LabError(f"the fork server ended before it started {start.argv[0]}")
        line += byte
    pid, start_time = line.split()
    return ProcessId(pid=int(pid), start_time=int(start_time)), report


async def fork_daemon(start: Start, *, stdin: int, stdout: int, stderr: int) -> ProcessId:
    """Start a program that may outlive this one. Raises LabError, ProcessLookupError."""
    process, report = await trio.to_thread.run_sync(_fork, start, stdin, stdout, stderr)
    os.close(report)
    return process


@contextlib.asynccontextmanager
async def forked(start: Start) -> AsyncIterator[Background]:
    """Run a program beside the block, with pipes; it is killed at the block's end.

    Raises LabError, ProcessLookupError.
    """
    child_in, ours_in = os.pipe()
    ours_out, child_out = os.pipe()
    ours_err, child_err = os.pipe()
    async with contextlib.AsyncExitStack() as stack:
        ours = [trio.lowlevel.FdStream(fd) for fd in (ours_in, ours_out, ours_err)]
        for stream in ours:
            stack.push_async_callback(trio.aclose_forcefully, stream)
        try:
            process = await fork_daemon(start, stdin=child_in, stdout=child_out, stderr=child_err)
        finally:
            for fd in (child_in, child_out, child_err):
                os.close(fd)
        try:
            yield Background(process, stdin=ours[0], stdout=ours[1], stderr=ours[2])
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)


async def run_forked(start: Start, *, stdin: bytes) -> subprocess.CompletedProcess[bytes]:
    """Run a program to its end; it is killed if the caller is cancelled.

    Raises LabError, ProcessLookupError.
    """
    child_in, ours_in = os.pipe()
    ours_out, child_out = os.pipe()
    ours_err, child_err = os.pipe()
    outputs: dict[int, bytes] = {}

    async def read(fd: int) -> None:
        async with trio.lowlevel.FdStream(fd) as stream:
            outputs[fd] = b"".join([chunk async for chunk in stream])

    async def write(fd: int) -> None:
        async with trio.lowlevel.FdStream(fd) as stream:
            with contextlib.suppress(trio.BrokenResourceError):
                await stream.send_all(stdin)

    try:
        process, report = await trio.to_thread.run_sync(
            _fork, start, child_in, child_out, child_err
        )
    except BaseException:
        for fd in (ours_in, ours_out, ours_err):
            os.close(fd)
        raise
    finally:
        for fd in (child_in, child_out, child_err):
            os.close(fd)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write, ours_in)
            for fd in (ours_out, ours_err, report):
                nursery.start_soon(read, fd)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        raise
    if not outputs[report]:
        raise LabError(f"the fork server ended before {start.argv[0]} did")
    return subprocess.CompletedProcess(
        list(start.argv), int(outputs[report]), outputs[ours_out], outputs[ours_err]
    )


# ---------------------------------------------------------------- the server's side


def _load() -> dict[str, Callable[[], object]]:
    """The programs' entry points, with all that they import, now or later."""
    mains = {}
    for entry in importlib.metadata.entry_points(group="console_scripts"):
        if entry.name in PROGRAMS:
            mains[entry.name] = entry.load()
            package = importlib.import_module(PROGRAMS[entry.name])
            for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
                if not module.name.endswith("__main__"):
                    importlib.import_module(module.name)
    for name in _LATE:
        importlib.import_module(name)
    for name in MODULES:
        mains[name] = importlib.import_module(name).main
    return mains


def _become(request: Mapping[str, Any], descriptors: Sequence[int]) -> None:
    """Turn this fork into what was asked for, up to the call of its main function."""
    words = _words(request["argv"])
    os.setsid()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NAME, words[0].encode())
    # setns(2) with a pidfd goes into several namespaces at once: Linux 5.8 and newer
    if libc.setns(descriptors[4], _CLONE_NEWNET | _CLONE_NEWNS | _CLONE_NEWUTS) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")
    for number, fd in enumerate(descriptors[:3]):
        os.dup2(fd, number, inheritable=True)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    # What these were made for, a terminal or a file, is found out when they are made
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(  # noqa: SIM115
        2, "w", buffering=1, errors="backslashreplace", closefd=False
    )
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.argv = words


def _end_children(children: dict[int, tuple[int, int]], poll: select.poll, pidfd: int) -> None:
    """Report a child's exit status, as a shell has it, to whoever still wants to know."""
    pid, report = children.pop(pidfd)
    poll.unregister(pidfd)
    os.close(pidfd)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with contextlib.suppress(BrokenPipeError):
        os.write(report, f"{status}\n".encode())
    os.close(report)


def _serve(control: socket.socket) -> str:
    """Fork for every request until the client has gone: then "".

    In a fork it returns at once, with the name of the program to be.
    """
    children: dict[int, tuple[int, int]] = {}
    listener = socket.socket(fileno=1) if stat.S_ISSOCK(os.fstat(1).st_mode) else None
    clients = {control.fileno(): control}
    poll = select.poll()
    poll.register(control, select.POLLIN)
    if listener is not None:
        poll.register(listener, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if listener is not None and fd == listener.fileno():
                client, _ = listener.accept()
                clients[client.fileno()] = client
                poll.register(client, select.POLLIN)
                continue
            if fd not in clients:
                _end_children(children, poll, fd)
                continue
            message, descriptors, _, _ = socket.recv_fds(clients[fd], _REQUEST_BYTES, _DESCRIPTORS)
            if not message and fd == control.fileno():
                return ""
            if not message:
                poll.unregister(fd)
                clients.pop(fd).close()
                continue
            request = json.loads(message)
            pid = os.fork()
            if pid == 0:
                # Their descriptors' numbers become those of something else
                for each in (*clients.values(), *([listener] if listener else [])):
                    each.detach()
                _become(request, descriptors)
                return _words(request["argv"])[0]
            report = descriptors.pop(3)
            for given in descriptors:
                os.close(given)
            with contextlib.suppress(BrokenPipeError):
                os.write(report, f"{pid} {ProcessId.of(pid).start_time}\n".encode())
            pidfd = os.pidfd_open(pid)
            children[pidfd] = (pid, report)
            poll.register(pidfd, select.POLLIN)


def main() -> object:
    """The server, and each of its forks: a program's own exit status is returned."""
    mains = _load()
    gc.collect()
    gc.freeze()  # or the first collection in a fork would copy every page
    program = _serve(socket.socket(fileno=0))
    return mains[program]() if program else 0


if __name__ == "__main__":
    sys.exit(main())  # type: ignore[arg-type]  # as the installed programs do

"""Processes named so that no other one can be meant: by pid and start time.

A pid alone is handed out again once its process is gone. Signals go through a pidfd that is
opened first and checked afterwards, so what is checked is what is signalled.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process: its pid, and its start in clock ticks since boot (field 22 of /proc/PID/stat)."""

    pid: int
    start_time: int

    @classmethod
    def of(cls, pid: int) -> ProcessId:
        """The process that has `pid` now. Raises ProcessLookupError where there is none."""
        return cls(pid=pid, start_time=_stat(pid).start_time)

    def alive(self) -> bool:
        """Whether it runs. A zombie does not: it holds no namespace and answers nothing."""
        try:
            stat = _stat(self.pid)
        except ProcessLookupError:
            return False
        return stat.start_time == self.start_time and stat.state not in "ZX"

    def open_pidfd(self) -> int:
        """A pidfd of this very process; the caller closes it. Raises ProcessLookupError."""
        fd = os.pidfd_open(self.pid)
        if not self.alive():
            os.close(fd)
            raise ProcessLookupError(f"process {self.pid} has ended")
        return fd

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to this very process. Raises ProcessLookupError if it has ended."""
        fd = self.open_pidfd()
        try:
            signal.pidfd_send_signal(fd, number)
        finally:
            os.close(fd)

    def reap(self) -> None:
        """Collect its exit status if it is a child of ours that has ended."""
        if self.alive():
            return
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, os.WNOHANG)


@dataclass(frozen=True, slots=True)
class _Stat:
    state: str
    start_time: int


def _stat(pid: int) -> _Stat:
    """proc(5), /proc/PID/stat: the name in brackets may hold anything, so count from its end."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessLookupError(f"no process {pid}") from None
    fields = text.rpartition(")")[2].split()
    return _Stat(state=fields[0], start_time=int(fields[19]))


def spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    stdin: int,
    stdout: int,
    stderr: int,
) -> ProcessId:
    """Start a process in a session of its own, which may outlive this one.

    The three descriptors become its 0, 1 and 2; it inherits nothing else. Raises OSError when the
    program cannot be started.
    """
    pid = os.posix_spawnp(
        argv[0],
        list(argv),
        dict(env),
        file_actions=[
            (os.POSIX_SPAWN_DUP2, stdin, 0),
            (os.POSIX_SPAWN_DUP2, stdout, 1),
            (os.POSIX_SPAWN_DUP2, stderr, 2),
        ],
        setsid=True,
        setsigmask=[],
        # Python ignores SIGPIPE, and what is ignored stays so through exec.
        setsigdef=[signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT],
    )
    return ProcessId.of(pid)


def kill_all(processes: Iterable[ProcessId], *, seconds: float) -> list[ProcessId]:
    """SIGKILL them all, wait until they have ended; those that have not after `seconds`."""
    waiting: dict[int, ProcessId] = {}
    poll = select.poll()
    try:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                fd = process.open_pidfd()
                waiting[fd] = process
                signal.pidfd_send_signal(fd, signal.SIGKILL)
                poll.register(fd, select.POLLIN)
        deadline = time.monotonic() + seconds
        while waiting and (left := deadline - time.monotonic()) > 0:
            for fd, _ in poll.poll(left * 1000):
                poll.unregister(fd)
                os.close(fd)
                waiting.pop(fd).reap()
        return list(waiting.values())
    finally:
        for fd in waiting:
            os.close(fd)

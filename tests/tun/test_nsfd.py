"""`vpnd-nsfd` as far as it needs no rights: what is no request, and askers that go away.

With namespaces: netns-tests/test_tun_netns.py.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tun.errors import NamespaceMissing, NamespaceOutOfReach, TunError
from tun.namespace import FAILED, MAX_PACKET, MISSING, OK, NetlinkKind, ask_helper

pytestmark = pytest.mark.slow

PROGRAM = (sys.executable, "-m", "tun.nsfd")
NO_NAME = FAILED + b"this is not the name of a network namespace"
NO_REQUEST = FAILED + b"this is not a request"


@pytest.fixture
def helper(tmp_path: Path) -> Iterator[Path]:
    """Where it listens, started as the service manager starts it."""
    path = tmp_path / "nsfd.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen()
        with running(listener) as process:
            yield path
            assert process.poll() is None, "it goes on whatever it is asked"


@contextmanager
def running(
    listener: socket.socket, stderr: int = subprocess.DEVNULL
) -> Iterator[subprocess.Popen[bytes]]:
    # As systemd does it: the number of the process is known only once there is one
    start = (
        f"import os, sys; os.dup2({listener.fileno()}, 3); os.set_inheritable(3, True); "
        "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1'); "
        "os.execv(sys.executable, [sys.executable, '-m', 'tun.nsfd'])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", start],
        pass_fds=[listener.fileno()],
        stderr=stderr,
        cwd=Path(__file__).parent.parent.parent,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def asked(path: Path, request: bytes) -> tuple[bytes, int]:
    """The answer, and how many descriptors came with it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(60)
        connection.connect(str(path))
        connection.send(request)
        answer, descriptors, _, _ = socket.recv_fds(connection, MAX_PACKET, 4)
        for descriptor in descriptors:
            os.close(descriptor)
        return answer, len(descriptors)


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (b"route ..", NO_NAME),
        (b"route ../../proc/1/ns/net", NO_NAME),
        (b"route a/b", NO_NAME),
        (b"route .hidden", NO_NAME),
        (b"route ", NO_NAME),
        (b"route a\0b", NO_NAME),
        (b"route a b", NO_NAME),
        (b"route blue\n", NO_NAME),
        (b"route " + b"a" * 65, NO_NAME),
        (b"route " + b"a" * MAX_PACKET, NO_NAME),
        (b"route \xff", NO_REQUEST),
        (b"route", NO_NAME),
        (b"xfrm blue", NO_REQUEST),
        (b"ROUTE blue", NO_REQUEST),
        (b" ", NO_REQUEST),
        (b"\0", NO_REQUEST),
    ],
)
def test_what_is_no_request_gets_no_socket(helper: Path, request_: bytes, answer: bytes) -> None:
    assert asked(helper, request_) == (answer, 0)
    assert asked(helper, b"route vpnd-has-none") == (MISSING, 0)


def test_askers_that_go_away_hold_up_nobody(helper: Path) -> None:
    for last_words in (b"", b"route vpnd-has-none"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.connect(str(helper))
            if last_words:
                connection.send(last_words)
    assert asked(helper, b"generic vpnd-has-none") == (MISSING, 0)


def test_it_is_for_the_service_manager_alone() -> None:
    done = subprocess.run(PROGRAM, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "hint: it is started by vpnd-nsfd.socket alone" in done.stderr


@contextmanager
def answering(path: Path, answer: bytes) -> Iterator[None]:
    """Something else that says one thing to one asker."""
    program = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
        "s.bind(sys.argv[1]); s.listen(); print('ready', flush=True)\n"
        "c, _ = s.accept(); c.recv(512)\n"
        "c.send(bytes.fromhex(sys.argv[2])) if sys.argv[2] else None\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(path), answer.hex()], stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        with process.stdout as said:
            assert said.readline() == b"ready\n"
        yield
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        (MISSING, NamespaceMissing, "ip netns add blue"),
        (FAILED + b"no such luck", TunError, "vpnd-nsfd: no such luck"),
        (OK, TunError, "vpnd-nsfd: ok"),
        (b"", TunError, "no answer"),
    ],
)
def test_what_the_helper_says_is_told(
    tmp_path: Path, answer: bytes, error: type[TunError], text: str
) -> None:
    with answering(tmp_path / "s", answer), pytest.raises(error, match=text):
        ask_helper("blue", NetlinkKind.ROUTE, tmp_path / "s")


def test_without_the_helper_the_error_says_what_to_start(tmp_path: Path) -> None:
    with pytest.raises(NamespaceOutOfReach, match=r"systemctl enable --now vpnd-nsfd\.socket"):
        ask_helper("blue", NetlinkKind.ROUTE, tmp_path / "absent")


def test_a_full_log_pipe_does_not_keep_it_from_answering(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    with suppress(BlockingIOError):
        while True:
            os.write(write, b"x" * 4096)
    os.set_blocking(write, True)
    path = tmp_path / "nsfd.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen()
        with running(listener, write) as process:
            for _ in range(3):
                assert asked(path, b"nonsense")[0] == NO_REQUEST
            os.set_blocking(read, False)
            with suppress(BlockingIOError):
                while True:
                    os.read(read, 65536)
            assert asked(path, b"nonsense")[0] == NO_REQUEST
            process.kill()
    os.close(write)
    os.set_blocking(read, True)
    with open(read, "rb") as log:
        assert log.read() == (
            b"vpnd-nsfd: lines that could not be written: 3\nvpnd-nsfd: this is not a request\n"
        )

"""`vpnd-wireguard-go` as far as it needs no TUN device: nonsense, and askers that go away."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tun.errors import BackendUnavailable, TunError
from tun.starters import FAILED, MAX_PACKET, InUnit

pytestmark = pytest.mark.slow

PROGRAM = (sys.executable, "-m", "tun.wireguard_go")


@pytest.mark.parametrize(
    "name", [b"../wg0", b"wg%d", b"sixteen-letters-", b"wg 0", b"wg0\n", b"\xff", b"wg0\0"]
)
def test_what_is_no_interface_name_is_refused(name: bytes) -> None:
    answer, status = asked(name)
    assert answer == FAILED + b"this is not the name of an interface"
    assert status == 0


def test_an_asker_that_goes_away_leaves_nothing() -> None:
    assert asked(None) == (b"", 0)


def asked(name: bytes | None) -> tuple[bytes, int]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            process = subprocess.Popen(PROGRAM, stdin=theirs.fileno(), stderr=subprocess.DEVNULL)
        if name is None:
            ours.shutdown(socket.SHUT_WR)
        else:
            ours.send(name)
        answer = ours.recv(MAX_PACKET)
        return answer, process.wait(30)


def test_it_is_for_sockets_alone() -> None:
    done = subprocess.run(
        PROGRAM, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "hint: it is started by vpnd-wireguard-go.socket alone" in done.stderr


def test_without_the_unit_the_error_says_what_to_start(tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailable, match=r"systemctl start vpnd-wireguard-go\.socket"):
        InUnit("wg0", str(tmp_path / "absent.sock"))


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        (b"unavailable no wireguard-go", BackendUnavailable, "no wireguard-go"),
        (b"failed creating wg0", TunError, "creating wg0"),
        (b"ok", TunError, "its unit ended"),  # without a descriptor
        (b"", TunError, "its unit ended"),
    ],
)
def test_a_refusal_is_told(
    tmp_path: Path, answer: bytes, error: type[Exception], text: str
) -> None:
    path = tmp_path / "unit.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen()
        other = subprocess.Popen(
            [sys.executable, "-c", ANSWERING, answer.hex()], stdin=listener.fileno()
        )
        with pytest.raises(error, match=text):
            InUnit("wg0", str(path))
        assert other.wait(30) == 0


ANSWERING = """
import socket, sys
listener = socket.socket(fileno=0)
connection, _ = listener.accept()
assert connection.recv(100) == b"wg0"
if answer := bytes.fromhex(sys.argv[1]):
    connection.send(answer)
connection.close()
"""

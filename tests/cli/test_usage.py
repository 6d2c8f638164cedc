"""Whatever stands on the command line: an error, a hint, exit code 2, and nothing changed."""

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator

import pytest
from typer.core import TyperGroup, TyperOption
from typer.main import get_command

from cli.main import app, main
from kex.identity import Fingerprint
from tests.cli.conftest import PROGRAM, Ended, Vpnctl, files_below
from tests.cli.fake_daemon import FakeDaemon, error, link
from vpnd.api import SCHEMA, ErrorDetail

IDENTITY = Fingerprint(1, bytes(range(32))).text()

COMMANDS = {
    "init": ("init", "--name", "fra1", "--address", "10.255.0.1/24"),
    "id": ("id",),
    "peer add": ("peer", "add", "ams1", "--identity", IDENTITY, "--allow", "10.0.0.0/8"),
    "peer set": ("peer", "set", "ams1"),
    "peer list": ("peer", "list"),
    "peer show": ("peer", "show", "ams1"),
    "peer remove": ("peer", "remove", "ams1"),
    "peer rekey": ("peer", "rekey", "ams1"),
    "keysource list": ("keysource", "list"),
    "keysource show": ("keysource", "show", "kme-fra"),
    "keysource test": ("keysource", "test", "kme-fra"),
    "fallback extend": ("fallback", "extend", "ams1", "--for", "2h", "--reason", "repair"),
    "id new": ("id", "new", "next"),
    "status": ("status",),
    "check": ("check",),
    "events": ("events",),
    "lab up": ("lab", "up", "lab.toml"),
    "completion": ("completion", "bash"),
}
"""Every command, with what it cannot do without."""

NONSENSE = (
    "",
    " ",
    ",",
    "-1",
    "+7",
    "nonsense!",
    "\x1b[2J\r\n",
    "🙂",
    "9" * 5000,
    "../../x",
    "\udcff",
)
FREE_TEXT = ("--reason",)
"""Options that take whatever people say, as long as it can be printed and is not too long."""
NO_TEXT = ("", " ", "\x1b[2J\r\n", "9" * 5000, "\udcff")


def options_with_a_value() -> Iterator[tuple[str, str]]:
    """Each command and each of its options, read off the program itself."""

    def walk(group: TyperGroup, path: str) -> Iterator[tuple[str, str]]:
        for name, command in group.commands.items():
            if isinstance(command, TyperGroup):
                yield from walk(command, f"{path}{name} ")
                continue
            for parameter in command.params:
                if isinstance(parameter, TyperOption) and not parameter.is_flag:
                    yield f"{path}{name}", parameter.opts[0]

    root = get_command(app)
    assert isinstance(root, TyperGroup)
    yield from walk(root, "")


def test_the_list_of_commands_is_complete() -> None:
    assert {command for command, _ in options_with_a_value()} <= COMMANDS.keys()


def run_here(capsys: pytest.CaptureFixture[str], *arguments: str) -> Ended:
    """The same without a process of its own: a traceback would come out as an exception."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["vpnctl", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
    captured = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return Ended(ended.value.code, captured.out, captured.err)


@pytest.mark.parametrize(("command", "option"), list(options_with_a_value()))
def test_nonsense_as_the_value_of_any_option(
    vpnctl: Vpnctl,
    daemon: FakeDaemon,
    capsys: pytest.CaptureFixture[str],
    command: str,
    option: str,
) -> None:
    before = files_below(vpnctl.home)
    arguments = ["--config", str(vpnctl.config), "--socket", str(vpnctl.socket), *COMMANDS[command]]
    if command == "init":  # were it to succeed, then not on this machine's own node
        arguments.append(f"--state-dir={vpnctl.home}/state")
    for nonsense in NO_TEXT if option in FREE_TEXT else NONSENSE:
        ended = run_here(capsys, *arguments, f"{option}={nonsense}")
        ended.assert_refused(2)
        assert any(option in error for error in ended.errors), ended
    assert daemon.requests == []
    assert files_below(vpnctl.home) == before


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("peer",),
        ("lab",),
        ("statsu",),
        ("status", "a", "b"),
        ("status", "--nonsense"),
        ("status", "--json=1"),
        ("--json", "status"),
        ("status", "--socket", "x"),
        ("--socket", "", "status"),
        ("--socket", "x" * 200, "status"),
        ("--socket",),
        ("--config", "", "status"),
        ("peer", "add"),
        ("peer", "add", "../x", "--identity", IDENTITY, "--allow", "10.0.0.0/8"),
        ("peer", "add", "ams1", "--identity", IDENTITY),
        ("peer", "add", "ams1", "--allow", "10.0.0.0/8"),
        ("peer", "add", "ams1", "--identity"),
        ("peer", "show"),
        ("completion", "csh"),
        ("lab", "up"),
        ("lab", "up", "missing.toml"),
        ("lab", "down", "../../etc"),
        ("lab", "exec", "../../etc", "fra", "true"),
        ("lab", "exec", "demo"),
        ("init", "extra"),
        ("init", "--name", "fra1"),
    ],
)
def test_wrong_usage(vpnctl: Vpnctl, arguments: tuple[str, ...]) -> None:
    ended = vpnctl(*arguments)
    ended.assert_refused(2)
    assert not files_below(vpnctl.home)


def test_bytes_that_are_no_text(vpnctl: Vpnctl) -> None:
    ended = vpnctl("status", "--x\udcff", PYTHONUTF8="0", LC_ALL="C")
    ended.assert_refused(2)


def test_all_wrong_flags_are_told_at_once(vpnctl: Vpnctl) -> None:
    ended = vpnctl(
        "peer", "add", "ams1", "--identity", "vpnd1typo", "--allow", "10.0.0.1/8,x",
        "--endpoint", "fe80::1:51821", "--keepalive", "often",
    )  # fmt: skip
    ended.assert_refused(2)
    assert [error.partition(":")[0] for error in ended.errors] == [
        "--identity", "--allow", "--allow", "--endpoint", "--keepalive",
    ]  # fmt: skip
    assert '"10.0.0.0/8" is the network' in ended.hints[1]


def test_a_mistyped_command_is_corrected(vpnctl: Vpnctl) -> None:
    ended = vpnctl("statsu")
    assert ended.hints == ["did you mean 'status'?"]


def test_a_global_option_in_the_wrong_place_is_shown_its_own(vpnctl: Vpnctl) -> None:
    assert vpnctl("status", "--socket", "x").hints == [
        "--socket goes before the command: vpnctl --socket … COMMAND"
    ]


def test_no_daemon(vpnctl: Vpnctl) -> None:
    vpnctl.config.parent.mkdir()
    vpnctl.config.touch()
    for command in (("status",), ("peer", "list"), ("events",), ("peer", "rekey", "x")):
        ended = vpnctl(*command)
        ended.assert_refused(3)
        assert "systemctl start vpnd" in ended.hints[0]


def test_a_socket_that_nobody_listens_at(vpnctl: Vpnctl, daemon: FakeDaemon) -> None:
    left_over = vpnctl.home / "left-over.sock"
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(left_over))
    ended = vpnctl("--socket", left_over, "status")
    ended.assert_refused(3)
    assert "nobody listens" in ended.errors[0]


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n\xff\xff",
        b"HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\nnull",
        b"HTTP/1.1 404 No\r\nContent-Length: 12\r\n\r\n<html></html",
    ],
)
def test_what_is_not_vpnd(vpnctl: Vpnctl, daemon: FakeDaemon, answer: bytes) -> None:
    daemon.raw_answer = answer
    vpnctl("status").assert_refused(3)


def test_a_socket_that_this_user_may_not_use(vpnctl: Vpnctl, daemon: FakeDaemon) -> None:
    from cli.client import Client
    from cli.errors import DaemonUnreachable

    vpnctl.socket.chmod(0o600)
    vpnctl.home.chmod(0o700)
    is_root = os.geteuid() == 0
    try:
        if is_root:
            os.seteuid(65534)
        else:
            vpnctl.home.chmod(0)
        with pytest.raises(DaemonUnreachable) as refused:
            Client(str(vpnctl.socket)).status()
    finally:
        if is_root:
            os.seteuid(0)
        vpnctl.home.chmod(0o700)
    (problem,) = refused.value.problems
    assert "permission denied" in problem.message
    assert "as root" in problem.hint


def test_the_socket_is_found_through_the_configuration(vpnctl: Vpnctl, daemon: FakeDaemon) -> None:
    daemon.links = [link("ams1")]
    vpnctl.config.parent.mkdir()
    del vpnctl.environment["VPND_SOCKET"]
    vpnctl.config.write_text(f'[node]\nruntime_dir = "{vpnctl.socket.parent}"\n')
    assert vpnctl("status", "ams1").code == 0
    vpnctl.config.write_text(f'[node]\ncontrol_socket = "{vpnctl.socket}"\nruntime_dir = "/x"\n')
    assert vpnctl("status", "ams1").code == 0
    elsewhere = vpnctl.home / "elsewhere.toml"
    vpnctl.config.rename(elsewhere)
    assert vpnctl("--config", elsewhere, "status", "ams1").code == 0
    vpnctl("status", "ams1").assert_refused(2)


def test_a_spoiled_configuration_is_no_obstacle_but_is_named(vpnctl: Vpnctl) -> None:
    del vpnctl.environment["VPND_SOCKET"]
    vpnctl.config.parent.mkdir()
    vpnctl.config.write_text("[node\n")
    ended = vpnctl("status")
    ended.assert_refused(3)
    assert str(vpnctl.config) in ended.hints[0]


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "completion"])
def test_a_failure_is_a_json_document_where_json_was_asked_for(
    vpnctl: Vpnctl, command: str
) -> None:
    """Without a daemon and a configuration, and with an option that there is not."""
    arguments = COMMANDS[command]
    for more in (("--json",), ("--json", "--nonsense")):
        ended = vpnctl(*arguments, *more)
        if ended.code == 0:  # init needs nothing
            assert ended.document
            continue
        told = ended.document
        if command == "check" and len(more) == 1:
            assert not told["valid"]
            continue
        assert told["schema"] == SCHEMA
        wrong = told["error"]
        assert wrong["message"] == ended.errors[0]
        assert wrong["hint"] == ended.hints[0]
        assert wrong["code"] == {2: "usage", 3: "unreachable", 1: "failed"}[ended.code]


def test_the_daemons_refusal_is_its_own_document(vpnctl: Vpnctl, daemon: FakeDaemon) -> None:
    detail: ErrorDetail = {"file": "/x", "line": 3, "key": "node.name", "reason": "r", "hint": "h"}
    daemon.refuses = (503, error("unavailable", "not now", "try again", [detail]))
    for command in (("status",), ("status", "--watch"), ("peer", "list"), ("reload",)):
        ended = vpnctl(*command, "--json")
        assert ended.document["error"] == daemon.refuses[1]["error"]
    daemon.refuses = None
    assert vpnctl("status", "nobody", "--json").document["error"]["code"] == "no_such_peer"
    lines = vpnctl("--config", "", "status", "--json").stdout
    assert json.loads(lines)["error"]["code"] == "usage"


def test_a_document_that_says_it_already_stays_the_only_one(
    vpnctl: Vpnctl, daemon: FakeDaemon
) -> None:
    daemon.reloaded["restart"] = ["node.listen"]
    ended = vpnctl("reload", "--json")
    assert ended.code == 2
    assert ended.document["restart"] == ["node.listen"]


OUTPUTS = (
    ("status",), ("status", "--json"), ("status", "--help"), ("--version",), ("peer", "list"),
    ("peer", "show", "ams1"), ("peer", "rekey", "ams1", "--json"), ("keysource", "list"),
    ("reload",), ("lab", "status"), ("completion", "bash"), ("status", "nobody", "--json"),
)  # fmt: skip


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", OUTPUTS, ids=" ".join)
def test_a_full_disk_under_stdout_is_told(
    vpnctl: Vpnctl, daemon: FakeDaemon, arguments: tuple[str, ...], unbuffered: str
) -> None:
    daemon.links = [link("ams1")]
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run(
            [PROGRAM, *arguments],
            env={**vpnctl.environment, "PYTHONUNBUFFERED": unbuffered},
            stdout=full, stderr=subprocess.PIPE, encoding="utf-8", check=False, timeout=60,
        )  # fmt: skip
    ended = Ended(done.returncode, "", done.stderr)
    ended.assert_refused(1)
    assert ended.errors[-1] == "the output cannot be written: No space left on device"


@pytest.mark.parametrize("arguments", OUTPUTS, ids=" ".join)
def test_a_reader_that_is_gone_is_told_nothing(
    vpnctl: Vpnctl, daemon: FakeDaemon, arguments: tuple[str, ...]
) -> None:
    daemon.links = [link("ams1")]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [PROGRAM, *arguments],
        env=vpnctl.environment,
        stdout=writer, stderr=subprocess.PIPE, encoding="utf-8", check=False, timeout=60,
    )  # fmt: skip
    os.close(writer)
    assert done.returncode == 1
    assert "nobody" in arguments or done.stderr == ""


@pytest.mark.parametrize("command", ["status >&-", "status 2>&-", "status 2>/dev/full"])
def test_streams_that_are_closed_or_full(vpnctl: Vpnctl, command: str) -> None:
    done = subprocess.run(
        ["sh", "-c", f"{PROGRAM} {command}"],
        env=vpnctl.environment, capture_output=True, encoding="utf-8", check=False, timeout=60,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    if ">&-" in command and "2>" not in command:
        assert done.returncode == 1
        assert "stdout is closed" in done.stderr
    else:
        assert done.returncode == 3


def test_ctrl_c_is_no_traceback(vpnctl: Vpnctl) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(vpnctl.socket))
        silent.listen()
        with vpnctl.start("peer", "list") as process:
            connected, _ = silent.accept()
            with connected:
                process.send_signal(signal.SIGINT)
                _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in stderr


def test_version_and_help(vpnctl: Vpnctl) -> None:
    assert vpnctl("--version").stdout.startswith("vpnctl ")
    for command in COMMANDS.values():
        words = [word for word in command[:2] if not word.startswith("-")]
        ended = vpnctl(*(words if words[0] in ("peer", "lab") else words[:1]), "--help")
        assert ended.code == 0
        assert ended.stderr == ""
        assert "--help" in ended.stdout
        assert "\x1b" not in ended.stdout

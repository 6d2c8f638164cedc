"""`vpnctl init`, `id` and `check`: a node's files, made once and never again."""

import json
import os
import shlex
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from kex.identity import Fingerprint
from tests.cli.conftest import PROGRAM, Ended, Vpnctl, files_below
from tests.cli.fake_daemon import IDENTITY, FakeDaemon
from vpnd.api import SCHEMA
from vpnd.config import load_config

pytestmark = pytest.mark.slow


class Node:
    """A node below the test's folder."""

    def __init__(self, vpnctl: Vpnctl) -> None:
        self.vpnctl = vpnctl
        self.config = vpnctl.config
        self.state = vpnctl.home / "state"
        self.identity = self.state / "identity.key"

    def init(self, *flags: str) -> Ended:
        runtime = self.vpnctl.home / "run"
        places = ("--state-dir", str(self.state), "--runtime-dir", str(runtime))
        return self.vpnctl("init", *places, *flags)

    def first_init(self, *flags: str) -> Ended:
        ended = self.init("--name", "fra1", "--address", "10.255.0.1/24", *flags)
        assert ended.code == 0, ended
        return ended

    def fingerprint(self) -> Fingerprint:
        (found,) = load_config(self.config).own
        return found


@pytest.fixture
def node(vpnctl: Vpnctl) -> Node:
    return Node(vpnctl)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_files_have_their_modes_under_any_umask(node: Node, umask: int) -> None:
    before = os.umask(umask)
    try:
        node.first_init()
    finally:
        os.umask(before)
    assert mode(node.config.parent) == 0o755
    assert mode(node.config) == 0o644
    assert mode(node.config.parent / "peers.d") == 0o755
    assert mode(node.state) == 0o700
    assert mode(node.identity) == 0o600


def test_the_line_is_the_far_ends_whole_command(node: Node) -> None:
    ended = node.first_init(
        "--address", "fd00:255::1/64", "--endpoint", "[2001:db8::1]:51821"
    )  # fmt: skip
    assert shlex.split(ended.stdout) == [
        "vpnctl", "peer", "add", "fra1",
        "--identity", node.fingerprint().text(),
        "--endpoint", "[2001:db8::1]:51821",
        "--allow", "10.255.0.1/32,fd00:255::1/128",
    ]  # fmt: skip


def test_what_is_behind_is_announced_and_stands_in_the_line(node: Node) -> None:
    ended = node.first_init("--behind", "10.10.0.0/16,10.11.0.0/16", "--behind", "fd00:10::/48")
    allowed = "10.255.0.1/32,10.10.0.0/16,10.11.0.0/16,fd00:10::/48"
    assert shlex.split(ended.stdout)[-2:] == ["--allow", allowed]
    (tunnel,) = load_config(node.config).tunnels.values()
    assert [str(each) for each in tunnel.announce] == allowed.split(",")[1:]
    # By the file from then on, also where it was edited
    assert node.init().stdout == ended.stdout
    text = node.config.read_text()
    node.config.write_text(text.replace('"10.11.0.0/16"', '"10.12.0.0/16"'))
    again = node.init("--behind", "10.10.0.0/16")
    assert shlex.split(again.stdout)[-1] == allowed.replace("10.11", "10.12")
    assert any("--behind changed nothing" in hint for hint in again.hints)


def test_without_a_network_behind_it_the_line_says_so(node: Node) -> None:
    assert any("--behind" in hint for hint in node.first_init().hints)


@pytest.mark.parametrize(
    "flags",
    [
        ("--behind", "10.10.0.1/16"),
        ("--behind", "10.10.0.0"),
        ("--behind", "10.10.0.0/16,,"),
        ("--behind", ",".join(f"10.{n}.0.0/16" for n in range(16))),
    ],
)
def test_networks_that_cannot_be_announced_make_no_files(
    node: Node, flags: tuple[str, str]
) -> None:
    ended = node.init("--name", "fra1", "--address", "10.255.0.1/24", *flags)
    ended.assert_refused(2)
    assert not node.config.exists()
    assert not node.identity.exists()


def test_the_line_works_at_the_far_end(node: Node, daemon: FakeDaemon) -> None:
    line = node.first_init("--endpoint", "fra1.example.net:51821").stdout
    program, *arguments = shlex.split(line)
    assert program == "vpnctl"
    assert node.vpnctl(*arguments).code == 0
    ((_, _, request),) = daemon.requests
    assert request == {
        "name": "fra1",
        "identity": [node.fingerprint().text()],
        "endpoint": "fra1.example.net:51821",
        "allowed_ips": ["10.255.0.1/32"],
    }


def test_no_secret_is_printed(node: Node) -> None:
    first, again = node.first_init(), node.init("--json")
    seed = node.identity.read_text().split()[2]
    for ended in (first, again, node.vpnctl("id"), node.vpnctl("check")):
        assert seed not in ended.stdout + ended.stderr


def test_a_second_init_changes_nothing_and_prints_the_same_line(node: Node) -> None:
    first = node.first_init("--endpoint", "192.0.2.1:51821")
    before = files_below(node.vpnctl.home)
    for flags in ((), ("--name", "fra1", "--address", "10.255.0.1/24", "--suite", "1")):
        again = node.init(*flags)
        assert again.code == 0
        assert again.stdout == first.stdout
        assert "made" not in again.stderr
        assert "changed nothing" not in again.stderr
    assert files_below(node.vpnctl.home) == before


def test_what_a_second_init_cannot_change_it_says(node: Node) -> None:
    first = node.first_init()
    before = files_below(node.vpnctl.home)
    again = node.init("--name", "par1", "--suite", "2", "--address", "10.255.0.1/24")
    assert again.stdout == first.stdout
    assert "--name, --suite changed nothing" in again.stderr
    assert files_below(node.vpnctl.home) == before


def test_an_identity_is_never_overwritten(node: Node) -> None:
    first = node.first_init()
    secret = node.identity.read_bytes()
    node.config.unlink()
    assert node.first_init().stdout == first.stdout
    assert node.identity.read_bytes() == secret
    node.identity.write_text("spoiled\n")
    refused = node.init()
    refused.assert_refused(1)
    assert node.identity.read_text() == "spoiled\n"


def test_an_interrupted_init_is_finished_by_the_next(node: Node) -> None:
    node.first_init()
    config = node.config.read_bytes()
    node.identity.unlink()
    (node.config.parent / "peers.d").rmdir()
    assert node.init().code == 0
    assert mode(node.identity) == 0o600
    assert (node.config.parent / "peers.d").is_dir()
    assert node.config.read_bytes() == config


def test_a_configuration_that_cannot_be_used_is_left_alone(node: Node) -> None:
    node.first_init()
    node.config.write_text("[node]\nnmae = 'fra1'\n")
    before = files_below(node.vpnctl.home)
    refused = node.init()
    refused.assert_refused(2)
    assert any("node.nmae" in error for error in refused.errors)
    assert files_below(node.vpnctl.home) == before


def test_what_contradicts_itself_is_refused_before_anything_is_made(node: Node) -> None:
    refused = node.init("--name", "a", "--address", "10.0.0.1/24", "--wg-port", "51821")
    refused.assert_refused(2)
    assert "51821" in refused.errors[0]
    assert not files_below(node.vpnctl.home)


def test_all_flags_end_up_in_the_configuration(node: Node) -> None:
    node.first_init(
        "--tunnel", "carrier.2", "--interface", "wg2", "--wg-port", "4000",
        "--backend", "userspace", "--listen", "0.0.0.0:4001,[::1]:4001", "--suite", "2",
    )  # fmt: skip
    config = load_config(node.config)
    tunnel = config.tunnels["carrier.2"]
    assert (tunnel.interface, tunnel.listen_port, tunnel.backend) == ("wg2", 4000, "userspace")
    assert [str(each) for each in config.node.listen] == ["0.0.0.0:4001", "[::1]:4001"]
    assert config.node.state_dir == node.state
    assert config.own[0].suite == 2


def test_each_tunnel_has_its_line(node: Node) -> None:
    node.first_init()
    more = '\n[tunnels.second]\ninterface = "wg2"\nlisten_port = 4\naddresses = ["10.9.0.1/24"]\n'
    node.config.write_text(node.config.read_text() + more)
    assert [shlex.split(line)[-1] for line in node.init().stdout.splitlines()] == [
        "10.255.0.1/32",
        "10.9.0.1/32",
    ]
    assert shlex.split(node.init("--tunnel", "second").stdout)[-1] == "10.9.0.1/32"


def test_init_as_json(node: Node) -> None:
    document = node.first_init("--endpoint", "192.0.2.1:51821", "--json").document
    assert document["schema"] == SCHEMA
    assert document["node"] == "fra1"
    assert document["identity"] == {"suite": 1, "text": node.fingerprint().text()}
    assert str(node.identity) in document["made"]
    assert document["far_end"][0]["tunnel"] == "backbone"
    assert document["far_end"][0]["command"][:4] == ["vpnctl", "peer", "add", "fra1"]
    assert node.init("--json").document["made"] == []


def test_a_folder_that_cannot_be_made_is_told(node: Node) -> None:
    ended = node.vpnctl("--config", "/proc/none/vpnd.toml", "init", "--address", "10.0.0.1/24")
    ended.assert_refused(1)
    assert ended.errors[0].startswith("/proc/none: cannot be made")


def test_a_folder_that_others_can_write_is_refused(node: Node) -> None:
    node.config.parent.mkdir()
    node.config.parent.chmod(0o777)
    node.init("--address", "10.0.0.1/24").assert_refused(1)
    assert not node.identity.exists()


@pytest.mark.netns
def test_root_hands_the_folders_to_the_daemons_user(node: Node) -> None:
    """In a mount namespace in which this host has a user vpnd."""
    uid, gid = 4242, 4343
    passwd = node.vpnctl.home / "passwd"
    passwd.write_text(f"root:x:0:0::/root:/bin/sh\nvpnd:x:{uid}:{gid}::/:/bin/false\n")
    script = 'mount --bind "$0" /etc/passwd && exec "$@"'
    in_namespace = ["unshare", "--mount", "sh", "-c", script, str(passwd)]

    def vpnctl(*words: str) -> subprocess.CompletedProcess[str]:
        command = [*in_namespace, str(PROGRAM), *words]
        environment = node.vpnctl.environment
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    init = ("init", "--address", "10.0.0.1/24", "--name", "a", "--state-dir", str(node.state))
    assert vpnctl(*init).returncode == 0
    assert vpnctl("id", "new", "next").returncode == 0

    def owner(path: Path) -> tuple[int, int]:
        found = path.stat()
        return found.st_uid, found.st_gid

    new = node.state / "identity-next.key"
    for handed_over in (node.state, node.identity, new, node.config.parent / "peers.d"):
        assert owner(handed_over) == (uid, gid)
    for kept in (node.config, node.config.parent):
        assert owner(kept) == (os.geteuid(), os.getegid())
    # What that user puts under the names leads root nowhere
    outside = node.vpnctl.home / "outside"
    outside.mkdir(mode=0o755)
    node.state.rename(node.vpnctl.home / "aside")
    node.state.symlink_to(outside)
    os.chown(node.state, uid, gid, follow_symlinks=False)
    os.chown(node.vpnctl.home, uid, gid)
    for command in (("id", "new", "third"), ("id", "use", "next"), ("id", "remove", "next"), init):
        refused = vpnctl(*command)
        assert refused.returncode == 1, command
        assert "is a symbolic link that others can change" in refused.stderr
    assert os.listdir(outside) == []


def test_id_is_read_from_disk_without_a_daemon(node: Node) -> None:
    node.first_init()
    text = node.fingerprint().text()
    assert node.vpnctl("id").stdout.split("\n")[1].split() == ["default", "1", "yes", text]
    assert node.vpnctl("id", "--json").document == {
        "schema": SCHEMA,
        "identities": [{"suite": 1, "text": text, "name": "default", "in_use": True}],
    }


def test_id_is_the_daemons_where_there_is_one(node: Node, daemon: FakeDaemon) -> None:
    assert node.vpnctl("id").stdout.split("\n")[1].split() == ["–", "1", "yes", IDENTITY]


def test_id_as_a_qr_code(node: Node) -> None:
    node.first_init()
    text, *code = node.vpnctl("id", "--qr").stdout.splitlines()
    assert text == node.fingerprint().text()
    assert len({len(line) for line in code}) == 1
    assert Fingerprint.parse(text.upper()) == node.fingerprint()
    node.vpnctl("id", "--qr", "--json").assert_refused(2)


def test_id_without_an_identity_says_how_to_make_one(node: Node) -> None:
    node.first_init()
    node.identity.unlink()
    ended = node.vpnctl("id")
    ended.assert_refused(1)
    assert ended.hints == ["vpnctl init makes one"]


def test_id_that_others_can_read_is_refused(node: Node) -> None:
    node.first_init()
    node.identity.chmod(0o644)
    node.vpnctl("id").assert_refused(1)


@pytest.fixture
def open_home() -> Iterator[Path]:
    """A folder that other users can look into: pytest's own are closed to them, again and again."""
    with TemporaryDirectory(prefix="vpnctl-test-") as folder:
        path = Path(folder)
        path.chmod(0o755)
        yield path


def test_what_this_user_may_not_read_is_not_called_missing(open_home: Path) -> None:
    """Run as another user, and not by root: to root every file can be read."""
    node = Node(Vpnctl(open_home))
    node.first_init()
    if os.geteuid() == 0:
        nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    else:
        nobody = []
        node.state.chmod(0)
    uid = os.geteuid() if os.geteuid() else 65534

    def asked(*arguments: str) -> Ended:
        done = subprocess.run(
            [*nobody, PROGRAM, *arguments],
            env=node.vpnctl.environment, cwd="/", capture_output=True, encoding="utf-8",
            check=False, timeout=60,
        )  # fmt: skip
        return Ended(done.returncode, done.stdout, done.stderr)

    try:
        checked = asked("check")
        assert checked.code == 0
        assert "no identity" not in checked.stdout
        assert "nothing wrong in what can be read as" in checked.stdout
        assert f"uid {uid})" in checked.stdout.splitlines()[1]
        document = asked("check", "--json").document
        assert document["unread"] == [str(node.state)]
        for command in (
            ("id",),
            ("id", "use", "default"),
            ("id", "remove", "x"),
            ("id", "new", "x"),
        ):
            ended = asked(*command)
            ended.assert_refused(1)
            assert "cannot be read as" in ended.errors[0]
            assert "there is no" not in ended.stderr
        node.config.parent.chmod(0o700 if nobody else 0)
        ended = asked("check")
        ended.assert_refused(2)
        assert "cannot be read as" in ended.errors[0]
        assert not any("init" in hint for hint in ended.hints)
    finally:
        node.config.parent.chmod(0o755)
        node.state.chmod(0o700)


PEER = 'identity = "{}"\nallowed_ips = ["{}"]\n'


def test_check_of_a_good_configuration_shows_what_overlaps(node: Node) -> None:
    node.first_init()
    peers = node.config.parent / "peers.d"
    wide, narrow = (Fingerprint(1, bytes([number]) * 32).text() for number in (1, 2))
    (peers / "hub.toml").write_text(PEER.format(wide, "10.0.0.0/8"))
    (peers / "branch.toml").write_text(PEER.format(narrow, "10.7.0.0/16"))
    ended = node.vpnctl("check")
    assert ended.code == 0, ended
    # And whether this host forwards, which depends on the host
    summary, note = [line for line in ended.stdout.splitlines() if "forward" not in line]
    assert summary == f"{node.config}: good; tunnels: backbone; peers: branch, hub"
    assert note.startswith("note: ")
    assert "10.7.0.0/16 lies within 10.0.0.0/8 at peer hub" in note
    document = node.vpnctl("check", "--json").document
    assert document["schema"] == SCHEMA
    assert document["valid"] is True
    assert document["notes"][0]["key"] == "allowed_ips[0]"


def test_check_tells_all_errors_at_once(node: Node) -> None:
    node.first_init()
    (node.config.parent / "peers.d" / "x.toml").write_text("identity = 'vpnd1'\nalowed_ips = []\n")
    node.config.write_text(node.config.read_text().replace("wg-backbone", "wg backbone"))
    ended = node.vpnctl("check")
    ended.assert_refused(2)
    told = "\n".join(ended.errors)
    for part in ("tunnels.backbone.interface", "x.toml:1: identity", "x.toml:2: alowed_ips"):
        assert part in told
    as_json = node.vpnctl("check", "--json")
    assert as_json.code == 2
    document = json.loads(as_json.stdout)
    assert document["valid"] is False
    assert len(document["errors"]) == len(ended.errors)


def test_check_before_init_says_what_to_do(node: Node) -> None:
    ended = node.vpnctl("check")
    ended.assert_refused(2)
    assert "vpnctl init makes one" in ended.hints[0]

"""`vpnctl id new`, `use` and `remove`, and `init --identity`: files only, no daemon."""

import shlex

import pytest

from kex.identity import Fingerprint
from tests.cli.conftest import Vpnctl, files_below
from vpnd.config import load_config

pytestmark = pytest.mark.slow


class Node:
    def __init__(self, vpnctl: Vpnctl) -> None:
        self.vpnctl = vpnctl
        self.state = vpnctl.home / "state"
        self.init = (
            *("init", "--name", "fra1", "--address", "10.255.0.1/24"),
            *("--state-dir", self.state, "--runtime-dir", vpnctl.home / "run"),
        )
        ended = vpnctl(*self.init)
        assert ended.code == 0, ended

    def names(self) -> list[str]:
        """The identities as the daemon would find them, the one in use first."""
        return list(load_config(self.vpnctl.config).identities)

    def shown(self) -> list[list[str]]:
        """The rows of `vpnctl id`: name, suite, in use, fingerprint."""
        heads, *rows = self.vpnctl("id").stdout.splitlines()
        assert heads.split() == ["name", "suite", "in", "use", "fingerprint"]
        return [row.split() for row in rows]


@pytest.fixture
def node(vpnctl: Vpnctl) -> Node:
    return Node(vpnctl)


def test_a_rotation_step_by_step(node: Node, vpnctl: Vpnctl) -> None:
    old = vpnctl("id", "--identity", "default").stdout.strip()
    made = vpnctl("id", "new", "next", "--suite", "2")
    assert made.code == 0, made
    new = made.stdout.strip()
    assert Fingerprint.parse(new).suite == 2
    assert (node.state / "identity-next.key").stat().st_mode & 0o777 == 0o600
    assert node.names() == ["default", "next"]
    assert node.shown() == [["default", "1", "yes", old], ["next", "2", "no", new]]
    assert vpnctl("id", "--identity", "next").stdout.strip() == new
    assert vpnctl("id", "use", "next", "--json").document["identity"]["text"] == new
    assert node.names() == ["next", "default"]
    assert node.shown() == [["next", "2", "yes", new], ["default", "1", "no", old]]
    in_use = [each["in_use"] for each in vpnctl("id", "--json").document["identities"]]
    assert in_use == [True, False]
    refused = vpnctl("id", "remove", "next")
    refused.assert_refused(1)
    assert "in use" in refused.errors[0]
    assert vpnctl("id", "remove", "default").code == 0
    assert node.names() == ["next"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("id", "new", "default"),
        ("id", "new", "../evil"),
        ("id", "new", "x", "--suite", "3"),
        ("id", "use", "nobody"),
        ("id", "remove", "nobody"),
        ("id", "--identity", "nobody"),
        ("id", "--json", "new", "x"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_done_changes_nothing(
    node: Node, vpnctl: Vpnctl, arguments: tuple[str, ...]
) -> None:
    before = files_below(vpnctl.home)
    ended = vpnctl(*arguments)
    ended.assert_refused(ended.code)
    assert ended.code in (1, 2)
    assert files_below(vpnctl.home) == before


def test_an_identity_in_use_that_is_not_there_is_told(node: Node, vpnctl: Vpnctl) -> None:
    vpnctl("id", "new", "next")
    vpnctl("id", "use", "next")
    (node.state / "identity-next.key").unlink()
    ended = vpnctl("check")
    ended.assert_refused(2)
    assert "names the identity next, which is not here" in ended.errors[0]
    assert "vpnctl id use" in ended.hints[0]


def test_init_makes_a_second_identity_for_a_second_link(node: Node, vpnctl: Vpnctl) -> None:
    ended = vpnctl("init", "--identity", "second")
    assert ended.code == 0, ended
    words = shlex.split(ended.stdout)
    assert words[3] == "fra1-second"
    assert words[5] == vpnctl("id", "--identity", "second").stdout.strip()
    assert vpnctl("init", "--identity", "second").stdout == ended.stdout
    assert node.names() == ["default", "second"]


def test_the_line_of_a_second_identity_has_the_prefixes_of_its_own_tunnel(
    node: Node, vpnctl: Vpnctl
) -> None:
    def allowed(*more: str) -> list[str]:
        ended = vpnctl("init", "--identity", "second", *more)
        assert ended.code == 0, ended
        return [shlex.split(line)[-1] for line in ended.stdout.splitlines()]

    shared = "a second link to the same gateway needs a tunnel of its own"
    assert shared in "".join(vpnctl("init", "--identity", "second").hints)
    ended = vpnctl("init", "--identity", "third", "--tunnel", "second")
    ended.assert_refused(2)
    assert "there is no tunnel second" in ended.errors[0]
    assert node.names() == ["default", "second"]  # nothing was made for it
    main = vpnctl.config.read_text()
    vpnctl.config.write_text(
        f'{main}\n[tunnels.second]\ninterface = "wg2"\nlisten_port = 4\n'
        'addresses = ["10.9.0.1/24"]\n'
    )
    assert len(allowed()) == 2  # no link yet: nobody knows which one
    peer = vpnctl.config.parent / "peers.d" / "ams1.toml"
    peer.write_text(
        f'identity = "{Fingerprint(1, bytes(32)).text()}"\ntunnel = "backbone"\n'
        'allowed_ips = ["10.30.0.0/16"]\n'
    )
    assert allowed() == ["10.9.0.1/32"]
    assert shared not in "".join(vpnctl("init", "--identity", "second").hints)
    assert allowed("--tunnel", "backbone") == ["10.255.0.1/32"]
    peer.with_name("ams2.toml").write_text(
        f'identity = "{Fingerprint(1, bytes([1]) * 32).text()}"\ntunnel = "second"\n'
        'local_identity = "second"\nallowed_ips = ["10.31.0.0/16"]\n'
    )
    assert allowed() == ["10.9.0.1/32"]


def test_a_peers_file_names_an_identity_that_is_not_there(node: Node, vpnctl: Vpnctl) -> None:
    peer = vpnctl.config.parent / "peers.d" / "ams1.toml"
    text = Fingerprint(1, bytes(32)).text()
    peer.write_text(
        f'identity = "{text}"\nlocal_identity = "secnd"\nallowed_ips = ["10.9.0.0/16"]\n'
    )
    vpnctl("id", "new", "second")
    ended = vpnctl("check")
    ended.assert_refused(2)
    assert 'local_identity: this node has no identity "secnd"' in ended.errors[0]
    assert 'did you mean "second"?' in ended.hints[0]
    peer.write_text(peer.read_text().replace("secnd", "second"))
    assert vpnctl("check").code == 0

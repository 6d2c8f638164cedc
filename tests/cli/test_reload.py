"""`vpnctl reload` and `vpnctl peer set`, against a server that answers as the daemon does."""

import pytest

from tests.cli.conftest import Vpnctl
from tests.cli.fake_daemon import FakeDaemon, error, link
from tests.cli.test_peers import IDENTITY, OTHER_IDENTITY
from vpnd.api import SCHEMA, ConfigChange, KeyChange, ReloadResult

CHANGES = [
    ConfigChange(what="peer", name="par1", change="removed", keys=[]),
    ConfigChange(what="peer", name="lon1", change="added", keys=[]),
    ConfigChange(
        what="peer",
        name="ams1",
        change="changed",
        keys=[KeyChange(key="keepalive", before="25", after="10")],
    ),
]
TEXT = "- peer par1\n+ peer lon1\n~ peer ams1\n    keepalive: 25 -> 10\n"


def test_reload_shows_what_changed(vpnctl: Vpnctl, daemon: FakeDaemon) -> None:
    daemon.reloaded["changes"] = CHANGES
    ended = vpnctl("reload")
    assert (ended.code, ended.stdout, ended.stderr) == (0, TEXT, "")
    assert daemon.requests == [("POST", "/v1/reload", {"dry_run": False})]
    assert vpnctl("reload", "--json").document["changes"] == CHANGES


def test_a_dry_run_says_so_to_the_daemon(vpnctl: Vpnctl, daemon: FakeDaemon) -> None:
    assert vpnctl("reload", "--dry-run").stdout == "nothing would change\n"
    assert vpnctl("reload").stdout == "nothing has changed\n"
    assert [body["dry_run"] for _, _, body in daemon.requests] == [True, False]


def test_a_dry_run_tells_what_needs_a_restart(vpnctl: Vpnctl, daemon: FakeDaemon) -> None:
    daemon.reloaded = ReloadResult(
        schema=SCHEMA, dry_run=True, changes=CHANGES, restart=["node.listen"], problems=[]
    )
    ended = vpnctl("reload", "--dry-run")
    assert (ended.code, ended.stdout) == (2, TEXT)
    assert ended.errors == ["restart vpnd for node.listen: a reload would be refused"]


def test_what_did_not_succeed_at_once_is_told(vpnctl: Vpnctl, daemon: FakeDaemon) -> None:
    daemon.reloaded["problems"] = ["ams1: wg0: busy", "lon1: wg0: busy"]
    ended = vpnctl("reload")
    assert (ended.code, ended.errors) == (1, ["ams1: wg0: busy", "lon1: wg0: busy"])


def test_a_refused_reload_tells_every_error(vpnctl: Vpnctl, daemon: FakeDaemon) -> None:
    details = [{"file": "/a.toml", "line": 3, "key": "x", "reason": "bad", "hint": "mend it"}]
    daemon.refuses = (422, error("invalid", "2 values are wrong", "", details))  # type: ignore[arg-type]
    ended = vpnctl("reload")
    ended.assert_refused(2)
    assert "/a.toml:3: x: bad" in ended.errors


def test_set_sends_what_is_given_and_nothing_else(vpnctl: Vpnctl, daemon: FakeDaemon) -> None:
    daemon.links = [link("ams1")]
    ended = vpnctl(
        "peer", "set", "ams1", "--identity", f"{IDENTITY},{OTHER_IDENTITY}",
        "--endpoint", "none", "--keepalive", "0", "--allow", "10.0.0.0/8",
        "--local-identity", "second", "--wireguard-endpoint", "192.0.2.1:4500",
        "--wireguard-key", "B" * 42 + "A=",
    )  # fmt: skip
    assert ended.code == 0, ended
    vpnctl("peer", "set", "ams1", "--wireguard-key", "none")
    vpnctl("peer", "set", "ams1", "--keepalive", "5")
    assert daemon.requests == [
        (
            "PATCH",
            "/v1/peers/ams1",
            {
                "identity": [IDENTITY, OTHER_IDENTITY],
                "endpoint": None,
                "wireguard_endpoint": "192.0.2.1:4500",
                "wireguard_key": "B" * 42 + "A=",
                "local_identity": ["second"],
                "allowed_ips": ["10.0.0.0/8"],
                "keepalive": 0,
            },
        ),
        ("PATCH", "/v1/peers/ams1", {"wireguard_key": None}),
        ("PATCH", "/v1/peers/ams1", {"keepalive": 5}),
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--identity", "vpnd1x"),
        ("--keepalive", "-1"),
        ("--endpoint", "host"),
        ("--wireguard-key", "x"),
    ],
    ids=" ".join,
)
def test_set_refuses_nonsense(
    vpnctl: Vpnctl, daemon: FakeDaemon, arguments: tuple[str, ...]
) -> None:
    daemon.links = [link("ams1")]
    vpnctl("peer", "set", "ams1", *arguments).assert_refused(2)
    assert daemon.requests == []


def test_set_names_the_peers_that_come_close(vpnctl: Vpnctl, daemon: FakeDaemon) -> None:
    daemon.links = [link("ams1")]
    ended = vpnctl("peer", "set", "amd1", "--keepalive", "1")
    ended.assert_refused(2)
    assert ended.hints == ["did you mean ams1?"]

"""`vpnctl peer …` against a server that answers as the daemon does."""

import re

import pytest

from kex.identity import Fingerprint
from tests.cli.conftest import Vpnctl
from tests.cli.fake_daemon import FakeDaemon, error, link
from vpnd.api import SCHEMA

IDENTITY = Fingerprint(1, bytes(range(32))).text()
OTHER_IDENTITY = Fingerprint(1, bytes(range(32, 64))).text()
ADD = ("peer", "add", "ams1", "--identity", IDENTITY, "--allow", "10.255.0.2/32")


def test_add_sends_what_was_asked_for(vpnctl: Vpnctl, daemon: FakeDaemon) -> None:
    ended = vpnctl(
        "peer", "add", "ams1",
        "--identity", f"{IDENTITY}, {OTHER_IDENTITY.upper()}",
        "--endpoint", "[2001:db8:0::1]:51821",
        "--allow", "10.255.0.2/32,fd00:255:0::2/128",
        "--allow", "10.20.0.0/16",
        "--tunnel", "backbone",
        "--keepalive", "0",
        "--wireguard-key", "B" * 42 + "A=",
    )  # fmt: skip
    assert ended.code == 0, ended
    assert ended.stderr == ""
    assert ended.stdout == "ams1: exchanging: the reason for exchanging\n"
    assert daemon.requests == [
        (
            "POST",
            "/v1/peers",
            {
                "name": "ams1",
                "identity": [IDENTITY, OTHER_IDENTITY],
                "endpoint": "[2001:db8::1]:51821",
                "allowed_ips": ["10.255.0.2/32", "fd00:255::2/128", "10.20.0.0/16"],
                "tunnel": "backbone",
                "keepalive": 0,
                "wireguard_key": "B" * 42 + "A=",
            },
        )
    ]


def test_what_is_left_out_is_left_to_the_daemon(vpnctl: Vpnctl, daemon: FakeDaemon) -> None:
    ended = vpnctl(*ADD, "--json")
    assert ended.document == daemon.links[0]
    ((_, _, sent),) = daemon.requests
    assert sent.keys() == {"name", "identity", "allowed_ips"}


def test_add_tells_warnings_beside_the_data(vpnctl: Vpnctl, daemon: FakeDaemon) -> None:
    daemon.warnings_of_added = ["the name does not resolve yet"]
    ended = vpnctl(*ADD, "--json")
    assert ended.document["peer"] == "ams1"
    assert ended.hints == ["ams1: the name does not resolve yet"]


def test_add_waits_for_the_link(vpnctl: Vpnctl, daemon: FakeDaemon) -> None:
    daemon.activates_after = 2
    ended = vpnctl(*ADD, "--wait", "60")
    assert ended.code == 0, ended
    assert ended.stdout == "ams1: active, key id 0badc0de\n"


def test_add_says_when_the_link_did_not_come_up(vpnctl: Vpnctl, daemon: FakeDaemon) -> None:
    ended = vpnctl(*ADD, "--wait", "0.2")
    assert ended.code == 4
    assert ended.stdout == "ams1: exchanging: the reason for exchanging\n"
    assert ended.errors == ["ams1 is still exchanging after 0.2 s: the reason for exchanging"]
    assert "far end" in ended.hints[0]


def test_add_without_a_daemon_says_what_else_can_be_done(vpnctl: Vpnctl) -> None:
    ended = vpnctl(*ADD)
    ended.assert_refused(3)
    assert "systemctl start vpnd" in ended.hints[0]
    assert "peers.d/ams1.toml" in ended.hints[0]


def test_add_twice_is_the_daemons_to_refuse(vpnctl: Vpnctl, daemon: FakeDaemon) -> None:
    vpnctl(*ADD)
    ended = vpnctl(*ADD)
    assert ended.code == 2
    assert ended.errors == ["there is a peer ams1 already"]


def test_every_detail_of_a_refusal_is_a_line(vpnctl: Vpnctl, daemon: FakeDaemon) -> None:
    daemon.refuses = (
        422,
        error(
            "invalid",
            "the peer cannot be added",
            details=[
                {"key": "tunnel", "reason": 'there is no tunnel "x"', "hint": "tunnels here: y"},
                {"key": "allowed_ips[0]", "reason": "10.255.0.2/32 is also at peer par1"},
            ],
        ),
    )
    ended = vpnctl(*ADD, "--tunnel", "x")
    ended.assert_refused(2)
    assert ended.errors == [
        "the peer cannot be added",
        'tunnel: there is no tunnel "x"',
        "allowed_ips[0]: 10.255.0.2/32 is also at peer par1",
    ]
    assert ended.hints == ["tunnels here: y"]


def test_a_message_that_is_its_own_detail_is_told_once(vpnctl: Vpnctl, daemon: FakeDaemon) -> None:
    only = "tunnel: there is no tunnel x"
    details = [{"key": "tunnel", "reason": "there is no tunnel x", "hint": "tunnels here: y"}]
    daemon.refuses = (422, error("invalid", only, "tunnels here: y", details))  # type: ignore[arg-type]
    ended = vpnctl(*ADD)
    assert ended.errors == [only]
    assert ended.hints == ["tunnels here: y"]


@pytest.mark.parametrize("wrong", range(64))
def test_a_character_mistyped_in_an_identity_never_gets_through(wrong: int) -> None:
    """Here without a process: 64 of them would take longer than they teach."""
    from cli.errors import UsageProblem
    from cli.values import Flags
    from vpnd.config_fields import fingerprint

    changed = "q" if IDENTITY[wrong] != "q" else "p"
    flags = Flags("vpnctl peer add")
    flags.read("--identity", fingerprint, IDENTITY[:wrong] + changed + IDENTITY[wrong + 1 :])
    with pytest.raises(UsageProblem):
        flags.check()


def test_list(vpnctl: Vpnctl, daemon: FakeDaemon) -> None:
    assert vpnctl("peer", "list").stdout.startswith("no peers yet")
    daemon.links = [link("ams1"), link("par1", endpoint=None)]
    rows = [re.split("  +", line) for line in vpnctl("peer", "list").stdout.splitlines()]
    assert rows[0][:3] == ["peer", "tunnel", "endpoint"]
    assert rows[1][:5] == ["ams1", "backbone", "192.0.2.7:51821", "10.255.0.2/32", "25 s"]
    assert rows[2][2] == "comes to us"
    document = vpnctl("peer", "list", "--json").document
    assert document["schema"] == SCHEMA
    assert [peer["name"] for peer in document["peers"]] == ["ams1", "par1"]


def test_show(vpnctl: Vpnctl, daemon: FakeDaemon) -> None:
    daemon.links = [link("ams1", "down")]
    ended = vpnctl("peer", "show", "ams1")
    assert ended.code == 0
    assert re.search(r"^file +/etc/vpnd/peers.d/ams1.toml$", ended.stdout, re.M)
    assert "the reason for down" in ended.stdout
    document = vpnctl("peer", "show", "ams1", "--json").document
    assert document["peer"]["name"] == "ams1"
    assert document["link"] == daemon.links[0]


def test_remove(vpnctl: Vpnctl, daemon: FakeDaemon) -> None:
    daemon.links = [link("ams1"), link("par1")]
    assert vpnctl("peer", "remove", "ams1").stdout == "ams1: removed\n"
    assert [left["peer"] for left in daemon.links] == ["par1"]
    assert vpnctl("peer", "remove", "par1", "--json").document["removed"] is True


def test_rekey(vpnctl: Vpnctl, daemon: FakeDaemon) -> None:
    daemon.links = [link("ams1")]
    assert vpnctl("peer", "rekey", "ams1").stdout.startswith("ams1: ")
    assert vpnctl("peer", "rekey", "ams1", "--json").document["started"] is True


@pytest.mark.parametrize("command", ["show", "remove", "rekey"])
def test_unknown_peer_is_corrected(vpnctl: Vpnctl, daemon: FakeDaemon, command: str) -> None:
    daemon.links = [link("ams1")]
    ended = vpnctl("peer", command, "amsl")
    ended.assert_refused(2)
    assert ended.hints == ["did you mean ams1?"]
    assert daemon.links == [link("ams1")]

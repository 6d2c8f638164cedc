"""The configuration: what is read, what is refused and why, files that must not be believed."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest

from kex.identity import Fingerprint, Identity
from tests.vpnd.config_files import AMS1, LON1, LON1_NEXT, Site, problem_at, problems_of
from vpnd.config import load_config
from vpnd.config_errors import ConfigErrors
from vpnd.config_fields import Endpoint, ListenAddress
from vpnd.identity_store import create_identity, system_suite

Change = Callable[[Site], None]

WIREGUARD_KEY = "B" * 42 + "A="


def lon1(**changes: Any) -> dict[str, Any]:
    return {"identity": LON1, "tunnel": "backbone", "allowed_ips": ["10.30.0.0/16"]} | changes


def second_tunnel(**changes: Any) -> dict[str, Any]:
    return {"interface": "wg-two", "listen_port": 51830, "addresses": ["10.254.0.1/24"]} | changes


def test_a_whole_configuration(site: Site) -> None:
    config = site.load()
    assert config.node.name == "fra1"
    assert config.node.listen == (ListenAddress("::", 51821),)
    assert config.node.peers_dir == site.peers_dir
    assert config.node.control_socket == site.folder / "run" / "control.sock"
    assert config.node.max_datagram == 1232
    tunnel = config.tunnels["backbone"]
    assert (tunnel.name, tunnel.backend, tunnel.mtu) == ("backbone", "auto", 1420)
    assert tunnel.addresses == (ip_interface("10.255.0.1/24"), ip_interface("fd00:255::1/64"))
    peer = config.peers["ams1"]
    assert peer.file == site.peer_path("ams1")
    assert peer.fingerprint == Fingerprint.parse(AMS1)
    assert peer.endpoint == Endpoint("ams1.example.net", 51821)
    assert peer.allowed_ips[2] == ip_network("10.20.0.0/16")
    assert (peer.keepalive, peer.rekey_interval, peer.key_lifetime) == (25, 120, 600)
    assert peer.external_keys.mode == "off"
    assert peer.protect is None
    assert config.notes == ()


def test_the_smallest_configuration(site: Site) -> None:
    site.main = {"node": {"name": "fra1"}}
    site.peers = {}
    site.write()
    config = load_config(site.path, with_identities=False)
    assert config.node.state_dir == Path("/var/lib/vpnd")
    assert config.node.control_socket == Path("/run/vpnd/control.sock")
    assert not config.tunnels
    assert not config.peers


def test_a_configuration_cannot_be_changed(site: Site) -> None:
    config = site.load()
    with pytest.raises(TypeError):
        config.peers["x"] = config.peers["ams1"]  # type: ignore[index]
    with pytest.raises(ValueError, match="frozen"):
        config.peers["ams1"].keepalive = 1
    assert site.load() == config


def test_defaults_reach_the_peers_that_say_nothing(site: Site) -> None:
    site.main["defaults"] = {"keepalive": 0, "rekey_interval": 3600}
    site.peers["lon1"] = lon1(keepalive=7, key_lifetime=5000)
    peers = site.load().peers
    assert (peers["ams1"].keepalive, peers["lon1"].keepalive) == (0, 7)
    assert (peers["ams1"].key_lifetime, peers["lon1"].key_lifetime) == (3600 + 480, 5000)


def test_the_only_tunnel_need_not_be_named(site: Site) -> None:
    del site.peers["ams1"]["tunnel"]
    assert site.load().peers["ams1"].tunnel == "backbone"
    site.main["tunnels"]["two"] = second_tunnel()
    assert problem_at(site.problems(), "tunnel").hint == 'one of "backbone", "two"'


def test_a_list_of_identities(site: Site) -> None:
    site.peers["lon1"] = lon1(identity=[LON1_NEXT, LON1.upper()])
    assert [one.suite for one in site.load().peers["lon1"].identity] == [2, 1]


REFUSED: list[tuple[str, Change, str, str]] = [
    # what is changed, how, the key that is named, a part of the reason
    (
        "unknown top-level key",
        lambda site: site.main.update(tunnel={}),
        "tunnel",
        "unknown key",
    ),
    (
        "key sources of another name",
        lambda site: site.main.update(sources={"kme": {}}),
        "sources",
        "unknown key",
    ),
    (
        "no node",
        lambda site: site.main.pop("node"),
        "node.name",
        "is missing",
    ),
    (
        "netns",
        lambda site: site.main["tunnels"]["backbone"].update(netns="../1/ns/net"),
        "tunnels.backbone.netns",
        "cannot be a name",
    ),
    (
        "bad tunnel name",
        lambda site: site.main["tunnels"].update({"a/b": second_tunnel()}),
        'tunnels."a/b"',
        "cannot be a name",
    ),
    (
        "bad peer name",
        lambda site: site.peers.update({"b c": lon1()}),
        "",
        "the file's name is the peer's",
    ),
    (
        "long peer name",
        lambda site: site.peers.update({"a" * 65: lon1()}),
        "",
        "longer than 64 bytes",
    ),
    (
        "long interface name",
        lambda site: site.main["tunnels"]["backbone"].update(interface="a" * 16),
        "tunnels.backbone.interface",
        "cannot be the name of an interface",
    ),
    (
        "interface twice",
        lambda site: site.main["tunnels"].update(two=second_tunnel(interface="wg-backbone")),
        "tunnels.two.interface",
        "is the interface of tunnel backbone",
    ),
    (
        "port twice",
        lambda site: site.main["tunnels"].update(two=second_tunnel(listen_port=51820)),
        "tunnels.two.listen_port",
        "UDP port 51820 is in use at tunnels.backbone.listen_port",
    ),
    (
        "port of the key exchange",
        lambda site: site.main["tunnels"]["backbone"].update(listen_port=51821),
        "tunnels.backbone.listen_port",
        "is in use at node.listen",
    ),
    (
        "address twice",
        lambda site: site.main["tunnels"].update(two=second_tunnel(addresses=["10.255.0.1/32"])),
        "tunnels.two.addresses[0]",
        "is already at tunnels.backbone.addresses",
    ),
    (
        "link-local address twice in a tunnel",
        lambda site: site.main["tunnels"]["backbone"].update(
            addresses=["10.255.0.1/24", "fe80::1/64", "fe80::1/128"]
        ),
        "tunnels.backbone.addresses[2]",
        "is already at tunnels.backbone.addresses",
    ),
    (
        "link-local address at a peer of the same tunnel",
        lambda site: (
            site.main["tunnels"]["backbone"].update(addresses=["10.255.0.1/24", "fe80::1/64"]),
            site.peers["ams1"].update(allowed_ips=["fe80::1/128"]),
        )[0],
        "allowed_ips[0]",
        "is this node's own address in tunnel backbone",
    ),
    (
        "listen twice",
        lambda site: site.main["node"].update(listen=["[::]:51821", "[::0]:51821"]),
        "node.listen",
        "stands there twice",
    ),
    (
        "listen with and without a device",
        lambda site: site.main["node"].update(
            listen=["[::]:51821", {"address": "[::]:51821", "device": "eth0"}]
        ),
        "node.listen",
        "cannot be had beside [::]:51821",
    ),
    (
        "listen on all addresses and on one",
        lambda site: site.main["node"].update(listen=["0.0.0.0:51821", "192.0.2.1:51821"]),
        "node.listen",
        "takes the port for it as well",
    ),
    (
        "listen on what no device is called",
        lambda site: site.main["node"].update(listen=[{"address": "[::]:51821", "device": "a/b"}]),
        "node.listen[0]",
        "cannot be the name of a device",
    ),
    (
        "listen without an address",
        lambda site: site.main["node"].update(listen=[{"device": "eth0"}]),
        "node.listen[0]",
        "has no address",
    ),
    (
        "listen on an interface",
        lambda site: site.main["node"].update(
            listen=[{"address": "[::]:51821", "device": "eth0", "interface": "eth0"}]
        ),
        "node.listen[0]",
        "unknown key",
    ),
    (
        "an mtu that is a word",
        lambda site: site.main["tunnels"]["backbone"].update(mtu="fast"),
        "tunnels.backbone.mtu",
        "is not known",
    ),
    (
        "a VRF that no device can be",
        lambda site: site.main["tunnels"]["backbone"].update(vrf="a VRF of mine"),
        "tunnels.backbone.vrf",
        "cannot be the name of a device",
    ),
    (
        "link-local address to listen at without a zone",
        lambda site: site.main["node"].update(listen=["[fe80::1]:51821"]),
        "node.listen[0]",
        "does not say on which interface",
    ),
    (
        "listen on a name",
        lambda site: site.main["node"].update(listen=["localhost:51821"]),
        "node.listen[0]",
        "not a numeric address",
    ),
    (
        "small mtu with IPv6",
        lambda site: site.main["tunnels"]["backbone"].update(mtu=1200),
        "tunnels.backbone.mtu",
        "too small for the tunnel's IPv6",
    ),
    (
        "too many announced prefixes",
        lambda site: site.main["tunnels"]["backbone"].update(
            announce=[f"10.0.{index}.0/24" for index in range(15)]  # and two addresses
        ),
        "tunnels.backbone.announce",
        "17 prefixes would be announced",
    ),
    (
        "long path of the socket",
        lambda site: site.main["node"].update(runtime_dir="/" + "a" * 100),
        "node.control_socket",
        "at most 107",
    ),
    (
        "no such tunnel",
        lambda site: site.peers["ams1"].update(tunnel="backbon"),
        "tunnel",
        'there is no tunnel "backbon"',
    ),
    (
        "unknown key of a peer",
        lambda site: site.peers["ams1"].update(allowed_ip=[]),
        "allowed_ip",
        "unknown key",
    ),
    (
        "typing error in a fingerprint",
        lambda site: site.peers["ams1"].update(identity=AMS1[:20] + "b" + AMS1[21:]),
        "identity",
        "is not a fingerprint",
    ),
    (
        "secret instead of a fingerprint",
        lambda site: site.peers["ams1"].update(identity="vpnd-identity-v1 1 AAAA"),
        "identity",
        "the secret of an identity file",
    ),
    (
        "same identity at two peers",
        lambda site: site.peers.update(lon1=lon1(identity=[LON1, AMS1])),
        "identity[1]",
        "is also the identity of peer ams1",
    ),
    (
        "identity twice in a list",
        lambda site: site.peers.update(lon1=lon1(identity=[LON1, LON1.upper()])),
        "identity[1]",
        "stands in the list twice",
    ),
    (
        "same prefix at two peers",
        lambda site: site.peers.update(lon1=lon1(allowed_ips=["10.30.0.0/16", "10.20.0.0/16"])),
        "allowed_ips[1]",
        "10.20.0.0/16 is also at peer ams1 of the same tunnel",
    ),
    (
        "prefix twice at a peer",
        lambda site: site.peers["ams1"].update(allowed_ips=["fd00::/64", "fd00:0::/64"]),
        "allowed_ips[1]",
        "stands in the list twice",
    ),
    (
        "prefix with host bits",
        lambda site: site.peers["ams1"].update(allowed_ips=["10.20.0.1/16"]),
        "allowed_ips[0]",
        "host bits",
    ),
    (
        "prefix without a length",
        lambda site: site.peers["ams1"].update(allowed_ips=["10.20.0.1"]),
        "allowed_ips[0]",
        "no prefix length",
    ),
    (
        "own address at a peer",
        lambda site: site.peers["ams1"].update(allowed_ips=["10.255.0.1/32"]),
        "allowed_ips[0]",
        "this node's own address in tunnel backbone",
    ),
    (
        "no prefixes",
        lambda site: site.peers["ams1"].update(allowed_ips=[]),
        "allowed_ips",
        "is empty",
    ),
    (
        "IPv6 endpoint without brackets",
        lambda site: site.peers["ams1"].update(endpoint="2001:db8::1:51821"),
        "endpoint",
        "stands in brackets",
    ),
    (
        "endpoint without a port",
        lambda site: site.peers["ams1"].update(endpoint="192.0.2.1"),
        "endpoint",
        "has no port",
    ),
    (
        "endpoint that looks like an address",
        lambda site: site.peers["ams1"].update(endpoint="192.0.2.256:1"),
        "endpoint",
        "not a valid IPv4 address",
    ),
    (
        "link-local endpoint without a zone",
        lambda site: site.peers["ams1"].update(endpoint="[fe80::1]:51821"),
        "endpoint",
        "link-local",
    ),
    (
        "link-local endpoint with a zone",
        lambda site: site.peers["ams1"].update(endpoint="[fe80::1%eth0]:51821"),
        "endpoint",
        "link-local",
    ),
    (
        "a WireGuard key that is none",
        lambda site: site.peers["ams1"].update(wireguard_key="secret"),
        "wireguard_key",
        "is not a WireGuard public key",
    ),
    (
        "a WireGuard key of 31 bytes",
        lambda site: site.peers["ams1"].update(wireguard_key="A" * 40 + "Bg=="),
        "wireguard_key",
        "is not a WireGuard public key",
    ),
    (
        "a WireGuard key with bits that count for nothing",
        lambda site: site.peers["ams1"].update(wireguard_key="A" * 42 + "B="),
        "wireguard_key",
        "is not a WireGuard public key",
    ),
    (
        "a number that is no WireGuard public key",
        lambda site: site.peers["ams1"].update(wireguard_key="B" * 40 + "//8="),
        "wireguard_key",
        "is not a WireGuard public key",
    ),
    (
        "a WireGuard key in hexadecimal",
        lambda site: site.peers["ams1"].update(wireguard_key="ab" * 32),
        "wireguard_key",
        "is not a WireGuard public key",
    ),
    (
        "a WireGuard key of zeros",
        lambda site: site.peers["ams1"].update(wireguard_key="A" * 43 + "="),
        "wireguard_key",
        "all of its bits are zero",
    ),
    (
        "the same WireGuard key twice",
        lambda site: site.peers.update(
            ams1={**site.peers["ams1"], "wireguard_key": WIREGUARD_KEY},
            lon1=lon1(wireguard_key=WIREGUARD_KEY),
        ),
        "wireguard_key",
        "is the WireGuard key of peer ams1, too",
    ),
    (
        "keepalive",
        lambda site: site.peers["ams1"].update(keepalive=65536),
        "keepalive",
        "out of range",
    ),
    (
        "interval too short",
        lambda site: site.peers["ams1"].update(rekey_interval=119),
        "rekey_interval",
        "out of range",
    ),
    (
        "interval too long",
        lambda site: site.peers["ams1"].update(rekey_interval=86401),
        "rekey_interval",
        "out of range",
    ),
    (
        "lifetime too short",
        lambda site: site.peers["ams1"].update(rekey_interval=600, key_lifetime=899),
        "key_lifetime",
        "too short for a rekey_interval of 600 s",
    ),
    (
        "unknown key source",
        lambda site: site.peers["ams1"].update(external_keys={"mode": "require", "source": "k"}),
        "external_keys.source",
        'there is no key source "k"',
    ),
    (
        "no key source",
        lambda site: site.peers["ams1"].update(external_keys={"mode": "prefer"}),
        "external_keys.source",
        "is missing",
    ),
    (
        "default route without protect",
        lambda site: site.peers["ams1"].update(allowed_ips=["0.0.0.0/0"]),
        "protect",
        "0.0.0.0/0 is in allowed_ips",
    ),
    (
        "routes = none without protect",
        lambda site: site.main["tunnels"]["backbone"].update(routes="none"),
        "protect",
        'has routes = "none"',
    ),
    (
        "protected default route",
        lambda site: site.peers["ams1"].update(protect=["10.0.0.0/8", "::/0"]),
        "protect[1]",
        "cannot be guarded",
    ),
    (
        "route over the endpoint",
        lambda site: site.peers["ams1"].update(endpoint="10.20.3.4:51821"),
        "allowed_ips[2]",
        "holds the peer's own endpoint",
    ),
]


@pytest.mark.parametrize(
    ("change", "key", "reason"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_refused(site: Site, change: Change, key: str, reason: str) -> None:
    site.write()
    change(site)
    problems = site.problems()
    assert [problem.key for problem in problems] == [key], list(map(str, problems))
    assert reason in problems[0].reason
    assert problems[0].file is not None


ALLOWED: list[tuple[str, Change]] = [
    (
        "default route with a word about it",
        lambda site: (
            site.main["tunnels"]["backbone"].update(fwmark=51820),
            site.peers["ams1"].update(allowed_ips=["0.0.0.0/0", "::/0"], protect=[]),
        )[0],
    ),
    (
        "no routes with a word about it",
        lambda site: (
            site.main["tunnels"]["backbone"].update(routes="none"),
            site.peers["ams1"].update(protect=["10.20.0.0/16"]),
        )[0],
    ),
    (
        "route over the endpoint with a mark",
        lambda site: (
            site.main["tunnels"]["backbone"].update(fwmark=51820),
            site.peers["ams1"].update(endpoint="10.20.3.4:51821"),
        )[0],
    ),
    (
        "route over the endpoint in another table",
        lambda site: (
            site.main["tunnels"]["backbone"].update(table=1000),
            site.peers["ams1"].update(endpoint="10.20.3.4:51821"),
        )[0],
    ),
    (
        "the same link-local address in each tunnel, and at a peer of one",
        lambda site: (
            site.main["tunnels"]["backbone"].update(addresses=["10.255.0.1/24", "fe80::1/64"]),
            site.main["tunnels"].update(
                two=second_tunnel(addresses=["10.254.0.1/24", "fe80::1/64", "fe80::2/64"])
            ),
            site.peers["ams1"].update(allowed_ips=["10.255.0.2/32", "fe80::2/128"]),
        )[0],
    ),
    (
        "no endpoint",
        lambda site: site.peers["ams1"].pop("endpoint"),
    ),
    (
        "a point-to-point net",
        lambda site: site.main["tunnels"]["backbone"].update(
            addresses=["10.1.0.0/31", "10.2.0.0/32", "fd00::/127"]
        ),
    ),
    (
        "an interval of a day",
        lambda site: site.peers["ams1"].update(rekey_interval=86400),
    ),
    (
        "mode off in so many words",
        lambda site: site.peers["ams1"].update(external_keys={"mode": "off", "source": "kme-1"}),
    ),
    (
        "a peer in two suites",
        lambda site: site.peers.update(lon1=lon1(identity=[LON1, LON1_NEXT])),
    ),
]


@pytest.mark.parametrize("change", [one[1] for one in ALLOWED], ids=[one[0] for one in ALLOWED])
def test_allowed(site: Site, change: Change) -> None:
    change(site)
    assert site.load().peers["ams1"]


def test_errors_of_all_files_are_told_at_once_in_order(site: Site) -> None:
    site.main["node"]["log_level"] = "loud"
    site.main["tunnels"]["backbone"]["mtu"] = "big"
    site.peers["ams1"]["keepalive"] = -1
    site.peers["ams1"]["allowed_ips"] = ["10.20.0.1/16"]
    site.peers["lon1"] = lon1(tunnel="front")
    site.peers["broken"] = {}
    site.write()
    site.write_text(site.peer_path("broken"), "identity = \n")
    found = [(problem.file, problem.key) for problem in problems_of(site.path)]
    assert found == [
        (site.path, "node.log_level"),
        (site.path, "tunnels.backbone.mtu"),
        (site.peer_path("ams1"), "allowed_ips[0]"),
        (site.peer_path("ams1"), "keepalive"),
        (site.peer_path("broken"), ""),
        (site.peer_path("lon1"), "tunnel"),
    ]


def test_a_broken_main_file_does_not_hide_the_peers_errors(site: Site) -> None:
    site.peers["ams1"]["keepalive"] = -1
    site.write()
    site.write_text(site.path, "[node\n")
    found = {(problem.file, problem.key) for problem in problems_of(site.path)}
    assert found == {(site.path, ""), (site.peer_path("ams1"), "keepalive")}


def test_lines_are_named(site: Site) -> None:
    site.write()
    site.write_text(
        site.path,
        """\
[node]
name = "fra1"
listn = []

["tunnels".backbone]  # the one
interface = \"\"\"
mtu = 5
\"\"\"
addresses = [
    "10.255.0.1/24",
    "10.255.0.0/24",
]
mtu = 5
tunnels.backbone.mtu = 6
""",
    )
    found = {problem.key: problem.line for problem in problems_of(site.path)}
    assert found == {
        "node.listn": 3,
        "tunnels.backbone.interface": 6,
        "tunnels.backbone.listen_port": 5,
        "tunnels.backbone.addresses[1]": 11,
        "tunnels.backbone.mtu": 13,
        "tunnels.backbone.tunnels": 14,
    }
    site.write_text(site.path, "[node]\nname = 'fra1'\nname = 'fra2'\n")
    assert problems_of(site.path)[0].line == 3
    assert str(problems_of(site.path)[0]).startswith(f"{site.path}:3: is not valid TOML")


def test_did_you_mean(site: Site) -> None:
    site.peers["ams1"]["keepalife"] = 25
    site.main["tunnels"]["backbone"]["backend"] = "kernal"
    problems = site.problems()
    assert problem_at(problems, "keepalife").hint.startswith('did you mean "keepalive"?')
    assert problem_at(problems, "tunnels.backbone.backend").hint.startswith(
        'did you mean "kernel"?'
    )


def test_what_is_in_different_namespaces_does_not_meet(site: Site) -> None:
    """The same prefix in the same table, the same address, a route over the endpoint."""
    site.main["tunnels"]["backbone"]["netns"] = "blue"
    site.main["tunnels"]["two"] = second_tunnel(addresses=["10.255.0.1/24"], netns="red.2")
    site.peers["ams1"].update(endpoint="10.20.3.4:51821")
    site.peers["lon1"] = lon1(tunnel="two", allowed_ips=["10.20.0.0/16"])
    # Not with a look at this node, which may have no way into namespaces
    load = partial(load_config, site.path, with_identities=False)
    site.write()
    config = load()
    assert [tunnel.netns for tunnel in config.tunnels.values()] == ["blue", "red.2"]
    site.main["tunnels"]["two"]["netns"] = "blue"
    site.write()
    with pytest.raises(ConfigErrors) as caught:
        load()
    assert {problem.key for problem in caught.value.problems} == {
        "tunnels.two.addresses[0]",
        "allowed_ips[0]",
    }


def test_overlaps_are_noted(site: Site) -> None:
    site.main["tunnels"]["two"] = second_tunnel(table=1000)
    site.peers["lon1"] = lon1(allowed_ips=["10.20.30.0/24"])
    site.peers["par1"] = lon1(
        identity=Fingerprint.of(1, b"par1").text(), tunnel="two", allowed_ips=["10.20.0.0/16"]
    )
    notes = [(note.file, note.reason) for note in site.load().notes]
    ams1, lon1_, par1 = (site.peer_path(name) for name in ("ams1", "lon1", "par1"))
    assert notes == [
        (ams1, "10.20.0.0/16 is also at peer par1 (tunnel two)"),
        (lon1_, "10.20.30.0/24 lies within 10.20.0.0/16 at peer ams1 (tunnel backbone)"),
        (lon1_, "10.20.30.0/24 lies within 10.20.0.0/16 at peer par1 (tunnel two)"),
        (par1, "10.20.0.0/16 is also at peer ams1 (tunnel backbone)"),
    ]
    del site.main["tunnels"]["two"]["table"]
    assert "the same table" in problem_at(site.problems(), "allowed_ips[0]").reason
    site.main["tunnels"]["two"]["routes"] = "none"
    site.peers["par1"]["protect"] = []
    site.load()


def test_own_identities_are_compared(site: Site) -> None:
    own = Identity.generate(system_suite(1))
    create_identity(site.state_dir, own)
    assert site.load().own == (own.fingerprint,)
    site.peers["lon1"] = lon1(identity=own.fingerprint.text())
    assert "this node's own" in problem_at(site.problems(), "identity").reason
    site.peers["lon1"] = lon1(identity=LON1_NEXT)
    assert "of suite 2, and this node's own is of suite 1" in site.problems()[0].reason


def test_an_identity_that_others_can_read_is_refused(site: Site) -> None:
    path = create_identity(site.state_dir, Identity.generate(system_suite(1)))
    path.chmod(0o640)
    problem = site.problems()[0]
    assert (problem.file, problem.reason[:13]) == (path, "has mode 0640")


@pytest.mark.parametrize("mode", [0o666, 0o664, 0o646])
def test_files_that_others_can_write_are_refused(site: Site, mode: int) -> None:
    for path in (site.path, site.peer_path("ams1")):
        site.write()
        path.chmod(mode)
        [problem] = problems_of(site.path)
        assert (problem.file, problem.key) == (path, "")
        assert f"has mode {mode:04o}" in problem.reason
        assert "chmod go-w" in problem.hint


@pytest.mark.parametrize("folder", [".", "peers.d"])
def test_folders_that_others_can_write_are_refused(site: Site, folder: str) -> None:
    site.write()
    path = (site.folder / folder).absolute()
    path.chmod(0o775)
    assert [problem.file for problem in problems_of(site.path)] == [path]


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file to somebody else")
def test_files_of_somebody_else_are_refused(site: Site) -> None:
    site.write()
    os.chown(site.peer_path("ams1"), 64321, -1)
    [problem] = problems_of(site.path)
    assert "belongs to uid 64321, who could change it" in problem.reason


def test_files_that_are_none(site: Site) -> None:
    site.write()
    os.mkfifo(site.peer_path("fifo"), 0o600)
    site.peer_path("folder").mkdir()
    site.peer_path("loop").symlink_to(site.peer_path("loop"))
    site.peer_path("gone").symlink_to(site.folder / "nowhere")
    found = {problem.file: problem.reason for problem in problems_of(site.path)}
    assert found == {
        site.peer_path("fifo"): "is not a regular file",
        site.peer_path("folder"): "is not a regular file",
        site.peer_path("gone"): "does not exist",
        site.peer_path("loop"): "cannot be read: Too many levels of symbolic links",
    }


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    [problem] = problems_of(tmp_path / "vpnd.toml")
    assert str(problem) == f"{tmp_path}/vpnd.toml: does not exist"
    assert len(problems_of(tmp_path / "nowhere" / "vpnd.toml")) == 1


def test_a_file_that_is_too_long(site: Site) -> None:
    site.write()
    site.write_text(site.path, "#" * (2**20 + 1))
    assert "longer than 1048576 bytes" in problems_of(site.path)[0].reason


def test_files_beside_the_peers_are_left_alone(site: Site) -> None:
    site.write()
    for name in (".ams1.toml.swp", ".hidden.toml", "ams1.toml~", "README", "lon1.toml.bak"):
        (site.peers_dir / name).write_text("nonsense")
    assert list(load_config(site.path).peers) == ["ams1"]


def test_listening_on_devices_a_vrf_and_an_automatic_mtu(site: Site) -> None:
    devices = [{"address": "[::]:51821", "device": name} for name in ("eth0", "vrf-blue")]
    site.main["node"].update(listen=[*devices, "192.0.2.1:51821"])
    site.main["tunnels"]["backbone"].update(vrf="vrf-blue", mtu="auto")
    config = site.load()
    assert list(map(str, config.node.listen)) == [
        "[::]:51821 on eth0",
        "[::]:51821 on vrf-blue",
        "192.0.2.1:51821",
    ]
    tunnel = config.tunnels["backbone"]
    assert (tunnel.vrf, tunnel.mtu, tunnel.least_mtu) == ("vrf-blue", "auto", 1280)
    assert tunnel.routing_table == "vrf-blue"

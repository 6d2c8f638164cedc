"""Which tunnels connect networks, and what is told where the kernel does not forward."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest

from kex.identity import Fingerprint
from tun import Forwarding, forwarding
from vpnd.config import complete_peer
from vpnd.config_model import Defaults, PeerSettings, TunnelConfig, TunnelSettings, validate
from vpnd.config_source import Source
from vpnd.forwarding import families_forwarded, hint_for, not_forwarded


def tunnel(**values: object) -> TunnelConfig:
    given = {
        "interface": "wg0",
        "listen_port": 51820,
        "addresses": ["10.255.0.1/24", "fd00:255::1/64"],
    } | values
    settings = validate(TunnelSettings, given, Source(None))
    return TunnelConfig.model_construct(name="backbone", **settings.__dict__)


def families(announce: list[str], allowed: list[str]) -> set[int]:
    identity = Fingerprint(1, bytes(32)).text()
    values = {"identity": identity, "allowed_ips": allowed, "protect": []}
    settings = validate(PeerSettings, values, Source(None))
    peer = complete_peer(
        "ams1", Path("ams1.toml"), settings, Defaults(), ("backbone",), Source(None)
    )
    return set(families_forwarded(tunnel(announce=announce), [peer]))


@pytest.mark.parametrize(
    ("announce", "allowed", "wanted"),
    [
        ([], ["10.255.0.2/32", "fd00:255::2/128"], set()),
        ([], ["10.255.0.0/24"], set()),  # the other ends of the tunnel
        ([], ["192.0.2.7/32"], set()),
        ([], ["10.255.0.2/32", "10.20.0.0/16"], {4}),
        ([], ["fd00:20::/48"], {6}),
        (["10.10.0.0/16"], ["10.255.0.2/32"], {4}),
        (["10.10.0.7/32"], ["10.255.0.2/32"], {4}),  # a host behind this one
        (["fd00:10::/48"], ["10.20.0.0/16"], {4, 6}),
        ([], ["0.0.0.0/0"], {4}),
    ],
)
def test_only_tunnels_that_connect_networks_need_forwarding(
    announce: list[str], allowed: list[str], wanted: set[int]
) -> None:
    assert families(announce, allowed) == wanted


def test_each_family_is_told_by_itself_and_where() -> None:
    off = Forwarding(("net.ipv4.conf.eth1.forwarding",), ("net.ipv6.conf.all.forwarding",))
    (four,) = not_forwarded(tunnel(), frozenset({4}), off)
    assert four.endswith("net.ipv4.conf.eth1.forwarding = 0")
    four, six = not_forwarded(tunnel(netns="blue"), frozenset({4, 6}), off)
    assert "IPv4 is not forwarded in the namespace blue" in four
    assert "IPv6 is not forwarded in the namespace blue" in six
    assert list(not_forwarded(tunnel(), frozenset({4, 6}), Forwarding((), ()))) == []
    assert hint_for(off.ipv4_off).startswith("sysctl -w net.ipv4.conf.eth1.forwarding=1")


def test_the_kernel_is_asked_for_an_interface_that_is_not_there_yet_too() -> None:
    """The settings of this host, whatever they are; its /proc says the same."""
    found = forwarding(None, "wg-not-there", [ipaddress.ip_network("192.0.2.0/24")])
    default = Path("/proc/sys/net/ipv4/conf/default/forwarding").read_text().strip()
    assert bool(found.ipv4_off) == (default == "0")
    of_all = Path("/proc/sys/net/ipv6/conf/all/forwarding").read_text().strip()
    assert bool(found.ipv6_off) == (of_all == "0")

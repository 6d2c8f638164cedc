"""Configurations whose routes or guards work against their owner: refused, or told."""

from __future__ import annotations

from typing import Any

import pytest

from tests.vpnd.config_files import LON1, Site
from vpnd.config_errors import ConfigErrors

WHOLE = ["0.0.0.0/1", "128.0.0.0/1"]


def refused(site: Site) -> list[str]:
    with pytest.raises(ConfigErrors) as caught:
        site.load()
    return [str(problem) for problem in caught.value.problems]


def peer(site: Site, **values: Any) -> None:
    site.peers["ams1"] |= values


def other(site: Site, **values: Any) -> None:
    site.peers["lon1"] = {"identity": LON1, "allowed_ips": ["10.30.0.0/16"], "tunnel": "backbone"}
    site.peers["lon1"] |= values


@pytest.mark.parametrize(
    "prefixes",
    [WHOLE, ["::/1", "8000::/1"], ["0.0.0.0/2", "64.0.0.0/2", "128.0.0.0/2", "192.0.0.0/2"]],
)
def test_halves_that_are_everything_are_refused(site: Site, prefixes: list[str]) -> None:
    peer(site, allowed_ips=prefixes)
    (problem,) = refused(site)
    assert "is guarded: this gateway would be cut off" in problem


def test_halves_at_two_peers_and_in_protect_are_everything_too(site: Site) -> None:
    peer(site, allowed_ips=WHOLE[:1])
    other(site, allowed_ips=WHOLE[1:])
    assert "all of IPv4 is guarded" in refused(site)[0]
    other(site)
    peer(site, allowed_ips=["0.0.0.0/0"], protect=WHOLE, endpoint=None)
    del site.peers["ams1"]["endpoint"]
    assert "all of IPv4 is guarded" in refused(site)[0]


def test_halves_in_a_table_of_their_own_are_good(site: Site) -> None:
    site.main["tunnels"]["backbone"]["table"] = 5000
    peer(site, allowed_ips=WHOLE)
    site.load()


@pytest.mark.parametrize("key", ["endpoint", "wireguard_endpoint"])
def test_a_default_route_and_an_endpoint_by_name_loop(site: Site, key: str) -> None:
    peer(site, allowed_ips=["0.0.0.0/0"], protect=[], endpoint="192.0.2.1:51821")
    peer(site, **{key: "ams1.example.net:51821"})
    assert any("whatever address ams1.example.net has" in each for each in refused(site))


@pytest.mark.parametrize("way", [{"fwmark": 7}, {"table": 5000}, {"routes": "none"}])
def test_the_ways_to_send_everything_through_a_tunnel(site: Site, way: dict[str, Any]) -> None:
    site.main["tunnels"]["backbone"] |= way
    peer(site, allowed_ips=["0.0.0.0/0"], protect=[])
    site.load()


def test_an_endpoint_within_another_peer_s_prefixes_of_the_same_tunnel_is_refused(
    site: Site,
) -> None:
    other(site, endpoint="10.20.0.9:51821")
    (problem,) = refused(site)
    assert "10.20.0.9 lies within 10.20.0.0/16 of peer ams1: its route would lead" in problem
    # A prefix of its own in between leads it elsewhere
    site.main["tunnels"]["backbone"]["fwmark"] = 7
    site.load()


def test_a_wireguard_endpoint_within_own_prefixes_is_refused(site: Site) -> None:
    peer(site, wireguard_endpoint="10.20.0.9:51820")
    assert "10.20.0.9 lies within 10.20.0.0/16 of peer ams1" in refused(site)[0]


def test_an_endpoint_within_a_tunnel_s_network_is_refused(site: Site) -> None:
    peer(site, endpoint="10.255.0.9:51821")
    assert "the network of tunnel backbone" in refused(site)[0]


def test_an_endpoint_within_protect_alone_is_told(site: Site) -> None:
    site.main["tunnels"]["backbone"]["routes"] = "none"
    peer(site, allowed_ips=["0.0.0.0/0"], protect=["10.9.0.0/16"], endpoint="10.9.0.1:51821")
    (note,) = map(str, site.load().notes)
    assert "10.9.0.1 lies within 10.9.0.0/16 of peer ams1" in note


def test_a_protected_prefix_that_is_allowed_nowhere_is_told(site: Site) -> None:
    peer(site, protect=["10.99.0.0/16"])
    (note,) = map(str, site.load().notes)
    assert "10.99.0.0/16 lies within none of the peer's allowed_ips" in note


def test_a_default_route_to_a_peer_that_comes_to_us_is_told(site: Site) -> None:
    del site.peers["ams1"]["endpoint"]
    peer(site, allowed_ips=["0.0.0.0/0"], protect=[])
    (note,) = map(str, site.load().notes)
    assert "and so does the way to the peer itself" in note

"""What is built from a lab file."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from vpnd_lab.plan import Plan, make_plan
from vpnd_lab.spec import LabSpec


def plan(text: str) -> Plan:
    return make_plan(LabSpec.parse(text))


def test_every_address_is_there_once_and_every_route_leads_to_a_neighbour() -> None:
    made = plan("[sites.fra]\n[sites.ams]\nhosts = ['a', 'b', 'c']\n[sites.ber]\n")
    every = [address.ip for node in made.nodes for address in made.addresses(node)]
    assert len(every) == len(set(every))
    for node, routes in made.routes.items():
        neighbours = {
            address.ip
            for cable in made.cables
            for end, opposite in cable.ends()
            if end.node == node
            for address in opposite.addresses
        }
        assert {route.via for route in routes} <= neighbours


def test_a_host_is_in_its_sites_lan() -> None:
    made = plan("[sites.fra]\nlan = ['10.20.0.0/16', 'fd00:20::/48']\n[sites.ams]")
    assert made.address("fra-host", 4) == ip_address("10.20.0.2")
    assert made.address("fra-host", 6) == ip_address("fd00:20::2")
    assert made.address("fra", 4) == ip_address("198.18.0.2")


def test_a_peer_is_sent_its_tunnel_addresses_and_its_lan() -> None:
    made = plan("[sites.fra]\n[sites.ams]")
    assert made.sites["ams"].prefixes("backbone") == tuple(
        ip_network(text) for text in ("10.255.0.2", "fd00:255::2", "10.2.0.0/16", "fd00:2::/48")
    )


def test_three_sites_are_linked_in_pairs() -> None:
    made = plan("[sites.a]\n[sites.b]\n[sites.c]")
    assert [link.sites for link in made.links] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert made.link("c", "a") is made.links[1]


def test_routers_know_the_way_over_other_routers() -> None:
    made = plan(
        "[routers.r1]\nneighbours = ['r2']\n[routers.r2]\nneighbours = ['r3']\n[routers.r3]\n"
        "[sites.fra]\n[sites.ams]\nuplinks = ['r3']\n"
    )
    ams = next(a.network for a in made.addresses("ams") if a.version == 4)
    assert [r.interface for r in made.routes["r1"] if r.destination == ams] == ["r2"]
    assert [r.interface for r in made.routes["r2"] if r.destination == ams] == ["r3"]
    assert not [r for r in made.routes["r3"] if r.destination == ams]


def test_a_site_with_two_carriers_takes_the_first_by_default() -> None:
    made = plan("[routers.one]\n[routers.two]\n[sites.fra]\nuplinks = ['two', 'one']\n[sites.ams]")
    assert {route.interface for route in made.routes["fra"]} == {"two"}
    assert {c.far.node for c in made.cables if c.near.node == "fra"} == {"one", "two"}


def test_given_addresses_are_taken_and_the_router_gets_another() -> None:
    made = plan(
        "[sites.fra.uplinks.internet]\naddresses = ['203.0.113.1/24', '2001:db8:ff::9/127']\n"
    )
    cable = made.cables[0]
    assert [str(a) for a in cable.near.addresses] == ["203.0.113.1/24", "2001:db8:ff::9/127"]
    assert [str(a) for a in cable.far.addresses] == ["203.0.113.2/24", "2001:db8:ff::8/127"]


def test_a_site_has_the_tunnels_of_its_links() -> None:
    made = plan(
        "[sites.a]\n[sites.b]\n[sites.c]\n"
        "[tunnels.one]\n[tunnels.two]\ninterface = 'wg1'\nlisten_port = 51822\n"
        "networks = ['10.254.0.0/24']\n"
        "[[links]]\nsites = ['a', 'b']\n[[links]]\nsites = ['b', 'c']\ntunnel = 'two'\n"
        "endpoints = ['c']\nunderlay = 'ipv6'\n"
    )
    names = {name: [tunnel.name for tunnel in site.tunnels] for name, site in made.sites.items()}
    assert names == {"a": ["one"], "b": ["one", "two"], "c": ["two"]}
    assert [str(a) for a in made.sites["c"].tunnel("two").addresses] == ["10.254.0.3/24"]
    assert made.links[1].family == 6

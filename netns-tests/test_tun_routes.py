"""Routes into a tunnel and the guard routes beneath them, in one site of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from test_tun_tunnel import new_psk, peer, spec
from tun_site import Site

pytestmark = [pytest.mark.netns, pytest.mark.kernel]

PREFIXES = ["10.20.0.0/16", "fd00:20::/48"]
GUARD = 4294967294


@pytest.fixture(scope="module")
def alone() -> Iterator[Site]:
    """A site with a default route: what is not held back would leave in the clear."""
    with Site("a") as a, Site("b") as b:
        a.connect(b, 1)
        a.run("ip", "route", "add", "default", "via", "192.0.2.2")
        a.run("ip", "-6", "route", "add", "default", "via", "2001:db8::2")
        yield a


@pytest.fixture
def site(alone: Site) -> Iterator[Site]:
    yield alone
    alone.clear()


def routes(site: Site) -> set[str]:
    """All routes of our protocol number, in the words of `ip`."""
    lines: list[str] = []
    for family in ("-4", "-6"):
        shown = site.run("ip", "-N", family, "route", "show", "table", "all", "proto", "157")
        lines += shown.splitlines()
    lines = [line.replace("7 ", "unreachable ", 1) if line[0] == "7" else line for line in lines]
    words = ("pref medium", "proto 157", "error 4294967183", "error -113", "dev lo")
    for word in words:
        lines = [line.replace(word, "") for line in lines]
    return {" ".join(line.split()) for line in lines}


GUARDS = {f"unreachable {prefix} metric {GUARD}" for prefix in PREFIXES}


def leaves_by(site: Site, address: str) -> str | None:
    """The interface by which a packet would leave; None where it would not."""
    for line in site.run("ip", "route", "get", address, check=False).splitlines():
        words = line.split()
        if "dev" in words and words[0] != "unreachable":
            return words[words.index("dev") + 1]
    return None


def test_guard_routes_are_set_once_and_removed(site: Site) -> None:
    assert leaves_by(site, "10.20.1.1") == "eth0"
    for _ in range(2):
        site.call("set_guards", prefixes=PREFIXES)
        assert routes(site) == GUARDS
    assert site.call("guards") == PREFIXES
    assert leaves_by(site, "10.20.1.1") is None
    assert leaves_by(site, "fd00:20::1") is None
    site.call("set_guards", prefixes=["10.21.0.0/16"])
    assert site.call("guards") == ["10.20.0.0/16", "10.21.0.0/16", "fd00:20::/48"]
    for _ in range(2):
        site.call("remove_guards", prefixes=["10.21.0.0/16"])
        assert routes(site) == GUARDS
    site.call("remove_guards", prefixes=PREFIXES)
    assert routes(site) == set()
    assert leaves_by(site, "10.20.1.1") == "eth0"


def test_default_prefixes_get_no_guard_route(site: Site) -> None:
    site.call("set_guards", prefixes=["0.0.0.0/0", "::/0"])
    assert routes(site) == set()
    assert leaves_by(site, "198.51.100.1") == "eth0"


def test_guard_routes_of_a_table_stand_in_that_table(site: Site) -> None:
    site.call("set_guards", prefixes=PREFIXES, table=5000)
    assert site.call("guards") == []
    assert site.call("guards", table=5000) == PREFIXES
    assert all("table 5000" in route for route in routes(site))
    site.call("remove_guards", prefixes=PREFIXES)
    assert site.call("guards", table=5000) == PREFIXES
    site.call("remove_guards", prefixes=PREFIXES, table=5000)
    assert routes(site) == set()


def test_guard_routes_hold_when_the_interface_goes(site: Site) -> None:
    site.call("set_guards", prefixes=PREFIXES)
    site.call("open", **spec(1))
    site.call("add_peer", **peer(new_psk(), 2, new_psk(), allowed_ips=PREFIXES))
    site.call("set_routes", prefixes=PREFIXES)
    assert leaves_by(site, "10.20.1.1") == "wg0"
    assert leaves_by(site, "fd00:20::1") == "wg0"
    site.run("ip", "link", "set", "wg0", "down")
    assert leaves_by(site, "10.20.1.1") is None
    assert leaves_by(site, "fd00:20::1") is None
    site.run("ip", "link", "set", "wg0", "up")
    site.call("set_routes", prefixes=PREFIXES)
    assert leaves_by(site, "10.20.1.1") == "wg0"
    site.run("ip", "link", "delete", "wg0")
    assert routes(site) == GUARDS
    for address in ("10.20.1.1", "fd00:20::1"):
        assert leaves_by(site, address) is None
        assert not site.succeeds("ping", "-c1", "-W1", address)


def test_routes_are_diffed(site: Site) -> None:
    site.call("open", **spec(1))
    for _ in range(2):
        site.call("set_routes", prefixes=PREFIXES)
        assert routes(site) == {"10.20.0.0/16 dev wg0", "fd00:20::/48 dev wg0 metric 1"}
    # One that an address brings with it needs none of ours.
    site.call("set_routes", prefixes=["10.20.0.0/16", "10.7.0.0/24", "fd00:7::/64"])
    assert routes(site) == {"10.20.0.0/16 dev wg0"}
    site.run("ip", "route", "add", "10.99.0.0/16", "dev", "wg0", "proto", "99")
    site.call("aclose")
    site.call("open", **spec(1, table=5000, metric=50))
    site.call("set_routes", prefixes=PREFIXES)
    assert routes(site) == {
        "10.20.0.0/16 dev wg0 table 5000 metric 50",
        "fd00:20::/48 dev wg0 table 5000 metric 50",
    }
    site.call("aclose")
    site.call("open", **spec(1, routes="none"))
    site.call("set_routes", prefixes=PREFIXES)
    assert routes(site) == set()
    assert "10.99.0.0/16" in site.run("ip", "route", "show", "dev", "wg0"), "not ours: stays"


def test_a_foreign_route_keeps_no_other_away_and_is_untouched(site: Site) -> None:
    site.call("open", **spec(1))
    for family, prefix, metric in (("-4", "10.20.0.0/16", 0), ("-6", "fd00:20::/48", 1)):
        route = [family, "route", "add", prefix, "dev", "eth0", "proto", "99"]
        site.run("ip", *route, "metric", str(metric))
        before = site.run("ip", family, "route", "show", prefix)
        faults = site.call("set_routes", prefixes=["10.19.0.0/16", *PREFIXES])
        assert list(faults) == [prefix]
        assert f"has a route {prefix} with metric {metric} that vpnd did not make" in faults[prefix]
        assert site.run("ip", family, "route", "show", prefix) == before
        assert len(routes(site)) == 2, "the others were added"
        site.run("ip", *route[:2], "delete", *route[3:])
        site.call("set_routes", prefixes=[])


def test_a_foreign_guard_keeps_no_other_away_and_is_untouched(site: Site) -> None:
    for family, prefix in (("-4", "10.20.0.0/16"), ("-6", "fd00:20::/48")):
        route = ["unreachable", prefix, "metric", str(GUARD), "proto", "99"]
        site.run("ip", family, "route", "add", *route)
        faults = site.call("set_guards", prefixes=["10.19.0.0/16", *PREFIXES])
        assert list(faults) == [prefix]
        assert len(routes(site)) == 2, "the others were added"
        site.call("remove_guards", prefixes=["10.19.0.0/16", *PREFIXES])
        assert prefix in site.run("ip", family, "route", "show", "proto", "99")
        site.run("ip", family, "route", "delete", *route)


def test_a_network_of_another_interface_goes_first(site: Site) -> None:
    """Also after it was down, and one that comes later."""
    site.call("open", **spec(1))
    site.run("ip", "address", "add", "10.20.0.7/16", "dev", "eth0")
    site.run("ip", "-6", "address", "add", "fd00:20::7/48", "dev", "eth0", "nodad")
    try:
        faults = site.call("set_routes", prefixes=["10.19.0.0/16", *PREFIXES])
        assert sorted(faults) == PREFIXES
        assert "is also the network of eth0 on this host" in faults["10.20.0.0/16"]
        assert routes(site) == {"10.19.0.0/16 dev wg0"}
        site.run("ip", "route", "del", "10.20.0.0/16", "dev", "eth0")  # as a link that is down
        assert sorted(site.call("set_routes", prefixes=PREFIXES)) == PREFIXES
        assert routes(site) == set()
    finally:
        site.run("ip", "address", "del", "10.20.0.7/16", "dev", "eth0")
        site.run("ip", "-6", "address", "del", "fd00:20::7/48", "dev", "eth0")
    assert site.call("set_routes", prefixes=PREFIXES) == {}
    site.run("ip", "address", "add", "10.20.0.7/16", "dev", "eth0")
    try:
        assert list(site.call("set_routes", prefixes=PREFIXES)) == ["10.20.0.0/16"]
        assert leaves_by(site, "10.20.1.1") == "eth0"
    finally:
        site.run("ip", "address", "del", "10.20.0.7/16", "dev", "eth0")


def test_a_route_of_a_former_version_is_replaced(site: Site) -> None:
    site.call("open", **spec(1))
    site.run(
        *[
            "ip",
            "-6",
            "route",
            "add",
            "fd00:20::/48",
            "dev",
            "wg0",
            "proto",
            "157",
            "metric",
            "1024",
        ]
    )
    site.call("set_routes", prefixes=PREFIXES)
    assert routes(site) == {"10.20.0.0/16 dev wg0", "fd00:20::/48 dev wg0 metric 1"}


def test_a_watch_is_told_of_links_addresses_and_our_routes_alone(site: Site) -> None:
    def notices(command: str, seconds: float = 30) -> bool:
        return bool(site.call("notices", command=command.split(), seconds=seconds))

    assert notices("ip route add unreachable 10.20.0.0/16 proto 157")
    assert notices("ip -6 route add unreachable fd00:20::/48 proto 157")
    assert notices("ip route del unreachable 10.20.0.0/16 proto 157")
    assert notices("ip link set lo down")
    assert notices("ip link set lo up")
    assert notices("ip address add 10.20.0.1/32 dev lo")
    assert notices("ip address del 10.20.0.1/32 dev lo")
    # What the kernel does by itself comes first: IPv6 looks for doubles of its addresses on a link
    # for two seconds, and tells of the outcome
    assert any(not notices("true", 4) for _ in range(10))
    # The kernel tells before the command has ended, or not at all
    assert not notices("ip route add unreachable 10.20.0.0/16 proto 99", 0.2)
    assert not notices("ip -6 route add unreachable fd00:21::/48 proto 99", 0.2)


def test_what_the_underlay_takes(site: Site) -> None:
    def mtus(*hosts: str, **values: Any) -> Any:
        return site.call("path_mtus", hosts=hosts, not_by="wg0", **values)

    four, six = "198.51.100.1", "2001:db8:5::1"
    assert mtus(four, six) == {four: 1500, six: 1500}
    site.run(
        "ip", "route", "add", "198.51.100.0/24", "via", "192.0.2.2", "mtu", "1400", "proto", "99"
    )
    site.run(
        *("ip", "-6", "route", "add", "2001:db8:5::/48", "via", "2001:db8::2", "mtu", "1300"),
        *("proto", "99"),
    )
    site.run("ip", "route", "add", "unreachable", "203.0.113.0/24", "proto", "99")
    assert mtus(four, six, "203.0.113.1") == {four: 1400, six: 1300}
    # By the rule for a mark, as WireGuard's own packets
    site.run("ip", "rule", "add", "fwmark", "7", "lookup", "77")
    site.run(
        *("ip", "route", "add", "default", "via", "192.0.2.2", "mtu", "1350", "table", "77"),
        *("proto", "99"),
    )
    try:
        assert mtus(four, fwmark=7) == {four: 1350}
    finally:
        site.run("ip", "rule", "del", "fwmark", "7")
    # Not by the tunnel itself
    site.call("open", **spec(1))
    site.run("ip", "route", "add", "198.51.100.1", "dev", "wg0", "proto", "99")
    assert mtus(four) == {}

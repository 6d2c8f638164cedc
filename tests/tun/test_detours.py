"""Where prefixes lead: routes and rules in, words out."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest

from tun.detours import Detours, Watched, find_detours
from tun.model import Prefix
from tun.routing import OwnNetwork
from tun.ways import Ranges, Rule, Way

TUNNEL, OUTSIDE, OTHER = 5, 2, 6
NAMES = {TUNNEL: "wg0", OUTSIDE: "eth0", OTHER: "wg1"}


def net(text: str) -> Prefix:
    return ip_network(text)


def way(prefix: str, **values: Any) -> Way:
    whole: dict[str, Any] = {
        "table": 254,
        "metric": 0,
        "protocol": 16,
        "outs": frozenset({OUTSIDE}),
        "gateway": "",
    }
    return Way(prefix=net(prefix), **whole | values)


def rule(**values: Any) -> Rule:
    whole: dict[str, Any] = {
        "version": 4, "priority": 100, "table": 99, "is_lookup": True, "source": None,
        "destination": None, "mark": None, "by_interface": False, "is_selective": False,
        "suppressed": None,
    }  # fmt: skip
    return Rule(**whole | values)


MAIN = rule(priority=32766, table=254)


def found(
    prefixes: str, *ways: Way, rules: tuple[Rule, ...] = (MAIN,), own: tuple[OwnNetwork, ...] = ()
) -> Detours:
    watched = [
        Watched(prefix=net(one), interfaces=frozenset({TUNNEL}), metric=0 if "." in one else 1)
        for one in prefixes.split()
    ]
    return find_detours(
        watched, table=254, ways=ways, rules=rules, own=own, names=NAMES, mark=7
    )  # fmt: skip


def texts(detours: Detours) -> list[str]:
    return [one.text for some in detours.elsewhere.values() for one in some]


OURS = way("10.2.0.0/16", protocol=157, outs=frozenset({TUNNEL}))
DEFAULT = way("0.0.0.0/0", table=99)
REFUSING = rule(is_lookup=False, refuses=True, table=0, destination=net("10.2.0.0/16"))
REFUSING_LAST = rule(is_lookup=False, refuses=True, table=0, priority=40000)


@pytest.mark.parametrize(
    ("ways", "rules"),
    [
        ([way("10.2.3.0/24")], [MAIN]),
        ([way("10.2.3.4/32", outs=frozenset({TUNNEL, OUTSIDE}))], [MAIN]),
        ([way("10.2.0.0/16")], [MAIN]),
        ([way("10.2.3.0/24", outs=frozenset())], [MAIN]),
        ([DEFAULT], [rule(), MAIN]),
        ([DEFAULT], [rule(source=net("10.1.0.0/16"), is_selective=True), MAIN]),
        ([DEFAULT], [rule(destination=net("10.2.3.0/24")), MAIN]),
        ([DEFAULT], [rule(mark=9, is_selective=True), MAIN]),
        ([way("10.2.3.0/24", table=99)], [rule(suppressed=0), MAIN]),
        ([DEFAULT], [rule(priority=50, table=254, suppressed=16), rule(), MAIN]),
        ([], [rule(is_lookup=False, refuses=True, table=0), MAIN]),
        ([], [REFUSING, MAIN]),
    ],
)
def test_what_leads_elsewhere(ways: list[Way], rules: list[Rule]) -> None:
    (text,) = texts(found("10.2.0.0/16", OURS, *ways, rules=tuple(rules)))
    assert "eth0" in text or "is refused" in text


@pytest.mark.parametrize(
    ("ways", "rules"),
    [
        ([], [MAIN]),
        ([way("10.2.0.0/16", metric=100)], [MAIN]),
        ([way("10.2.0.0/16", protocol=157, metric=4294967294, outs=frozenset())], [MAIN]),
        ([way("10.3.0.0/16"), way("10.0.0.0/8")], [MAIN]),
        ([way("10.2.3.0/24", outs=frozenset({TUNNEL}))], [MAIN]),
        ([DEFAULT], [MAIN, rule(priority=40000)]),
        ([DEFAULT], [rule(priority=50, table=254, suppressed=0), rule(), MAIN]),
        ([DEFAULT], [rule(mark=7, is_selective=True), MAIN]),
        ([DEFAULT], [rule(destination=net("10.3.0.0/16")), MAIN]),
        ([DEFAULT], [rule(by_interface=True, is_selective=True), MAIN]),
        ([DEFAULT], [rule(suppressed=0), MAIN]),
        ([], [MAIN, REFUSING_LAST]),
    ],
)
def test_what_does_not(ways: list[Way], rules: list[Rule]) -> None:
    assert texts(found("10.2.0.0/16", OURS, *ways, rules=tuple(rules))) == []


def test_a_rule_for_an_uplink_s_own_address_is_no_detour() -> None:
    own = (OwnNetwork("eth0", net("203.0.113.0/24"), True, None),)
    uplink = rule(source=net("203.0.113.2/32"), is_selective=True)
    assert texts(found("10.2.0.0/16", OURS, DEFAULT, rules=(uplink, MAIN), own=own)) == []


def test_a_route_belongs_to_the_longest_prefix() -> None:
    detours = found("10.0.0.0/8 10.2.0.0/16", OURS, way("10.2.3.0/24"))
    assert list(detours.elsewhere) == [net("10.2.0.0/16")]


def test_more_specific_than_a_default_route_is_the_operator_s_business() -> None:
    assert texts(found("0.0.0.0/0", way("10.2.3.0/24"), way("198.51.100.7/32"))) == []
    assert len(texts(found("0.0.0.0/0", way("0.0.0.0/1"), way("128.0.0.0/1")))) == 2


def test_ipv6_with_a_better_metric_and_with_the_same() -> None:
    for metric, count in ((0, 1), (1, 1), (1024, 0)):
        assert len(texts(found("fd00:2::/48", way("fd00:2::/48", metric=metric)))) == count


@pytest.mark.parametrize(
    ("network", "lasting", "elsewhere", "noted"),
    [
        ("10.2.0.0/16", True, 1, 0),
        ("10.2.1.0/24", True, 0, 1),
        ("10.2.1.0/24", False, 1, 0),
        ("10.0.0.0/8", True, 0, 1),
        ("10.3.0.0/16", True, 0, 0),
    ],
)
def test_networks_of_this_host(network: str, lasting: bool, elsewhere: int, noted: int) -> None:
    own = (OwnNetwork("eth1", net(network), lasting, None),)
    connected = way(network, protocol=2, outs=frozenset({OUTSIDE}))
    detours = found("10.2.0.0/16", OURS, connected, own=own)
    assert len(texts(detours)) == elsewhere
    assert sum(map(len, detours.notes.values())) == noted
    assert not any(one.by_route for some in detours.elsewhere.values() for one in some)


def test_an_on_link_prefix_without_an_address_is_no_network_of_this_host() -> None:
    """A router's advertisement alone makes it."""
    (text,) = texts(found("fd00:2::/48", way("fd00:2:0:1::/64", protocol=9, metric=256)))
    assert "a router's advertisement" in text


def test_ranges() -> None:
    ranges = Ranges(map(net, ("10.2.0.0/16", "10.3.0.0/16", "10.9.0.0/24", "fd00::/16")))

    def touch(text: str) -> bool:
        prefix = net(text)
        first, last = int(prefix.network_address), int(prefix.broadcast_address)
        return ranges.touch(prefix.version, first, last)

    assert all(map(touch, ("10.2.3.4/32", "10.0.0.0/8", "0.0.0.0/0", "fd00:1::/32", "10.3.0.0/16")))
    assert not any(map(touch, ("10.4.0.0/16", "10.1.0.0/16", "11.0.0.0/8", "fe80::/10")))


def test_what_is_behind_this_host_is_no_detour() -> None:
    watched = [Watched(prefix=net("10.0.0.0/8"), interfaces=frozenset({TUNNEL}), metric=0)]
    for behind, count in (("10.2.0.0/16", 0), ("10.3.0.0/16", 1)):
        detours = find_detours(
            watched, table=254, ways=[way("10.2.3.0/24")], rules=[MAIN], own=[], names=NAMES,
            mark=None, behind=frozenset({net(behind)}),
        )  # fmt: skip
        assert len(texts(detours)) == count

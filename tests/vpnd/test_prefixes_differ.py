"""What the two ends of a link say of each other's prefixes, and where it does not fit."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest
import trio

from kex.external import ExternalMode
from kex.payload import Announcement
from tests.vpnd.link_ends import Site, agree, make_sites
from tun import Prefix
from vpnd.prefixes_differ import differences


def prefixes(text: str) -> tuple[Prefix, ...]:
    return tuple(map(ipaddress.ip_network, text.split()))


def told(
    announces: str, allows: str | None, announced: str, allowed: str, *, routed: bool = True
) -> list[str]:
    peer = Announcement(
        wireguard_key=bytes(32),
        wireguard_port=0,
        prefixes=prefixes(announces),
        mode=ExternalMode.OFF,
        interval=120,
        can_start=True,
        allows=None if allows is None else prefixes(allows),
    )
    return list(
        differences(peer, announced=prefixes(announced), allowed=prefixes(allowed), routed=routed)
    )


OWN, PEERS = "10.255.0.1/32 10.10.0.0/16", "10.255.0.2/32 10.20.0.0/16"


def test_two_ends_that_agree_say_nothing() -> None:
    assert told(PEERS, OWN, OWN, PEERS) == []


def test_halves_make_a_whole_and_a_part_lies_within() -> None:
    assert told("10.20.0.0/17 10.20.128.0/17", "10.10.0.0/16", "10.10.0.0/16", "10.20.0.0/16") == []
    assert told("10.20.7.0/24", None, "", "10.20.0.0/17 10.20.128.0/17") == [
        "allowed_ips has 10.20.0.0/17, of which the peer announces only a part",
        "allowed_ips has 10.20.128.0/17, which the peer does not announce",
    ]


def test_each_end_names_what_either_of_them_leaves_out() -> None:
    assert told(
        f"{PEERS} fd00:20::/48",
        f"{OWN} 10.11.0.0/16",
        f"{OWN} fd00:10::/48",
        f"{PEERS} 10.21.0.0/16",
    ) == [
        "the peer announces fd00:20::/48, which is not in allowed_ips here",
        "allowed_ips has 10.21.0.0/16, which the peer does not announce",
        "this end announces fd00:10::/48, which the peer does not allow",
        "the peer allows 10.11.0.0/16, which this end does not announce",
    ]


@pytest.mark.parametrize("prefix", ["0.0.0.0/0", "::/0", "fe80::2/128"])
def test_what_nobody_announces_is_no_difference(prefix: str) -> None:
    assert told(PEERS, f"{OWN} {prefix}", OWN, f"{PEERS} {prefix}") == []


def test_where_a_routing_daemon_decides_more_may_be_allowed() -> None:
    assert told(PEERS, f"{OWN} 10.0.0.0/8", OWN, f"{PEERS} 10.0.0.0/8", routed=False) == []
    assert told("10.30.0.0/16", None, OWN, PEERS, routed=False) != []


def announcing(site: Site, *announce: str) -> None:
    site.device.config = site.device.config.model_copy(
        update={"announce": prefixes(" ".join(announce))}
    )


async def test_both_ends_warn_and_a_change_is_seen_at_once(tmp_path: Path) -> None:
    fra, ams = make_sites(tmp_path)
    fra_peer = fra.configure(ams, {}, allowed_ips=["10.20.0.0/16"])
    ams_peer = ams.configure(fra, {}, allowed_ips=["10.11.0.0/16"])
    async with fra.running(ams, fra_peer):
        announcing(fra, "10.10.0.0/16")
        async with ams.running(fra, ams_peer):
            announcing(ams, "10.20.0.0/16")
            await agree(fra, ams)
            await fra.wait_for("ends_differ", 2)
            await ams.wait_for("ends_differ", 2)
            assert fra.link.report.warnings == (
                "this end announces 10.10.0.0/16, which the peer does not allow",
                "the peer allows 10.11.0.0/16, which this end does not announce",
            )
            assert ams.link.report.warnings == (
                "the peer announces 10.10.0.0/16, which is not in allowed_ips here",
                "allowed_ips has 10.11.0.0/16, which the peer does not announce",
            )
            right = ams_peer.model_copy(update={"allowed_ips": prefixes("10.10.0.0/16")})
            own = (ams.identity.fingerprint,)
            config = ams.link.exchanges.config_with(right, own)
            assert config is not None
            with ams.engine.driving() as (endpoint, now):
                endpoint.update_link(config, now)
            ams.link.take(right, own)
            assert not ams.link.report.warnings
            await fra.renew()
            with trio.fail_after(30):
                while fra.link.report.warnings:
                    await fra.news.wait()

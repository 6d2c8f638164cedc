"""What status says of two real sites: forwarding, prefixes that differ, a peer put back."""

from __future__ import annotations

import json
from ipaddress import ip_interface
from typing import Any

import pytest
import trio
from linking import TWO, linked

from vpnd_lab.lab import Lab
from vpnd_lab.node import Node
from vpnd_lab.patience import patient
from vpnd_lab.proof import key_id
from vpnd_lab.site import ASK_EVERY_SECONDS, Site

pytestmark = pytest.mark.netns

TEXT = f"""
{TWO}
[[links]]
sites = ["fra", "ams"]
"""
ENDS = (("fra", "ams"), ("ams", "fra"))


async def set_to(node: Node, value: int, *settings: str) -> None:
    for setting in settings:
        path = "/proc/sys/" + setting.replace(".", "/")
        await node.run(["sh", "-c", f"echo {value} > {path}"])


async def wait_status(site: Site, wanted: Any) -> list[str]:
    """The node's warnings, once they are as wanted."""
    with trio.fail_after(patient(30)):
        while True:
            warnings = list((await site.status())["warnings"])
            if wanted(warnings):
                return warnings
            await trio.sleep(ASK_EVERY_SECONDS)


async def test_forwarding_that_is_off_is_told_for_each_family_and_interface() -> None:
    async with linked(TEXT) as lab:
        fra = lab.site("fra")
        assert (await fra.status())["warnings"] == []
        links = [await lab.site(site).link_status(peer) for site, peer in ENDS]
        assert [link["warnings"] for link in links] == [[], []]
        lan = await lan_of(lab, fra)
        await set_to(fra, 0, f"net.ipv4.conf.{lan}.forwarding")
        (one,) = await wait_status(fra, len)
        assert f"IPv4 between the tunnel and the networks behind it: net.ipv4.conf.{lan}" in one
        await set_to(fra, 0, "net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding")
        four, six = await wait_status(fra, lambda found: len(found) == 2)
        assert "net.ipv4.ip_forward = 0; sysctl -w net.ipv4.ip_forward=1" in four
        assert "IPv6" in six
        assert "net.ipv6.conf.all.forwarding = 0" in six
        for site, peer in ENDS:  # the keys have no part in it
            assert (await lab.site(site).link_status(peer))["state"] == "active"
        checked = await fra.vpnctl("check")
        assert checked["valid"]
        for note, text in zip(checked["notes"], (four, six), strict=True):
            assert note["reason"] in text
        logged = [json.loads(line) for line in fra.daemon_log.read_text().splitlines()]
        assert [each["tunnel"] for each in logged if each.get("event") == "not_forwarded"]
        await set_to(fra, 1, "net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding")
        await wait_status(fra, lambda found: found == [])
        await set_to(fra, 0, "net.ipv4.conf.wg0.forwarding")
        (one,) = await wait_status(fra, len)
        assert "net.ipv4.conf.wg0.forwarding = 0" in one


async def lan_of(lab: Lab, site: Site) -> str:
    """The interface that leads to what is behind a site."""
    prefix = next(each for each in site.plan.lan if each.version == 4)
    shown = await site.run(["ip", "-oneline", "-4", "address", "show"])
    for line in shown.stdout.splitlines():
        _, interface, _, address, *_ = line.split()
        if ip_interface(address).ip in prefix:
            return interface
    raise AssertionError(shown.stdout)


async def test_a_peer_that_is_put_back_leads_to_no_contradiction_and_prefixes_to_a_warning() -> (
    None
):
    async with linked(TEXT) as lab:
        fra, ams = lab.site("fra"), lab.site("ams")
        await fra.vpnctl("peer", "remove", "ams")
        allowed = [each for each in ams.plan.prefixes("backbone") if each.version == 4]
        await lab.add_peer("fra", "ams", allow=allowed)
        told = False
        with trio.fail_after(patient(60)):
            while True:
                one, other = [await lab.site(site).link_status(peer) for site, peer in ENDS]
                ids = {key_id(one), key_id(other)} - {""}
                assert len(ids) <= 1, (one, other)
                alive = other["keys_alive"]
                if alive is not None:
                    assert key_id(one, "key_installed") in alive["key_ids"]
                    assert alive["until"]
                    told = True
                if one["state"] == other["state"] == "active" and (told or ids):
                    break
                await trio.sleep(ASK_EVERY_SECONDS)
        # What fra does not allow any more, both of them say; the exchange has just told ams
        six = [each for each in ams.plan.prefixes("backbone") if each.version == 6]
        here = {f"the peer announces {each}, which is not in allowed_ips here" for each in six}
        there = {f"this end announces {each}, which the peer does not allow" for each in six}
        assert set(one["warnings"]) == here
        await ams.wait_link(
            "fra", lambda status: set(status["warnings"]) == there, what="told of the difference"
        )

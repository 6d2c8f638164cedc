"""Each route by itself, and what this host has the better right to.

fra-host ── fra ══ internet ══ ams ── ams-host
             └───── wg0 ───────┘
"""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.lowlevel
from linking import linked

from kex.identity import Fingerprint
from vpnd_lab.patience import patient
from vpnd_lab.programs import program
from vpnd_lab.site import Site

pytestmark = [pytest.mark.netns]


async def degraded(site: Site, *words: str) -> str:
    last = ""
    with trio.move_on_after(patient(60)):
        while True:
            status = await site.link_status("ams")
            last = f"{status['state']}: {status['reason']}"
            if status["state"] == "degraded" and all(word in last for word in words):
                return last
            await trio.sleep(0.1)
    raise AssertionError(f"{words} not in: {last}")


async def routed(site: Site) -> str:
    shown = [
        (await site.run(["ip", family, "route", "show", "dev", "wg0", "proto", "157"])).stdout
        for family in ("-4", "-6")
    ]
    return "".join(shown)


async def wait_routed(site: Site, *prefixes: str) -> None:
    with trio.fail_after(patient(60)):
        while True:
            shown = await routed(site)
            if all(prefix in shown for prefix in prefixes):
                return
            await trio.sleep(0.05)


@pytest.mark.kernel_long
async def test_one_route_in_conflict_keeps_no_other_away() -> None:
    async with linked() as lab:
        fra = lab.site("fra")
        vpnctl = [program("vpnctl"), "--config", str(fra.config_path)]
        sound = ("10.255.0.2", "fd00:255::2", "fd00:2::/48")
        await wait_routed(fra, "10.2.0.0/16", *sound)
        # Somebody's own route takes the place of one of ours, and all of ours go
        await fra.run(
            [
                "sh",
                "-ec",
                "ip route replace 10.2.0.0/16 dev lo proto 99; "
                "ip route flush dev wg0 proto 157; ip -6 route flush dev wg0 proto 157",
            ]
        )
        await wait_routed(fra, *sound)
        await degraded(fra, "has a route 10.2.0.0/16 with metric 0 that vpnd did not make")
        strict = [*vpnctl, "--socket", str(fra.control_socket), "status", "ams"]
        assert (await fra.run(strict, check=False)).returncode == 0
        assert (await fra.run([*strict, "--strict"], check=False)).returncode == 4
        checked = await fra.run([*vpnctl, "check"])
        assert "10.2.0.0/16 leads to lo by a route of protocol 99" in checked.stdout
        await fra.run(["ip", "route", "del", "10.2.0.0/16", "dev", "lo", "proto", "99"])
        await fra.wait_state("ams", "active")
        await wait_routed(fra, "10.2.0.0/16", *sound)
        # Each family by itself
        switch = Path("/proc/sys/net/ipv6/conf/wg0/disable_ipv6")
        await fra.run(["sh", "-c", f"echo 1 > {switch}; ip route flush dev wg0 proto 157"])
        await degraded(fra, "IPv6 is switched off on this host")
        await wait_routed(fra, "10.2.0.0/16")
        async with lab.traffic("fra-host", "ams-host") as meter:
            await meter.wait_received(20)
        await fra.run(["sh", "-c", f"echo 0 > {switch}"])
        await fra.wait_state("ams", "active")
        await wait_routed(fra, "10.2.0.0/16", *sound)


async def test_a_network_of_this_host_s_own_is_not_cut_off() -> None:
    async with linked() as lab:
        fra = lab.site("fra")

        async def leads_to(interface: str) -> None:
            with trio.fail_after(patient(60)):
                while True:
                    shown = await fra.run(["ip", "route", "get", "10.2.0.9"], check=False)
                    if f"dev {interface} " in shown.stdout:
                        return
                    await trio.sleep(0.05)

        await leads_to("wg0")
        await fra.run(["ip", "address", "add", "10.2.0.1/16", "dev", "internet"])
        await degraded(fra, "10.2.0.0/16", "network of internet on this host", "goes first")
        await leads_to("internet")
        # The fence leaves it alone there, and what a LAN needs passes
        assert (
            'oifname "internet" ip daddr 10.2.0.0/16 accept'
            in (await fra.run(["nft", "list", "table", "inet", "vpnd-wg0"])).stdout
        )
        checked = await fra.run([program("vpnctl"), "--config", str(fra.config_path), "check"])
        assert "the network of internet on this host" in checked.stdout
        # Its route goes, as it does where a cable is pulled, and comes back
        await fra.run(["ip", "route", "del", "10.2.0.0/16", "dev", "internet", "proto", "kernel"])
        await trio.lowlevel.checkpoint()
        await fra.run(["ip", "route", "flush", "dev", "wg0", "proto", "157"])
        await wait_routed(fra, "fd00:2::/48")
        assert "10.2.0.0/16" not in await routed(fra)
        await fra.run(["ip", "address", "del", "10.2.0.1/16", "dev", "internet"])
        await fra.wait_state("ams", "active")
        await leads_to("wg0")


async def test_a_way_into_the_tunnel_itself_is_told() -> None:
    """The endpoint's own route leads into the tunnel: by hand here, by BGP elsewhere."""
    async with linked() as lab:
        fra = lab.site("fra")
        status = await fra.link_status("ams")
        host = status["wireguard"]["endpoint"].rpartition(":")[0].strip("[]")
        await fra.run(["ip", "route", "add", host, "dev", "wg0"])
        await degraded(fra, f"endpoint {host} leads into wg0, the tunnel itself")
        await fra.run(["ip", "route", "del", host, "dev", "wg0"])
        await fra.wait_state("ams", "active")


async def test_a_peer_behind_a_guard_is_told_and_not_waited_for() -> None:
    async with linked() as lab:
        fra = lab.site("fra")
        lines = (
            f'identity = "{Fingerprint.of(1, b"lon").text()}"',
            'endpoint = "198.51.100.9:51821"',
            'allowed_ips = ["10.9.0.0/16"]',
            'protect = ["198.51.100.0/24"]',
        )
        path = fra.config_path.parent / "peers.d" / "lon.toml"
        path.write_text("\n".join(lines) + "\n")
        path.chmod(0o644)
        await fra.vpnctl("reload")
        with trio.fail_after(patient(30)):
            while True:
                reason = (await fra.link_status("lon"))["reason"]
                if "nothing can be sent to the peer's endpoint 198.51.100.9" in reason:
                    break
                await trio.sleep(0.1)
        assert "198.51.100.0/24, which is guarded for lon" in reason
        assert (await fra.link_status("ams"))["state"] == "active"

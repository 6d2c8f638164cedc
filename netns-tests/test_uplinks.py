"""Gateways with several uplinks: where answers leave from, devices, VRFs, and the MTU.

        fra-host ── fra ──── internet
                     └────── carrier ── ams ── ams-host

fra's default route is by `internet`; ams knows it at its address on `carrier`.
"""

from __future__ import annotations

import os
import subprocess
from typing import Any, Literal

import pytest
import trio

from vpnd_lab.lab import Lab, open_lab
from vpnd_lab.patience import patient
from vpnd_lab.proof import installed, wait_new_key
from vpnd_lab.site import Site
from vpnd_lab.spec import LabSpec

pytestmark = [pytest.mark.netns, pytest.mark.kernel_long]

BACKEND = os.environ.get("VPND_TEST_BACKEND", "userspace")
PORT = 51821


def spec(**fra: str) -> LabSpec:
    keys = "\n".join(f"{key} = {value}" for key, value in fra.items())
    return LabSpec.parse(
        f"""
        [routers.internet]
        [routers.carrier]
        neighbours = ["internet"]
        [sites.fra]
        {keys}
        [sites.ams]
        uplinks = ["carrier"]
        [tunnels.backbone]
        backend = "{BACKEND}"
        [[links]]
        sites = ["fra", "ams"]
        """,
        name="uplinks",
    )


async def start(lab: Lab, **fra: str) -> Site:
    """Both daemons, fra's configured with these lines changed or added behind others."""
    for site in lab.sites.values():
        await site.init()
    site = lab.site("fra")
    lines = site.config_path.read_text().splitlines()
    for key, line in fra.items():
        at = next(number for number, found in enumerate(lines) if found.startswith(key))
        lines[at : at + 1] = line.splitlines()
    site.config_path.write_text("\n".join(lines) + "\n")
    async with trio.open_nursery() as nursery:
        for site in lab.sites.values():
            nursery.start_soon(site.start_daemon)
    return lab.site("fra")


async def wait_status(site: Site, condition: Any, what: str) -> Any:
    """Wait until the node's status fulfils a condition."""
    status = None
    with trio.move_on_after(patient(60)):
        while True:
            status = await site.status()
            if condition(status):
                return status
            await trio.sleep(0.1)
    raise AssertionError(f"{what}: {status}")


async def active(lab: Lab) -> None:
    await lab.site("fra").wait_state("ams", "active")
    await lab.site("ams").wait_state("fra", "active")


@pytest.mark.parametrize("family", [4, 6])
async def test_answers_leave_from_the_uplink_that_was_asked(family: Literal[4, 6]) -> None:
    async with open_lab(spec(uplinks='["internet", "carrier"]'), start="daemons") as lab:
        fra, ams = lab.site("fra"), lab.site("ams")
        main, other = [a.ip for a in fra.addresses if a.version == family][:2]
        assert main == fra.address(family)
        to_ams = ["ip", "route", "get", str(ams.address(family))]
        assert f"src {main}" in (await fra.run(to_ams)).stdout
        # As gateways with two uplinks have it: what has an uplink's address leaves by it
        gateway = next(a.ip for a in lab.node("carrier").addresses if other in a.network)
        ip = ["ip", f"-{family}"]
        await fra.run([*ip, "rule", "add", "from", str(other), "lookup", "100"])
        await fra.run([*ip, "route", "add", "default", "via", str(gateway), "table", "100"])
        # What fra's key exchange sends from its main address does not arrive
        word = "ip" if family == 4 else "ip6"
        ruleset = (
            "table inet test { chain in { type filter hook input priority 0; "
            f"udp sport {PORT} {word} saddr {main} counter drop; }}; }}"
        )
        await ams.run(["nft", "-f", "-"], stdin=ruleset)
        await lab.add_peer("fra", "ams", endpoint=None)
        asked = f"[{other}]:{PORT}" if family == 6 else f"{other}:{PORT}"
        await lab.add_peer("ams", "fra", endpoint=asked)
        await active(lab)
        # fra's own exchanges, too, go the way that ams came
        before = await installed(lab, "fra", "ams")
        await fra.vpnctl("peer", "rekey", "ams")
        await wait_new_key(lab, "fra", "ams", before=before)
        shown = (await ams.run(["nft", "list", "ruleset"])).stdout
        assert "counter packets 0 " in shown, shown
        async with lab.traffic("fra-host", "ams-host") as meter:
            await meter.wait_received(20)


async def test_a_device_or_an_address_that_is_not_there_is_waited_for() -> None:
    async with open_lab(spec(uplinks='["carrier"]')) as lab:
        fra = await start(
            lab,
            listen=f'listen = ["[2001:db8:99::99]:51822", '
            f'{{ address = "[::]:{PORT}", device = "uplink" }}]',
        )
        status = await fra.status()
        assert status["listen"] == []
        first, second = status["warnings"]
        assert "[2001:db8:99::99]:51822: " in first
        assert "no interface has this address" in first
        assert "[::]:51821 on uplink: there is no device uplink" in second
        await lab.link("fra", "ams")
        await fra.run(["ip", "address", "add", "2001:db8:99::99/128", "dev", "lo"])
        await wait_status(fra, lambda s: len(s["warnings"]) == 1, "listening on the address")
        await rename(fra, "carrier", "uplink")
        await wait_status(fra, lambda s: s["warnings"] == [], "listening on the device")
        listen = (await fra.status())["listen"]
        assert listen == ["[2001:db8:99::99]:51822", f"[::]:{PORT} on uplink"]
        assert f"%uplink:{PORT}" in (await fra.run(["ss", "-uln"])).stdout
        assert '"event": "listening"' in fra.daemon_log.read_text()
        await active(lab)
        # Gone, and another one of its name: a socket that is bound to the old one is deaf
        await rename(fra, "uplink", "carrier")
        await wait_status(fra, lambda s: len(s["warnings"]) == 1, "deaf")
        await rename(fra, "carrier", "uplink")
        await wait_status(fra, lambda s: s["warnings"] == [], "listening again")
        before = await installed(lab, "fra", "ams")
        await lab.site("ams").vpnctl("peer", "rekey", "fra")
        await wait_new_key(lab, "fra", "ams", before=before)


async def rename(site: Site, old: str, new: str) -> None:
    """What a device that comes and goes is to who listens on it; its routes go with it."""
    default = (await site.run(["ip", "route", "show", "default"])).stdout.split()
    await site.run(["ip", "link", "set", "dev", old, "down"])
    await site.run(["ip", "link", "set", "dev", old, "name", new])
    await site.run(["ip", "link", "set", "dev", new, "up"])
    await site.run(["ip", "route", "add", "default", "via", default[2]])


async def test_the_mtu_follows_the_underlay() -> None:
    async with open_lab(spec(uplinks="{ carrier = { mtu = 1400 } }")) as lab:
        fra = await start(lab, interface='interface = "wg0"\nmtu = "auto"')
        assert (await fra.status())["tunnels"][0]["mtu"] == 1420
        await lab.link("fra", "ams")
        await active(lab)
        await wait_status(fra, lambda s: s["tunnels"][0]["mtu"] == 1320, "1400 less 80")
        # 28 bytes of IPv4 and ICMP
        far = str(lab.site("ams").tunnel_address())
        await fra.run(["ping", "-c1", "-W20", "-Mdo", f"-s{1320 - 28}", far])
        refused = await fra.run(["ping", "-c1", "-W1", "-Mdo", f"-s{1320 - 27}", far], check=False)
        assert refused.returncode != 0
        # A path that is known to be narrower than its first cable
        ams = str(lab.site("ams").address())
        via = (await fra.run(["ip", "route", "show", "default"])).stdout.split()[2]
        await fra.run(["ip", "route", "add", f"{ams}/32", "via", via, "mtu", "1380"])
        await fra.vpnctl("reload")
        await wait_status(fra, lambda s: s["tunnels"][0]["mtu"] == 1300, "1380 less 80")
        await fra.run(["ip", "route", "change", f"{ams}/32", "via", via, "mtu", "1300"])
        await fra.vpnctl("reload")
        await wait_status(fra, lambda s: s["tunnels"][0]["mtu"] == 1280, "what IPv6 needs")
        link = (await fra.run(["ip", "-o", "link", "show", "dev", "wg0"])).stdout
        assert " mtu 1280 " in link
        # It stays so over a restart
        await fra.stop_daemon()
        await fra.start_daemon()
        assert " mtu 1280 " in (await fra.run(["ip", "-o", "link", "show", "dev", "wg0"])).stdout


@pytest.fixture
def needs_vrf() -> None:
    """Tried in a namespace that ends with the command."""
    probe = ["unshare", "--net", "ip", "link", "add", "probe", "type", "vrf", "table", "9"]
    done = subprocess.run(probe, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"this kernel has no VRF: {done.stderr.strip()}")


@pytest.mark.kernel
@pytest.mark.usefixtures("needs_vrf")
async def test_a_tunnel_in_a_vrf() -> None:
    async with open_lab(spec(uplinks='["carrier"]')) as lab:
        fra = lab.site("fra")
        await start(lab, interface='interface = "wg0"\nvrf = "blue"')
        await lab.add_peer("ams", "fra")
        status = await fra.status()
        assert "there is no VRF blue (yet)" in status["tunnels"][0]["error"]
        await fra.run(["ip", "link", "add", "blue", "type", "vrf", "table", "10"])
        await fra.run(["ip", "link", "set", "blue", "up"])
        await wait_status(fra, lambda s: s["tunnels"][0]["error"] is None, "open")
        await lab.add_peer("fra", "ams")
        await active(lab)
        assert "master blue" in (await fra.run(["ip", "link", "show", "dev", "wg0"])).stdout
        for family, prefix in (("-4", "10.2.0.0/16"), ("-6", "fd00:2::/48")):
            shown = await fra.run(["ip", family, "route", "show", "table", "10", "proto", "157"])
            lines = [line for line in shown.stdout.splitlines() if prefix in line]
            assert len(lines) == 2, shown.stdout
            assert any("dev wg0" in line for line in lines)
            assert any(line.startswith("unreachable") for line in lines)
            main = await fra.run(["ip", family, "route", "show", "table", "main", "proto", "157"])
            assert main.stdout == ""
        far = str(lab.site("ams").tunnel_address())
        await fra.run(["ping", "-c1", "-W20", "-I", "blue", far])
        # Taken out of it by hand
        await fra.run(["ip", "link", "set", "wg0", "nomaster"])
        with trio.fail_after(patient(60)):
            while True:
                if "not in the VRF blue" in fra.daemon_log.read_text():
                    break
                await trio.sleep(0.1)
        await fra.run(["ping", "-c1", "-W20", "-I", "blue", far])
        # The VRF goes, and comes again with another table
        await fra.run(["ip", "link", "delete", "blue"])
        await fra.run(["ip", "link", "add", "blue", "type", "vrf", "table", "11"])
        await fra.run(["ip", "link", "set", "blue", "up"])
        with trio.fail_after(patient(60)):
            while True:
                shown = await fra.run(["ip", "route", "show", "table", "11", "proto", "157"])
                if sum("10.2.0.0/16" in line for line in shown.stdout.splitlines()) == 2:
                    break
                await trio.sleep(0.1)
        await fra.run(["ping", "-c1", "-W20", "-I", "blue", far])

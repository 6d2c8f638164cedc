"""BGP over two tunnels, each over a carrier of its own, by Debian's bird2.

                     ┌── carrier-a ──┐
        fra-host ── fra             ams ── ams-host
                     └── carrier-b ──┘

Two links with an identity each, `routes = "none"`: BIRD at both gateways decides which tunnel
carries what, with the configuration that docs/operations.md shows for fra.
"""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio
from offered import longest_gap, offered, refused_since, tell
from report import Case

from vpnd_lab.capture import Capture
from vpnd_lab.lab import Lab, open_lab
from vpnd_lab.patience import patient
from vpnd_lab.plan import Network
from vpnd_lab.programs import identity_of
from vpnd_lab.site import Site
from vpnd_lab.spec import LabSpec

pytestmark = [pytest.mark.netns, pytest.mark.kernel_long]

BACKEND = os.environ.get("VPND_TEST_BACKEND", "userspace")
LAB_FILE = f"""
[routers.carrier-a]
[routers.carrier-b]
[sites.fra]
uplinks = ["carrier-a", "carrier-b"]
tunnels.a = []
tunnels.b = []
[sites.ams]
uplinks = ["carrier-a", "carrier-b"]
tunnels.a = []
tunnels.b = []
[tunnels.a]
interface = "wg-a"
networks = ["10.255.1.0/24", "fd00:255:1::/64"]
backend = "{BACKEND}"
[tunnels.b]
interface = "wg-b"
listen_port = 51822
networks = ["10.255.2.0/24", "fd00:255:2::/64"]
backend = "{BACKEND}"
"""
PAIR = (("fra", "ams"), ("ams", "fra"))
CARRIERS = {"a": "carrier-a", "b": "carrier-b"}
OPERATIONS = Path(__file__).parent.parent / "docs" / "operations.md"
BGP_SESSIONS = '"??"'
"""A pattern for a4, a6, b4 and b6: what the example calls its sessions."""
BIRD_SOCKET = "/run/bird.ctl"
# A filter that drops without a word, as a carrier does that is cut somewhere inside.
CUT = "add table inet cut { chain passing { type filter hook forward priority 0; policy drop; }; }"


def bird_config(site: str) -> str:
    """What docs/operations.md shows for fra1, with the lab's name for its lan's interface; for
    ams the same with the numbers swapped."""
    shown = re.search(r"^    log syslog all;\n(?:(?:    .*)?\n)+", OPERATIONS.read_text(), re.M)
    assert shown is not None, "docs/operations.md has no bird.conf any more"
    text = textwrap.dedent(shown[0]).replace("eth1", f"{site}-host").replace(
        "log syslog all", 'log "/run/bird.log" all'
    )  # fmt: skip
    if site == "fra":
        return text
    swapped = {"10.2.0.0": "10.1.0.0", "fd00:2::": "fd00:1::", "65001": "65002", "65002": "65001"}
    for tunnel in (1, 2):
        for prefix in (f"10.255.{tunnel}.", f"fd00:255:{tunnel}::"):
            swapped |= {f"{prefix}1": f"{prefix}2", f"{prefix}2": f"{prefix}1"}
    found = rf"(?<![\w:.])(?:{'|'.join(map(re.escape, swapped))})(?![\w.])"
    return re.sub(found, lambda match: swapped[match[0]], text)


def carrier_address(site: Site, carrier: str) -> str:
    """The site's IPv4 address at a carrier."""
    number = list(CARRIERS).index(carrier)
    return str([address.ip for address in site.addresses if address.version == 4][number])


async def prepare(site: Site) -> str:
    """Configuration and identities, no daemon yet; the second identity."""
    await site.init()
    second = await site.vpnctl("id", "new", "second")
    text = site.config_path.read_text()
    text, count = re.subn(r"^(\[tunnels\..*\])$", r'\1\nroutes = "none"', text, flags=re.M)
    assert count == 2
    site.config_path.write_text(text)
    return identity_of(second)


async def join(lab: Lab, at: str, peer: str, identities: dict[str, str]) -> None:
    """Both links to the other gateway, and the way to it over the second carrier."""
    site, other = lab.site(at), lab.site(peer)
    for carrier, identity in identities.items():
        write_peer(lab, at, peer, carrier, identity, protect=other.plan.lan)
    far = f"{carrier_address(other, 'b').rpartition('.')[0]}.0/24"
    near = carrier_address(site, "b").rpartition(".")[0] + ".1"
    await site.run(["ip", "route", "add", far, "via", near])
    await site.start_daemon()


def write_peer(
    lab: Lab, at: str, peer: str, carrier: str, identity: str, *, protect: Iterable[Network]
) -> None:
    address = carrier_address(lab.site(peer), carrier)
    prefixes = ", ".join(f'"{prefix}"' for prefix in protect)
    lines = [
        f'identity = "{identity}"',
        f'endpoint = "{address}:{lab.site(peer).plan.listen_port}"',
        f'tunnel = "{carrier}"',
        'allowed_ips = ["0.0.0.0/0", "::/0"]',
        f"protect = [{prefixes}]",
    ]
    if carrier == "b":
        lines.append('local_identity = "second"')
    folder = lab.site(at).config_path.parent / "peers.d"
    folder.mkdir(mode=0o755, exist_ok=True)
    (folder / f"{peer}-{carrier}.toml").write_text("\n".join(lines) + "\n")


@asynccontextmanager
async def bird(site: Site) -> AsyncIterator[None]:
    """BIRD in the site, without systemd."""
    config = site.folder / "bird.conf"
    config.write_text(bird_config(site.name))
    await site.run(["bird", "-p", "-c", str(config)])
    async with site.background(["bird", "-f", "-c", str(config), "-s", BIRD_SOCKET]):
        yield


async def birdc(site: Site, *words: str) -> str:
    return (await site.run(["birdc", "-s", BIRD_SOCKET, *words])).stdout


@asynccontextmanager
async def two_carriers() -> AsyncIterator[Lab]:
    """Both links active, BIRD at both gateways, traffic over the first carrier."""
    async with open_lab(LabSpec.parse(LAB_FILE, name="bgp"), start="network") as lab:
        seconds = {name: await prepare(lab.site(name)) for name in ("fra", "ams")}
        for site, peer in PAIR:
            await join(lab, site, peer, {"a": lab.site(peer).identity, "b": seconds[peer]})
        for site, peer in PAIR:
            for carrier in CARRIERS:
                await lab.site(site).wait_state(f"{peer}-{carrier}", "active")
        async with bird(lab.site("fra")), bird(lab.site("ams")):
            await routed_by(lab, "wg-a")
            yield lab


async def routed_by(lab: Lab, interface: str, *, seconds: float = 60) -> None:
    """Wait until both gateways send to the other's hosts by this interface, in both families."""
    with trio.move_on_after(patient(seconds)):
        while True:
            if all([await _by(lab, site, peer, interface) for site, peer in PAIR]):
                return
            await trio.sleep(0.1)
    words = [await birdc(lab.site(site), "show", "route", "all") for site, _ in PAIR]
    words += [await birdc(lab.site(site), "show", "protocols", "all") for site, _ in PAIR]
    raise AssertionError(f"not routed by {interface} within {seconds:g} s:\n" + "\n".join(words))


async def _by(lab: Lab, site: str, peer: str, interface: str) -> bool:
    host = lab.node(f"{peer}-host")
    for address in (host.address(4), host.address(6)):
        done = await lab.site(site).run(["ip", "route", "get", str(address)], check=False)
        if f"dev {interface} " not in done.stdout:
            return False
    return True


@asynccontextmanager
async def captured(lab: Lab) -> AsyncIterator[list[Capture]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(lab.capture(name)) for name in CARRIERS.values()]


async def in_the_clear(captures: list[Capture]) -> int:
    seen = [await capture.seen() for capture in captures]
    print("on the carriers: " + "; ".join(map(str, seen)))
    assert [each.other for each in seen] == [0, 0]
    return sum(each.clear for each in seen)


async def test_one_of_two_carriers_is_cut(case: Case) -> None:
    async with two_carriers() as lab, captured(lab) as carriers:
        async with offered(lab) as traffic:
            await traffic.wait_received(20)
            await lab.node("carrier-a").run(["nft", CUT])
            await traffic.wait_received(20)
            await routed_by(lab, "wg-b")
            reports = await traffic.stop()
            clear = await in_the_clear(carriers)
            tell(case, reports, clear, name="cut", recovered=longest_gap(reports))
            assert clear == 0
        async with offered(lab) as traffic:
            await traffic.wait_received(20)
            await lab.node("carrier-a").run(["nft", "delete table inet cut"])
            await routed_by(lab, "wg-a", seconds=120)
            await traffic.wait_received(20)
            reports = await traffic.stop()
            clear = await in_the_clear(carriers)
            tell(case, reports, clear, name="healed", recovered=longest_gap(reports))
            assert clear == 0


async def test_bgp_withdraws_what_is_protected(case: Case) -> None:
    async with (
        two_carriers() as lab,
        captured(lab) as carriers,
        lab.capture("fra-host") as lan,
        offered(lab) as traffic,
    ):
        fra = lab.site("fra")
        await traffic.wait_received(20)
        before = await lan.seen()
        await birdc(lab.site("ams"), "disable", BGP_SESSIONS)
        await refused_since(lan, before)
        assert await in_the_clear(carriers) == 0
        await birdc(lab.site("ams"), "enable", BGP_SESSIONS)
        await routed_by(lab, "wg-a")
        await traffic.wait_received(20)
        clear = await in_the_clear(carriers)
        tell(case, await traffic.reports(), clear, name="protected")
        assert clear == 0
        # What held it was `protect`: without it, the same withdrawal lets everything out
        for carrier in CARRIERS:
            identity = await pinned(fra, f"ams-{carrier}")
            write_peer(lab, "fra", "ams", carrier, identity, protect=())
        await fra.vpnctl("reload")
        await birdc(lab.site("ams"), "disable", BGP_SESSIONS)
        leaked = await carriers[0].wait(lambda seen: seen.clear >= 20, what="leak without protect")
        print(f"not protected: {leaked}")


async def pinned(site: Site, peer: str) -> str:
    """The identity in a peer's file."""
    text = (site.config_path.parent / "peers.d" / f"{peer}.toml").read_text()
    found = re.search(r'identity = "(vpnd1\w+)"', text)
    assert found is not None
    return found[1]

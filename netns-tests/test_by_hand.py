"""What somebody changes by hand behind the daemon's back: noticed, told, and put right.

        fra-host ── fra ══ internet ══ ams ── ams-host
                     └───── wg0 ───────┘

Each case changes one thing at fra, and waits until it is as it was. What is not ours stays. An
interface or a peer that is deleted: test_two_sites.py.
"""

from __future__ import annotations

import base64
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from linking import at_rest

from vpnd_lab.lab import Lab, open_lab
from vpnd_lab.patience import patient
from vpnd_lab.proof import installed, same_preshared_key, wait_new_key
from vpnd_lab.site import Site
from vpnd_lab.spec import LabSpec

pytestmark = [pytest.mark.netns, pytest.mark.kernel_long]

BACKEND = os.environ.get("VPND_TEST_BACKEND", "userspace")
TWO = f"""
[sites.fra]
[sites.ams]
[tunnels.backbone]
backend = "{BACKEND}"
"""
Look = Callable[[Site], Awaitable[object]]


@asynccontextmanager
async def linked() -> AsyncIterator[Lab]:
    async with open_lab(LabSpec.parse(TWO, name="hand"), start="links") as lab:
        for name, other in (("fra", "ams"), ("ams", "fra")):
            await lab.site(name).wait_state(other, "active")
            # No exchange of the start is under way any more
            await at_rest(lab.site(name), other)
        yield lab


async def routes(site: Site) -> set[str]:
    """All routes of ours, guards among them."""
    lines: list[str] = []
    for family in ("-4", "-6"):
        shown = await site.run(["ip", family, "route", "show", "table", "all", "proto", "157"])
        lines += shown.stdout.splitlines()
    # Where the interface is down, they are `linkdown` or `dead` for a moment
    return {line.strip() for line in lines if "dead" not in line}


async def link(site: Site) -> object:
    """State, MTU and addresses of the interface."""
    show = ["ip", "-o", "address", "show", "dev", "wg0"]
    shown = (await site.run(show, check=False)).stdout.splitlines()
    state = (await site.run(["ip", "-o", "link", "show", "dev", "wg0"], check=False)).stdout.split()
    addresses = {line.split()[3] for line in shown}
    if not state:
        return None
    return addresses, state[state.index("mtu") + 1], "UP" in state[2].strip("<>").split(",")


async def everything(site: Site) -> object:
    return await routes(site), await link(site)


async def device(site: Site) -> object:
    """Port and fwmark, and each peer's allowed IPs and keepalive."""
    dump = (await site.run(["wg", "show", "wg0", "dump"])).stdout.splitlines()
    peers = [line.split("\t") for line in dump[1:]]
    return dump[0].split("\t")[2:], [(p[0], set(p[3].split(",")), p[7]) for p in peers]


async def put_right(site: Site, case: str, command: str, look: Look, *, told: str) -> None:
    """Run a command, which changes what `look` shows, and wait until that is as it was."""
    before, said = await look(site), len(site.daemon_log.read_text())
    started = trio.current_time()
    await site.run(["sh", "-ec", command])
    now = None
    with trio.move_on_after(patient(60)):
        while True:
            now = await look(site)
            if now == before and told in site.daemon_log.read_text()[said:]:
                break
            await trio.sleep(0.05)
    assert now == before, case
    assert told in site.daemon_log.read_text()[said:], case
    print(f"{case} on {BACKEND}: put right after {trio.current_time() - started:.1f} s")


@pytest.mark.kernel
async def test_what_is_changed_by_hand_is_put_right() -> None:
    async with linked() as lab:
        fra = lab.site("fra")
        peer = (await fra.run(["wg", "show", "wg0", "peers"])).stdout.strip()
        await fra.run(["ip", "address", "add", "192.0.2.77/32", "dev", "wg0"])
        await fra.run(["ip", "route", "add", "192.0.2.78", "dev", "wg0"])
        set_peer = f"wg set wg0 peer {peer}"
        prefixes = (await fra.run(["wg", "show", "wg0", "allowed-ips"])).stdout.split()[1:]
        more = ",".join([*prefixes, "10.9.0.0/16"])
        cases: list[tuple[str, str, Look, str]] = [
            ("lo down", "ip link set lo down; ip link set lo up", routes, "guard routes were"),
            (
                "a guard route deleted",
                "ip route del unreachable 10.2.0.0/16 metric 4294967294",
                routes,
                "guard routes were missing: 10.2.0.0/16",
            ),
            (
                "a route deleted",
                "ip route del 10.2.0.0/16 dev wg0",
                routes,
                "routes missing: 10.2.",
            ),
            (
                "an IPv6 route deleted",
                "ip route del fd00:2::/48 dev wg0",
                routes,
                "routes missing: fd00:2:",
            ),
            (
                "addresses deleted",
                "ip address del 10.255.0.1/24 dev wg0; ip address del fd00:255::1/64 dev wg0",
                everything,
                "address 10.255.0.1/24 missing",
            ),
            ("MTU changed", "ip link set wg0 mtu 1300", link, "wg0: MTU 1300"),
            ("interface down", "ip link set wg0 down", everything, "; down; "),
            (
                "interface renamed",
                "ip link set wg0 down; ip link set wg0 name renamed",
                everything,
                "renamed to renamed",
            ),
            ("port changed", "wg set wg0 listen-port 51999", device, "UDP port 51999"),
            ("fwmark changed", "wg set wg0 fwmark 7", device, "fwmark 0x7"),
            ("allowed IPs added", f"{set_peer} allowed-ips {more}", device, "peer_altered"),
            ("allowed IPs taken", f"{set_peer} allowed-ips 10.9.0.0/16", device, "peer_altered"),
            ("keepalive", f"{set_peer} persistent-keepalive 99", device, "keepalive was 99 s"),
        ]
        # What is not ours, and stays: but for an interface that is down, and its routes
        for case, command, look, told in cases:
            if case == "interface down":
                await fra.run(["ip", "route", "del", "192.0.2.78", "dev", "wg0"])
            await put_right(fra, case, command, look, told=told)
        if BACKEND == "userspace":
            # Of a kernel interface there the UDP port cannot be had back
            there = ["sh", "-c", "sleep 120 </dev/null >/dev/null 2>&1 & echo $!"]
            pid = (await lab.node("fra-host").run(there)).stdout.strip()
            moved = f"ip link set wg0 netns {pid}"
            await fra.run(["ip", "address", "del", "192.0.2.77/32", "dev", "wg0"])
            await put_right(fra, "moved elsewhere", moved, link, told='"tunnel_lost"')
            await fra.wait_state("ams", "active")
            await fra.run(["ip", "address", "add", "192.0.2.77/32", "dev", "wg0"])
        assert "192.0.2.77/32" in (await fra.run(["ip", "address", "show", "dev", "wg0"])).stdout
        async with lab.traffic("fra-host", "ams-host") as meter:
            await meter.wait_received(20)


async def test_a_preshared_key_set_by_hand_is_replaced() -> None:
    async with linked() as lab, lab.traffic("fra-host", "ams-host", rate=50) as meter:
        await meter.wait_received(20)
        before = await installed(lab, "fra", "ams")
        # At both ends the same one, which WireGuard would take: nothing shows but the key itself
        key = base64.b64encode(secrets.token_bytes(32)).decode()
        for name in ("fra", "ams"):
            site = lab.site(name)
            peer = (await site.run(["wg", "show", "wg0", "peers"])).stdout.strip()
            await site.run(
                ["wg", "set", "wg0", "peer", peer, "preshared-key", "/dev/stdin"], stdin=key
            )
        await wait_new_key(lab, "fra", "ams", before=before)
        assert any("key_altered" in lab.site(n).daemon_log.read_text() for n in ("fra", "ams"))
        assert await same_preshared_key(lab, "fra", "ams")
        shown = (await lab.site("fra").run(["wg", "show", "wg0", "preshared-keys"])).stdout
        assert key not in shown
        await meter.wait_received(20)
        traffic = await meter.stop()
        print(f"PSK by hand on {BACKEND}: {traffic.sent} sent, {traffic.lost} lost")
        assert traffic.lost == 0


async def test_a_private_key_set_by_hand_is_replaced_by_a_new_one() -> None:
    async with linked() as lab, lab.traffic("fra-host", "ams-host", rate=50) as meter:
        await meter.wait_received(20)
        fra = lab.site("fra")
        known = (await fra.run(["wg", "genkey"])).stdout.strip()
        old = (await fra.run(["wg", "show", "wg0", "public-key"])).stdout.strip()
        started = trio.current_time()
        await fra.run(["wg", "set", "wg0", "private-key", "/dev/stdin"], stdin=known)
        foreign = (await fra.run(["wg", "pubkey"], stdin=known)).stdout.strip()

        def anew(status: dict[str, dict[str, str]]) -> bool:
            return status["wireguard"]["public_key"] not in ("", old, foreign)

        await fra.wait_link("ams", anew, what="with a new private key")
        own = (await fra.link_status("ams"))["wireguard"]["public_key"]
        assert (await fra.run(["wg", "show", "wg0", "public-key"])).stdout.strip() == own
        await lab.site("ams").wait_link(
            "fra", lambda s: s["wireguard"]["peer_public_key"] == own, what="with fra's new key"
        )
        assert "its private key was changed by another hand" in fra.daemon_log.read_text()
        await meter.wait_received(50)
        took = trio.current_time() - started
        print(f"private key by hand on {BACKEND}: traffic again within {took:.1f} s")
        assert await same_preshared_key(lab, "fra", "ams")

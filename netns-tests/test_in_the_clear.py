"""Nothing leaves in the clear: looked at between the sites and in front of them.

                      ┌─ captured: all of it is key exchange and WireGuard
        fra-host ── fra ══ internet ══ ams ── ams-host
                 └─ captured: what the host sends, and what it is told

The gateways have a default route to `internet`, so that traffic which finds no tunnel and no guard
does leave in the clear, and the capture shows it: see the first phase at boot, and the last test.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import trio
from offered import Offered, longest_gap, offered, refused_since, tell
from report import Case

from vpnd_lab.capture import Capture
from vpnd_lab.lab import Lab, open_lab
from vpnd_lab.patience import patient
from vpnd_lab.programs import endpoint, program
from vpnd_lab.proof import (
    HANDSHAKE_SECONDS,
    in_force,
    installed,
    prove,
    wait_in_force,
    wait_new_key,
)
from vpnd_lab.spec import LabSpec

pytestmark = pytest.mark.netns

BACKEND = os.environ.get("VPND_TEST_BACKEND", "userspace")
LAB_FILE = f"""
[sites.fra]
[sites.ams]
[tunnels.backbone]
backend = "{BACKEND}"
"""
PAIR = (("fra", "ams"), ("ams", "fra"))
SHORTEST_LIFETIME = 420
"""Seconds: the shortest that the configuration allows, 300 more than a renewal takes to be due."""


@dataclass(frozen=True, slots=True)
class Watched:
    lab: Lab
    underlay: Capture
    lan: Capture
    traffic: Offered


@asynccontextmanager
async def network() -> AsyncIterator[Lab]:
    async with open_lab(LabSpec.parse(LAB_FILE, name="clear"), start="network") as lab:
        yield lab


@asynccontextmanager
async def watched(lab: Lab) -> AsyncIterator[Watched]:
    """Captures first, then traffic: nothing of it passes unseen."""
    async with (
        lab.capture("internet") as underlay,
        lab.capture("fra-host") as lan,
        offered(lab) as traffic,
    ):
        yield Watched(lab, underlay, lan, traffic)


async def active(lab: Lab) -> None:
    for site, peer in PAIR:
        await lab.site(site).wait_state(peer, "active")


@asynccontextmanager
async def running(*, rate: float = 20) -> AsyncIterator[Watched]:
    """Two sites with a key in force and traffic that arrives, watched from before the first key."""
    async with network() as lab:
        await lab.start("daemons")
        # The order of a careful operator: both ends know each other before anybody sends
        async with lab.capture("internet") as underlay, lab.capture("fra-host") as lan:
            await lab.link("fra", "ams")
            await active(lab)
            async with offered(lab, rate=rate) as traffic:
                await traffic.wait_received(10)
                yield Watched(lab, underlay, lan, traffic)


def write_peer(lab: Lab, at: str, peer: str, *more: str) -> None:
    """A peer's file, by hand; the daemon need not run."""
    other, link = lab.site(peer), lab.link_plan(at, peer)
    prefixes = ", ".join(f'"{prefix}"' for prefix in other.plan.prefixes(link.tunnel))
    lines = (
        f'identity = "{other.identity}"',
        f'endpoint = "{endpoint(other.address(link.family), other.plan.listen_port)}"',
        f"allowed_ips = [{prefixes}]",
        *more,
    )
    folder = lab.site(at).config_path.parent / "peers.d"
    folder.mkdir(mode=0o755, exist_ok=True)
    (folder / f"{peer}.toml").write_text("\n".join(lines) + "\n")


@pytest.mark.kernel_long
async def test_a_renewal_with_nothing_but_key_exchange_and_wireguard_between_the_sites(
    case: Case,
) -> None:
    async with running(rate=5) as now:
        lab = now.lab
        before, old = await installed(lab, "fra", "ams"), await in_force(lab, "fra", "ams")
        await lab.site("fra").vpnctl("peer", "rekey", "ams")
        await wait_new_key(lab, "fra", "ams", before=before)
        await wait_in_force(lab, "fra", "ams", before=old, seconds=HANDSHAKE_SECONDS)
        await now.traffic.wait_received(10)
        reports = await now.traffic.stop()
        seen, lan = await now.underlay.seen(), await now.lan.seen()
        print(f"between the sites: {seen}")
        print(f"in front of fra: {lan}")
        tell(case, reports, seen.clear)
        assert (seen.clear, seen.other, seen.unreachable) == (0, 0, 0)
        assert seen.exchange > 0
        # The router sees each packet come and go
        assert seen.wireguard >= 2 * sum(report.received for report in reports)
        assert lan.clear >= sum(report.forward.sent for report in reports)
        for report in reports:
            await prove(lab, "fra", "ams", report)


@pytest.mark.kernel
async def test_at_boot_before_the_first_key(case: Case) -> None:
    async with network() as lab, watched(lab) as now:
        for name in ("fra", "ams"):
            await lab.site(name).init()
        for site, peer in PAIR:
            write_peer(lab, site, peer)
        # No guard stands yet: the traffic leaves in the clear, and the capture sees it
        leaked = await now.underlay.wait(lambda seen: seen.clear >= 20, what="leak without guards")
        print(f"without guards: {leaked}")
        before = await now.lan.seen()
        for site, _ in PAIR:
            vpnd = [program("vpnd"), "--config", str(lab.site(site).config_path)]
            await lab.site(site).run([*vpnd, "--guard-only"], seconds=60)
        async with lab.capture("internet") as underlay:
            await refused_since(now.lan, before)
            assert (await underlay.seen()).clear == 0
            for site, _ in PAIR:
                await lab.site(site).start_daemon()
            await active(lab)
            await now.traffic.wait_received(20)
            reports = await now.traffic.stop()
            seen = await underlay.seen()
            print(f"behind guards: {seen}")
            tell(case, reports, seen.clear)
            assert (seen.clear, seen.other) == (0, 0)


@pytest.mark.kernel
async def test_the_interface_is_deleted_by_hand(case: Case) -> None:
    async with running() as now:
        await now.lab.site("fra").run(["ip", "link", "delete", "wg0"])
        await back_again(case, now)


async def back_again(case: Case, now: Watched) -> None:
    """What was taken away comes back, and nothing left in the clear meanwhile."""
    await now.traffic.wait_received(20)
    await active(now.lab)
    reports = await now.traffic.stop()
    seen = await now.underlay.seen()
    print(f"between the sites: {seen}")
    print(f"in front of fra: {await now.lan.seen()}")
    tell(case, reports, seen.clear, recovered=longest_gap(reports))
    assert (seen.clear, seen.other) == (0, 0)


# Not marked `kernel`: nobody can kill the kernel's WireGuard.
async def test_wireguard_go_is_killed(case: Case) -> None:
    async with running() as now:
        await now.lab.site("fra").run(["sh", "-c", KILL_WIREGUARD_GO])
        await back_again(case, now)


# A process of this site, and of no other lab: told by its network namespace.
KILL_WIREGUARD_GO = """
here=$(readlink /proc/self/ns/net)
for process in /proc/[0-9]*; do
    [ "$(cat $process/comm)" = wireguard-go ] || continue
    [ "$(readlink $process/ns/net)" = "$here" ] && kill -9 "${process#/proc/}" && found=yes
done 2>/dev/null
[ "$found" = yes ]
"""


@pytest.mark.kernel_long
async def test_a_removed_link_is_guarded_no_more(case: Case) -> None:
    """The operator has taken the link away: what it protected goes as any other traffic does."""
    async with running() as now:
        assert (await now.underlay.seen()).clear == 0
        fra = now.lab.site("fra")
        await fra.vpnctl("peer", "remove", "ams")
        routes = await fra.run(["sh", "-c", "ip -4 route; ip -6 route"])
        assert "unreachable" not in routes.stdout
        seen = await now.underlay.wait(lambda seen: seen.clear >= 20, what="traffic in the clear")
        reports = await now.traffic.stop()
        tell(case, reports, seen.clear, name="as the operator wants it")


@pytest.mark.kernel
@pytest.mark.long
async def test_the_end_of_the_key_s_lifetime(case: Case) -> None:
    """The far daemon is gone: no renewal, and at the end of its lifetime the link closes."""
    async with network() as lab:
        await lab.start("daemons")
        async with lab.capture("internet") as underlay, lab.capture("fra-host") as lan:
            for site, peer in PAIR:
                write_peer(lab, site, peer, f"key_lifetime = {SHORTEST_LIFETIME}")
                await lab.site(site).vpnctl("reload")
            await active(lab)
            async with offered(lab, rate=5) as traffic:
                await traffic.wait_received(10)
                await lab.site("ams").kill_daemon()
                left = (await lab.site("fra").link_status("ams"))["expires_seconds"]
                print(f"expires in {left:.1f} s")
                started = trio.current_time()
                before = await lan.seen()
                await lab.site("fra").wait_state("ams", "closed", seconds=left + 30)
                late = trio.current_time() - started - left
                # What is sent from now on goes nowhere, and its sender is told
                closed = [report.received for report in await traffic.reports()]
                await refused_since(lan, before)
                reports = await traffic.stop()
                seen = await underlay.seen()
                print(f"closed {late:.2f} s after the end; between the sites: {seen}")
                tell(case, reports, seen.clear)
                assert [report.received for report in reports] == pytest.approx(closed, abs=10)
                assert (seen.clear, seen.other) == (0, 0)
                assert late < patient(10)
                # The far daemon comes back, and so does the link
                await lab.site("ams").start_daemon()
                await active(lab)

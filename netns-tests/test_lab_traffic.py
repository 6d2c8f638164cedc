"""The traffic meter, against losses and copies that nftables makes and counts.

    fra-host ── fra ── internet ── ams ── ams-host

Measured between the two sites, whose underlay addresses reach each other without a tunnel.
"""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Literal

import pytest
import trio

from vpnd_lab import Lab
from vpnd_lab.pytest_plugin import LabFactory

pytestmark = pytest.mark.netns

TWO_SITES = "[sites.fra]\nhosts = []\n[sites.ams]\nhosts = []\n"

# The first byte of a datagram's number (UDP header 8, magic 4, stream 8 bytes before it): 255 is
# the end mark, which is no traffic.
DATA = "meta l4proto udp @th,160,8 != 255"


async def nft(lab: Lab, node: str, *rules: str) -> None:
    await lab.node(node).run(["nft", "-f", "-"], stdin="\n".join(rules))


async def dropped(lab: Lab, node: str) -> int:
    """What the node's one counter has counted."""
    listing = await lab.node(node).run(["nft", "-j", "list", "counters"])
    (counter,) = (e["counter"] for e in json.loads(listing.stdout)["nftables"] if "counter" in e)
    return int(counter["packets"])


def loss_rules(which: str) -> tuple[str, ...]:
    return (
        "add table inet faults",
        "add counter inet faults dropped",
        "add chain inet faults forward { type filter hook forward priority 0; }",
        f"add rule inet faults forward {which} counter name dropped drop",
    )


@pytest.mark.parametrize("family", [4, 6])
async def test_without_faults_all_arrive(lab_factory: LabFactory, family: Literal[4, 6]) -> None:
    async with (
        lab_factory(TWO_SITES) as lab,
        lab.traffic("fra", "ams", family=family, rate=500) as meter,
    ):
        await meter.wait_received(200)
        report = await meter.stop()
        assert report.sent == report.received >= 400
        assert (report.lost, report.repeated, report.reordered) == (0, 0, 0)
        assert report.forward.send_errors == {}
        assert report.forward.socket_drops == 0
        assert report.forward.missing == ()


async def test_losses_are_counted_exactly(lab_factory: LabFactory) -> None:
    async with lab_factory(TWO_SITES) as lab:
        await nft(lab, "internet", *loss_rules(f"oifname ams {DATA} numgen inc mod 7 == 3"))
        async with lab.traffic("fra", "ams", rate=1000) as meter:
            await meter.wait_received(300)
            report = await meter.stop()
        assert report.forward.lost == await dropped(lab, "internet") > 40
        assert report.forward.lost == report.forward.sent - report.forward.received
        assert report.backward.lost == 0
        # Every seventh: each loss is a run of its own, seven numbers after the one before.
        runs = report.forward.missing
        assert all(first == last for first, last in runs)
        assert {b[0] - a[0] for a, b in pairwise(runs)} == {7}


async def test_losses_between_marks(lab_factory: LabFactory) -> None:
    async with (
        lab_factory(TWO_SITES) as lab,
        # Half a second: no gap because the processor was elsewhere.
        lab.traffic("fra", "ams", rate=500, silence=0.5) as meter,
    ):
        await meter.wait_received(50)
        cut = await meter.mark("cut")
        while (await meter.between(None, cut)).lost:
            pass  # what was sent before the mark has to be through before the cut
        await nft(lab, "internet", *loss_rules(f"oifname fra {DATA}"))
        # The way there still works: what it delivers shows that time has passed.
        done = await meter.mark("cut done")
        while (await meter.between(done, None)).forward.received < 400:
            pass
        await nft(lab, "internet", "flush ruleset")
        await meter.wait_received(1)
        healed = await meter.mark("healed")
        await meter.wait_received(50)
        total = await meter.stop()
        during = await meter.between(cut, healed)
        after = await meter.between(healed, None)
        assert during.forward.lost == 0
        assert during.backward.lost == total.backward.lost >= 50
        assert (after.lost, (await meter.between(None, cut)).lost) == (0, 0)
        gap = max(during.backward.gaps, key=lambda gap: gap.seconds)
        first, last = total.backward.missing[0]
        assert (gap.after, gap.before) == (first - 1, last + 1)
        assert during.longest_gap == gap.seconds > 0.5
        assert gap not in after.backward.gaps
        assert [mark.name for mark, _ in await meter.phases()] == ["cut", "cut done", "healed"]


async def test_copies_are_counted(lab_factory: LabFactory) -> None:
    async with lab_factory(TWO_SITES) as lab:
        target = lab.site("ams").address()
        await nft(
            lab,
            "internet",
            "add table ip faults",
            "add counter ip faults dropped",
            "add chain ip faults pre { type filter hook prerouting priority 0; }",
            f"add rule ip faults pre iifname fra {DATA} numgen inc mod 5 == 0 "
            f'counter name dropped dup to {target} device "ams"',
        )
        async with lab.traffic("fra", "ams", rate=1000) as meter:
            await meter.wait_received(300)
            report = await meter.stop()
        assert report.forward.repeated == await dropped(lab, "internet") > 60
        assert report.forward.lost == 0
        assert (report.backward.lost, report.backward.repeated) == (0, 0)


@pytest.mark.parametrize(
    ("route", "error"), [("unreachable", "EHOSTUNREACH"), ("none", "ENETUNREACH")]
)
async def test_what_is_not_sent_is_lost(lab_factory: LabFactory, route: str, error: str) -> None:
    async with lab_factory(TWO_SITES) as lab, lab.traffic("fra", "ams", rate=500) as meter:
        await meter.wait_received(20)
        fra, target = lab.site("fra"), str(lab.site("ams").address())
        mark = await meter.mark("no route")
        if route == "none":
            await fra.run(["ip", "route", "del", "default"])
        else:
            await fra.run(["ip", "route", "add", route, target])
        while (await meter.between(mark, None)).forward.send_errors.get(error, 0) < 50:
            pass
        report = await meter.stop()
        errors = report.forward.send_errors[error]
        assert report.forward.lost == errors >= 50
        # The answers find their way back as long as only the one route is missing.
        assert report.backward.lost == 0


async def test_a_dead_path_is_told_in_bounded_time(lab_factory: LabFactory) -> None:
    async with lab_factory(TWO_SITES) as lab:
        await nft(lab, "internet", *loss_rules("meta l4proto udp"))
        async with lab.traffic("fra", "ams", rate=200) as meter:
            while (await meter.between(None, None)).sent < 20:
                pass
            report = await meter.stop(drain_seconds=0.2)
        assert report.received == 0
        assert report.lost == report.sent
        (gap,) = report.forward.gaps
        assert (gap.after, gap.before) == (-1, None)


async def test_an_answer_that_nobody_waited_for_is_not_taken_for_the_next(
    lab_factory: LabFactory,
) -> None:
    async with lab_factory(TWO_SITES) as lab, lab.traffic("fra", "ams", rate=200) as meter:
        await meter.wait_received(20)
        for steps in range(8):  # cancelled a little later each time: before, at and after sending
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(meter.between, None, None)
                    for _ in range(steps):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()
            report = await meter.between(None, None)
            assert report.received > 0
        report = await meter.stop()
    assert (report.lost, report.repeated) == (0, 0)

"""Two sites with real daemons and real WireGuard: the key, its renewal, and what goes wrong.

        fra-host ── fra ══ internet ══ ams ── ams-host
                     └──── wg0 ────────┘

The same tests run on userspace WireGuard (here) and on the kernel's (in the emulator): the
environment variable VPND_TEST_BACKEND says which. Those that wait for a WireGuard handshake run
side by side, each in a lab of its own.
"""

from __future__ import annotations

import base64
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

import pytest
import trio
from linking import settled
from report import Case

from kex.identity import Fingerprint
from vpnd_lab.errors import CommandFailed
from vpnd_lab.lab import Lab, open_lab
from vpnd_lab.meter import Meter
from vpnd_lab.patience import patient
from vpnd_lab.proof import (
    HANDSHAKE_SECONDS,
    NotProved,
    in_force,
    installed,
    prove,
    same_preshared_key,
    wait_in_force,
    wait_new_key,
)
from vpnd_lab.spec import LabSpec

pytestmark = [pytest.mark.netns, pytest.mark.kernel_long]

BACKEND = os.environ.get("VPND_TEST_BACKEND", "userspace")


def two_sites(underlay: Literal["ipv4", "ipv6"] = "ipv4") -> LabSpec:
    return LabSpec.parse(
        f"""
        [sites.fra]
        [sites.ams]
        [tunnels.backbone]
        backend = "{BACKEND}"
        [[links]]
        sites = ["fra", "ams"]
        underlay = "{underlay}"
        """,
        name="two",
    )


@asynccontextmanager
async def linked(underlay: Literal["ipv4", "ipv6"] = "ipv4") -> AsyncIterator[Lab]:
    """Two sites whose link is active at both ends, on the backend that was asked for."""
    async with open_lab(two_sites(underlay), start="links") as lab:
        for site, peer in (("fra", "ams"), ("ams", "fra")):
            await lab.site(site).wait_state(peer, "active")
            assert (await lab.site(site).status())["tunnels"][0]["backend"] == BACKEND
        yield lab


@asynccontextmanager
async def counted(lab: Lab, family: Literal[4, 6] = 4) -> AsyncIterator[Meter]:
    async with lab.traffic("fra-host", "ams-host", family=family, rate=50) as meter:
        await meter.wait_received(20)
        yield meter


@pytest.mark.kernel
@pytest.mark.parametrize("underlay", ["ipv4", "ipv6"])
async def test_overlay_of_both_families_over_each_underlay(
    case: Case,
    underlay: Literal["ipv4", "ipv6"],
) -> None:
    async with linked(underlay) as lab:
        for family in (4, 6):
            async with counted(lab, family) as meter:
                await meter.wait_received(50)
                traffic = await meter.stop()
            case.traffic(traffic, f"IPv{family} inside")
            assert traffic.lost == traffic.repeated == 0
        assert await same_preshared_key(lab, "fra", "ams")


@pytest.mark.kernel
async def test_a_renewed_key_gets_in_force_without_loss(case: Case) -> None:
    async with linked() as lab, counted(lab) as meter:
        before = await installed(lab, "fra", "ams")
        old = await in_force(lab, "fra", "ams")
        await lab.site("fra").vpnctl("peer", "rekey", "ams")
        key = await wait_new_key(lab, "fra", "ams", before=before)
        key = await wait_in_force(lab, "fra", "ams", before=old, seconds=HANDSHAKE_SECONDS)
        await meter.wait_received(50)
        traffic = await meter.stop()
        case.traffic(traffic)
        assert await prove(lab, "fra", "ams", traffic) == key


@pytest.mark.kernel
async def test_the_key_is_renewed_by_itself_in_time_for_the_handshake(case: Case) -> None:
    async with linked() as lab, counted(lab) as meter:
        before = await settled(lab, "fra", "ams")
        old = await in_force(lab, "fra", "ams")
        # Due when the session is 105 s old; WireGuard renews it at 120 s
        await wait_new_key(lab, "fra", "ams", before=before, seconds=HANDSHAKE_SECONDS)
        age = (await lab.site("fra").link_status("ams"))["wireguard"]["last_handshake_seconds"]
        print(f"renewed by itself when the session was {age} s old")
        await wait_in_force(lab, "fra", "ams", before=old, seconds=HANDSHAKE_SECONDS)
        await meter.wait_received(50)
        traffic = await meter.stop()
        case.traffic(traffic)
        await prove(lab, "fra", "ams", traffic)
        assert age < 120


async def test_the_proof_fails_when_one_end_has_a_wrong_preshared_key() -> None:
    """The check of the other tests can fail: a wrong PSK at one end, and nobody to mend it."""
    async with linked() as lab, counted(lab) as meter:
        await settled(lab, "fra", "ams")
        for site in ("fra", "ams"):
            await lab.site(site).kill_daemon()
        wrong = base64.b64encode(os.urandom(32)).decode()
        peers = (await lab.site("fra").run(["wg", "show", "wg0", "peers"])).stdout.split()
        await lab.site("fra").run(
            ["wg", "set", "wg0", "peer", peers[0], "preshared-key", "/dev/stdin"], stdin=wrong
        )
        assert not await same_preshared_key(lab, "fra", "ams")
        # Until the session ends at 180 s nothing shows; then nothing passes
        await wait_for_loss(meter)
        for site in ("fra", "ams"):
            await lab.site(site).start_daemon()
        traffic = await meter.between(None, None)
        print(f"wrong PSK: {traffic.lost} of {traffic.sent} lost")
        with pytest.raises(NotProved):
            await prove(lab, "fra", "ams", traffic)
        # And the daemons mend it: each end makes a new key at its start
        await meter.wait_received(50, seconds=60)
        assert await same_preshared_key(lab, "fra", "ams")


async def wait_for_loss(meter: Meter) -> None:
    with trio.fail_after(patient(240)):
        while True:
            start = await meter.mark("look")
            await trio.sleep(2)
            end = await meter.mark("look")
            await trio.sleep(1)
            traffic = await meter.between(start, end)
            if traffic.received == 0:
                return


@pytest.mark.kernel
async def test_a_preshared_key_changed_by_hand_is_mended_before_the_session_ends(
    case: Case,
) -> None:
    async with linked() as lab, counted(lab) as meter:
        before = await settled(lab, "fra", "ams")
        old = await in_force(lab, "fra", "ams")
        wrong = base64.b64encode(os.urandom(32)).decode()
        peers = (await lab.site("fra").run(["wg", "show", "wg0", "peers"])).stdout.split()
        await lab.site("fra").run(
            ["wg", "set", "wg0", "peer", peers[0], "preshared-key", "/dev/stdin"], stdin=wrong
        )
        await wait_new_key(lab, "fra", "ams", before=before, seconds=HANDSHAKE_SECONDS)
        await wait_in_force(lab, "fra", "ams", before=old, seconds=HANDSHAKE_SECONDS)
        traffic = await meter.stop()
        case.traffic(traffic)
        await prove(lab, "fra", "ams", traffic)


@pytest.mark.kernel
async def test_a_wrong_identity_gets_no_tunnel_and_no_answer() -> None:
    async with open_lab(two_sites(), start="daemons") as lab:
        # ams pins an identity that is not fra's
        identity = Fingerprint.of(1, os.urandom(1216)).text()
        await lab.add_peer("fra", "ams")
        await lab.add_peer("ams", "fra", identity=identity)

        def refused(status: dict[str, dict[str, int]]) -> bool:
            return status["counters"].get("exchange_failed", 0) >= 1

        for site, peer in (("fra", "ams"), ("ams", "fra")):
            status = await lab.site(site).wait_link(peer, refused, what="refused", seconds=40)
            assert status["state"] in ("exchanging", "down")
            assert status["key_installed"] is None
        shown = await lab.site("fra").run(["wg", "show", "wg0", "peers"])
        assert shown.stdout == ""
        with pytest.raises(CommandFailed):
            await lab.site("fra").vpnctl("status", "ams")
        # Put right, the link comes up without a restart
        await lab.site("ams").vpnctl("peer", "remove", "fra")
        await lab.add_peer("ams", "fra")
        for site, peer in (("fra", "ams"), ("ams", "fra")):
            await lab.site(site).wait_state(peer, "active")

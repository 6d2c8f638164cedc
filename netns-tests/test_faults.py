"""What goes wrong around a link: the underlay cut, the disk full, the clock wrong, a far end of
another version. The traffic is counted (see pair.py).
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import trio
from linking import counted, linked
from pair import ENDS, logged, nothing_lost, passes_again, settled
from report import Case

from kex.identity import Fingerprint
from vpnd_lab.errors import CommandFailed
from vpnd_lab.lab import Lab
from vpnd_lab.patience import patient
from vpnd_lab.proof import installed, same_preshared_key, wait_new_key
from vpnd_lab.site import Site

pytestmark = [pytest.mark.netns, pytest.mark.kernel_long]

# ---- another version


async def test_older_by_one_minor_version(case: Case) -> None:
    """The daemon of this tree at ams; at fra one as the next minor version could be."""
    newer = [sys.executable, str(Path(__file__).parent / "newer_vpnd.py")]
    async with linked() as lab, nothing_lost(lab, case):
        fra = lab.site("fra")
        before = await installed(lab, "fra", "ams")
        await fra.kill_daemon()
        await fra.start_daemon(program=newer)
        assert "newer_vpnd: minor version" in fra.daemon_log.read_text()
        await wait_new_key(lab, "fra", "ams", before=before)
        # Each end once as the initiator
        for site, peer in ENDS:
            before = await settled(lab)
            await lab.site(site).vpnctl("peer", "rekey", peer)
            await wait_new_key(lab, "fra", "ams", before=before)


# ---- the underlay

LIFETIME_SECONDS = 420
"""The shortest that a configuration may ask for: rekey_interval + 300."""
CLOSED_SECONDS = 1.0
HEALED_SECONDS = 10.0


@pytest.mark.long
async def test_cut_longer_than_the_lifetime(case: Case) -> None:
    async with linked() as lab:
        for site, _ in ENDS:
            await shorten_lifetime(lab.site(site))
        async with counted(lab) as meter:
            before = await settled(lab)
            for site, peer in ENDS:
                await lab.site(site).vpnctl("peer", "rekey", peer)
            await settled(lab)
            ends = {
                site: trio.current_time()
                + (await lab.site(site).link_status(peer))["expires_seconds"]
                for site, peer in ENDS
            }
            assert max(ends.values()) - trio.current_time() < LIFETIME_SECONDS + 1
            await cut(lab)
            late: dict[str, float] = {}
            async with trio.open_nursery() as nursery:
                for site, peer in ENDS:
                    nursery.start_soon(closes, lab.site(site), peer, ends[site], late)
            for site, seconds in late.items():
                print(f"{site}: closed {seconds:+.2f} s after the end of the lifetime")
            # Longer than that: exchanges are tried all the time
            await trio.sleep(20)
            await heal(lab)
            recovered = await passes_again(meter, 90)
            await settled(lab)
            await meter.wait_received(50)
            healed = await meter.mark("healed")
            await meter.wait_received(100)
            traffic = await meter.stop()
            case.traffic(traffic, recovered=recovered)
            assert await installed(lab, "fra", "ams") != before
            assert await same_preshared_key(lab, "fra", "ams")
            assert (await meter.between(healed, None)).lost == 0
            assert traffic.repeated == 0
            assert all(-1 < each < patient(10 * CLOSED_SECONDS) for each in late.values())
            assert recovered < patient(5 * HEALED_SECONDS)


async def shorten_lifetime(site: Site) -> None:
    text = site.config_path.read_text()
    site.config_path.write_text(f"{text}\n[defaults]\nkey_lifetime = {LIFETIME_SECONDS}\n")
    await site.vpnctl("reload")


async def cut(lab: Lab) -> None:
    rule = "add table inet cut; add chain inet cut forward { type filter hook forward priority 0; "
    await lab.node("internet").run(["nft", rule + "policy drop; }"])


async def heal(lab: Lab) -> None:
    await lab.node("internet").run(["nft", "delete table inet cut"])


async def closes(site: Site, peer: str, end: float, late: dict[str, float]) -> None:
    """Wait for the end of the lifetime, and until the peer is off the interface."""
    await trio.sleep_until(end - 2)
    with trio.fail_after(patient(60)):
        while True:
            if (await site.run(["wg", "show", "wg0", "peers"])).stdout == "":
                break
            await trio.sleep(0.1)
    late[site.name] = trio.current_time() - end
    await site.wait_state(peer, "closed", "exchanging")


# ---- the disk

DISK = """
set -e
mkdir -p "$1/disk"
mount -t tmpfs -o size=256k,mode=755 disk "$1/disk"
for folder in "$1/state" "$1/etc/peers.d" /run/vpnd/links; do
    own=$1/disk/$(basename "$folder")
    cp -a "$folder" "$own"
    mount --bind "$own" "$folder"
done
"""
FULL = "No space left on device"


async def test_disk_full(case: Case) -> None:
    """Identities, peers and records of both sites are on small disks, which are filled. At ams
    the link's record is gone as well, so that it would need room that is not there."""
    async with linked() as lab, nothing_lost(lab, case):
        fra, ams = lab.site("fra"), lab.site("ams")
        for site in (fra, ams):
            await site.run(["sh", "-c", DISK, "sh", str(site.folder)])
        await ams.run(["rm", "/run/vpnd/links/fra.json"])
        for site in (fra, ams):
            await fill(site)
        key = await renewed(lab)
        assert await recorded(fra, "ams") == key
        await logged(ams, '"event": "record_not_written"')
        assert any(FULL in each for each in (await ams.link_status("fra"))["warnings"])
        # Nothing can be added or changed, and what is there stays as it is
        peers, routes = await fra.vpnctl("peer", "list"), await guards(fra)
        stranger = Fingerprint.of(1, os.urandom(1216)).text()
        for arguments in (
            ("peer", "add", "lon", "--identity", stranger, "--allow", "10.9.0.0/16"),
            ("peer", "set", "ams", "--keepalive", "11"),
        ):
            with pytest.raises(CommandFailed) as failed:
                await fra.vpnctl(*arguments)
            assert FULL in failed.value.stderr
            assert "Traceback" not in failed.value.stderr
            assert (await fra.vpnctl("peer", "list"), await guards(fra)) == (peers, routes)
        # A daemon that is killed finds its tunnel all the same
        await fra.kill_daemon()
        await fra.start_daemon()
        (status,) = (await fra.status())["links"]
        assert status["state"] in ("active", "degraded"), status["reason"]
        await renewed(lab)
        # Room again
        for site in (fra, ams):
            await site.run(["rm", str(site.folder / "disk" / "filling")])
        await ams.wait_link("fra", lambda status: not status["warnings"], what="without warning")
        key = await renewed(lab)
        assert await recorded(fra, "ams") == await recorded(ams, "fra") == key
        await fra.vpnctl("peer", "set", "ams", "--keepalive", "11")
        for site in (fra, ams):
            assert "internal_error" not in site.daemon_log.read_text()


async def fill(site: Site) -> None:
    filling = site.folder / "disk" / "filling"
    done = await site.run(["dd", "if=/dev/zero", f"of={filling}", "bs=4096"], check=False)
    assert FULL in done.stderr


async def renewed(lab: Lab) -> str:
    """Renew the key from fra, after all exchanges under way; the new one."""
    before = await settled(lab)
    await lab.site("fra").vpnctl("peer", "rekey", "ams")
    return (await wait_new_key(lab, "fra", "ams", before=before)).one


async def recorded(site: Site, peer: str) -> str:
    """The key in the record of a link; empty while one was about to be set."""
    shown = await site.run(["cat", f"/run/vpnd/links/{peer}.json"])
    record = json.loads(shown.stdout)
    return "" if record["pending_key_id"] else str(record["key_id"])


async def guards(site: Site) -> set[str]:
    shown = await site.run(["ip", "route", "show", "type", "unreachable", "proto", "157"])
    return {line.split()[1] for line in shown.stdout.splitlines()}


# ---- the clock

LIBFAKETIME = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)


@pytest.mark.skipif(LIBFAKETIME is None, reason="libfaketime is not installed: make setup-emulator")
async def test_clock_set_by_years(case: Case) -> None:
    """The clock that fra's daemon sees is set forward, back, and to another year over a restart.

    WireGuard's own clock stays, and cannot be set for one end alone: the kernel's is that of the
    machine, and wireguard-go asks the kernel past every library.
    """
    async with linked() as lab, nothing_lost(lab, case):
        fra = lab.site("fra")
        clock = fra.folder / "clock"

        def set_clock(offset: str) -> None:
            # In one step: a library that finds the file empty ends the program that it is in
            new = clock.with_suffix(".new")
            new.write_text(offset)
            new.replace(clock)

        set_clock("+0")
        env = {
            "LD_PRELOAD": str(LIBFAKETIME),
            "FAKETIME_TIMESTAMP_FILE": str(clock),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        await fra.kill_daemon()
        await fra.start_daemon(env=env)
        for offset, restart in (("+5y", False), ("-9y", False), ("+20y", True), ("-9y", True)):
            set_clock(offset)
            await settled(lab)
            if restart:
                await fra.kill_daemon()
                await fra.start_daemon(env=env)
            await renewed(lab)
            status = await fra.wait_state("ams", "active")
            print(f"clock set by {offset}: {status['since']}, {status['state']}")
        assert "internal_error" not in fra.daemon_log.read_text()

"""Why a link does not come up: told at the end that calls, and at the end that is called.

fra ── internet ── ams
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import trio
from linking import TWO, firewall, open_sites, wait_active

from kex.identity import Fingerprint
from vpnd_lab.patience import patient
from vpnd_lab.site import Site

pytestmark = pytest.mark.netns

KEEP_IN = """
table inet t {
    chain c { type filter hook output priority 0; udp dport 51821 drop; }
}
"""


async def told(site: Site, words: str, code: str) -> None:
    """Wait until the link says so, with its code, and with what to do."""

    def check(status: Any) -> bool:
        error = status["last_error"]
        return words in status["reason"] and error is not None and error["code"] == code

    status = await site.wait_link("ams", check, what=words)
    assert status["last_error"]["hint"]


async def callers(site: Site) -> list[Any]:
    """Who is listed, as soon as somebody is."""
    with trio.fail_after(patient(60)):
        while True:
            listed: list[Any] = (await site.status())["callers"]
            if listed:
                return listed
            await trio.sleep(0.2)


async def test_each_end_says_what_it_knows() -> None:
    async with open_sites(TWO) as lab:
        fra, ams = lab.site("fra"), lab.site("ams")
        await lab.add_peer("fra", "ams")

        # ams knows of no fra: it answers nothing, and its operator learns who calls
        (caller,) = await callers(ams)
        assert caller["identity"] == fra.identity
        assert "calls (" in caller["reason"]
        assert "is no peer here" in caller["reason"]
        assert f"vpnctl peer add NAME --identity {fra.identity}" in caller["hint"]
        shown = await ams.run(["vpnctl", "--socket", str(ams.control_socket), "status"])
        assert caller["hint"] in shown.stdout
        assert '"unknown_caller"' in ams.daemon_log.read_text()

        # Nothing leaves fra
        await firewall(fra, KEEP_IN)
        await told(fra, "a firewall of this host forbids it (EPERM)", "not_sent")
        await firewall(fra, "")
        there = (await fra.link_status("ams"))["endpoint"].rpartition(":")[0]
        await fra.run(["ip", "route", "add", "unreachable", there])
        await told(fra, "a route of this host says unreachable", "not_sent")
        await fra.run(["ip", "route", "del", "unreachable", there])

        # Nobody listens at ams
        await ams.kill_daemon()
        await told(fra, "port 51821 of", "unreachable")

        await ams.start_daemon()
        await lab.add_peer("ams", "fra")
        await wait_active(lab, "fra", "ams")
        assert not (await ams.status())["callers"]


async def test_who_has_pinned_another_identity_is_told_of_at_both_ends() -> None:
    """fra has pinned an identity that ams does not have (any more)."""
    async with open_sites(TWO) as lab:
        fra, ams = lab.site("fra"), lab.site("ams")
        former = Fingerprint.of(1, os.urandom(1216)).text()
        await lab.add_peer("fra", "ams", identity=former)
        await lab.add_peer("ams", "fra")
        # fra asks for it, which tells ams no more than where the question comes from
        (caller,) = await callers(ams)
        assert caller["identity"] is None
        assert "an identity that is not this node's (any more)" in caller["reason"]
        (warning,) = (await ams.link_status("fra"))["warnings"]
        assert caller["reason"] in warning
        # ams calls with the one that it has, and is expected at fra with another
        (caller,) = await callers(fra)
        assert caller["identity"] == ams.identity
        assert "where ams is expected with another identity" in caller["reason"]
        assert f"vpnctl peer set ams --identity {ams.identity}" in caller["hint"]
        # What is advised there helps
        await fra.vpnctl("peer", "set", "ams", "--identity", ams.identity)
        await wait_active(lab, "fra", "ams")
        assert not (await fra.status())["callers"]

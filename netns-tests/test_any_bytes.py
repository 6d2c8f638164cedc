"""What other programs give interfaces for names and aliases is any bytes: nothing ends for it.

fra-host ── fra ══ internet ══ ams ── ams-host
"""

from __future__ import annotations

import pytest
import trio
from linking import TWO, linked

from vpnd_lab.lab import Lab
from vpnd_lab.patience import patient
from vpnd_lab.site import Site

pytestmark = [pytest.mark.netns]

LINK = """
[[links]]
sites = ["fra", "ams"]
"""
STRANGE = r"""
set -e
name=$(printf 'w\377rd')
ip link add "$name" type veth peer name "$(printf 'end\376')"
ip link set "$name" alias "$(printf '\377\376 caf\351')"
ip link property add dev "$name" altname "$(printf 'other\201')"
ip address add 198.51.100.7/24 dev "$name"
ip link set "$name" up
ip route add 198.51.101.0/24 dev "$name" proto 157 metric 7 table 77
"""


async def strange(site: Site) -> None:
    await site.run(["bash", "-c", STRANGE])


async def opened(site: Site, *, times: int) -> None:
    """Until the daemon has made its interface so often."""
    with trio.fail_after(patient(60)):
        while site.daemon_log.read_text(encoding="utf-8").count('"tunnel_opened"') < times:  # noqa: ASYNC110  # a file
            await trio.sleep(0.05)


async def unharmed(lab: Lab) -> None:
    fra = lab.site("fra")
    await fra.wait_state("ams", "active")
    log = fra.daemon_log.read_text(encoding="utf-8")
    assert "Traceback" not in log
    assert "internal_error" not in log


async def test_an_interface_with_a_name_and_an_alias_that_are_no_text() -> None:
    async with linked(TWO + LINK) as lab:
        fra = lab.site("fra")
        await strange(fra)
        # All interfaces are read when one is made
        await fra.run(["ip", "link", "delete", "wg0"])
        await opened(fra, times=2)
        await unharmed(lab)
        await fra.kill_daemon()
        await fra.run(["ip", "link", "delete", "wg0"])
        await fra.start_daemon()
        await unharmed(lab)


async def test_an_address_of_ours_on_such_an_interface_is_told_by_an_escaped_name() -> None:
    async with linked(TWO + LINK) as lab:
        fra = lab.site("fra")
        await strange(fra)
        address = fra.tunnel_address()
        await fra.run(["bash", "-c", f"ip address add {address}/32 dev $(printf 'w\\377rd')"])
        await fra.run(["ip", "link", "delete", "wg0"])
        status = await fra.wait_state("ams", "down")
        assert r"is on the interface w\xffrd already" in status["reason"]
        shown = await fra.vpnctl("status")
        assert r"w\xffrd" in shown["links"][0]["reason"]
        await fra.run(["bash", "-c", "ip link delete $(printf 'w\\377rd')"])
        await unharmed(lab)

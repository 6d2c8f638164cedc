"""A hub with 1,000 links on one interface: they come up, renew, and are listed.

    far end 127.1.0.1 ─┐
    far end 127.1.0.2 ─┤── loopback ── vpnd 127.0.0.1 ── wireguard-go
          …            ┘

The hub is a real daemon in namespaces of its own. The far ends are nodes of the real key exchange
with a real WireGuard handshake, all in one process (bench.far_ends): 1,000 interfaces with a
process each would be no test of the hub. So no lab, which has a daemon for each site.
"""

from __future__ import annotations

import pytest
import trio

from bench.links import run_hub

pytestmark = [pytest.mark.netns, pytest.mark.long]

LINKS = 1000
SECONDS = 40.0
WIDE = 5
"""Times are printed; what is asserted leaves room for a machine that does other things as well."""


async def test_a_thousand_links_come_up_renew_and_are_listed() -> None:
    measured = await trio.to_thread.run_sync(run_hub, LINKS, SECONDS)
    share = measured["cpu_seconds"] / measured["seconds"]
    print(
        f"all active after {measured['active_after']:.0f} s; {measured['renewals']} renewals in "
        f"{SECONDS:.0f} s with {share:.1%} of a core; {measured['memory'] / 1e6:.0f} MB; longest "
        f"pause {measured['pause_with_status']} ms (by the clock, CPU)"
    )
    assert measured["links"] == LINKS
    assert sum(measured["states"].get(state, 0) for state in ("active", "degraded")) == LINKS
    assert measured["renewals"] > LINKS * SECONDS / 120 / WIDE
    assert measured["vpnctl_lines"] > LINKS  # a head, and a line for each
    assert measured["memory"] < WIDE * 150e6
    assert measured["pause_with_status"][1] < WIDE * 50
    assert measured["exit"] == 0

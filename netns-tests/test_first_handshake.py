"""Two exchanges right after each other, and WireGuard's first handshake between them.

The far end of a first exchange often begins one of its own at once (docs/protocol.md, section 6).
A handshake that its key falls into fails, and WireGuard repeats it after 5 s: so a first key is
left alone for as long as a handshake takes.
"""

from __future__ import annotations

import contextlib
import json
import sys
from datetime import datetime

import pytest
from linking import TWO, open_sites

from bench.active import gate, lines
from vpnd_lab.lab import Lab
from vpnd_lab.site import Site

pytestmark = [pytest.mark.netns, pytest.mark.kernel_long]

EXCHANGE_MS = 50
WIREGUARD_MS = 150
"""So long that the second exchange is complete before the first handshake is."""
REPETITION = 5.0
"""After which WireGuard begins a handshake anew that failed."""


async def test_a_second_key_waits_for_the_first_handshake() -> None:
    async with open_sites(TWO) as lab, contextlib.AsyncExitStack() as stack:
        fra, ams = lab.site("fra"), lab.site("ams")
        near, far = gate(lab, fra), gate(lab, ams)
        for delay, port in (
            (EXCHANGE_MS, fra.plan.listen_port),
            (WIREGUARD_MS, fra.plan.tunnels[0].listen_port),
        ):
            command = [sys.executable, "-m", "bench.delay", str(delay)]
            command += [near, str(fra.address(4)), far, str(ams.address(4)), str(port)]
            proxy = await stack.enter_async_context(lab.node("internet").background(command))
            assert proxy.stdout is not None
            said = await stack.enter_async_context(contextlib.aclosing(lines(proxy.stdout)))
            await anext(said)
        # Whose identity is the larger one of the two decides whether there is a second exchange:
        # so each of them calls once
        keys = [await _linked(lab, fra, ams, gate=near), await _linked(lab, ams, fra, gate=far)]
    assert max(keys) > 1, "in neither direction the other end began an exchange of its own"


async def _linked(lab: Lab, caller: Site, called: Site, *, gate: str) -> int:
    """Link them, and unlink them again; how many keys were installed at the end that called."""
    before = len(_logged(caller, ""))
    await lab.add_peer(called.name, caller.name, endpoint=None)
    # What a site sends to its own gate comes out at the other site
    await lab.add_peer(caller.name, called.name, endpoint=f"{gate}:{called.plan.listen_port}")
    for site, peer in ((caller, called), (called, caller)):
        await site.wait_state(peer.name, "active")
    keys = _logged(caller, "key_installed", before)
    (first, *_) = _logged(caller, "key_in_force", before)
    took = (first - keys[0]).total_seconds()
    print(f"{caller.name} calls: in force {took:.2f} s after the first of {len(keys)} keys")
    assert took < REPETITION - 1
    for site, peer in ((caller, called), (called, caller)):
        await site.vpnctl("peer", "remove", peer.name)
    return len(keys)


def _logged(site: Site, event: str, skip: int = 0) -> list[datetime]:
    """When the site's daemon recorded this event, or ('') any."""
    lines = [json.loads(line) for line in site.daemon_log.read_text(encoding="utf-8").splitlines()]
    return [
        datetime.fromisoformat(line["timestamp"])
        for line in lines[skip:]
        if event in ("", line["event"])
    ]

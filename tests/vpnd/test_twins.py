"""A copy of a gateway beside it: all who see it say so."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import trio

from tests.vpnd.link_ends import Site, make_sites
from tests.vpnd.test_transport import free_port
from vpnd.api import LinkState


def state_of(site: Site) -> LinkState:
    return site.link.report.state


async def exchange(begins: Site, answers: Site) -> None:
    """One exchange, and WireGuard's handshake under its key at both ends."""
    await begins.renew()
    own = begins.name.encode().ljust(32, b".")
    with trio.fail_after(60):
        while list(answers.device.peers) != [own] or begins.psk(answers) != answers.psk(begins):
            await answers.news.wait()
        while begins.link.busy() or answers.link.busy():
            await begins.news.wait()
    begins.shake_hands()
    answers.shake_hands()


async def test_two_hosts_with_one_identity_are_told_of_at_all_three(tmp_path: Path) -> None:
    fra, ams = make_sites(tmp_path)
    (tmp_path / "copy").mkdir()
    copy = Site("copy", tmp_path / "copy", free_port(), fra.identity, fra.news)
    off = {"mode": "off"}
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(ams.running(fra, ams.configure(fra, off, endpoint=None)))
        await stack.enter_async_context(fra.running(ams, fra.configure(ams, off)))
        await fra.wait_for("key_installed")
        await ams.wait_for("key_installed")
        fra.shake_hands()
        ams.shake_hands()
        assert state_of(ams) == LinkState.ACTIVE
        await stack.enter_async_context(copy.running(ams, copy.configure(ams, off)))
        await copy.wait_for("key_installed")
        # One change is none: a gateway that was restarted
        assert not ams.named("identity_shared")
        await exchange(fra, ams)
        assert state_of(ams) == LinkState.DEGRADED
        assert "two hosts use the identity of fra?" in ams.link.report.reason
        (told,) = ams.named("identity_shared")
        assert "two hosts" in told["reason"]
        await exchange(copy, ams)
        await exchange(fra, ams)
        for site in (copy, fra):
            assert state_of(site) == LinkState.DEGRADED
            assert "two hosts use this node's identity? ams hears" in site.link.report.reason
            assert len(site.named("identity_shared")) == 1
        assert len(ams.named("identity_shared")) == 1  # once, not with each exchange

"""A peer without an endpoint: where it was last, and what is told when it is not there any more."""

from __future__ import annotations

from pathlib import Path

from kex import timing
from kex.events import StartReason
from kex.link import Timer
from tests.vpnd.link_ends import Site, agree, make_sites
from vpnd.api import LinkState
from vpnd.view import link_status


def unanswered(site: Site, far: Site) -> None:
    """An exchange that nobody answers, without the 15 s that it takes."""
    with site.engine.driving() as (endpoint, now):
        endpoint.request_exchange(far.name, StartReason.REQUESTED, now)
    with site.engine.driving() as (endpoint, now):
        endpoint.fire(far.name, Timer.EXCHANGE, now)


async def test_an_address_that_does_not_answer_is_given_up_and_told(tmp_path: Path) -> None:
    fra, ams = make_sites(tmp_path)
    async with ams.running(fra, ams.configure(fra, {}, endpoint=None)):
        async with fra.running(ams, fra.configure(ams, {})):
            await agree(fra, ams)
            await ams.wait_for("key_installed")
        ams.shake_hands()
        assert (ams.link.report.state, ams.link.report.reason) == (LinkState.ACTIVE, "")
        assert link_status(ams.link, {})["endpoint"] == f"127.0.0.1:{fra.port}"

        for _ in range(timing.UNANSWERED_EXCHANGES):
            assert not ams.named("address_given_up")
            unanswered(ams, fra)
        told = await ams.wait_for("address_given_up")
        text = (
            f"the address 127.0.0.1:{fra.port}, learnt from the peer's last exchange, "
            "does not answer any more"
        )
        assert told["reason"] == text
        assert ams.link.report.state is LinkState.DEGRADED
        assert ams.link.report.reason.startswith("last exchange: no answer")
        assert ams.link.report.reason.endswith(f"; {text}")
        status = link_status(ams.link, {})
        assert (status["endpoint"], status["next_renewal_seconds"]) == (None, None)
        ams.link.exchanges.want()
        state = ams.link.exchanges.state
        assert state is not None
        assert state.exchange is None

        installed = len(ams.named("key_installed"))
        async with fra.running(ams, fra.configure(ams, {})):
            await ams.wait_for("key_installed", installed + 1)
            ams.shake_hands()
            assert link_status(ams.link, {})["endpoint"] == f"127.0.0.1:{fra.port}"
            assert text not in ams.link.report.reason

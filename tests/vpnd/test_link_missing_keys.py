"""Links that miss external keys: they come back by themselves, and say what is true meanwhile."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import trio

from kex.external import ExternalKey, ExternalKeyReference
from kex.secret import Secret
from tests.vpnd.link_ends import Site, make_sites
from tests.vpnd.test_link_external import both, first_key, linked, new_key, one, source
from vpnd.api import LinkState
from vpnd.keysource.base import SourceFault
from vpnd.view_external import external_keys

DAY: Any = {"rekey_interval": 86_400}
"""No renewal comes by itself while a test runs."""


@pytest.fixture
def sites(tmp_path: Path) -> tuple[Site, Site]:
    return make_sites(tmp_path)


async def in_fallback(fra: Site, ams: Site, *spoilt: Site) -> None:
    """One key with external keys, then one without, since these ends' sources have failed."""
    await first_key(fra, ams)
    await new_key(fra, ams)
    await rest(fra, ams)
    for site in spoilt:
        source(site).fault = SourceFault.UNREACHABLE
    await fra.renew()
    for site in (fra, ams):
        await site.wait_for("fallback_started")


async def rest(*sites: Site) -> None:
    """Wait until no exchange is under way or owed."""

    def busy(site: Site) -> bool:
        state = site.link.exchanges.state
        return state is None or state.exchange_due or state.responding is not None

    with trio.fail_after(45):
        while any(map(busy, sites)):
            await sites[0].news.wait()


async def told(site: Site, text: str) -> None:
    """Wait until the link's reason has this text."""
    with trio.fail_after(45):
        while text not in site.link.external.watch.standing:
            await site.news.wait()


# ---- `prefer` comes back


@pytest.mark.parametrize("at", ["fra", "ams", "both"])
async def test_a_fallback_ends_soon_after_the_source_answers_again(
    sites: tuple[Site, Site], at: str
) -> None:
    fra, ams = sites
    async with linked(fra, ams, lambda far: one(far, "prefer"), **DAY):
        await in_fallback(fra, ams, *(site for site in sites if at in (site.name, "both")))
        for site in sites:
            source(site).fault = None
        for site in sites:
            await site.wait_for("fallback_ended")
            site.shake_hands()
            assert site.link.report.state is LinkState.ACTIVE
            assert site.link.report.reason == ""
            assert external_keys(site.link)["mixed"] == ["kme-a"]


async def test_the_key_in_use_goes_on_meanwhile_and_the_reason_is_true(
    sites: tuple[Site, Site],
) -> None:
    fra, ams = sites
    async with linked(fra, ams, lambda far: one(far, "prefer"), **DAY):
        await in_fallback(fra, ams, ams)
        await told(fra, "KME-sae-ams-kme-a at the responder: source_unreachable")
        keys = len(fra.named("key_installed"))
        await rest(fra, ams)
        source(ams).fault = SourceFault.TLS
        await told(fra, "KME-sae-ams-kme-a at the responder: source_tls")
        source(fra).fault = SourceFault.EMPTY
        await told(fra, "kme-a: as the test wants it")
        assert len(fra.named("key_installed")) == keys
        assert len(fra.named("fallback_started")) == 1
        assert fra.link.report.state is not LinkState.CLOSED
        assert "last exchange" not in fra.link.report.reason


async def test_an_exchange_is_begun_when_the_limit_is_over(sites: tuple[Site, Site]) -> None:
    """And goes on being begun: as with `require`."""
    fra, ams = sites
    async with linked(fra, ams, lambda far: one(far, "prefer", fallback_limit=2), **DAY):
        await in_fallback(fra, ams, fra)
        await fra.wait_for("fallback_limit_reached")
        await told(fra, "the fallback is over its limit")
        failed = len(fra.named("exchange_failed"))
        await fra.wait_for("exchange_failed", failed + 1, seconds=45)
        source(fra).fault = SourceFault.EMPTY
        await fra.wait_for("exchange_failed", failed + 2, seconds=45)
        source(fra).fault = None
        for site in sites:
            await site.wait_for("fallback_ended", seconds=45)


async def test_a_peer_that_wants_no_external_keys_is_left_alone(sites: tuple[Site, Site]) -> None:
    """There the fallback lasts until one of the two policies is changed."""
    fra, ams = sites
    async with linked(fra, ams, lambda far: one(far, "prefer"), lambda _: {"mode": "off"}, **DAY):
        await fra.wait_for("fallback_started")
        await first_key(fra, ams)
        assert not fra.link.missing_keys.wanted


async def test_what_an_operator_wants_is_done_during_a_fallback(sites: tuple[Site, Site]) -> None:
    fra, ams = sites
    async with linked(fra, ams, lambda far: one(far, "prefer"), **DAY):
        await in_fallback(fra, ams, fra, ams)
        await new_key(fra, ams)
        assert len(fra.named("fallback_started")) == 1


async def test_a_source_that_no_key_needs_is_asked_for_now_and_then(
    sites: tuple[Site, Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vpnd.missing_keys.ASIDE_SECONDS", 1.0)
    fra, ams = sites
    source(fra, "kme-b").fault = source(ams, "kme-b").fault = SourceFault.EMPTY
    async with linked(fra, ams, lambda far: both(far, "require", at_least=1), **DAY):
        await first_key(fra, ams)
        await new_key(fra, ams)
        await rest(fra, ams)
        keys = len(fra.named("key_installed"))
        await fra.wait_for("exchange_failed", len(fra.named("exchange_failed")) + 2)
        assert len(fra.named("key_installed")) == keys, "no key that is no better"
        for site in sites:
            source(site, "kme-b").fault = None
        for site in sites:
            await site.wait_for("key_installed", keys + 1)
        fra.shake_hands()
        assert external_keys(fra.link)["mixed"] == ["kme-a", "kme-b"]
        assert fra.link.report.state is LinkState.ACTIVE


# ---- what is said of the two policies


def reload(site: Site, far: Site, mode: str, **more: Any) -> None:
    """As `vpnctl reload` does it."""
    peer = site.configure(far, one(far, mode, **more), **DAY)
    own = (site.identity.fingerprint,)
    config = site.link.exchanges.config_with(peer, own)
    assert config is not None
    with site.engine.driving() as (endpoint, now):
        endpoint.update_link(config, now)
    site.link.take(peer, own)


def modes_told(site: Site) -> list[str]:
    """What its status says of the two ends' policies."""
    return [said for said in site.link.report.warnings if said.startswith("external keys: ")]


async def test_no_mode_is_shown_that_was(sites: tuple[Site, Site]) -> None:
    """Two reloads within min_interval: each is followed by an exchange, and none of them waits."""
    fra, ams = sites
    spaced: Any = {"min_interval": 5}
    async with linked(
        fra,
        ams,
        lambda far: one(far, "prefer", **spaced),
        lambda far: one(far, "require", **spaced),
        **DAY,
    ):
        await first_key(fra, ams)
        await rest(fra, ams)
        assert "external keys: prefer here, require at the peer" in fra.link.report.warnings
        keys = len(ams.named("key_installed"))
        reload(fra, ams, "require", **spaced)
        assert modes_told(fra) == []
        assert not fra.link.external.used_lately
        for site in sites:
            await site.wait_for("key_installed", keys + 1)
        await rest(fra, ams)
        assert modes_told(ams) == []
        reload(fra, ams, "prefer", **spaced)
        assert modes_told(fra) == []
        for site in sites:
            await site.wait_for("key_installed", keys + 2)
        assert "external keys: require here, prefer at the peer" in ams.link.report.warnings
        assert "external keys: prefer here, require at the peer" in fra.link.report.warnings


async def test_a_policy_that_is_over_its_limit_is_shown_as_what_it_is(
    sites: tuple[Site, Site],
) -> None:
    fra, ams = sites
    limited = {"fallback_limit": 1}
    async with linked(
        fra, ams, lambda far: one(far, "prefer", **limited), lambda _: {"mode": "off"}, **DAY
    ):
        await fra.wait_for("fallback_started")
        await fra.wait_for("fallback_limit_reached")
        assert "external keys: require here, off at the peer" in fra.link.report.warnings
        assert "external keys: prefer here, off at the peer" not in fra.link.report.warnings


# ---- keys that were fetched ahead


def lost_key(site: Site, name: str = "kme-a") -> None:
    """A key is ready that the key managers do not have any more."""
    reference = ExternalKeyReference(
        "qkd", f"KME-sae-{site.name}-{name}", f"sae-{site.name}-{name}", ("lost",), 256
    )
    source(site, name).ahead.append(ExternalKey(reference, Secret(os.urandom(32))))


@pytest.mark.parametrize("mode", ["prefer", "require"])
async def test_a_key_fetched_ahead_that_is_lost_costs_one_exchange(
    sites: tuple[Site, Site], mode: str
) -> None:
    fra, ams = sites
    async with linked(fra, ams, lambda far: one(far, mode), **DAY):
        await first_key(fra, ams)
        await new_key(fra, ams)
        lost_key(fra)
        refused = len(ams.named("exchange_refused"))
        keys = len(fra.named("key_installed"))
        await fra.renew()
        await fra.wait_for("key_installed", keys + 1)
        assert len(ams.named("exchange_refused")) == refused + 1
        fra.shake_hands()
        assert external_keys(fra.link)["mixed"] == ["kme-a"]
        assert not fra.named("fallback_started")
        assert not ams.named("fallback_started")


async def test_a_source_whose_key_was_lost_is_not_left_out(sites: tuple[Site, Site]) -> None:
    fra, ams = sites
    async with linked(fra, ams, lambda far: both(far, "require", at_least=1), **DAY):
        await first_key(fra, ams)
        await new_key(fra, ams)
        lost_key(fra, "kme-b")
        keys = len(fra.named("key_installed"))
        await fra.renew()
        await fra.wait_for("key_installed", keys + 1)
        fra.shake_hands()
        assert external_keys(fra.link)["mixed"] == ["kme-a", "kme-b"]
        assert not fra.named("source_left_out")


async def test_a_fresh_key_that_cannot_be_had_either_is_a_fallback(
    sites: tuple[Site, Site],
) -> None:
    fra, ams = sites
    async with linked(fra, ams, lambda far: one(far, "prefer"), **DAY):
        await first_key(fra, ams)
        await new_key(fra, ams)
        lost_key(fra)
        source(ams).fault = SourceFault.UNREACHABLE
        await fra.renew()
        await fra.wait_for("fallback_started")
        assert len(ams.named("exchange_refused")) == 2


# ---- whose key manager failed, and at which end


async def test_both_ends_name_the_one_that_failed(sites: tuple[Site, Site]) -> None:
    fra, ams = sites
    async with linked(fra, ams, lambda far: one(far, "prefer"), **DAY):
        await in_fallback(fra, ams, ams)
        assert "KME-sae-ams-kme-a at the responder: source_unreachable" in (
            fra.link.external.watch.standing
        )
        assert "kme-a: as the test wants it" in ams.link.external.watch.standing
        for site in sites:
            assert "KME-sae-fra" not in site.link.external.watch.standing


async def test_the_initiators_is_named_at_the_responder(sites: tuple[Site, Site]) -> None:
    fra, ams = sites
    async with linked(fra, ams, lambda far: one(far, "prefer"), **DAY):
        await in_fallback(fra, ams, fra)
        assert "kme-a: as the test wants it" in fra.link.external.watch.standing
        assert "the peer had no key from its kme-a" in ams.link.external.watch.standing


async def test_a_name_that_no_source_knows_is_told_as_that(sites: tuple[Site, Site]) -> None:
    fra, ams = sites
    wrong = {"mode": "require", "source": "kme-a", "peer_sae": "sae-nobody"}
    async with linked(fra, ams, lambda far: one(far, "require"), lambda _: wrong, **DAY):
        refused = await ams.wait_for("exchange_refused")
        assert (
            'no qkd source of this link knows the initiator as "sae-fra-kme-a"'
            in (refused["reason"])
        )


async def test_a_renewal_by_hand_follows_an_exchange_that_may_give_none(
    sites: tuple[Site, Site],
) -> None:
    fra, ams = sites
    async with linked(fra, ams, lambda far: one(far, "prefer"), **DAY):
        await in_fallback(fra, ams, fra)
        source(fra).fault, source(fra).hangs = None, True
        asked = source(fra).asked
        with trio.fail_after(45):
            while source(fra).asked == asked:
                await trio.lowlevel.checkpoint()
        keys = len(fra.named("key_installed"))
        assert fra.link.exchanges.begin()
        assert fra.link.exchanges.begin_with("kme-a") is None
        source(fra).fault, source(fra).hangs = SourceFault.EMPTY, False
        source(fra).wake()
        await fra.wait_for("key_installed", keys + 1)

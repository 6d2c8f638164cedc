"""Links with keys from outside: what is mixed and refused, and what is never done in silence."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from kex.external import ExternalMode
from tests.vpnd.link_ends import Site, StandInSource, agree, make_sites, use
from vpnd.api import LinkState
from vpnd.config_key_sources import FileSourceConfig
from vpnd.fallback import NotExtensible
from vpnd.journal import Journal
from vpnd.keysource.base import SourceFault
from vpnd.keysource.file_source import FileSource
from vpnd.source_journal import SourceJournal
from vpnd.view_external import external_keys


@pytest.fixture
def sites(tmp_path: Path) -> tuple[Site, Site]:
    return make_sites(tmp_path)


def one(far: Site, mode: str, **more: Any) -> dict[str, Any]:
    return {"mode": mode, **use(far, "kme-a"), **more}


def both(far: Site, mode: str, **more: Any) -> dict[str, Any]:
    return {"mode": mode, "sources": [use(far, "kme-a"), use(far, "kme-b")], **more}


@asynccontextmanager
async def linked(
    fra: Site, ams: Site, external: Any, at_ams: Any = None, **more: Any
) -> AsyncIterator[None]:
    """Both daemons' links. `external` makes the table of an end from its far end."""
    async with (
        ams.running(fra, ams.configure(fra, (at_ams or external)(fra), **more)),
        fra.running(ams, fra.configure(ams, external(ams), **more)),
    ):
        yield


def source(site: Site, name: str = "kme-a") -> StandInSource:
    return cast(StandInSource, site.sources[name])


async def new_key(fra: Site, ams: Site) -> str:
    """One more key at both ends; its key id."""
    counts = [len(site.named("key_installed")) for site in (fra, ams)]
    await fra.renew()
    for site, count in zip((fra, ams), counts, strict=True):
        event = await site.wait_for("key_installed", count + 1)
    assert fra.psk(ams) == ams.psk(fra) is not None
    return event["key_id"]


async def first_key(fra: Site, ams: Site) -> None:
    for site in (fra, ams):
        await site.wait_for("key_installed")


# ---- what is mixed


@pytest.mark.parametrize("mode", ["prefer", "require"])
async def test_keys_of_all_sources_are_mixed(sites: tuple[Site, Site], mode: str) -> None:
    fra, ams = sites
    async with linked(fra, ams, lambda far: both(far, mode)):
        await first_key(fra, ams)
        await new_key(fra, ams)
        for site in sites:
            site.shake_hands()
            assert site.link.report.state is LinkState.ACTIVE
            shown = external_keys(site.link)
            assert shown["mixed"] == ["kme-a", "kme-b"]
            assert shown["fallback"] is None
        ids = [
            [key_id for each in external_keys(site.link)["in_force"] for key_id in each["key_ids"]]
            for site in sites
        ]
        assert ids[0] == ids[1]
        assert len(ids[0]) == 2
        told = fra.named("key_installed")[-1]["fields"]["sources"]
        assert told == "kme-a, kme-b"


async def test_no_key_is_asked_for_by_id_twice(sites: tuple[Site, Site]) -> None:
    fra, ams = sites
    async with linked(fra, ams, lambda far: one(far, "require")):
        await first_key(fra, ams)
        for _ in range(3):
            await new_key(fra, ams)
    delivered = source(fra).vault.delivered
    assert len(delivered) == len(set(delivered)) >= 4


async def test_a_static_key_in_a_file_is_mixed(sites: tuple[Site, Site]) -> None:
    fra, ams = sites
    key = "81d5c04f6ab37e29" * 2 + "1c95e0d73ba8462f" * 2
    add_file(fra, key)
    add_file(ams, key)
    async with linked(
        fra,
        ams,
        lambda far: {"mode": "require", "sources": [use(far, "kme-a"), {"source": "shared"}]},
    ):
        await first_key(fra, ams)
        await new_key(fra, ams)
        fra.shake_hands()
        assert external_keys(fra.link)["mixed"] == ["shared", "kme-a"]


def add_file(site: Site, key: str) -> None:
    path = site.folder / "shared.key"
    path.write_text(key)
    path.chmod(0o600)
    config = FileSourceConfig.model_validate({"type": "file", "file": str(path)})
    site.sources["shared"] = FileSource("shared", config, SourceJournal(Journal(site.feed)))


async def test_other_files_are_a_mismatch_that_shows_both_hashes(
    sites: tuple[Site, Site],
) -> None:
    fra, ams = sites
    add_file(fra, "81d5c04f6ab37e29" * 2 + "1c95e0d73ba8462f" * 2)
    add_file(ams, "41c5d09f7ba36e28" * 2 + "2d84f1c62ab7593e" * 2)
    async with linked(fra, ams, lambda far: {"mode": "prefer", "source": "shared"}):
        told = await fra.wait_for("key_mismatch")
        await ams.wait_for("key_mismatch")
        for site in sites:
            assert site.sources["shared"].status().identity in told["reason"]
            assert str(site.folder) not in told["reason"]
        assert fra.psk(ams) is None, "a mismatch is no reason to go on without"
        assert not fra.named("fallback_started")


# ---- a source that fails


@pytest.mark.parametrize("at", ["fra", "ams", "both"])
@pytest.mark.parametrize("fault", [SourceFault.UNREACHABLE, SourceFault.EMPTY])
async def test_require_gives_no_key_without(
    sites: tuple[Site, Site], at: str, fault: SourceFault
) -> None:
    fra, ams = sites
    async with linked(fra, ams, lambda far: one(far, "require")):
        await first_key(fra, ams)
        before = await new_key(fra, ams)
        for site in sites:
            if at in (site.name, "both"):
                source(site).fault = fault
        for site in sites:
            site.shake_hands()
        unwanted = fra.psk(ams)
        told = len(fra.named("exchange_failed"))
        await fra.renew()
        failed = await fra.wait_for("exchange_failed", told + 1)
        assert "kme-a" in failed["reason"] or "KME-sae-fra-kme-a" in failed["reason"]
        assert fra.psk(ams) == ams.psk(fra), "the old key stays"
        assert fra.link.wireguard.watch.in_force is not None
        assert fra.link.wireguard.watch.in_force.key_id == before
        assert fra.link.report.state is LinkState.DEGRADED
        assert not fra.named("fallback_started")
        for site in sites:
            source(site).fault = None
        await agree(fra, ams, but=unwanted)


@pytest.mark.parametrize("at", ["fra", "ams", "both"])
async def test_prefer_goes_on_and_says_so_until_it_is_over(
    sites: tuple[Site, Site], at: str
) -> None:
    fra, ams = sites
    async with linked(fra, ams, lambda far: one(far, "prefer")):
        await first_key(fra, ams)
        await new_key(fra, ams)
        for site in sites:
            if at in (site.name, "both"):
                source(site).fault = SourceFault.UNREACHABLE
        await new_key(fra, ams)
        for site in sites:
            await site.wait_for("fallback_started")
            site.shake_hands()
            assert site.link.report.state is LinkState.DEGRADED
            assert site.link.report.reason.startswith("fallback, without")
            shown = external_keys(site.link)
            assert shown["mixed"] == []
            assert shown["fallback"] is not None
            assert not shown["fallback"]["over_limit"]
        for site in sites:
            source(site).fault = None
        await new_key(fra, ams)
        for site in sites:
            await site.wait_for("fallback_ended")
            site.shake_hands()
            assert site.link.report.state is LinkState.ACTIVE
            assert len(site.named("fallback_started")) == 1


async def test_one_of_two_sources_is_missing(sites: tuple[Site, Site]) -> None:
    """No fallback, for there is an external key; and not silent: the link is degraded."""
    fra, ams = sites
    source(fra, "kme-b").fault = SourceFault.EMPTY
    async with linked(fra, ams, lambda far: both(far, "prefer")):
        await first_key(fra, ams)
        await new_key(fra, ams)
        for site in sites:
            site.shake_hands()
            assert site.link.report.state is LinkState.DEGRADED
            assert "no key of kme-b" in site.link.report.reason
            assert not site.named("fallback_started")
        (told, *_) = fra.named("external_keys_missing")
        assert told["fields"]["code"] == "source_empty"


async def test_a_source_that_fails_at_the_peer_is_left_out_for_a_while(
    sites: tuple[Site, Site],
) -> None:
    fra, ams = sites
    async with linked(fra, ams, lambda far: both(far, "require", at_least=1)):
        await first_key(fra, ams)
        await new_key(fra, ams)
        source(ams, "kme-b").fault = SourceFault.UNKNOWN_KEY
        await fra.renew()
        refused = await ams.wait_for("exchange_refused")
        assert refused["fields"]["code"] == "refused_key_manager"
        assert "KME-sae-ams-kme-b at the responder: source_unknown_key" in refused["reason"]
        await fra.wait_for("source_left_out")
        asked = source(fra, "kme-b").asked
        await fra.wait_for("key_installed", len(fra.named("key_installed")) + 1)
        assert source(fra, "kme-b").asked == asked
        fra.shake_hands()
        assert external_keys(fra.link)["mixed"] == ["kme-a"]
        assert fra.link.report.state is LinkState.DEGRADED


async def test_a_source_that_is_needed_by_name_is_not_left_out(sites: tuple[Site, Site]) -> None:
    fra, ams = sites
    async with linked(fra, ams, lambda far: both(far, "require", require=["kme-b"])):
        await first_key(fra, ams)
        await new_key(fra, ams)
        source(ams, "kme-b").fault = SourceFault.UNKNOWN_KEY
        keys = len(fra.named("key_installed"))
        await fra.renew()
        await ams.wait_for("exchange_refused", 2)
        assert len(fra.named("key_installed")) == keys
        source(ams, "kme-b").fault = None
        await fra.wait_for("key_installed", keys + 1)


async def test_the_responder_asks_for_its_sources_by_name(sites: tuple[Site, Site]) -> None:
    """What the initiator finds enough may not be enough for the other end."""
    fra, ams = sites
    source(fra, "kme-b").fault = SourceFault.EMPTY
    async with linked(
        fra,
        ams,
        lambda far: both(far, "require", at_least=1),
        lambda far: both(far, "require", require=["kme-b"]),
    ):
        refused = await ams.wait_for("exchange_refused")
        assert refused["fields"]["code"] == "refused_policy"
        assert "kme-b must be mixed" in refused["reason"]
        assert fra.psk(ams) is None


async def test_a_slow_source_delays_only_its_exchange(sites: tuple[Site, Site]) -> None:
    """8 s at the responder, then a Reject; nothing that comes later is installed."""
    fra, ams = sites
    async with linked(fra, ams, lambda far: one(far, "require")):
        await first_key(fra, ams)
        await new_key(fra, ams)
        source(ams).hangs = True
        before = fra.psk(ams)
        await fra.renew()
        refused = await ams.wait_for("exchange_refused", seconds=15)
        assert "source_timeout" in refused["reason"]
        assert fra.psk(ams) == ams.psk(fra) == before
        source(ams).hangs = False
        await fra.wait_for("key_installed", len(fra.named("key_installed")) + 1)


# ---- different keys


@pytest.mark.parametrize("mode", ["prefer", "require"])
async def test_different_keys_under_one_id_install_nothing(
    sites: tuple[Site, Site], mode: str
) -> None:
    fra, ams = sites
    async with linked(fra, ams, lambda far: one(far, mode)):
        await first_key(fra, ams)
        await new_key(fra, ams)
        before = fra.psk(ams)
        source(ams).wrong = True
        await fra.renew()
        for site in sites:
            told = await site.wait_for("key_mismatch")
            assert "KME-sae-fra-kme-a at the initiator" in told["reason"]
            assert "KME-sae-ams-kme-a at the responder" in told["reason"]
            assert not site.named("fallback_started")
        assert fra.psk(ams) == ams.psk(fra) == before
        source(ams).wrong = False
        await agree(fra, ams, but=before)
        assert not fra.named("fallback_started")


async def test_a_mismatch_may_close_the_link(sites: tuple[Site, Site]) -> None:
    fra, ams = sites
    async with linked(fra, ams, lambda far: one(far, "require", on_mismatch="close")):
        await first_key(fra, ams)
        await new_key(fra, ams)
        source(ams).wrong = True
        await fra.renew()
        for site in sites:
            closed = await site.wait_for("link_closed")
            assert 'on_mismatch = "close"' in closed["reason"]
        source(ams).wrong = False
        await agree(fra, ams)


# ---- the limit of a fallback


async def test_after_the_limit_no_key_comes_without(sites: tuple[Site, Site]) -> None:
    fra, ams = sites
    source(fra).fault = SourceFault.UNREACHABLE
    async with linked(fra, ams, lambda far: one(far, "prefer", fallback_limit=1)):
        for site in sites:
            await site.wait_for("fallback_limit_reached")
            assert site.link.external.mode_of(site.peer) is ExternalMode.REQUIRE
        before = fra.psk(ams)
        await fra.renew()
        failed = await fra.wait_for("exchange_failed", len(fra.named("exchange_failed")) + 1)
        assert "kme-a" in failed["reason"]
        assert fra.psk(ams) == before
        fra.shake_hands()
        shown = external_keys(fra.link)["fallback"]
        assert shown is not None
        assert shown["over_limit"]
        # once more, for a reason
        fra.link.extend_fallback(3600, "the KME is being repaired", uid=0)
        ams.link.extend_fallback(3600, "the KME is being repaired", uid=0)
        unwanted = before
        extended = await fra.wait_for("fallback_extended")
        assert extended["fields"]["uid"] == 0
        await agree(fra, ams, but=unwanted)
        with pytest.raises(NotExtensible, match="extended already"):
            fra.link.extend_fallback(3600, "again", uid=0)
        source(fra).fault = None
        await new_key(fra, ams)
        await ams.wait_for("fallback_ended")


async def test_a_restart_is_no_way_around_the_limit(sites: tuple[Site, Site]) -> None:
    """Also at the end that only answers."""
    fra, ams = sites
    source(fra).fault = SourceFault.UNREACHABLE
    async with linked(fra, ams, lambda far: one(far, "prefer", fallback_limit=2)):
        for site in sites:
            await site.wait_for("fallback_started")
    for site in sites:
        site.events.clear()
    async with linked(fra, ams, lambda far: one(far, "prefer", fallback_limit=2)):
        for site in sites:
            assert site.link.external.watch.fallback is not None
            assert not site.named("fallback_started")
            await site.wait_for("fallback_limit_reached")
        assert all(site.link.external.watch.over for site in sites)
        with pytest.raises(NotExtensible):
            fra.link.extend_fallback(1, "too short", uid=0)


async def test_there_is_nothing_to_extend(sites: tuple[Site, Site]) -> None:
    fra, ams = sites
    async with linked(fra, ams, lambda far: one(far, "prefer")):
        await first_key(fra, ams)
        with pytest.raises(NotExtensible, match="there is no fallback"):
            fra.link.extend_fallback(3600, "why not", uid=0)


# ---- ends that differ


@pytest.mark.parametrize(("here", "there"), [("require", "off"), ("off", "require")])
async def test_policies_that_exclude_each_other_are_told_at_both_ends(
    sites: tuple[Site, Site], here: str, there: str
) -> None:
    fra, ams = sites
    async with linked(fra, ams, lambda far: one(far, here), lambda far: one(far, there)):
        for site in sites:
            told = await site.wait_for("ends_differ")
            assert here in told["reason"]
            assert there in told["reason"]
        assert fra.psk(ams) is None


async def test_policies_that_differ_are_told_at_both_ends(sites: tuple[Site, Site]) -> None:
    fra, ams = sites
    async with linked(fra, ams, lambda far: one(far, "prefer"), lambda far: one(far, "require")):
        await first_key(fra, ams)
        assert "external keys: prefer here, require at the peer" in fra.link.report.warnings
        assert "external keys: require here, prefer at the peer" in ams.link.report.warnings


# ---- how often sources are used


async def test_a_link_does_not_use_its_sources_too_often(sites: tuple[Site, Site]) -> None:
    fra, ams = sites
    async with linked(fra, ams, lambda far: one(far, "require", min_interval=60)):
        await first_key(fra, ams)
        # Whichever end had the first key: the second exchange of this one is too soon
        if not fra.link.external.used_lately:
            await new_key(fra, ams)
        made = source(fra).vault.made
        count = len(fra.named("exchange_failed"))
        await fra.renew()
        failed = await fra.wait_for("exchange_failed", count + 1)
        assert "min_interval" in failed["reason"]
        assert source(fra).vault.made == made


async def test_a_policy_that_becomes_stricter_during_an_exchange_is_obeyed(
    sites: tuple[Site, Site],
) -> None:
    """Other names of as many sources: the key exchange itself sees no difference."""
    fra, ams = sites
    async with linked(fra, ams, lambda far: both(far, "require", require=["kme-a"])):
        await first_key(fra, ams)
        await new_key(fra, ams)
        await fra.renew()
        # Only now: an exchange of the other end may have been under way before
        source(fra).hangs = source(fra, "kme-b").hangs = True
        asked = source(fra).asked
        with trio.fail_after(20):
            while source(fra).asked == asked:
                await trio.lowlevel.checkpoint()
        for site, far in ((fra, ams), (ams, fra)):
            site.link.take(
                site.configure(far, both(far, "require", require=["kme-b"])),
                (site.identity.fingerprint,),
            )
        source(fra, "kme-b").fault = SourceFault.EMPTY
        source(fra).hangs = source(fra, "kme-b").hangs = False
        source(fra).wake()
        source(fra, "kme-b").wake()
        failed = await fra.wait_for("exchange_failed", len(fra.named("exchange_failed")) + 1)
        assert "changed during the exchange" in failed["reason"]
        source(fra, "kme-b").fault = None
        keys = len(fra.named("key_installed"))
        told = await fra.wait_for("key_installed", keys + 1)
        assert "kme-b" in str(told["fields"]["sources"])


async def test_an_own_limit_is_no_reason_to_go_on_without(sites: tuple[Site, Site]) -> None:
    fra, ams = sites
    async with linked(fra, ams, lambda far: one(far, "prefer")):
        await first_key(fra, ams)
        await new_key(fra, ams)
        source(fra).fault = SourceFault.LIMITED
        await fra.renew()
        await fra.wait_for("exchange_failed", len(fra.named("exchange_failed")) + 1)
        assert not fra.named("fallback_started")


# ---- a test of a source


async def test_one_key_is_had_and_compared(sites: tuple[Site, Site]) -> None:
    fra, ams = sites
    async with linked(fra, ams, lambda far: both(far, "prefer")):
        await first_key(fra, ams)
        await new_key(fra, ams)
        asked = await fra.exchange_with("kme-b")
        await asked.over.wait()
        assert asked.outcome == ""
        assert asked.key_id
        assert "kme-b" in [each.source for each in asked.mixed]
        source(fra, "kme-b").fault = SourceFault.EMPTY
        await fra.wait_for("key_installed", len(fra.named("key_installed")))
        asked = await fra.exchange_with("kme-b")
        await asked.over.wait()
        assert "kme-b gave no key" in asked.outcome
        assert asked.key_id == ""


# ---- the configuration changes


async def test_a_stricter_policy_takes_effect_at_once(sites: tuple[Site, Site]) -> None:
    fra, ams = sites
    async with linked(fra, ams, lambda far: {"mode": "off"}, lambda far: one(far, "prefer")):
        await first_key(fra, ams)
        await ams.wait_for("fallback_started")
        peer = fra.configure(ams, one(ams, "require"))
        before = len(fra.named("key_installed"))
        own = (fra.identity.fingerprint,)
        config = fra.link.exchanges.config_with(peer, own)
        assert config is not None
        with fra.engine.driving() as (endpoint, now):
            endpoint.update_link(config, now)
        fra.link.take(peer, own)
        await fra.wait_for("key_installed", before + 1)
        await ams.wait_for("fallback_ended")
        fra.shake_hands()
        assert external_keys(fra.link)["mixed"] == ["kme-a"]

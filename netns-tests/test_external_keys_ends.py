"""External keys where both ends have a part: names, restarts, starts, and a key that got lost.

The lab is that of backbone.py: one link in `require`, one in `prefer`.
"""

from __future__ import annotations

import signal
from functools import partial

import pytest
import trio
from backbone import FAR, HUB, STRICT, Backbone, open_backbone
from broken_kme import fault, initiator_fails, keys_differ, responder_fails
from report import Case

from vpnd_lab.journal import matching
from vpnd_lab.patience import patient

OUTAGE_FAILURES = 4
"""Exchanges that fail before the key manager is back."""

pytestmark = pytest.mark.netns


@pytest.mark.kernel_long
async def test_a_fault_of_each_kind(case: Case) -> None:
    """The quick one: away at either end, and different keys."""
    async with open_backbone() as backbone:
        await initiator_fails(backbone, case, fault("status"), "source_unavailable")
        await responder_fails(backbone, case, fault("key-short"), "source_bad_key")
        await keys_differ(backbone, case, fault("key-differs"), *FAR)


@pytest.mark.kernel_long
@pytest.mark.long
async def test_sae_names_exchanged(case: Case) -> None:
    """Where a key manager takes the master for the slave, the other one gives none. It answers a
    status, so to the responder it is a key that is not there."""
    async with open_backbone() as backbone:
        await responder_fails(
            backbone, case, fault("sae-exchanged"), "source_unknown_key", tell_initiator=True
        )
        await responder_fails(backbone, case, fault("sae-exchanged"), "source_unknown_key")


@pytest.mark.kernel_long
@pytest.mark.long
async def test_a_key_that_got_lost_is_not_asked_for_again(case: Case) -> None:
    """The answer was lost after the key was consumed: the next exchange has another key."""
    async with open_backbone() as backbone:
        before = await backbone.keys()
        kme = backbone.kme(STRICT)
        last = max((call["number"] for call in await kme.calls()), default=0)
        logs = backbone.logs()
        await kme.fault("answer-lost", "dec_keys", times=1)
        await backbone.rekey(STRICT)
        await backbone.wait_event(HUB, logs, "exchange_failed", peer=STRICT, code="refused")
        await backbone.wait_fresh(STRICT, before[STRICT])
        asked = [
            key_id for call in await kme.calls("dec_keys", after=last) for key_id in call["key_ids"]
        ]
        assert len(asked) > 1
        assert len(set(asked)) == len(asked)
        await backbone.same_key(STRICT)


async def _asked(backbone: Backbone, site: str, call: str, after: int) -> None:
    with trio.fail_after(patient(30)):
        while True:
            if await backbone.kme(site).calls(call, after=after):
                return
            await trio.sleep(0.02)


@pytest.mark.kernel_long
@pytest.mark.long
@pytest.mark.parametrize("end", ["initiator", "responder"])
async def test_a_daemon_killed_between_fetching_and_installing(case: Case, end: str) -> None:
    """The other end's key manager is slow, or its own answer has just come: SIGKILL, and a start.
    The key that was fetched is lost; both ends go on with the old one, and then with a new one."""
    async with open_backbone() as backbone:
        marks = {far: await each.mark("kill") for far, each in backbone.meters.items()}
        before = await backbone.keys()
        killed = HUB if end == "initiator" else STRICT
        numbers = [call["number"] for call in await backbone.kme(HUB).calls()]
        # The initiator has its key, and waits for the responder, whose own call takes a while
        await backbone.kme(STRICT).fault("slow", "dec_keys", seconds=4, times=1)
        await backbone.rekey(STRICT)
        await _asked(backbone, HUB, "enc_keys", max(numbers, default=0))
        site = backbone.lab.site(killed)
        await site.kill_daemon(signal.SIGKILL)
        await site.start_daemon()
        await backbone.same_key(STRICT)
        await backbone.wait_fresh(STRICT, before[STRICT])
        await backbone.same_key(STRICT)
        for far, (sent, lost) in (await backbone.nothing_lost(marks)).items():
            case.result(f"{HUB}-{far}", sent=sent, lost=lost, repeated=0)


@pytest.mark.kernel_long
@pytest.mark.long
async def test_both_ends_start_at_once(case: Case) -> None:
    """All daemons are killed and started side by side, as after a power cut; exchanges cross."""
    async with open_backbone() as backbone:
        marks = {far: await each.mark("start") for far, each in backbone.meters.items()}
        before, logs = await backbone.keys(), backbone.logs()
        sites = [backbone.lab.site(name) for name in (HUB, *FAR)]
        for work in ("kill_daemon", "start_daemon"):
            async with trio.open_nursery() as nursery:
                for site in sites:
                    nursery.start_soon(getattr(site, work))
        async with trio.open_nursery() as nursery:
            for far in FAR:
                nursery.start_soon(partial(backbone.wait_fresh, far, before[far], seconds=120))
        for far in FAR:
            await backbone.same_key(far)
        for site in sites:
            told = backbone.told(site.name, logs)
            assert not matching(told, "key_mismatch")
            assert all(each.get("sources") for each in matching(told, "key_installed"))
        for far, (sent, lost) in (await backbone.nothing_lost(marks)).items():
            case.result(f"{HUB}-{far}", sent=sent, lost=lost, repeated=0)


@pytest.mark.kernel_long
@pytest.mark.long
async def test_a_key_manager_is_back_after_an_outage(case: Case) -> None:
    """Nobody tells the daemons: the strict link is renewed within its own pauses of 30 s."""
    async with open_backbone() as backbone:
        marks = {far: await each.mark("outage") for far, each in backbone.meters.items()}
        before, logs = await backbone.keys(), backbone.logs()
        await backbone.kme(HUB).kill()
        await backbone.rekey(STRICT)
        with trio.fail_after(patient(60)):
            while True:
                failed = matching(backbone.told(HUB, logs), "exchange_failed", peer=STRICT)
                if len(failed) >= OUTAGE_FAILURES:
                    break
                await trio.sleep(0.1)
        assert (await backbone.keys())[STRICT] == before[STRICT]
        after = backbone.logs()
        await backbone.kme(HUB).start()
        for site, peer in ((HUB, STRICT), (STRICT, HUB)):
            installed = await backbone.wait_event(
                site, after, "key_installed", peer=peer, seconds=90
            )
            assert installed["sources"] == "kme"
        await backbone.wait_event(HUB, after, "source_back")
        await backbone.same_key(STRICT)
        for far, (sent, lost) in (await backbone.nothing_lost(marks)).items():
            case.result(f"{HUB}-{far}", sent=sent, lost=lost, repeated=0)

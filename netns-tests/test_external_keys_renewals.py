"""A key manager is killed in the middle of many renewals under load, with both policies.

    fra-kme ── fra ══ internet ══ ams ── ams-kme      require
                                  par ── par-kme      prefer

Never two different keys in use, never a fallback that nobody told of, nothing lost before the
key's lifetime is over.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from backbone import FAR, HUB, LENIENT, STRICT, Backbone, open_backbone
from report import Case

from vpnd_lab.journal import Record, matching
from vpnd_lab.meter import Mark
from vpnd_lab.patience import patient
from vpnd_lab.proof import NotProved, installed, same_preshared_key

RENEWALS = 50
KILLED_AFTER = 15
BACK_AFTER = 30
"""Renewals."""
LIFETIME_SECONDS = 700.0
"""A key lives for 600 s."""
PAIR_SECONDS = 10.0
"""In which both ends of a link have installed the key of one exchange."""

pytestmark = pytest.mark.netns


async def _watch_keys(backbone: Backbone, far: str) -> None:
    """Both interfaces hold the same preshared key, but for the moment between the two ends'
    installing: never for longer. Where a key came while they were looked at, nothing is known."""
    differ_since: float | None = None
    while True:
        before = await installed(backbone.lab, HUB, far)
        same = await same_preshared_key(backbone.lab, HUB, far)
        if before != await installed(backbone.lab, HUB, far):
            pass
        elif same:
            differ_since = None
        elif differ_since is None:
            differ_since = trio.current_time()
        elif trio.current_time() - differ_since > patient(PAIR_SECONDS):
            raise NotProved(f"{HUB} and {far}: different preshared keys for {PAIR_SECONDS:g} s")
        await trio.sleep(0.5)


@asynccontextmanager
async def _watched(backbone: Backbone) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        for far in FAR:
            nursery.start_soon(_watch_keys, backbone, far)
        yield
        nursery.cancel_scope.cancel()


async def _one_renewal(backbone: Backbone, far: str) -> None:
    """Force an exchange, and wait until it has given a key or failed at the initiator."""
    logs = backbone.logs()
    await backbone.rekey(far)
    with trio.fail_after(patient(60)):
        while True:
            told = backbone.told(HUB, logs)
            if matching(told, "key_installed", peer=far):
                return
            if matching(told, "exchange_failed", peer=far):
                return
            await trio.sleep(0.05)


async def _renewals(backbone: Backbone, count: int) -> None:
    for _ in range(count):
        async with trio.open_nursery() as nursery:
            for far in FAR:
                nursery.start_soon(_one_renewal, backbone, far)


def _silent_fallbacks(told: Iterable[Record], peer: str) -> list[str]:
    """Key ids of keys without an external key that lie outside a fallback that was told of."""
    found, within = [], False
    for record in told:
        if record.get("peer") != peer:
            continue
        match record["event"]:
            case "fallback_started":
                within = True
            case "fallback_ended":
                within = False
            case "key_installed" if not record.get("sources") and not within:
                found.append(record["key_id"])
    return found


async def _check(backbone: Backbone, logs: dict[str, int]) -> None:
    """What was told at both ends agrees with which keys were installed."""
    for site, peer in ((HUB, LENIENT), (LENIENT, HUB), (HUB, STRICT), (STRICT, HUB)):
        told = backbone.told(site, logs)
        assert _silent_fallbacks(told, peer) == [], (site, peer)
        fallbacks = len(matching(told, "fallback_started", peer=peer))
        if STRICT in (site, peer):
            assert fallbacks == 0
        else:
            assert 0 < fallbacks == len(matching(told, "fallback_ended", peer=peer))
        # The ids of keys are those of the other end, in the same order
        ids = [each["key_id"] for each in matching(told, "key_installed", peer=peer)]
        others = matching(backbone.told(peer, logs), "key_installed", peer=site)
        assert ids == [each["key_id"] for each in others], (site, peer)


async def _kill_in_the_middle(backbone: Backbone, case: Case, renewals: int) -> None:
    logs = backbone.logs()
    marks = {far: await each.mark("renewals") for far, each in backbone.meters.items()}
    first, gone = renewals * KILLED_AFTER // RENEWALS, renewals * BACK_AFTER // RENEWALS
    async with _watched(backbone):
        await _renewals(backbone, first)
        async with trio.open_nursery() as nursery:  # while exchanges are under way
            nursery.start_soon(backbone.kme(HUB).kill)
            nursery.start_soon(_renewals, backbone, 1)
        before = await backbone.keys()
        await _renewals(backbone, gone - first - 1)
        assert (await backbone.keys())[STRICT] == before[STRICT]
        await backbone.kme(HUB).start()
        await _renewals(backbone, renewals - gone)
        await backbone.mend()
    for site, peer in ((HUB, LENIENT), (LENIENT, HUB)):
        await backbone.wait_event(site, logs, "fallback_ended", peer=peer)
    await _check(backbone, logs)
    for far in FAR:
        await backbone.same_key(far)
    for far, (sent, lost) in (await backbone.nothing_lost(marks)).items():
        installed = len(matching(backbone.told(HUB, logs), "key_installed", peer=far))
        case.result(f"{HUB}-{far}, {installed} keys", sent=sent, lost=lost, repeated=0)


@pytest.mark.kernel_long
async def test_a_key_manager_killed_in_the_middle_of_10_renewals(case: Case) -> None:
    async with open_backbone(rate=100) as backbone:
        await _kill_in_the_middle(backbone, case, 10)


@pytest.mark.long
@pytest.mark.kernel_long
async def test_a_key_manager_killed_in_the_middle_of_50_renewals(case: Case) -> None:
    async with open_backbone(rate=100) as backbone:
        await _kill_in_the_middle(backbone, case, RENEWALS)


async def _mark_until_closed(backbone: Backbone, logs: dict[str, int]) -> dict[str, Mark]:
    """Marks of the traffic at least a second before an end of the strict link closed."""
    marks: list[dict[str, Mark]] = []
    with trio.fail_after(patient(LIFETIME_SECONDS)):
        while True:
            now = {far: await each.mark("before the end") for far, each in backbone.meters.items()}
            told = [*backbone.told(HUB, logs), *backbone.told(STRICT, logs)]
            if matching(told, "link_closed"):
                return marks[0]
            marks = [*marks[-1:], now]
            await trio.sleep(1)


@pytest.mark.long
@pytest.mark.kernel_long
async def test_nothing_is_lost_until_the_lifetime_is_over(case: Case) -> None:
    """`require`: the old key to its end, then the link closes and nothing passes; `prefer` goes on.
    When the key manager is back, both get an external key by themselves."""
    async with open_backbone(rate=100) as backbone:
        logs = backbone.logs()
        meters = backbone.meters
        starts = {far: await each.mark("outage") for far, each in meters.items()}
        await backbone.kme(HUB).kill()
        old = (await backbone.keys())[STRICT]
        before_the_end = await _mark_until_closed(backbone, logs)
        for far, meter in meters.items():
            traffic = await meter.between(starts[far], before_the_end[far])
            case.traffic(traffic, f"{HUB}-{far} until the lifetime is over")
            assert (traffic.lost, traffic.repeated) == (0, 0), f"{far}: {traffic}"
        for site, peer in ((HUB, STRICT), (STRICT, HUB)):
            told = backbone.told(site, logs)
            assert not matching(told, "key_installed", peer=peer), f"after {old}"
        await backbone.wait_event(STRICT, logs, "link_closed", peer=HUB)
        closed = await backbone.meters[STRICT].mark("closed")
        await backbone.wait_event(HUB, logs, "link_closed", peer=STRICT)
        await backbone.meters[LENIENT].wait_received(200)
        passed = await backbone.meters[STRICT].between(closed, None)
        assert passed.received == 0  # a link in `require` without a key carries nothing
        await backbone.kme(HUB).start()
        for far in FAR:
            await backbone.meters[far].wait_received(20, seconds=120)
        for site, peer in ((HUB, LENIENT), (LENIENT, HUB)):
            await backbone.wait_event(site, logs, "fallback_ended", peer=peer, seconds=200)
        await _check(backbone, logs)
        async with trio.open_nursery() as nursery:
            for far in FAR:
                nursery.start_soon(partial(backbone.same_key, far))

"""Several addresses, outages, limits: who is asked when, and how often."""

from __future__ import annotations

import base64
import os
import uuid

import pytest
import trio
import trio.testing

from tests.vpnd.keysource.conftest import (
    FAR,
    MakeServer,
    QkdConfig,
    Told,
)
from tests.vpnd.keysource.test_qkd_calls import FIRST_KEY, reference
from tests.vpnd.keysource.test_qkd_faults import GOOD, keys, silence
from tests.vpnd.keysource.tls_server import Received, Stream, TlsServer, http
from vpnd.keysource.addresses import LONGEST_PAUSE, Addresses
from vpnd.keysource.base import Correspondent, SourceError, SourceFault
from vpnd.keysource.qkd_source import QkdSource
from vpnd.keysource.token_bucket import TokenBucket

pytestmark = pytest.mark.slow


def fresh_key() -> dict[str, str]:
    return {
        "key_ID": str(uuid.uuid4()),
        "key": base64.b64encode(os.urandom(32)).decode(),
    }


async def fresh(_: Received, stream: Stream) -> None:
    await stream.send_all(keys(fresh_key()))
    await stream.aclose()


async def test_the_next_address_where_the_first_cannot_be_reached(
    kme: TlsServer,
    make_server: MakeServer,
    nursery: trio.Nursery,
    qkd_config: QkdConfig,
    told: Told,
) -> None:
    first = make_server()
    await first.start(nursery)
    first.stop()
    await trio.testing.wait_all_tasks_blocked()
    kme.answers = [fresh]
    source = QkdSource("kme", qkd_config(first, kme), told)
    for _ in range(3):
        assert (await source.obtain(FAR)).present
    assert source.status().address == kme.url
    assert told.events == []  # nobody had to wait for anything


async def test_a_dead_first_address_costs_its_time_out_once(
    kme: TlsServer, qkd_config: QkdConfig, told: Told
) -> None:
    connections = 0

    async def take_and_be_silent(stream: trio.SocketStream) -> None:
        nonlocal connections
        connections += 1
        await trio.sleep_forever()

    kme.answers = [fresh]
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, take_and_be_silent, 0)
        port = listeners[0].socket.getsockname()[1]
        urls = [f"https://127.0.0.1:{port}", kme.url]
        source = QkdSource("kme", qkd_config(urls=urls, connect_timeout=0.3), told)
        for _ in range(5):
            assert (await source.obtain(FAR)).present
        nursery.cancel_scope.cancel()
    assert connections == 1
    assert len(kme.received) == 5


@pytest.mark.parametrize(
    "answer",
    [http(503), http(503, {"message": "no keys left in the pool"}), http(200, {"keys": []})],
    ids=["unavailable", "empty", "no keys"],
)
async def test_the_next_address_where_the_first_says_that_it_gave_nothing(
    kme: TlsServer,
    make_server: MakeServer,
    nursery: trio.Nursery,
    qkd_config: QkdConfig,
    told: Told,
    answer: bytes,
) -> None:
    second = make_server(answers=[GOOD])
    await second.start(nursery)
    kme.answers = [answer]
    source = QkdSource("kme", qkd_config(kme, second), told)
    assert (await source.obtain(FAR)).present


@pytest.mark.parametrize(
    "answer",
    [http(500), http(200, b"{"), b"", silence],
    ids=["500", "cut off", "lost", "silence"],
)
async def test_no_other_address_where_a_key_may_have_been_handed_out(
    kme: TlsServer,
    make_server: MakeServer,
    nursery: trio.Nursery,
    qkd_config: QkdConfig,
    told: Told,
    answer: bytes,
) -> None:
    second = make_server(answers=[GOOD])
    await second.start(nursery)
    kme.answers = [answer]
    source = QkdSource("kme", qkd_config(kme, second, read_timeout=0.3), told)
    with pytest.raises(SourceError):
        await source.obtain(FAR)
    assert second.received == []
    assert source.status().counters["maybe_lost"] == 1


async def test_a_responder_asks_the_next_address_for_a_key_that_was_not_delivered(
    kme: TlsServer,
    make_server: MakeServer,
    nursery: trio.Nursery,
    qkd_config: QkdConfig,
    told: Told,
) -> None:
    second = make_server(answers=[GOOD])
    await second.start(nursery)
    kme.answers = [http(404)]
    source = QkdSource("kme", qkd_config(kme, second), told)
    assert (await source.retrieve(FAR, reference())).expose() == FIRST_KEY


async def test_a_kme_that_is_down_is_left_alone_and_comes_back_by_itself(
    kme: TlsServer, nursery: trio.Nursery, qkd_config: QkdConfig, told: Told
) -> None:
    kme.answers = [fresh]
    source = QkdSource("kme", qkd_config(kme), told)
    await source.obtain(FAR)
    kme.stop()
    await trio.testing.wait_all_tasks_blocked()
    faults = set()
    for _ in range(200):
        with pytest.raises(SourceError) as refused:
            await source.obtain(FAR)
        faults.add(refused.value.fault)
    assert faults == {SourceFault.UNREACHABLE}
    assert "is not asked for another" in refused.value.reason
    assert "Connection refused" in refused.value.reason
    assert told.names == ["source_failed"]
    before = kme.connections
    await kme.start(nursery)
    with trio.fail_after(10):
        while True:
            try:
                await source.obtain(FAR)
                break
            except SourceError:
                await trio.sleep(0.1)
    assert kme.connections == before + 1
    assert told.names == ["source_failed", "source_back"]


async def test_two_hundred_links_outlast_an_outage_with_bounded_requests(
    kme: TlsServer, nursery: trio.Nursery, qkd_config: QkdConfig, told: Told
) -> None:
    kme.answers = [http(500)]
    source = QkdSource("kme", qkd_config(kme), told)
    done = 0

    async def link(number: int) -> None:
        nonlocal done
        while True:
            try:
                await source.obtain(Correspondent(f"l{number}", f"sae-{number}"))
                break
            except SourceError:
                await trio.sleep(0.2)
        done += 1

    with trio.fail_after(60):
        async with trio.open_nursery() as links:
            for number in range(200):
                links.start_soon(link, number)
            await trio.sleep(2)
            # The first calls side by side, and then one at each try: not 200 every 0.2 s
            assert len(kme.received) <= 25
            assert done == 0
            kme.answers = [fresh]
    assert done == 200
    assert "source_limited" not in source.status().counters
    assert set(told.names) == {"source_failed", "source_back"}
    assert source.status().available


async def test_many_links_at_once_are_asked_for_a_few_at_a_time(
    kme: TlsServer, qkd_config: QkdConfig, told: Told
) -> None:
    running = most = 0

    async def slowly(request: Received, stream: Stream) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await trio.sleep(0.02)
        running -= 1
        await fresh(request, stream)

    kme.answers = [slowly]
    source = QkdSource("kme", qkd_config(kme), told)
    async with trio.open_nursery() as nursery:
        for number in range(60):
            nursery.start_soon(source.obtain, Correspondent(f"l{number}", f"sae-{number}"))
    assert source.status().counters["obtained"] == 60
    assert 1 < most <= 16


async def test_when_it_is_back_one_call_tries_it_and_the_others_wait_for_that(
    kme: TlsServer, nursery: trio.Nursery, qkd_config: QkdConfig, told: Told
) -> None:
    source = QkdSource("kme", qkd_config(kme, read_timeout=0.3), told)
    kme.answers = [silence]
    with pytest.raises(SourceError):
        await source.obtain(FAR)
    address = source._manager.addresses.current
    await trio.sleep(address.rests() + 0.01)
    asked = len(kme.received)
    failures = 0

    async def one(number: int) -> None:
        nonlocal failures
        with pytest.raises(SourceError):
            await source.obtain(Correspondent(f"l{number}", f"sae-{number}"))
        failures += 1

    async with trio.open_nursery() as links:
        for number in range(50):
            links.start_soon(one, number)
    assert failures == 50
    assert len(kme.received) == asked + 1


async def test_more_keys_than_a_minute_may_have_are_refused_here(
    kme: TlsServer, qkd_config: QkdConfig, told: Told
) -> None:
    kme.answers = [fresh]
    source = QkdSource("kme", qkd_config(kme, max_keys_per_minute=3), told)
    for _ in range(3):
        await source.obtain(FAR)
    with pytest.raises(SourceError) as refused:
        await source.obtain(FAR)
    assert refused.value.fault is SourceFault.LIMITED
    assert "max_keys_per_minute (3) is reached" in refused.value.reason
    assert len(kme.received) == 3
    # What the far end fetched is there already, and is not held up
    kme.answers = [GOOD]
    assert (await source.retrieve(FAR, reference())).expose() == FIRST_KEY


async def test_a_bucket_fills_up_again(autojump_clock: trio.testing.MockClock) -> None:
    bucket = TokenBucket(per_minute=6)
    assert all(bucket.take() for _ in range(6))
    assert not bucket.take()
    await trio.sleep(bucket.wait() + 0.001)
    assert bucket.take()
    assert not bucket.take()
    await trio.sleep(3600)
    assert [bucket.take() for _ in range(7)] == [True] * 6 + [False]


async def test_pauses_grow_to_a_bound_with_jitter(autojump_clock: trio.testing.MockClock) -> None:
    addresses = Addresses(["https://a", "https://b"], jitter=lambda: 1.0)
    first, second = addresses.all
    rests = []
    for _ in range(8):
        first.failed()
        rests.append(first.rests())
    assert rests == [1.25, 2.5, 5.0, 10.0, 20.0, 37.5, 37.5, 37.5]
    assert max(rests) == LONGEST_PAUSE * 1.25
    assert addresses.candidates() == [second]
    await trio.sleep(38)
    assert addresses.candidates() == [second, first]  # it is tried last
    addresses.answered(first)
    assert addresses.candidates() == [first, second]


async def test_one_far_end_without_keys_does_not_stop_the_others(
    kme: TlsServer, qkd_config: QkdConfig, told: Told
) -> None:
    async def empty_for_one(request: Received, stream: Stream) -> None:
        if "/sae-empty/" in request.target:
            await stream.send_all(http(503, {"message": "no keys available"}))
            await stream.aclose()
        else:
            await fresh(request, stream)

    kme.answers = [empty_for_one]
    source = QkdSource("kme", qkd_config(kme), told)
    for _ in range(10):
        assert (await source.obtain(FAR)).present
        with pytest.raises(SourceError) as refused:
            await source.obtain(Correspondent("lon1", "sae-empty"))
        assert refused.value.fault is SourceFault.EMPTY
    assert [(one["event"], one["link"]) for one in told.events] == [("source_failed", "lon1")]
    status = source.status()
    assert status.available
    assert status.fault is SourceFault.EMPTY


async def test_a_source_that_hangs_delays_no_other(
    kme: TlsServer,
    make_server: MakeServer,
    nursery: trio.Nursery,
    qkd_config: QkdConfig,
    told: Told,
) -> None:
    other = make_server(answers=[fresh])
    await other.start(nursery)
    kme.answers = [silence]
    hanging = QkdSource("hanging", qkd_config(kme), told)
    healthy = QkdSource("healthy", qkd_config(other), told)
    async with trio.open_nursery() as links:
        for number in range(40):
            links.start_soon(hanging.obtain, Correspondent(f"l{number}", f"sae-{number}"))
        with trio.fail_after(10):
            for _ in range(10):
                await healthy.obtain(FAR)
        links.cancel_scope.cancel()


async def test_the_first_kme_is_asked_again_once_it_is_back(
    kme: TlsServer,
    make_server: MakeServer,
    nursery: trio.Nursery,
    qkd_config: QkdConfig,
    told: Told,
) -> None:
    second = make_server(answers=[fresh])
    await second.start(nursery)
    kme.answers = [fresh]
    kme.stop()
    await trio.testing.wait_all_tasks_blocked()
    source = QkdSource("kme", qkd_config(kme, second), told)
    await source.obtain(FAR)
    await kme.start(nursery)
    first = source._manager.addresses.all[0]
    await trio.sleep(first.rests() + 0.01)
    second.stop()
    await trio.testing.wait_all_tasks_blocked()
    await source.obtain(FAR)
    assert len(kme.received) == 1
    await second.start(nursery)
    await source.obtain(FAR)
    assert len(kme.received) == 2

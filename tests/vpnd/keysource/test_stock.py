"""Keys fetched ahead, stock and use: on a clock that jumps."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from kex.external import ExternalKey, ExternalKeyReference
from kex.secret import Secret
from tests.vpnd.keysource.conftest import FAR, SPEC_STATUS, QkdConfig, Told
from tests.vpnd.keysource.test_fail_over import fresh
from tests.vpnd.keysource.tls_server import Received, Stream, TlsServer, http
from vpnd.keysource.base import Correspondent, SourceError
from vpnd.keysource.qkd_source import QkdSource
from vpnd.keysource.registry import KeySources
from vpnd.keysource.reserve import MAX_AGE, Reserve
from vpnd.keysource.stock import DAY, Stock

pytestmark = pytest.mark.slow


class Clock:
    """Seconds, as a test says."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def a_key() -> ExternalKey:
    return ExternalKey(ExternalKeyReference("qkd", "k", "s", ("id",), 256), Secret(bytes(32)))


def test_a_key_is_fetched_shortly_before_the_next_use() -> None:
    clock = Clock()
    reserve = Reserve(clock)
    reserve.used(FAR)
    assert reserve.next_due() == float("inf")  # one use is no rhythm
    clock.now += 120
    reserve.used(FAR)
    assert reserve.due() == []
    assert reserve.next_due() == 60
    clock.now += 60
    assert reserve.due() == [FAR]
    reserve.tried(FAR)
    assert reserve.due() == []
    reserve.put(FAR, a_key())
    clock.now += 60
    assert reserve.take(FAR) is not None
    assert reserve.take(FAR) is None
    assert reserve.take(Correspondent("lon1", "other")) is None


def test_a_key_that_is_too_old_is_thrown_away_and_none_follows() -> None:
    clock = Clock()
    reserve = Reserve(clock)
    for _ in range(2):
        reserve.used(FAR)
        clock.now += 120
    reserve.tried(FAR)
    reserve.put(FAR, a_key())
    assert reserve.next_due() == MAX_AGE
    clock.now += MAX_AGE + 1
    assert reserve.take(FAR) is None
    assert (len(reserve), reserve.thrown_away) == (0, 1)
    clock.now += DAY
    assert reserve.due() == []
    assert reserve.next_due() == float("inf")


def test_failures_in_a_row_are_no_rhythm() -> None:
    clock = Clock()
    reserve = Reserve(clock)
    for _ in range(5):
        reserve.used(FAR)
        clock.now += 1
    assert reserve.next_due() == float("inf")
    clock.now += 120
    reserve.used(FAR)
    for _ in range(5):  # refused, and again with a fresh key
        clock.now += 1
        reserve.used(FAR)
    assert reserve.next_due() == pytest.approx(60, abs=3), "the rhythm of before"


def test_a_long_interval_needs_no_key_that_waits_long() -> None:
    clock = Clock()
    reserve = Reserve(clock)
    reserve.used(FAR)
    clock.now += 3600
    reserve.used(FAR)
    assert reserve.next_due() == 3540


def test_use_in_a_day_and_what_is_left() -> None:
    clock = Clock()
    stock = Stock(clock, None)
    assert stock.level("far") is None
    for _ in range(720):  # every two minutes, for a day
        stock.used("far", 1)
        clock.now += 120
    assert stock.said("far", 7200, 10_000, 256) is None
    level = stock.level("far")
    assert level is not None
    assert level.used_per_day == pytest.approx(720, rel=0.05)
    assert level.days_left == pytest.approx(10, rel=0.05)
    clock.now += 2 * DAY
    level = stock.level("far")
    assert level is not None
    assert (level.used_per_day, level.days_left) == (0.0, None)


@pytest.mark.parametrize(("mark", "low", "still", "back"), [(None, 100, 120, 130), (5, 5, 6, 7)])
def test_the_low_water_mark_is_told_once_and_taken_back(
    mark: int | None, low: int, still: int, back: int
) -> None:
    stock = Stock(Clock(), mark)
    assert stock.said("far", 1000, 1000, 256) is None
    assert stock.said("far", low, 1000, 256) is True
    assert stock.said("far", low - 1, 1000, 256) is None
    assert stock.said("far", still, 1000, 256) is None
    assert stock.said("far", back, 1000, 256) is False


def test_a_mark_of_0_is_silent() -> None:
    stock = Stock(Clock(), 0)
    assert stock.said("far", 10, 1000, 256) is None
    assert stock.said("far", 0, 1000, 256) is None
    assert stock.empty("far") is None
    assert stock.said("far", 500, 1000, 256) is None


def test_a_store_for_a_few_keys_is_not_low_between_two_of_them() -> None:
    stock = Stock(Clock(), None)
    for stored in (1, 0, 1, 0):
        assert stock.said("far", stored, 1, 256) is None
        stock.used("far", stored)


@pytest.mark.parametrize(("stored", "capacity"), [(0, 0), (0, 100_000), (3, 100_000)])
def test_a_count_that_contradicts_what_came_is_not_believed(stored: int, capacity: int) -> None:
    stock = Stock(Clock(), None)
    told = [stock.said("far", stored, capacity, 256)]
    for _ in range(20):
        stock.used("far", 1)
        told.append(stock.said("far", stored, capacity, 256))
    changes = [change for change in told if change is not None]
    assert changes == ([True, False] if stored else []), "3 may be a number; 20 came of it"
    assert stock.level("far") is None
    (doubt,) = stock.doubts()
    assert f"says {stored} of {capacity} keys for far, and 20 keys came since" in doubt


def test_a_count_of_0_is_believed_once_a_key_is_refused() -> None:
    stock = Stock(Clock(), None)
    assert stock.said("far", 0, 100, 256) is None
    assert stock.empty("far") is True
    assert stock.said("far", 0, 100, 256) is None
    level = stock.level("far")
    assert level is not None
    assert level.low


def test_a_count_that_moves_is_believed_at_0_too() -> None:
    """Keys that come as quickly as they are made: the store stays empty, and that is told."""
    stock = Stock(Clock(), None)
    assert stock.said("far", 50, 100, 256) is None
    assert stock.said("far", 0, 100, 256) is True
    for _ in range(20):
        stock.used("far", 1)
        assert stock.said("far", 0, 100, 256) is None
    assert stock.doubts() == []


def test_a_full_store_is_full_after_many_keys_too() -> None:
    stock = Stock(Clock(), None)
    for _ in range(20):
        assert stock.said("far", 5, 5, 256) is None
        stock.used("far", 1)
    assert stock.doubts() == []
    assert stock.level("far") is not None


def test_a_key_that_the_far_end_took_before_contradicts_nothing() -> None:
    stock = Stock(Clock(), None)
    stock.said("far", 0, 100, 256)
    stock.used("far", 1, new=False)
    assert stock.doubts() == []


async def test_an_alarm_that_was_false_is_taken_back(
    kme: TlsServer, qkd_config: QkdConfig, told: Told
) -> None:
    status = http(200, SPEC_STATUS | {"stored_key_count": 1})
    kme.answers = [status, fresh, fresh, status]
    source = QkdSource("kme", qkd_config(kme, quirks=[]), told)
    await source.obtain(FAR)
    await source.obtain(FAR)
    await source.refresh_status()
    assert told.names == ["source_stock_low", "source_stock_back"]
    low, back = (one["reason"] for one in told.events)
    assert low.startswith("1 key for MMMMNNNNOOOOPPPP is left")
    assert "the number is not believed" in back
    assert "says 1 of 100000 keys" in source.status().warnings[-1]


async def test_a_pool_that_is_said_to_be_empty_and_is(
    kme: TlsServer, qkd_config: QkdConfig, told: Told
) -> None:
    empty = http(503, {"message": "no keys left"})
    kme.answers = [http(200, SPEC_STATUS | {"stored_key_count": 0}), empty]
    source = QkdSource("kme", qkd_config(kme, quirks=[]), told)
    with pytest.raises(SourceError):
        await source.obtain(FAR)
    assert told.names == ["source_stock_low", "source_failed"]
    assert told.events[0]["reason"].startswith("0 keys for MMMMNNNNOOOOPPPP are left")


async def test_a_renewal_does_not_wait_for_a_slow_kme(
    kme: TlsServer, qkd_config: QkdConfig, told: Told, nursery: trio.Nursery
) -> None:
    fetched = trio.Event()
    clock = Clock()

    async def tell(request: Received, stream: Stream) -> None:
        await fresh(request, stream)
        if len(kme.received) == 3:
            fetched.set()

    kme.answers = [tell]
    source = QkdSource("kme", qkd_config(kme, prefetch=True), told, clock=clock)
    await source.obtain(FAR)
    clock.now += 120
    await source.obtain(FAR)
    clock.now += 61
    with trio.move_on_after(20):
        async with trio.open_nursery() as tasks:
            tasks.start_soon(source.run)
            await fetched.wait()
            while not source.status().prefetched:
                await trio.testing.wait_all_tasks_blocked(0.01)
            kme.stop()  # and yet there is a key
            assert (await source.obtain(FAR)).present
            tasks.cancel_scope.cancel()
    status = source.status()
    assert status.counters["fetched_ahead"] == 1
    assert status.counters["obtained"] == 3


async def test_keys_fetched_ahead_are_thrown_away_on_stop(
    kme: TlsServer, qkd_config: QkdConfig, told: Told
) -> None:
    clock = Clock()
    kme.answers = [fresh]
    source = QkdSource("kme", qkd_config(kme, prefetch=True), told, clock=clock)
    await source.obtain(FAR)
    clock.now += 120
    await source.obtain(FAR)
    clock.now += 61
    async with trio.open_nursery() as tasks:
        tasks.start_soon(source.run)
        with trio.fail_after(20):
            while not source.status().prefetched:
                await trio.testing.wait_all_tasks_blocked(0.01)
        tasks.cancel_scope.cancel()
    status = source.status()
    assert (status.prefetched, status.counters["thrown_away"]) == (0, 1)


async def test_a_low_stock_is_an_event(kme: TlsServer, qkd_config: QkdConfig, told: Told) -> None:
    def status(stored: int) -> bytes:
        return http(200, SPEC_STATUS | {"stored_key_count": stored})

    kme.answers = [status(25_000), fresh, status(9_000), status(0), status(20_000)]
    source = QkdSource("kme", qkd_config(kme, quirks=[]), told)
    await source.obtain(FAR)
    for _ in range(3):
        await source.refresh_status()
    assert told.names == ["source_stock_low", "source_stock_back"]
    assert "9000 keys for MMMMNNNNOOOOPPPP are left" in told.events[0]["reason"]


async def test_sources_come_go_and_change(
    kme: TlsServer, qkd_config: QkdConfig, told: Told, nursery: trio.Nursery
) -> None:
    kme.answers = [fresh]
    one, two = qkd_config(kme), qkd_config(kme, max_keys_per_minute=7)
    sources = KeySources({"a": one, "b": one}, told)
    nursery.start_soon(sources.run)
    await trio.testing.wait_all_tasks_blocked(0.01)
    kept, changed = sources["a"], sources["b"]
    key = await changed.obtain(FAR)
    assert sources.reconfigure({"a": one, "b": two, "c": one}) == ["b", "c"]
    assert sources["a"] is kept
    assert sources["b"] is not changed
    assert sorted(sources) == ["a", "b", "c"]
    # Which keys were used is remembered
    assert isinstance(changed, QkdSource)
    assert isinstance(sources["b"], QkdSource)
    assert sources["b"].used.seen_id(FAR.peer_id, key.reference.key_ids[0])
    assert sources.reconfigure({"c": one}) == ["a", "b"]
    assert [status.name for status in sources.statuses()] == ["c"]
    assert (await sources["c"].obtain(FAR)).present

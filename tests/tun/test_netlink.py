"""Netlink work in threads: bounded, and what is slow delays nobody else."""

from __future__ import annotations

import threading

import pytest
import trio
import trio.testing

from tun.netlink import HERE
from tun.rtnl import Rtnl

BOUND = 4


class Slow:
    """Work that takes until it is released, and counts how many of it run at once."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.begun = threading.Semaphore(0)
        self.done = 0
        self.most = 0
        self._running = 0
        self._lock = threading.Lock()

    def __call__(self, rtnl: Rtnl) -> None:
        with self._lock:
            self._running += 1
            self.most = max(self.most, self._running)
        self.begun.release()
        self.released.wait(60)
        with self._lock:
            self._running -= 1
            self.done += 1


async def loopback() -> str:
    link = await HERE.run(lambda rtnl: rtnl.link("lo"))
    assert link is not None
    return link.name


async def test_a_slow_one_delays_no_other_and_not_the_event_loop() -> None:
    slow = Slow()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(HERE.run, slow)
        try:
            await trio.testing.wait_all_tasks_blocked()
            with trio.fail_after(5):
                assert [await loopback() for _ in range(20)] == ["lo"] * 20
            assert slow.done == 0
        finally:
            slow.released.set()
    assert slow.done == 1


async def test_however_many_are_slow_there_are_threads_for_other_work() -> None:
    slow = Slow()
    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(HERE.run, slow)
        try:
            with trio.fail_after(5):
                for _ in range(BOUND):
                    await trio.to_thread.run_sync(slow.begun.acquire)
            await trio.testing.wait_all_tasks_blocked()
        finally:
            slow.released.set()
    assert (slow.done, slow.most) == (100, BOUND)


async def test_work_that_is_cancelled_is_finished_before_the_next_step() -> None:
    """A change is made whole or not at all; never while its caller puts it right already."""
    slow = Slow()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(HERE.run, slow)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        threading.Timer(0.2, slow.released.set).start()
    assert slow.done == 1


async def test_what_the_work_raises_is_the_callers() -> None:
    def fail(rtnl: Rtnl) -> None:
        raise OSError(5, "no such luck")

    with pytest.raises(OSError, match="no such luck"):
        await HERE.run(fail)
    assert await loopback() == "lo"

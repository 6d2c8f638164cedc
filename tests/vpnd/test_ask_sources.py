"""Sources side by side: nobody waits for a slow one beyond the deadline, nobody falls with one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import trio

from vpnd.ask_sources import ask_all
from vpnd.clock import boottime
from vpnd.event_feed import EventFeed
from vpnd.journal import Journal
from vpnd.keysource.base import SourceError, SourceFault


async def good(value: int) -> int:
    await trio.lowlevel.checkpoint()
    return value


async def slow() -> int:
    await trio.sleep_forever()


async def bad() -> int:
    await trio.lowlevel.checkpoint()
    raise SourceError("bad", SourceFault.EMPTY, "no keys left")


async def buggy() -> int:
    await trio.lowlevel.checkpoint()
    raise RuntimeError("a bug")


async def test_what_comes_in_time_is_used() -> None:
    journal = Journal(EventFeed())
    questions: dict[int, tuple[str, Callable[[], Awaitable[int]]]] = {
        1: ("good", partial(good, 5)),
        2: ("bad", bad),
        3: ("buggy", buggy),
        4: ("slow", slow),
    }
    answers = await ask_all(questions, boottime() + 0.2, journal)
    assert answers.given == {1: 5}
    faults = {name: (error.source, error.fault) for name, error in answers.failed.items()}
    assert faults == {
        2: ("bad", SourceFault.EMPTY),
        3: ("buggy", SourceFault.BAD_ANSWER),
        4: ("slow", SourceFault.TIMEOUT),
    }
    assert journal.counters["internal_error"] == 1


async def test_a_deadline_that_is_over_asks_nobody_for_long() -> None:
    answers = await ask_all({1: ("good", partial(good, 5))}, 0.0, Journal(EventFeed()))
    assert set(answers.failed) | set(answers.given) == {1}


async def test_they_are_asked_at_the_same_time() -> None:
    meeting = [trio.Event(), trio.Event()]

    async def meet(own: int) -> int:
        meeting[own].set()
        await meeting[1 - own].wait()
        return own

    answers = await ask_all(
        {own: (str(own), partial(meet, own)) for own in (0, 1)},
        boottime() + 10,
        Journal(EventFeed()),
    )
    assert answers.given == {0: 0, 1: 1}

"""When the first exchanges of many links begin: spread, so that neither end is overrun."""

from __future__ import annotations

import os
from itertools import pairwise

from kex.endpoint import Endpoint
from vpnd.clock import boottime
from vpnd.engine import STARTS_AT_ONCE, STARTS_PER_SECOND, Engine
from vpnd.event_feed import EventFeed
from vpnd.identity_store import system_suite
from vpnd.journal import Journal
from vpnd.ml_kem import ml_kem_provider
from vpnd.transport import Transport

LINKS = 1000


def engine() -> Engine:
    journal = Journal(EventFeed())
    endpoint = Endpoint(
        suites={1: system_suite(1, ml_kem_provider("openssl"))},
        identities=(),
        random=os.urandom,
        now=boottime(),
    )
    return Engine(endpoint, Transport((), journal, mark=None), journal)


def test_a_few_links_begin_at_once() -> None:
    now, one = boottime(), engine()
    starts = [one.start_at() for _ in range(STARTS_AT_ONCE)]
    assert max(starts) < now + 1


def test_a_thousand_links_begin_one_after_the_other() -> None:
    now, one = boottime(), engine()
    starts = sorted(one.start_at() for _ in range(LINKS))
    later = starts[STARTS_AT_ONCE + 1 :]
    assert all(after - before >= 0.99 / STARTS_PER_SECOND for before, after in pairwise(later[:-1]))
    assert starts[-1] < now + LINKS / STARTS_PER_SECOND + 1, "and all within a minute"
    in_any_second = max(
        sum(start <= other < start + 1 for other in starts[number : number + 60])
        for number, start in enumerate(starts)
    )
    assert in_any_second <= STARTS_AT_ONCE + STARTS_PER_SECOND + 1

"""What a key from a QKD key manager adds to an exchange: CPU of both ends, and time by the clock.

Both ends ask key managers of the lab, over loopback and real TLS, that take 1 ms and 200 ms for
each answer. Nothing is fetched ahead: the daemon does that, and then the initiator's call is not
waited for.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import trio

from bench.nodes import BenchNode, pair
from bench.result import NotRun, Row
from kex.events import Event, ExternalKeysWanted, Role
from kex.external import ExternalKey, ExternalMode
from vpnd.clock import boottime
from vpnd.config_key_sources import QkdSourceConfig
from vpnd.event_feed import EventFeed
from vpnd.journal import Journal
from vpnd.keysource.base import Correspondent, KeySource
from vpnd.keysource.qkd_source import QkdSource
from vpnd.source_journal import SourceJournal
from vpnd_lab.errors import LabError
from vpnd_lab.kme.pair import End, Pair, open_pair
from vpnd_lab.kme.pool import LinkSettings

GROUP: Final = "An external key in an exchange"
ANSWERS_IN: Final = (0.001, 0.2)
"""Seconds that a key manager takes for an answer."""
EXCHANGES: Final = 30
SUITE: Final = 1
_POOL: Final = 10**9
"""Bits: as good as never empty."""


def measure() -> Iterator[Row | NotRun]:
    try:
        rows = trio.run(_measure)
    except LabError as error:
        yield NotRun(GROUP, str(error))
        return
    yield from rows


async def _measure() -> list[Row]:
    plain_seconds, plain_cpu = await _without()
    rows = []
    with tempfile.TemporaryDirectory(prefix="vpnd-bench-") as folder:
        settings = LinkSettings(pool=_POOL)
        async with open_pair(Path(folder), settings=settings) as key_managers:
            for answers_in in ANSWERS_IN:
                seconds, cpu = await _with(key_managers, answers_in)
                what = f"key managers that answer in {answers_in * 1e3:.0f} ms"
                rows += [
                    Row(
                        GROUP,
                        f"{what}: an exchange, by the clock",
                        seconds * 1e3,
                        "ms",
                        plain_seconds * 1e3,
                        "without",
                        note=f"added {(seconds - plain_seconds) * 1e3:.0f} ms: one call at each "
                        f"end, one after the other",
                    ),
                    Row(
                        GROUP,
                        f"{what}: CPU of both ends",
                        cpu * 1e3,
                        "ms",
                        plain_cpu * 1e3,
                        "without",
                    ),
                ]
    return rows


async def _without() -> tuple[float, float]:
    left, right = pair(SUITE, "openssl")
    async with right.running(), left.running():
        return await _exchanges(left)


async def _with(key_managers: Pair, answers_in: float) -> tuple[float, float]:
    for end in key_managers.ends:
        await end.kme.reset()
        await end.kme.fault("slow", "enc_keys", "dec_keys", seconds=answers_in)
    left, right = pair(SUITE, "openssl")
    async with AsyncExitStack() as stack:
        nursery = await stack.enter_async_context(trio.open_nursery())
        for node, end, far in (
            (right, key_managers.far, key_managers.near),
            (left, key_managers.near, key_managers.far),
        ):
            keyed = _Keyed(node, _source(end), Correspondent(_link_of(node), far.sae))
            await stack.enter_async_context(node.running())
            keyed.answer_in(nursery)
        return await _exchanges(left)


async def _exchanges(left: BenchNode) -> tuple[float, float]:
    """Seconds of one exchange: by the clock (median), and of CPU (mean)."""
    await left.exchange("right")
    taken = []
    cpu = time.process_time()
    for _ in range(EXCHANGES):
        began = time.perf_counter()
        await left.exchange("right")
        taken.append(time.perf_counter() - began)
    return statistics.median(taken), (time.process_time() - cpu) / EXCHANGES


def _link_of(node: BenchNode) -> str:
    (name,) = node.endpoint.links()
    return name


def _source(end: End) -> KeySource:
    table: dict[str, Any] = {
        "type": "qkd",
        "urls": end.kme.urls("etsi"),
        "sae": end.sae,
        "ca": str(end.ca),
        "certificate": str(end.certificate),
        "key": str(end.key),
        "max_keys_per_minute": 60_000,
        "prefetch": False,
    }
    config = QkdSourceConfig.model_validate(table)
    return QkdSource(end.sae, config, SourceJournal(Journal(EventFeed())))


class _Keyed:
    """Gives a node's exchanges their keys, as the daemon does for a link with one source."""

    def __init__(self, node: BenchNode, source: KeySource, far: Correspondent) -> None:
        self._node = node
        self._source = source
        self._far = far
        self._link = far.link
        with_keys = replace(
            node.endpoint.link(self._link).config,
            external_mode=ExternalMode.REQUIRE,
            external_at_least=1,
        )
        node.endpoint.update_link(with_keys, boottime())

    def answer_in(self, nursery: trio.Nursery) -> None:
        """Take part in what the running node's engine hands out."""
        node = self._node

        def handle(event: Event) -> None:
            if isinstance(event, ExternalKeysWanted):
                nursery.start_soon(self._answer, event)
            else:
                node._handle(event)

        node.engine.handle_events(self._link, handle)

    async def _answer(self, event: ExternalKeysWanted) -> None:
        if event.role is Role.INITIATOR:
            keys = (await self._source.obtain(self._far),)
        else:
            (entry,) = event.listing
            key = await self._source.retrieve(self._far, entry.reference)
            keys = (ExternalKey(entry.reference, key),)
        with self._node.engine.driving() as (endpoint, now):
            endpoint.external_keys(self._link, event.token, keys, now)

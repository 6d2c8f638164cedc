"""What a datagram costs that is refused, and whether exchanges get through many of them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial

import trio

from bench.nodes import BenchNode, CountingTransport, pair
from bench.result import NotRun, Row, cpu_seconds
from kex import wire
from kex.address import Address
from kex.errors import PacketRejected
from kex.events import StartReason
from kex.mlkem import ML_KEM_768, OpenSslMlKem
from kex.wire import MessageType
from vpnd.clock import boottime

COST = "A datagram that is refused"
FLOOD = "Exchanges under a flood"
GOAL_US = 15.0
RATE = 20_000
RATES = (200, 2_000, 20_000)
RATE_SECONDS = 3.0
BURST, BURSTS = 64, 100
"""Datagrams that come at once, and how often in a second."""
EXCHANGES = 40
MOST_REPETITIONS = 2
GIVE_UP_SECONDS = 30.0
STRANGER = Address("192.0.2.99", 4000)


def measure() -> Iterator[Row | NotRun]:
    key = OpenSslMlKem().private_key(ML_KEM_768, bytes(64))
    sent = OpenSslMlKem().encapsulate(ML_KEM_768, key.public_key)
    decapsulation = cpu_seconds(lambda: key.decapsulate(sent.ciphertext), count=500) * 1e6
    kinds = junk()
    for name, datagram in kinds.items():
        cost = _through_endpoint(datagram) * 1e6
        yield _cost_row(f"{name}, in the endpoint", cost, decapsulation)
    for name in ("random bytes", "INIT_HELLO", "INIT_CONF", "RESP_HELLO"):
        cost = trio.run(_at_rate, kinds[name], BURST * BURSTS, 1 / BURSTS) * 1e6
        yield _cost_row(f"{name}, through the socket, {BURST} at a time", cost, decapsulation)
    for rate in RATES:
        cost = trio.run(_at_rate, kinds["INIT_HELLO"], rate, 0.0) * 1e6
        yield _cost_row(
            f"INIT_HELLO, through the socket, {rate:,} a second, one by one", cost, decapsulation
        )
    right, hello = _answered_hello()
    for name, messages in (("its first datagram", hello[:1]), ("all of it", hello)):
        cost = _replayed(right, messages) * 1e6
        yield _cost_row(f"replayed InitHello, {name}, in the endpoint", cost, decapsulation)
    yield from _floods()


def _cost_row(name: str, cost: float, decapsulation: float) -> Row:
    return Row(
        COST,
        name,
        cost,
        "µs",
        decapsulation,
        "one ML-KEM decapsulation",
        f"≤ {GOAL_US:.0f} µs",
        cost <= GOAL_US,
    )


def junk() -> dict[str, bytes]:
    """A datagram of each type as somebody sends it who does not know the fingerprint."""
    made = {"random bytes": os.urandom(1232)}
    for kind in MessageType:
        size = {MessageType.COOKIE_REPLY: 56, MessageType.REJECT: 256}.get(kind, 1200)
        count = 3 if kind is MessageType.INIT_HELLO else 1
        header = bytes((wire.VERSION << 4 | kind, 1, 0, count)) + os.urandom(12)
        made[kind.name] = header + os.urandom(size) + os.urandom(8) + bytes(8)
    return made


def _through_endpoint(datagram: bytes) -> float:
    _, right = pair(1, "openssl", unlimited=False)
    now = boottime()

    def offer() -> None:
        with suppress(PacketRejected):
            right.endpoint.receive_datagram(datagram, STRANGER, now)

    cost = cpu_seconds(offer, count=3000)
    if right.endpoint.statistics().accepted:
        raise AssertionError("junk was accepted")
    return cost


async def _at_rate(datagram: bytes, rate: int, tick: float) -> float:
    """CPU of the engine's thread for each datagram, waking up and the system's share included."""
    _, right = pair(1, "openssl", unlimited=False)
    async with right.running():
        flooder = await trio.lowlevel.open_process(
            [sys.executable, "-m", "bench.flooder", str(right.port), str(rate), "60", str(tick)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        try:
            assert flooder.stdin is not None  # noqa: S101
            await flooder.stdin.send_all(datagram.hex().encode())
            await flooder.stdin.aclose()
            while _refused(right) < 100:  # noqa: ASYNC110  # junk makes no event
                await trio.sleep(0.01)
            before, refused = time.thread_time(), _refused(right)
            await trio.sleep(RATE_SECONDS)
            return (time.thread_time() - before) / (_refused(right) - refused)
        finally:
            flooder.kill()
            await flooder.wait()


def _refused(node: BenchNode) -> int:
    return sum(node.endpoint.statistics().rejected.values())


def _answered_hello() -> tuple[BenchNode, list[bytes]]:
    """A genuine InitHello of somebody who is known, and the node that has answered it."""
    left, right = pair(1, "openssl", unlimited=False)
    left.endpoint.request_exchange("right", StartReason.REQUESTED, boottime())
    hello = [data for data, _ in left.endpoint.datagrams_to_send()]
    for data in hello:
        right.endpoint.receive_datagram(data, left.address, boottime())
    if not right.endpoint.datagrams_to_send():
        raise AssertionError("InitHello was not answered")
    return right, hello


def _replayed(right: BenchNode, datagrams: list[bytes]) -> float:
    """CPU of one datagram of a message that was answered before."""
    now = boottime()

    def offer() -> None:
        for data in datagrams:
            with suppress(PacketRejected):
                right.endpoint.receive_datagram(data, STRANGER, now)
        right.endpoint.datagrams_to_send()

    return cpu_seconds(offer, count=500) / len(datagrams)


# ---- floods


def _floods() -> Iterator[Row]:
    for name, knows in (("strangers' junk", False), ("junk with a valid mac1", True)):
        yield from trio.run(partial(_flood, name, knows))


async def _flood(name: str, knows: bool) -> list[Row]:
    left, right = pair(1, "openssl", unlimited=False)
    if knows:
        key = wire.mac_key(MessageType.INIT_HELLO, right.fingerprint)
        hello = [
            wire.cut(MessageType.INIT_HELLO, 1, os.urandom(8), os.urandom(3584), key=key)[0]
            for _ in range(256)
        ]
        lines = [fragment.datagram().hex() for fragment in hello]
    else:
        lines = ["~" + datagram.hex() for datagram in junk().values()]
    async with right.running(), left.counted() as transport:
        for _ in range(5):
            await left.exchange("right")
        quiet = await _timed(left)
        transport.count()
        flooder = await trio.lowlevel.open_process(
            [sys.executable, "-m", "bench.flooder", str(right.port), str(RATE), "60"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        try:
            assert flooder.stdin is not None  # noqa: S101
            await flooder.stdin.send_all("\n".join(lines).encode())
            await flooder.stdin.aclose()
            before = _taken(right)
            while _taken(right) < before + 1000:  # noqa: ASYNC110  # junk makes no event
                await trio.sleep(0.01)
            started, before = time.monotonic(), _taken(right)
            loud, failures = await _under(left, transport)
            rate = (_taken(right) - before) / (time.monotonic() - started)
        finally:
            flooder.kill()
            await flooder.wait()
    repetitions = max(loud) if loud else 0
    done = len(loud)
    return [
        Row(
            FLOOD,
            f"{name}: exchanges done",
            done,
            "",
            EXCHANGES,
            "begun",
            "all",
            done == EXCHANGES,
            f"{rate:,.0f} junk datagrams a second taken off the socket, {RATE:,} sent; "
            f"{failures} exchanges failed and were begun anew; without junk {quiet * 1e3:.1f} ms",
        ),
        Row(
            FLOOD,
            f"{name}: most repetitions of a message",
            repetitions,
            "",
            None,
            "",
            f"≤ {MOST_REPETITIONS}",
            repetitions <= MOST_REPETITIONS,
        ),
    ]


def _taken(node: BenchNode) -> int:
    statistics = node.endpoint.statistics()
    return sum(statistics.rejected.values()) + statistics.accepted


async def _timed(left: BenchNode) -> float:
    before = time.monotonic()
    for _ in range(10):
        await left.exchange("right")
    return (time.monotonic() - before) / 10


async def _under(left: BenchNode, transport: CountingTransport) -> tuple[list[int], int]:
    """The repetitions of each exchange that was done, and how many were lost."""
    done: list[int] = []
    for _ in range(EXCHANGES):
        transport.count()
        with suppress(trio.TooSlowError), trio.fail_after(GIVE_UP_SECONDS):
            await left.exchange("right")
            done.append(max(transport.messages.values()) - 1)
    return done, len(left.failed)

"""What a first datagram costs a daemon that is junk, or was there before: vpnd's and Rosenpass's.

    fra ── internet ── ams        fra's daemons call ams's; the router between them takes a copy

CPU of ams's daemons, less what they use at rest.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Final

import trio

from bench import rosenpass
from bench.active import gate, lines
from bench.junk import junk
from bench.process import cpu_of
from bench.result import NotRun, Row
from vpnd_lab.errors import LabError
from vpnd_lab.lab import Lab, open_lab
from vpnd_lab.node import Node
from vpnd_lab.spec import LabSpec

GROUP: Final = "A first datagram that is refused, by a daemon"
LAB: Final = "[sites.fra]\n[sites.ams]\n[tunnels.backbone]\n"
JUNK_RATE: Final = 2_000
JUNK_SECONDS: Final = 6.0
ROSENPASS_HELLO: Final = bytes((0x81, 0, 0, 0))
ROSENPASS_HELLO_LENGTH: Final = 1092
HELLO_DATAGRAMS: Final = 3
REPLAYS: Final = 400
REPLAY_RATE: Final = 50.0
"""So that they are over while vpnd still knows the message, and Rosenpass can follow."""


@dataclass(frozen=True, slots=True)
class _Costs:
    """Microseconds of CPU."""

    junk: float
    first: float
    whole: float
    answers: int


def measure() -> Iterator[Row | NotRun]:
    if os.geteuid() != 0:
        yield NotRun(GROUP, "network namespaces need root")
        return
    try:
        vpnd, other = trio.run(_measured)
    except (LabError, BaseExceptionGroup) as error:
        yield NotRun(GROUP, str(error))
        return
    for name, ours, theirs, note in (
        ("junk in the form of a first datagram", vpnd.junk, other.junk, ""),
        ("the first datagram of a message that was answered before", vpnd.first, other.first, ""),
        (
            "all of a first message that was answered before",
            vpnd.whole,
            other.whole,
            f"{REPLAYS} times: vpnd sent {vpnd.answers} datagrams, its answer again from memory, "
            f"which it does for ten seconds; Rosenpass sent {other.answers}, each worked out anew",
        ),
    ):
        yield Row(GROUP, name, ours, "µs", theirs, "Rosenpass", note=note)


async def _measured() -> tuple[_Costs, _Costs]:
    async with open_lab(LabSpec.parse(LAB, name="refused"), start="daemons") as lab:
        return await _of_vpnd(lab), await _of_rosenpass(lab)


async def _of_vpnd(lab: Lab) -> _Costs:
    fra, ams = lab.site("fra"), lab.site("ams")
    port = ams.plan.listen_port

    async def call() -> None:
        await lab.add_peer("ams", "fra", endpoint=None)
        await lab.add_peer("fra", "ams", endpoint=f"{gate(lab, fra)}:{port}")

    if ams.daemon is None:
        raise LabError("the daemon of ams has ended")
    hello = junk()["INIT_HELLO"]
    return await _costs(lab, ams.daemon.pid, port, hello, HELLO_DATAGRAMS, call)


async def _of_rosenpass(lab: Lab) -> _Costs:
    fra, ams = lab.site("fra"), lab.site("ams")
    keys = {
        site: await trio.to_thread.run_sync(rosenpass.Keys.make, site.folder, "rp")
        for site in (fra, ams)
    }
    port = rosenpass.PORT
    async with contextlib.AsyncExitStack() as stack:
        far = rosenpass.daemon(
            keys[ams],
            f"{ams.address(4)}:{port}",
            rosenpass.peer(keys[fra].public, ams.folder / "rp.key"),
        )
        process = await stack.enter_async_context(ams.background(far))

        async def call() -> None:
            there = rosenpass.peer(
                keys[ams].public, fra.folder / "rp.key", f"{gate(lab, fra)}:{port}"
            )
            near = rosenpass.daemon(keys[fra], f"{fra.address(4)}:{port}", there)
            await stack.enter_async_context(fra.background(near))

        hello = ROSENPASS_HELLO + os.urandom(ROSENPASS_HELLO_LENGTH - len(ROSENPASS_HELLO))
        return await _costs(lab, process.pid, port, hello, 1, call)


async def _costs(
    lab: Lab,
    pid: int,
    port: int,
    hello: bytes,
    datagrams: int,
    call: Callable[[], Awaitable[None]],
) -> _Costs:
    router, target = lab.node("internet"), str(lab.site("ams").address(4))
    await trio.sleep(5.0)  # what comes with a start is over
    rest = await _used(pid, trio.sleep, JUNK_SECONDS) / JUNK_SECONDS
    sent, used = await _flooded(router, pid, f"{target}:{port}", hello)
    of_junk = (used - rest * JUNK_SECONDS) / sent
    own = gate(lab, lab.site("fra"))
    async with _replayer(router, own, port, target, datagrams) as replay:
        await call()
        whole, answers = await replay(pid, datagrams)
        first = whole if datagrams == 1 else (await replay(pid, 1))[0]
    at_rest = rest / REPLAY_RATE
    return _Costs(of_junk * 1e6, (first - at_rest) * 1e6, (whole - at_rest) * 1e6, answers)


async def _used(pid: int, wait: Callable[[float], Awaitable[None]], seconds: float) -> float:
    before = cpu_of(pid)
    await wait(seconds)
    return cpu_of(pid) - before


async def _flooded(router: Node, pid: int, target: str, hello: bytes) -> tuple[int, float]:
    """How many were sent, and the CPU seconds that they cost."""
    before = cpu_of(pid)
    done = await router.run(
        [sys.executable, "-m", "bench.flooder", target, str(JUNK_RATE), str(JUNK_SECONDS)],
        stdin=f"~{hello.hex()}\n",
    )
    return int(done.stdout), cpu_of(pid) - before


Replay = Callable[[int, int], Awaitable[tuple[float, int]]]


@contextlib.asynccontextmanager
async def _replayer(
    router: Node, own: str, port: int, target: str, datagrams: int
) -> AsyncIterator[Replay]:
    """Gives a function that has so many datagrams of the copied message sent again and again: CPU
    seconds of a process for each time, and how many datagrams came back."""
    command = [sys.executable, "-m", "bench.replayer", own, str(port), target]
    async with router.background([*command, str(datagrams), str(REPLAY_RATE)]) as process:
        assert process.stdout is not None  # noqa: S101
        assert process.stdin is not None  # noqa: S101
        stdout, stdin = lines(process.stdout), process.stdin
        await anext(stdout)  # ready
        captured = False

        async def replay(pid: int, count: int) -> tuple[float, int]:
            nonlocal captured
            with trio.fail_after(60):
                if not captured:
                    await anext(stdout)
                    captured = True
                    await trio.sleep(1.0)  # the exchange itself is over
                before = cpu_of(pid)
                await stdin.send_all(f"replay {REPLAYS} {count}\n".encode())
                answers = int(await anext(stdout))
                return (cpu_of(pid) - before) / REPLAYS, answers

        yield replay

"""The traffic meter: datagrams both ways between two nodes, counted at the receivers.

    async with lab.traffic("fra-host", "ams-host", rate=200) as meter:
        await meter.wait_received(50)
        before = await meter.mark("renewal")
        ...
        after = await meter.mark("after it")
        total = await meter.stop()
    total.lost, total.repeated, (await meter.between(before, after)).lost

A mark is a number in each direction: the next one to be sent. What was lost between two marks is
what was sent between them and did not arrive, however late the question; asked before `stop`,
datagrams still under way count as lost.
"""

from __future__ import annotations

import contextlib
import math
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import trio

from vpnd_lab.errors import LabError, WaitTimeout
from vpnd_lab.node import Node
from vpnd_lab.patience import patient
from vpnd_lab.plan import Address
from vpnd_lab.talker import Talker
from vpnd_lab.traffic import NUMBER_LIMIT, SIZE_MAX, SIZE_MIN, Gap

DRAIN_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class FlowReport:
    """One direction. `lost` = `sent` - `received`, and `send_errors` are among the lost.

    `received` counts each number once, `repeated` the further copies, `reordered` the numbers that
    came after a higher one. `gaps` are silences at the receiver, `missing` the first runs of
    numbers that did not come. `socket_drops`: lost at the meter's own socket (whole stream); it
    was the meter's fault then, not the path's.
    """

    sent: int
    received: int
    lost: int
    repeated: int
    reordered: int
    send_errors: dict[str, int]
    gaps: tuple[Gap, ...]
    missing: tuple[tuple[int, int], ...]
    socket_drops: int

    @property
    def longest_gap(self) -> float:
        """Seconds; 0 where no silence was longer than the meter's threshold."""
        return max((gap.seconds for gap in self.gaps), default=0.0)


@dataclass(frozen=True, slots=True)
class Report:
    """Both directions."""

    forward: FlowReport
    backward: FlowReport

    @property
    def sent(self) -> int:
        return self.forward.sent + self.backward.sent

    @property
    def received(self) -> int:
        return self.forward.received + self.backward.received

    @property
    def lost(self) -> int:
        return self.forward.lost + self.backward.lost

    @property
    def repeated(self) -> int:
        return self.forward.repeated + self.backward.repeated

    @property
    def reordered(self) -> int:
        return self.forward.reordered + self.backward.reordered

    @property
    def longest_gap(self) -> float:
        """Seconds, the longer of the two directions'."""
        return max(self.forward.longest_gap, self.backward.longest_gap)


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment: the next number to be sent in each direction."""

    name: str
    forward: int
    backward: int


@dataclass(slots=True)
class _Flow:
    sender: Talker
    receiver: Talker

    async def drain(self, seconds: float) -> None:
        sender = await self.sender.ask("stop")
        expected = sender["next"] - sender["errors"]
        await self.receiver.ask("drain", expected=expected, seconds=seconds)

    async def report(self, start: int, end: int | None) -> FlowReport:
        sender = await self.sender.ask("state")
        end = sender["next"] if end is None else end
        errors = await self.sender.ask("errors", start=start, end=end)
        counted = await self.receiver.ask(
            "count", start=start, end=end, since=sender["started_at"], until=sender["until"]
        )
        return FlowReport(
            sent=end - start,
            received=counted["received"],
            lost=counted["lost"],
            repeated=counted["repeated"],
            reordered=counted["reordered"],
            send_errors=errors,
            gaps=tuple(Gap(**gap) for gap in counted["gaps"]),
            missing=tuple((first, last) for first, last in counted["missing"]),
            socket_drops=counted["socket_drops"],
        )


@dataclass(slots=True)
class Meter:
    """Running traffic; open_meter makes it."""

    _forward: _Flow
    _backward: _Flow
    marks: list[Mark] = field(default_factory=list)

    async def mark(self, name: str) -> Mark:
        """Begin a phase here."""
        mark = Mark(
            name=name,
            forward=(await self._forward.sender.ask("state"))["next"],
            backward=(await self._backward.sender.ask("state"))["next"],
        )
        self.marks.append(mark)
        return mark

    async def between(self, start: Mark | None, end: Mark | None) -> Report:
        """What was sent between two marks; None: the beginning, and the end or now."""
        return Report(
            forward=await self._forward.report(
                0 if start is None else start.forward, None if end is None else end.forward
            ),
            backward=await self._backward.report(
                0 if start is None else start.backward, None if end is None else end.backward
            ),
        )

    async def phases(self) -> list[tuple[Mark, Report]]:
        """Each mark with what was sent from it to the next one; the last one to the end."""
        ends: Sequence[Mark | None] = [*self.marks[1:], None]
        return [
            (mark, await self.between(mark, end))
            for mark, end in zip(self.marks, ends, strict=True)
        ]

    async def wait_received(self, count: int, *, seconds: float = 60) -> None:
        """Wait until `count` further datagrams have arrived in each direction.

        Raises WaitTimeout.
        """
        flows = {"forward": self._forward, "backward": self._backward}
        goals = {n: (await f.receiver.ask("state"))["received"] + count for n, f in flows.items()}
        with trio.move_on_after(patient(seconds)):
            while goals:
                for name in list(goals):
                    if (await flows[name].receiver.ask("state"))["received"] >= goals[name]:
                        del goals[name]
                await trio.sleep(0.01)
            return
        report = await self.between(None, None)
        raise WaitTimeout(
            f"{count} further datagrams in each direction did not arrive within {seconds:g} s",
            hint=f"so far: forward {_said(report.forward)}; backward {_said(report.backward)}",
        )

    async def stop(self, *, drain_seconds: float = DRAIN_SECONDS) -> Report:
        """Stop sending, wait for what is under way, and report on everything.

        The wait ends when all has arrived, or when the senders' end mark has come through the path
        behind the last datagram, at the latest after `drain_seconds`.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._forward.drain, drain_seconds)
            nursery.start_soon(self._backward.drain, drain_seconds)
        return await self.between(None, None)


def _said(flow: FlowReport) -> str:
    errors = "".join(f", {count} {name}" for name, count in flow.send_errors.items())
    return f"{flow.received} of {flow.sent}{errors}"


@contextlib.asynccontextmanager
async def open_meter(
    one: Node,
    other: Node,
    *,
    addresses: tuple[Address, Address],
    rate: float = 100,
    size: int = 200,
    silence: float | None = None,
) -> AsyncIterator[Meter]:
    """Send both ways between two nodes until the end of the block.

    `addresses`: of `one` and of `other`. `rate`: datagrams a second each way, fewer by the lab's
    patience (vpnd_lab.patience); `size`: bytes of UDP payload; `silence`: seconds from which a
    silence is a gap (default: 50 ms, or two and a half intervals where that is more). Raises
    LabError where a process cannot be started.
    """
    if not SIZE_MIN <= size <= SIZE_MAX or not 0 < rate < NUMBER_LIMIT or not math.isfinite(rate):
        raise LabError(f"a size from {SIZE_MIN} to {SIZE_MAX} bytes and a rate above 0 are needed")
    rate /= patient(1)
    silence = max(0.05, 2.5 / rate) if silence is None else silence
    async with contextlib.AsyncExitStack() as stack:

        async def talker(node: Node, *arguments: object) -> Talker:
            traffic = node.module("vpnd_lab.traffic", *arguments)
            return Talker(node, await stack.enter_async_context(traffic))

        async def flow(source: Node, target: Node, address: Address) -> _Flow:
            stream = secrets.randbits(63)
            receiver = await talker(
                target,
                *("receive", "--family", address.version, "--silence", silence),
                *("--stream", stream),
            )
            port = (await receiver.read())["port"]
            sender = await talker(
                source,
                *("send", "--to", address, "--port", port, "--stream", stream),
                *("--rate", rate, "--size", size),
            )
            await sender.read()
            return _Flow(sender=sender, receiver=receiver)

        meter = Meter(
            _forward=await flow(one, other, addresses[1]),
            _backward=await flow(other, one, addresses[0]),
        )
        yield meter

"""Traffic of both families between the hosts of two sites, as one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import trio
from report import Case

from vpnd_lab.capture import Capture, Seen
from vpnd_lab.lab import Lab
from vpnd_lab.meter import Meter, Report


class Offered:
    """IPv4 and IPv6, each both ways, whether it arrives or not."""

    def __init__(self, meters: Sequence[Meter]) -> None:
        self._meters = meters

    async def wait_received(self, count: int, *, seconds: float = 60) -> None:
        """Wait until so many further datagrams have come in each direction of each family."""
        async with trio.open_nursery() as nursery:
            for meter in self._meters:
                nursery.start_soon(lambda m: m.wait_received(count, seconds=seconds), meter)

    async def reports(self) -> list[Report]:
        """What was counted so far, by family; what is under way counts as lost."""
        return [await meter.between(None, None) for meter in self._meters]

    async def stop(self) -> list[Report]:
        """Stop sending, and what was counted, by family."""
        return [await meter.stop() for meter in self._meters]


def tell(
    case: Case,
    reports: Sequence[Report],
    clear: int,
    *,
    name: str = "",
    recovered: float | None = None,
) -> None:
    """One row of the table, for both families together, with the packets seen in the clear."""
    words = f"{name}, " if name else ""
    case.result(
        f"{words}{clear} in the clear",
        sent=sum(report.sent for report in reports),
        lost=sum(report.lost for report in reports),
        repeated=sum(report.repeated for report in reports),
        recovered=recovered,
    )


def longest_gap(reports: Sequence[Report]) -> float:
    """Seconds."""
    return max(report.longest_gap for report in reports)


async def refused_since(lan: Capture, before: Seen) -> None:
    """Wait until the host was told, in both families, that what it sends goes nowhere."""

    def told(seen: Seen) -> bool:
        new = [word for word, n in seen.words.items() if n > before.words.get(word, 0)]
        return all(
            any(w.startswith(f"{icmp} unreachable") for w in new) for icmp in ("ICMP", "ICMPv6")
        )

    await lan.wait(told, what="ICMP and ICMPv6 unreachable")


@asynccontextmanager
async def offered(
    lab: Lab, one: str = "fra-host", other: str = "ams-host", *, rate: float = 20
) -> AsyncIterator[Offered]:
    """Send both ways in both families, `rate` datagrams a second each, until the block ends."""
    async with AsyncExitStack() as stack:
        meters = [
            await stack.enter_async_context(lab.traffic(one, other, family=4, rate=rate)),
            await stack.enter_async_context(lab.traffic(one, other, family=6, rate=rate)),
        ]
        yield Offered(meters)

"""A capture: what passes some interfaces of a node, counted by kind for the length of a block.

    async with lab.capture("internet") as underlay, lab.capture("fra-host") as lan:
        ...
        seen = await underlay.seen()
    seen.exchange, seen.wireguard, seen.other, seen.clear

Between sites, `clear` and `other` have to stay 0. In front of a site, where the same packets pass
as their senders made them, `clear` counts that traffic, and `unreachable` what the site answered.

A router sees what it forwards twice, coming in and going out. Packets in both directions count.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import trio

from vpnd_lab.errors import LabError, WaitTimeout
from vpnd_lab.node import Node
from vpnd_lab.packets import Ports
from vpnd_lab.patience import patient
from vpnd_lab.plan import Network
from vpnd_lab.talker import Talker

_ASK_EVERY_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Seen:
    """What has passed, in packets.

    `neighbour` is what no router passes on: ARP, neighbour discovery, multicast groups.
    `unreachable` are ICMP and ICMPv6 errors of that type; `words` says what they and `other` were.
    `clear` are those, of whatever kind, that have an address in a protected prefix or hold a
    datagram of vpnd_lab.traffic, readable; `clear_words` says what they were.
    """

    exchange: int
    wireguard: int
    neighbour: int
    unreachable: int
    other: int
    clear: int
    words: Mapping[str, int]
    clear_words: Mapping[str, int]

    def __str__(self) -> str:
        words = "".join(f"; {count} {name}" for name, count in self.words.items())
        return (
            f"{self.exchange} key exchange, {self.wireguard} WireGuard, {self.neighbour} "
            f"neighbour, {self.unreachable} unreachable, {self.other} other, "
            f"{self.clear} in the clear{words}"
        )


class Capture:
    """A running capture; open_capture makes it."""

    def __init__(self, node: Node, sniffer: Talker) -> None:
        self._node = node
        self._sniffer = sniffer

    async def seen(self, *interfaces: str) -> Seen:
        """What has passed so far, on these interfaces together, or on all.

        Raises LabError where packets were missed: then nothing is known.
        """
        tallies = await self._sniffer.ask("report")
        if missed := {
            name: tally["dropped"] for name, tally in tallies.items() if tally["dropped"]
        }:
            raise LabError(
                f"the capture in {self._node.name} has missed packets: {missed}",
                hint="the machine is too busy for it: send less, or run fewer tests at a time",
            )
        return _total([tallies[name] for name in interfaces or tallies])

    async def wait(
        self, condition: Callable[[Seen], bool], *, what: str, seconds: float = 30
    ) -> Seen:
        """Wait until what has passed fulfils a condition. Raises WaitTimeout, LabError."""
        last: Seen | None = None
        with trio.move_on_after(patient(seconds)):
            while True:
                last = await self.seen()
                if condition(last):
                    return last
                await trio.sleep(_ASK_EVERY_SECONDS)
        raise WaitTimeout(f"no {what} in {self._node.name} within {seconds:g} s; seen: {last}")


def _total(tallies: list[dict[str, Any]]) -> Seen:
    kinds = _sum([tally["kinds"] for tally in tallies])
    clear = _sum([tally["clear"] for tally in tallies])
    words = _sum([tally["words"] for tally in tallies])
    return Seen(**kinds, clear=sum(clear.values()), words=words, clear_words=clear)


def _sum(counts: list[dict[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for each in counts:
        for name, count in each.items():
            total[name] = total.get(name, 0) + count
    return total


@contextlib.asynccontextmanager
async def open_capture(
    node: Node,
    *,
    interfaces: Collection[str],
    ports: Ports,
    protected: Collection[Network],
) -> AsyncIterator[Capture]:
    """Capture on interfaces of a node until the end of the block; it runs when the block begins.

    Raises LabError where an interface cannot be captured on.
    """
    arguments = {
        "--interface": interfaces,
        "--exchange-port": ports.exchange,
        "--wireguard-port": ports.wireguard,
        "--protected": protected,
    }
    words = [word for name, values in arguments.items() for v in values for word in (name, str(v))]
    async with node.module("vpnd_lab.sniffer", *words) as background:
        sniffer = Talker(node, background)
        await sniffer.read()
        yield Capture(node, sniffer)

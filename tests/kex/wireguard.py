"""WireGuard between two simulated gateways."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from tests.kex.world import World

if TYPE_CHECKING:
    from tests.kex.gateway import Site

REKEY_AFTER = 120.0
SESSION_ENDS = 180.0
HANDSHAKE_RETRY = 5.0
KEEPALIVE = 25.0
OVERDUE = REKEY_AFTER + KEEPALIVE + 15.0
WATCH = 5.0
"""Between two looks of a daemon at its interface."""


class Tunnel:
    """WireGuard between two sites: makes sessions while both PSKs are equal."""

    def __init__(self, world: World, ends: tuple[Site, Site], links: tuple[str, str]) -> None:
        self.world = world
        self.ends = ends
        self.links = links
        self.session_at: float | None = None
        self.keys_of_sessions: list[str] = []
        self._runs = False
        for end, link in zip(ends, links, strict=True):
            end.tunnels[link] = self
        world.tunnels.append(self)

    def __str__(self) -> str:
        return f"{self.ends[0].name}-{self.ends[1].name}"

    def other(self, site: Site) -> Site:
        return self.ends[0] if site is self.ends[1] else self.ends[1]

    def begin(self) -> None:
        """There is a peer to shake hands with: from now on it is tried when it is time."""
        if not self._runs:
            self._runs = True
            self._handshake()

    def _handshake(self) -> None:
        world = self.world
        both = [end.installed.get(link) for end, link in self._pairs()]
        if not any(both):
            self._runs = False
            return
        if self.session_at is not None and world.now > self.session_at + SESSION_ENDS:
            self.session_at = None
            world.counts["sessions lost"] += 1
        arrives = not world.is_cut() and world.random.random() > 1 - (1 - world.weather.loss) ** 2
        if all(both) and self.is_equal() and arrives:
            self.session_at = world.now
            end, link = self._pairs()[0]
            self.keys_of_sessions.append(end.installed[link].key_id)
            world.counts["sessions"] += 1
            for end, link in self._pairs():
                seen = world.random.random() * WATCH
                world.after(seen, partial(end.session_started, link, world.now))
            world.after(REKEY_AFTER + world.random.random() * KEEPALIVE, self._handshake)
        else:
            world.after(HANDSHAKE_RETRY, self._handshake)

    def _pairs(self) -> Sequence[tuple[Site, str]]:
        return tuple(zip(self.ends, self.links, strict=True))

    # ---- what is watched

    def psks(self) -> tuple[bytes | None, bytes | None]:
        found = [end.installed.get(link) for end, link in self._pairs()]
        first, second = (None if one is None else one.psk for one in found)
        return first, second

    def is_equal(self) -> bool:
        first, second = self.psks()
        return first == second

    def is_busy(self) -> bool:
        """Whether an exchange is in flight or due at one of the ends, or a daemon is away."""
        for end, link in self._pairs():
            if end.is_at_work(link) or end.endpoint.link(link).exchange_due:
                return True
        return False

    def is_settled(self) -> bool:
        first, second = (end.installed.get(link) for end, link in self._pairs())
        return (
            not any(end.is_at_work(link) for end, link in self._pairs())
            and first is not None
            and second is not None
            and (first.psk, first.key_id) == (second.psk, second.key_id)
        )

    def told(self) -> str:
        states = [end.endpoint.link(link) for end, link in self._pairs()]
        return f"{self} " + ", ".join(
            f"{end.name}: {installed and installed.key_id} "
            f"{state.exchange and state.exchange.phase.name} due {state.retry_at}"
            for (end, link), state in zip(self._pairs(), states, strict=True)
            for installed in (end.installed.get(link),)
        )

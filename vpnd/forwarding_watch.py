"""Looks, while the daemon runs, whether hosts behind this gateway can use its tunnels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import trio

from vpnd.forwarding import families_forwarded, hint_for, not_forwarded
from vpnd.tunnels import BackendErrors

if TYPE_CHECKING:
    from vpnd.config import Config
    from vpnd.journal import Journal
    from vpnd.tunnels import ManagedTunnel

LOOK_SECONDS: Final = 2.0


class ForwardingWatch:
    """Looks whether the tunnels' packets are forwarded, while the daemon runs."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._told: dict[str, tuple[str, ...]] = {}

    @property
    def warnings(self) -> list[str]:
        return [text for texts in self._told.values() for text in texts]

    async def look(self, config: Config, tunnels: Mapping[str, ManagedTunnel]) -> None:
        """Look at all tunnels, and tell of what has changed since the last time."""
        for name in self._told.keys() - tunnels.keys():
            del self._told[name]
        for name, tunnel in tuple(tunnels.items()):
            with trio.move_on_after(LOOK_SECONDS):
                await self._look_at(name, tunnel, config)

    async def _look_at(self, name: str, tunnel: ManagedTunnel, config: Config) -> None:
        peers = (peer for peer in config.peers.values() if peer.tunnel == name)
        families = families_forwarded(tunnel.config, peers)
        texts: tuple[str, ...] = ()
        if families:
            opened = tunnel.open
            if opened is None:
                return  # nothing passes anyway, and the tunnel's error is told
            try:
                found = await opened.forwarding(tunnel.config.announce)
            except BackendErrors:
                return  # the tunnel's own task will tell
            texts = tuple(
                f"{text}; {hint_for((*found.ipv4_off, *found.ipv6_off))}"
                for text in not_forwarded(tunnel.config, families, found)
            )
        before = self._told.pop(name, ())
        if texts:
            self._told[name] = texts
        if texts == before:
            return
        if texts:
            self._journal.record(
                "not_forwarded", level="warning", tunnel=name, reason="; ".join(texts)
            )
        else:
            self._journal.record("forwarded", tunnel=name)

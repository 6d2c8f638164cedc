"""What somebody else did to interfaces, routes and guards is noticed, told, and put right.

    something changed ──▶ guard routes ──▶ interfaces (VRF, MTU, addresses, state, port) ──▶ routes
    (or 30 s are over)

Only what is ours is touched. Peers on an interface, and its key, show in its dumps: vpnd.tunnels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import trio

from tun import ChangeWatch, NotOurs, Prefix
from vpnd.guards import guarded_prefixes, set_guards
from vpnd.tunnels import RETRY_SECONDS, BackendErrors

if TYPE_CHECKING:
    from vpnd.config import Config
    from vpnd.config_model import PeerConfig
    from vpnd.journal import Journal
    from vpnd.node import Node
    from vpnd.tunnels import ManagedTunnel

CHECK_SECONDS: Final = 30.0
"""A change that the kernel tells nobody of (IPv4 routes of an interface that goes down) is found
this late at the most."""
CALM_SECONDS: Final = 1.0
"""Between two checks, whatever is changed meanwhile: somebody else may change it back each time."""
CALM_SHARE: Final = 20
"""And this many times what a check takes, with many peers, up to CALM_AT_MOST: while they come up,
each new route is a change."""
CALM_AT_MOST: Final = 5.0


class Upkeep:
    """Looks after what the daemon has set up, while it runs."""

    def __init__(self, node: Node, journal: Journal) -> None:
        self._node = node
        self._journal = journal
        self._faults: dict[str, str] = {}
        """Of each peer whose guard routes could not be set: why."""
        self._guarded: dict[str, tuple[Config, Mapping[str, frozenset[Prefix]]]] = {}

    @property
    def warnings(self) -> list[str]:
        return [f"{peer}: {fault}" for peer, fault in self._faults.items()]

    async def guard(self, peer: PeerConfig, *, entering: bool = False) -> None:
        """Set the guard routes of a peer; what fails is tried again by itself: what stands in the
        way of one guard must not keep other links down."""
        told = self._faults.get(peer.name, "")
        fault = await self._node.guard(peer, told=told, entering=entering)
        self._faults.pop(peer.name, None)
        if fault:
            self._faults[peer.name] = fault

    async def guard_all(self) -> None:
        """Set the guard routes of all peers, as the first thing: none is expected to stand. Those
        in another namespace come when its tunnel's task enters it."""
        for tunnel in tuple(self._node.tunnels.values()):
            await self._guards(tunnel)

    async def guard_tunnel(self, name: str) -> None:
        """Enter the namespace of a tunnel, and set the guard routes of all of its peers, where
        none is expected to stand."""
        await self._guards(self._node.tunnels[name], entering=True)

    async def run(self) -> None:
        """Check until cancelled."""
        with ChangeWatch() as watch:
            while True:
                with trio.move_on_after(RETRY_SECONDS if self._faults else CHECK_SECONDS):
                    await watch.wait_changed()
                began = trio.current_time()
                try:
                    await self._check()
                except Exception as error:
                    # A bug: the links go on
                    self._journal.record(
                        "internal_error", level="error", reason="upkeep", exc_info=error
                    )
                calm = CALM_SHARE * (trio.current_time() - began)
                await trio.sleep(min(max(CALM_SECONDS, calm), CALM_AT_MOST))

    async def _check(self) -> None:
        async with self._node.unchanging():
            for name in self._faults.keys() - self._node.config.peers.keys():
                del self._faults[name]
            for tunnel in tuple(self._node.tunnels.values()):
                if tunnel.config.netns is not None and tunnel.open is None:
                    continue  # its own task sets them as it enters, and knows what is wrong
                missing = await self._guards(tunnel)
                if missing:
                    self._journal.record(
                        "put_right",
                        level="warning",
                        tunnel=tunnel.name,
                        reason="guard routes were missing: " + ", ".join(sorted(map(str, missing))),
                    )
        for tunnel in tuple(self._node.tunnels.values()):
            await tunnel.restore()
        await self._node.look_at_forwarding()

    async def _guards(self, tunnel: ManagedTunnel, *, entering: bool = False) -> frozenset[Prefix]:
        """Set what is missing of a tunnel's guard routes, all in one look: what nobody knew to be
        missing."""
        peers = self._peers_of(tunnel)
        try:
            missing = await set_guards(
                tunnel, {prefix for own in peers.values() for prefix in own}, entering=entering
            )
        except NotOurs:
            for name in peers:  # one of them has the trouble
                await self.guard(self._node.config.peers[name], entering=entering)
            return frozenset()
        except BackendErrors as error:
            for name in peers:
                if self._faults.get(name) != str(error):
                    self._journal.record(
                        "guard_failed", peer=name, level="error", reason=str(error)
                    )
                self._faults[name] = str(error)
            return frozenset()
        for name in peers.keys() & self._faults.keys():
            del self._faults[name]
            missing -= peers[name]  # they were known to be
        return missing

    def _peers_of(self, tunnel: ManagedTunnel) -> Mapping[str, frozenset[Prefix]]:
        """The guarded prefixes of a tunnel's peers. Worked out anew for another configuration
        only: for a thousand peers it takes a while."""
        config = self._node.config
        known, found = self._guarded.get(tunnel.name, (None, {}))
        if known is not config:
            found = {
                peer.name: frozenset(guarded_prefixes(peer, tunnel.config))
                for peer in config.peers.values()
                if peer.tunnel == tunnel.name
            }
            self._guarded[tunnel.name] = (config, found)
        return found

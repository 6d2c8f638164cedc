"""Whether hosts behind this gateway can use its tunnels: the kernel has to forward their packets.

A link's keys and traffic of the gateway itself are well without; so it is a warning, and no state.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final

import trio

from tun import Forwarding, InterfaceMissing, Prefix
from vpnd.config_model import PeerConfig, TunnelConfig
from vpnd.tunnels import BackendErrors

if TYPE_CHECKING:
    from vpnd.config import Config
    from vpnd.journal import Journal
    from vpnd.tunnels import ManagedTunnel

LOOK_SECONDS: Final = 2.0


def families_forwarded(tunnel: TunnelConfig, peers: Iterable[PeerConfig]) -> frozenset[int]:
    """IP versions (4, 6) of which a tunnel is to connect networks, not just its own ends: more is
    announced, or allowed, than addresses in the tunnel."""
    networks = [address.network for address in tunnel.addresses]

    def is_beyond(prefix: Prefix) -> bool:
        return prefix.num_addresses > 1 and not any(
            prefix.version == own.version and prefix.subnet_of(own)  # type: ignore[arg-type]  # the same version
            for own in networks
        )

    found = {prefix.version for prefix in tunnel.announce}
    found |= {prefix.version for peer in peers for prefix in peer.allowed_ips if is_beyond(prefix)}
    return frozenset(found)


def not_forwarded(
    tunnel: TunnelConfig, families: frozenset[int], found: Forwarding
) -> Iterator[str]:
    """What an operator has to be told, one text for each family."""
    where = f" in the namespace {tunnel.netns}" if tunnel.netns is not None else ""
    for version, off in ((4, found.ipv4_off), (6, found.ipv6_off)):
        if version in families and off:
            are = "is" if len(off) == 1 else "are"
            yield (
                f"tunnel {tunnel.name}: this host does not forward IPv{version} between the tunnel "
                f"and the networks behind it{where}: {', '.join(off)} {are} 0"
            )


def hint_for(found: Iterable[str]) -> str:
    """What to do about settings that are 0."""
    return (
        "sysctl -w " + " ".join(f"{name}=1" for name in found) + ", and for good in /etc/sysctl.d"
    )


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
            except (InterfaceMissing, *BackendErrors):
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

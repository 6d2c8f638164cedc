"""Whether hosts behind this gateway can use its tunnels: the kernel has to forward their packets.

A link's keys and traffic of the gateway itself are well without; so it is a warning, and no state.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from vpnd.config_fields import Prefix
from vpnd.config_model import PeerConfig, TunnelConfig


class SettingsOff(Protocol):
    """Settings of the kernel that are 0, by family (tun.Forwarding)."""

    @property
    def ipv4_off(self) -> tuple[str, ...]: ...

    @property
    def ipv6_off(self) -> tuple[str, ...]: ...


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
    tunnel: TunnelConfig, families: frozenset[int], found: SettingsOff
) -> Iterator[str]:
    """What an operator has to be told, one text for each family."""
    for version, settings in ((4, found.ipv4_off), (6, found.ipv6_off)):
        if version not in families or not settings:
            continue
        off = ", ".join(settings)
        if tunnel.netns is None:
            yield (
                f"tunnel {tunnel.name}: this host does not forward IPv{version} between the tunnel "
                f"and the networks behind it: {off} = 0"
            )
        else:
            yield (
                f"tunnel {tunnel.name}: IPv{version} is not forwarded in the namespace "
                f"{tunnel.netns}: {off} = 0"
            )


def hint_for(found: Iterable[str]) -> str:
    """What to do about settings that are 0."""
    settings = " ".join(f"{name}=1" for name in found)
    return f"sysctl -w {settings}, and for good in /etc/sysctl.d"

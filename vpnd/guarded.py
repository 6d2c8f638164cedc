"""Which prefixes are guarded, and where: without touching anything."""

from __future__ import annotations

from collections.abc import Iterable

from vpnd.config_fields import Prefix
from vpnd.config_model import PeerConfig, TunnelConfig
from vpnd.last_good import GuardPlace


def guarded_prefixes(peer: PeerConfig, tunnel: TunnelConfig) -> tuple[Prefix, ...]:
    """The prefixes of one link that are held back where they do not go through a tunnel.

    Everything in allowed_ips but a default route; where routes are not ours (`routes = "none"`)
    and for default routes, what `protect` names.
    """
    own: Iterable[Prefix] = peer.allowed_ips if tunnel.routes == "allowed-ips" else ()
    guarded = {prefix for prefix in own if prefix.prefixlen > 0}
    guarded.update(peer.protect or ())
    return tuple(sorted(guarded, key=lambda prefix: (prefix.version, prefix)))


def place_of(tunnel: TunnelConfig) -> GuardPlace:
    """Where a tunnel's guard routes are."""
    return GuardPlace(tunnel.table, tunnel.vrf, tunnel.netns)

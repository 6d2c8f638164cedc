"""What is wrong with the ways to the peers of a tunnel, and to the prefixes behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tun import Prefix
from vpnd.config_model import PeerConfig


@dataclass(slots=True)
class TunnelWays:
    """Each part is set by who finds it out, and asked for by the links."""

    routes: Mapping[Prefix, str] = field(default_factory=dict)
    """Prefixes that have no route into the interface, each with the reason (vpnd.tunnels)."""
    interface: Sequence[str] = ()
    """What of the interface cannot be had, while the rest can (vpnd.tunnels)."""
    guards: Mapping[str, str] = field(default_factory=dict)
    """Links whose guards are not as configured, each with the reason (vpnd.guards)."""
    detours: Mapping[Prefix, Sequence[str]] = field(default_factory=dict)
    """Prefixes that lead elsewhere, or not as a whole into the interface (vpnd.paths)."""
    notes: Mapping[Prefix, Sequence[str]] = field(default_factory=dict)
    """What is worth knowing of prefixes (vpnd.paths)."""
    endpoints: Mapping[str, str] = field(default_factory=dict)
    """Links whose peer cannot be reached, each with the reason (vpnd.paths)."""

    def trouble(self, peer: PeerConfig) -> str:
        """What of a link is not as configured, or ''."""
        prefixes = (*peer.allowed_ips, *(peer.protect or ()))
        found = [self.routes[prefix] for prefix in prefixes if prefix in self.routes]
        for prefix in prefixes:
            if prefix not in self.routes:  # the same, told twice
                found += self.detours.get(prefix, ())
        found += [self.guards.get(peer.name, ""), self.endpoints.get(peer.name, "")]
        return "; ".join(dict.fromkeys(filter(None, [*found, *self.interface])))

    def warnings(self, peer: PeerConfig) -> list[str]:
        """What is worth knowing of a link's prefixes."""
        prefixes = (*peer.allowed_ips, *(peer.protect or ()))
        return [text for prefix in dict.fromkeys(prefixes) for text in self.notes.get(prefix, ())]

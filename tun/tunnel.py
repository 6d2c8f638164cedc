"""One WireGuard interface of ours, whichever backend carries it."""

from __future__ import annotations

from collections.abc import Iterable

from tun.model import BackendName, Endpoint, PeerSpec, PeerStatus, Prefix, PresharedKey, TunnelSpec

__all__ = ["Tunnel", "open_tunnel"]


class Tunnel:
    """An open WireGuard interface; made by ``open_tunnel``.

    Every call raises InterfaceMissing once the interface (or wireguard-go) is gone, and
    TunError for anything else that the backend refuses.
    """

    spec: TunnelSpec
    backend: BackendName
    public_key: bytes
    """The interface's own public key (32 bytes)."""
    adopted: bool
    """True where the interface was found running, with its peers and sessions."""

    async def add_peer(self, peer: PeerSpec) -> None:
        """Put a peer on the interface, with its first PSK, in one call."""
        raise NotImplementedError

    async def set_psk(self, public_key: bytes, psk: PresharedKey) -> None:
        """Change the PSK and nothing else, and read it back.

        Raises PeerMissing (nothing was created) or ReadBackMismatch.
        """
        raise NotImplementedError

    async def update_peer(
        self,
        public_key: bytes,
        *,
        allowed_ips: Iterable[Prefix] | None = None,
        endpoint: Endpoint | None = None,
        keepalive: int | None = None,
    ) -> None:
        """Change what is given and leave the rest; raises PeerMissing."""
        raise NotImplementedError

    async def replace_peer(self, old_public_key: bytes, peer: PeerSpec) -> None:
        """Add a peer with PSK and allowed IPs (which moves them), then remove the old one."""
        raise NotImplementedError

    async def remove_peer(self, public_key: bytes) -> None:
        """Take a peer off the interface; one that is not there is no error."""
        raise NotImplementedError

    async def peers(self, *, with_keys: bool = False) -> dict[bytes, PeerStatus]:
        """All peers by public key, from one dump of the interface."""
        raise NotImplementedError

    async def preshared_key_matches(self, public_key: bytes, psk: PresharedKey) -> bool:
        """Whether the peer on the interface has this PSK; raises PeerMissing."""
        raise NotImplementedError

    async def set_routes(self, prefixes: Iterable[Prefix]) -> None:
        """Make these the only routes of ours into the interface; changes only what differs.

        With ``routes = "none"`` in the spec there are none, whatever is given. Raises NotOurs
        where a route that is not ours stands in the way.
        """
        raise NotImplementedError

    async def delete(self) -> None:
        """Remove the interface, and with it its routes and its wireguard-go process."""
        raise NotImplementedError

    async def aclose(self) -> None:
        """Close our sockets; the interface runs on."""
        raise NotImplementedError


async def open_tunnel(spec: TunnelSpec) -> Tunnel:
    """Adopt the interface of this tunnel, or create it with a new private key.

    Raises NotOurs for an interface of that name without our alias and for an address that
    another interface has; nothing was changed then. Raises BackendUnavailable where the backend
    cannot be had.
    """
    raise NotImplementedError

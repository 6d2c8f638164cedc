"""What both backends can do: take a change, and be read. Values and one Protocol."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tun.keys import PrivateKey
from tun.model import BackendName, Endpoint, PeerStatus, Prefix, PresharedKey

__all__ = ["Device", "DeviceChange", "DeviceState", "PeerChange"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerChange:
    """What to change of one peer; None leaves a thing as it is."""

    public_key: bytes
    psk: PresharedKey | None = None
    endpoint: Endpoint | None = None
    keepalive: int | None = None
    allowed_ips: tuple[Prefix, ...] = ()
    """Added to the peer's, and taken from any other peer that has them."""
    replace_allowed_ips: bool = False
    """Forget those that the peer had; packets are dropped in between."""
    update_only: bool = False
    """Do nothing (and report success) where there is no such peer."""
    remove: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceChange:
    """What to change of an interface; peers are taken in order."""

    private_key: PrivateKey | None = None
    listen_port: int | None = None
    fwmark: int | None = None
    peers: tuple[PeerChange, ...] = ()

    @property
    def peers_only(self) -> bool:
        return self.private_key is None and self.listen_port is None and self.fwmark is None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceState:
    """An interface as one dump showed it."""

    public_key: bytes | None
    """None while the interface has no private key."""
    listen_port: int
    fwmark: int
    peers: dict[bytes, PeerStatus]


class Device(Protocol):
    """An open way to one WireGuard interface; calls are served one after another.

    Raises InterfaceMissing once the interface is gone, TunError for what the backend refuses.
    A cancelled call is finished first: a change is never left half sent.
    """

    @property
    def backend(self) -> BackendName: ...

    async def apply(self, change: DeviceChange) -> None:
        """Make one change."""

    async def read(self, *, only: bytes | None = None, keys: bool = False) -> DeviceState:
        """Dump the interface; decode the peer `only` or all, PSKs just if `keys`."""
        ...

    async def wait_gone(self, *, patience: float = ...) -> None:
        """After the link was deleted: wait until nothing of the interface is left; help after so
        many seconds."""

    async def aclose(self) -> None:
        """Close sockets; the interface runs on."""

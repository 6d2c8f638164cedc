"""WireGuard interfaces: in the kernel (netlink) or in wireguard-go, behind one interface.

Knows nothing of key exchanges, links or configuration files. Everything here runs on trio.
"""

from tun.errors import (
    BackendUnavailable,
    InterfaceMissing,
    NamespaceMissing,
    NamespaceOutOfReach,
    NotOurs,
    PeerMissing,
    ReadBackMismatch,
    TunError,
)
from tun.guard import GUARD_METRIC, guard_routes, remove_guard_routes, set_guard_routes
from tun.keys import KeyPair, PrivateKey, generate_keypair
from tun.model import (
    BackendChoice,
    BackendName,
    Endpoint,
    HandshakeStamp,
    InterfaceAddress,
    PeerSpec,
    PeerStatus,
    Prefix,
    PresharedKey,
    RoutePolicy,
    TunnelSpec,
)
from tun.tunnel import Tunnel, open_tunnel

__all__ = [
    "GUARD_METRIC",
    "BackendChoice",
    "BackendName",
    "BackendUnavailable",
    "Endpoint",
    "HandshakeStamp",
    "InterfaceAddress",
    "InterfaceMissing",
    "KeyPair",
    "NamespaceMissing",
    "NamespaceOutOfReach",
    "NotOurs",
    "PeerMissing",
    "PeerSpec",
    "PeerStatus",
    "Prefix",
    "PresharedKey",
    "PrivateKey",
    "ReadBackMismatch",
    "RoutePolicy",
    "TunError",
    "Tunnel",
    "TunnelSpec",
    "generate_keypair",
    "guard_routes",
    "open_tunnel",
    "remove_guard_routes",
    "set_guard_routes",
]

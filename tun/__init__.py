"""WireGuard interfaces: in the kernel (netlink) or in wireguard-go, behind one interface.

Knows nothing of key exchanges, links or configuration files. Everything here runs on trio.
"""

from tun.errors import (
    BackendUnavailable,
    InterfaceMissing,
    KeyChanged,
    NamespaceMissing,
    NamespaceOutOfReach,
    NotOurs,
    PeerMissing,
    ReadBackMismatch,
    TunError,
)
from tun.forwarding import Forwarding, forwarding
from tun.guard import GUARD_METRIC, guard_routes, remove_guard_routes, set_guard_routes
from tun.keys import KeyPair, PrivateKey, generate_keypair
from tun.leftover import delete_leftover
from tun.model import (
    DEFAULT_MTU,
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
    psk_mark,
)
from tun.tunnel import Tunnel, open_tunnel
from tun.underlay import path_mtus
from tun.watch import ChangeWatch

__all__ = [
    "DEFAULT_MTU",
    "GUARD_METRIC",
    "BackendChoice",
    "BackendName",
    "BackendUnavailable",
    "ChangeWatch",
    "Endpoint",
    "Forwarding",
    "HandshakeStamp",
    "InterfaceAddress",
    "InterfaceMissing",
    "KeyChanged",
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
    "delete_leftover",
    "forwarding",
    "generate_keypair",
    "guard_routes",
    "open_tunnel",
    "path_mtus",
    "psk_mark",
    "remove_guard_routes",
    "set_guard_routes",
]

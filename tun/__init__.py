"""WireGuard interfaces: in the kernel (netlink) or in wireguard-go, behind one interface.

Knows nothing of key exchanges, links or configuration files. Everything here runs on trio.
"""

from tun.detours import Detours
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
from tun.fence import FencePut, FenceSpec, FenceUnavailable, KeptFence, delete_fence, fence_fault
from tun.forwarding import Forwarding, forwarding
from tun.guard import (
    GUARD_METRIC,
    guard_routes,
    put_back_guard_routes,
    remove_guard_routes,
    set_guard_routes,
)
from tun.keys import KeyPair, PrivateKey, generate_keypair
from tun.leftover import delete_leftover
from tun.lookout import Lookout, Toward, look_out, ways_to_peers
from tun.model import (
    DEFAULT_MTU,
    BackendChoice,
    BackendName,
    Endpoint,
    HandshakeStamp,
    InterfaceAddress,
    PacketCounts,
    PeerSpec,
    PeerStatus,
    Prefix,
    PresharedKey,
    RoutePolicy,
    TunnelSpec,
    psk_mark,
)
from tun.routing import RoutesSet
from tun.tunnel import Tunnel, open_tunnel
from tun.underlay import path_mtus
from tun.watch import Changes, ChangeWatch, FenceWatch, RouteWatch

__all__ = [
    "DEFAULT_MTU",
    "GUARD_METRIC",
    "BackendChoice",
    "BackendName",
    "BackendUnavailable",
    "ChangeWatch",
    "Changes",
    "Detours",
    "Endpoint",
    "FencePut",
    "FenceSpec",
    "FenceUnavailable",
    "FenceWatch",
    "Forwarding",
    "HandshakeStamp",
    "InterfaceAddress",
    "InterfaceMissing",
    "KeptFence",
    "KeyChanged",
    "KeyPair",
    "Lookout",
    "NamespaceMissing",
    "NamespaceOutOfReach",
    "NotOurs",
    "PacketCounts",
    "PeerMissing",
    "PeerSpec",
    "PeerStatus",
    "Prefix",
    "PresharedKey",
    "PrivateKey",
    "ReadBackMismatch",
    "RoutePolicy",
    "RouteWatch",
    "RoutesSet",
    "Toward",
    "TunError",
    "Tunnel",
    "TunnelSpec",
    "delete_fence",
    "delete_leftover",
    "fence_fault",
    "forwarding",
    "generate_keypair",
    "guard_routes",
    "look_out",
    "open_tunnel",
    "path_mtus",
    "psk_mark",
    "put_back_guard_routes",
    "remove_guard_routes",
    "set_guard_routes",
    "ways_to_peers",
]

"""WireGuard's generic netlink messages (linux/include/uapi/linux/wireguard.h): bytes in and out.

Pure, and on purpose not pyroute2's message classes: those make copies of every key in a dump,
and their socket writes whole decoded messages to its debug log. Here a key is copied only if
it was asked for. Buffers are the caller's, who overwrites them.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from tun.device import DeviceChange, DeviceState, PeerChange
from tun.errors import MalformedAnswer
from tun.model import KEY_LENGTH, Endpoint, PeerStatus, Prefix, PresharedKey, psk_mark

__all__ = ["CMD_GET_DEVICE", "CMD_SET_DEVICE", "DeviceReader", "build_get", "build_set"]

CMD_GET_DEVICE = 0
CMD_SET_DEVICE = 1

# enum wgdevice_attribute
_DEVICE_IFINDEX = 1
_DEVICE_PRIVATE_KEY = 3
_DEVICE_PUBLIC_KEY = 4
_DEVICE_LISTEN_PORT = 6
_DEVICE_FWMARK = 7
_DEVICE_PEERS = 8
# enum wgpeer_attribute
_PEER_PUBLIC_KEY = 1
_PEER_PRESHARED_KEY = 2
_PEER_FLAGS = 3
_PEER_ENDPOINT = 4
_PEER_KEEPALIVE = 5
_PEER_HANDSHAKE = 6
_PEER_RX_BYTES = 7
_PEER_TX_BYTES = 8
_PEER_ALLOWED_IPS = 9
# enum wgpeer_flag
_REMOVE_ME = 1
_REPLACE_ALLOWED_IPS = 2
_UPDATE_ONLY = 4
# enum wgallowedip_attribute
_ALLOWED_FAMILY = 1
_ALLOWED_ADDRESS = 2
_ALLOWED_MASK = 3

_NESTED = 0x8000
_TYPE_MASK = 0x3FFF
_ATTRIBUTE = struct.Struct("=HH")
_U16 = struct.Struct("=H")
_U32 = struct.Struct("=I")
_U64 = struct.Struct("=Q")
_TIMESPEC = struct.Struct("=qq")
_SOCKADDR_IN = struct.Struct("=H2s4s8x")  # port in network order
_SOCKADDR_IN6 = struct.Struct("=H2sI16sI")  # the scope is in host order

# A nested attribute has a 16-bit length: 1,000 peers, or one with 2,000 prefixes, do not fit.
_MAX_PEERS_ATTRIBUTE = 32768


def build_get(ifindex: int) -> bytearray:
    """The attributes of WG_CMD_GET_DEVICE for one interface."""
    message = bytearray()
    _append(message, _DEVICE_IFINDEX, _U32.pack(ifindex))
    return message


def build_set(ifindex: int, change: DeviceChange) -> list[bytearray]:
    """The attributes of the WG_CMD_SET_DEVICE messages that make a change, in order.

    One message unless peers or their prefixes are too many for one. A peer comes with its PSK in
    its first message; what did not fit is added by the next ones. They hold keys: overwrite them.
    """
    first = bytearray()
    _append(first, _DEVICE_IFINDEX, _U32.pack(ifindex))
    if change.private_key is not None:
        _append(first, _DEVICE_PRIVATE_KEY, change.private_key.expose())
    if change.listen_port is not None:
        _append(first, _DEVICE_LISTEN_PORT, _U16.pack(change.listen_port))
    if change.fwmark is not None:
        _append(first, _DEVICE_FWMARK, _U32.pack(change.fwmark))
    messages = [first]
    peers = bytearray()
    for peer in change.peers:
        for piece in _peer_pieces(peer):
            if len(peers) + len(piece) > _MAX_PEERS_ATTRIBUTE:
                _append(messages[-1], _DEVICE_PEERS | _NESTED, peers)
                messages.append(bytearray())
                _append(messages[-1], _DEVICE_IFINDEX, _U32.pack(ifindex))
                _wipe(peers)
            peers += piece
            _wipe(piece)
    if peers:
        _append(messages[-1], _DEVICE_PEERS | _NESTED, peers)
        _wipe(peers)
    return messages


def _peer_pieces(peer: PeerChange) -> Iterator[bytearray]:
    """One nested peer, or several with the same key if its prefixes are too many."""
    flags = (
        _REMOVE_ME * peer.remove
        | _REPLACE_ALLOWED_IPS * peer.replace_allowed_ips
        | _UPDATE_ONLY * peer.update_only
    )
    body = bytearray()
    _append(body, _PEER_PUBLIC_KEY, peer.public_key)
    _append(body, _PEER_FLAGS, _U32.pack(flags))
    if peer.psk is not None:
        _append(body, _PEER_PRESHARED_KEY, peer.psk.expose())
    if peer.endpoint is not None:
        _append(body, _PEER_ENDPOINT, _pack_endpoint(peer.endpoint))
    if peer.keepalive is not None:
        _append(body, _PEER_KEEPALIVE, _U16.pack(peer.keepalive))
    prefixes = bytearray()
    for prefix in peer.allowed_ips:
        packed = _pack_prefix(prefix)
        if len(body) + len(prefixes) + len(packed) > _MAX_PEERS_ATTRIBUTE - 16:
            yield _nest_peer(body, prefixes)
            # UPDATE_ONLY: what follows is for the peer just made, and never makes one itself.
            _append(body, _PEER_PUBLIC_KEY, peer.public_key)
            _append(body, _PEER_FLAGS, _U32.pack(_UPDATE_ONLY))
        prefixes += packed
    yield _nest_peer(body, prefixes)


def _nest_peer(body: bytearray, prefixes: bytearray) -> bytearray:
    """The peer as a nested attribute; leaves both buffers empty."""
    if prefixes:
        _append(body, _PEER_ALLOWED_IPS | _NESTED, prefixes)
        prefixes.clear()
    piece = bytearray()
    _append(piece, _NESTED, body)
    _wipe(body)
    return piece


def _pack_prefix(prefix: Prefix) -> bytearray:
    body = bytearray()
    family = socket.AF_INET if prefix.version == 4 else socket.AF_INET6
    _append(body, _ALLOWED_FAMILY, _U16.pack(family))
    _append(body, _ALLOWED_ADDRESS, prefix.network_address.packed)
    _append(body, _ALLOWED_MASK, bytes([prefix.prefixlen]))
    nested = bytearray()
    _append(nested, _NESTED, body)
    return nested


def _pack_endpoint(endpoint: Endpoint) -> bytes:
    host, port = endpoint
    if ":" not in host:
        address = socket.inet_pton(socket.AF_INET, host)
        return _SOCKADDR_IN.pack(socket.AF_INET, port.to_bytes(2, "big"), address)
    host, _, zone = host.partition("%")
    address = socket.inet_pton(socket.AF_INET6, host)
    return _SOCKADDR_IN6.pack(
        socket.AF_INET6, port.to_bytes(2, "big"), 0, address, int(zone or "0")
    )


def _append(buffer: bytearray, kind: int, value: bytes | bytearray) -> None:
    """Add one attribute, padded to 4 bytes."""
    buffer += _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind)
    buffer += value
    buffer += bytes(-len(value) % 4)


def _wipe(buffer: bytearray) -> None:
    buffer[:] = bytes(len(buffer))
    buffer.clear()


@dataclass(slots=True)
class _Peer:
    public_key: bytes
    psk: PresharedKey | None = None
    psk_mark: bytes = b""
    endpoint: Endpoint | None = None
    handshake_stamp: tuple[int, int] | None = None
    rx_bytes: int = 0
    tx_bytes: int = 0
    keepalive: int = 0
    allowed_ips: list[Prefix] = field(default_factory=list)


class DeviceReader:
    """Puts the messages of one dump together: interface attributes stand in the first only, and
    a peer with many prefixes comes in several parts, in messages that follow one another.
    """

    def __init__(self, *, only: bytes | None = None, keys: bool = False) -> None:
        """Decode the peer `only` or all of them, and their PSKs just if `keys`."""
        self._only = only
        self._keys = keys
        self._public_key: bytes | None = None
        self._listen_port = 0
        self._fwmark = 0
        self._peers: dict[bytes, _Peer] = {}

    def feed(self, attributes: memoryview) -> None:
        """Take the attributes of one message; raises MalformedAnswer."""
        for kind, value in _attributes(attributes):
            if kind == _DEVICE_PUBLIC_KEY:
                self._public_key = bytes(_sized(value, KEY_LENGTH))
            elif kind == _DEVICE_LISTEN_PORT:
                (self._listen_port,) = _U16.unpack(_sized(value, 2))
            elif kind == _DEVICE_FWMARK:
                (self._fwmark,) = _U32.unpack(_sized(value, 4))
            elif kind == _DEVICE_PEERS:
                for _, peer in _attributes(value):
                    self._feed_peer(peer)

    def _feed_peer(self, attributes: memoryview) -> None:
        # Where the kernel puts it, it is the first: looking at no more saves the reading of all
        # other peers where one is wanted
        key = next(
            (
                bytes(_sized(value, KEY_LENGTH))
                for kind, value in _attributes(attributes)
                if kind == _PEER_PUBLIC_KEY
            ),
            None,
        )
        if key is None:
            raise MalformedAnswer("the kernel's answer has a peer without a public key")
        if self._only is not None and key != self._only:
            return
        peer = self._peers.setdefault(key, _Peer(key))
        for kind, value in _attributes(attributes):
            self._peer_attribute(peer, kind, value)

    def _peer_attribute(self, peer: _Peer, kind: int, value: memoryview) -> None:
        if kind == _PEER_PRESHARED_KEY:
            peer.psk_mark = psk_mark(_sized(value, KEY_LENGTH))
            # The key is copied in the call only, so that no name here holds it.
            if self._keys and peer.psk_mark:
                peer.psk = PresharedKey(bytes(value))
        elif kind == _PEER_ENDPOINT:
            peer.endpoint = _unpack_endpoint(value)
        elif kind == _PEER_KEEPALIVE:
            (peer.keepalive,) = _U16.unpack(_sized(value, 2))
        elif kind == _PEER_HANDSHAKE:
            seconds, nanoseconds = _TIMESPEC.unpack(_sized(value, _TIMESPEC.size))
            peer.handshake_stamp = (seconds, nanoseconds) if seconds or nanoseconds else None
        elif kind == _PEER_RX_BYTES:
            (peer.rx_bytes,) = _U64.unpack(_sized(value, 8))
        elif kind == _PEER_TX_BYTES:
            (peer.tx_bytes,) = _U64.unpack(_sized(value, 8))
        elif kind == _PEER_ALLOWED_IPS:
            for _, prefix in _attributes(value):
                peer.allowed_ips.append(_unpack_prefix(prefix))

    def state(self) -> DeviceState:
        """What the messages said, put together."""
        return DeviceState(
            public_key=self._public_key,
            listen_port=self._listen_port,
            fwmark=self._fwmark,
            peers={
                key: PeerStatus(
                    public_key=key,
                    endpoint=peer.endpoint,
                    handshake_stamp=peer.handshake_stamp,
                    rx_bytes=peer.rx_bytes,
                    tx_bytes=peer.tx_bytes,
                    allowed_ips=tuple(peer.allowed_ips),
                    keepalive=peer.keepalive,
                    psk=peer.psk,
                    psk_mark=peer.psk_mark,
                )
                for key, peer in self._peers.items()
            },
        )


def _attributes(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The attributes of a (nested) message, as type and value, without copying."""
    position = 0
    while position < len(data):
        if len(data) - position < _ATTRIBUTE.size:
            raise MalformedAnswer("the kernel's answer ends within an attribute")
        length, kind = _ATTRIBUTE.unpack_from(data, position)
        if length < _ATTRIBUTE.size or position + length > len(data):
            raise MalformedAnswer("the kernel's answer has an attribute of a wrong length")
        yield kind & _TYPE_MASK, data[position + _ATTRIBUTE.size : position + length]
        position += (length + 3) & ~3


def _sized(value: memoryview, length: int) -> memoryview:
    if len(value) != length:
        raise MalformedAnswer(
            f"the kernel's answer has an attribute of {len(value)} bytes instead of {length}"
        )
    return value


def _unpack_endpoint(value: memoryview) -> Endpoint:
    if len(value) == _SOCKADDR_IN.size:
        family, port, address = _SOCKADDR_IN.unpack(value)
        if family == socket.AF_INET:
            return str(IPv4Address(address)), int.from_bytes(port, "big")
    if len(value) == _SOCKADDR_IN6.size:
        family, port, _, address, scope = _SOCKADDR_IN6.unpack(value)
        if family == socket.AF_INET6:
            zone = f"%{scope}" if scope else ""
            return str(IPv6Address(address)) + zone, int.from_bytes(port, "big")
    raise MalformedAnswer("the kernel's answer has an endpoint that is neither IPv4 nor IPv6")


def _unpack_prefix(attributes: memoryview) -> Prefix:
    values = dict(_attributes(attributes))
    try:
        (family,) = _U16.unpack(values[_ALLOWED_FAMILY])
        address = int.from_bytes(values[_ALLOWED_ADDRESS], "big")
        (mask,) = values[_ALLOWED_MASK]
        size = len(values[_ALLOWED_ADDRESS])
        if (family, size) == (socket.AF_INET, 4):
            return IPv4Network((address, mask), strict=False)
        if (family, size) == (socket.AF_INET6, 16):
            return IPv6Network((address, mask), strict=False)
    except (KeyError, ValueError, struct.error):
        pass  # one message for all that can be wrong
    raise MalformedAnswer("the kernel's answer has an allowed IP that is none")

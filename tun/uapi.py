"""wireguard-go's configuration protocol (the "cross-platform userspace API"): text in and out.

Pure: https://www.wireguard.com/xplatform/ without its socket. Requests and answers carry keys,
so they live in ``bytearray`` buffers that the caller overwrites when done.
"""

from __future__ import annotations

import os
from binascii import hexlify, unhexlify
from collections.abc import Generator
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import ip_address, ip_network

from tun.device import DeviceChange, DeviceState, PeerChange
from tun.errors import MalformedAnswer
from tun.keys import public_key_of
from tun.model import KEY_LENGTH, Endpoint, PeerStatus, Prefix, PresharedKey, psk_mark

__all__ = [
    "GET_REQUEST",
    "UapiRefused",
    "build_set",
    "parse_get",
    "parse_get_in_parts",
    "parse_set",
]

GET_REQUEST = b"get=1\n\n"

_PEER = b"\npublic_key="
_PART = 16384  # bytes, about 50 peers
_KEY_DIGITS = 2 * KEY_LENGTH
_MAX_U64_DIGITS = 20
_REMEMBERED = 16384
"""Texts of endpoints, and of prefixes: more than a dump has, or the one before is of no use."""


class UapiRefused(OSError):
    """wireguard-go answered with an error number other than 0."""


def build_set(change: DeviceChange) -> bytearray:
    """The request that makes a change. It holds keys: overwrite it after sending.

    Lines with keys come before any that can be refused: wireguard-go stops reading at one that
    it refuses, and writes the line after it to its log.
    """
    request = bytearray(b"set=1\n")
    if change.private_key is not None:
        _append_key(request, b"private_key", change.private_key.expose())
    if change.listen_port is not None:
        request += b"listen_port=%d\n" % change.listen_port
    if change.fwmark is not None:
        request += b"fwmark=%d\n" % change.fwmark
    for peer in change.peers:
        _append_peer(request, peer)
    request += b"\n"
    return request


def _append_peer(request: bytearray, peer: PeerChange) -> None:
    _append_key(request, b"public_key", peer.public_key)
    # update_only comes first: wireguard-go makes the peer at public_key, and unmakes it here.
    if peer.update_only:
        request += b"update_only=true\n"
    if peer.remove:
        request += b"remove=true\n"
        return
    if peer.psk is not None:
        _append_key(request, b"preshared_key", peer.psk.expose())
    if peer.endpoint is not None:
        host, port = peer.endpoint
        text = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        request += b"endpoint=%s\n" % text.encode("ascii")
    if peer.keepalive is not None:
        request += b"persistent_keepalive_interval=%d\n" % peer.keepalive
    if peer.replace_allowed_ips:
        request += b"replace_allowed_ips=true\n"
    for prefix in peer.allowed_ips:
        request += b"allowed_ip=%s\n" % str(prefix).encode("ascii")


def _append_key(request: bytearray, name: bytes, key: bytes | bytearray) -> None:
    # Byte by byte, so that no second copy of the whole key is made on the way.
    request += name + b"="
    for byte in key:
        request += b"%02x" % byte
    request += b"\n"


def parse_set(answer: bytearray) -> None:
    """Check the answer to a change; raises UapiRefused or MalformedAnswer."""
    _Answer(only=None, keys=False).read(answer)


def parse_get_in_parts(
    answer: bytearray, *, keys: bool = False
) -> Generator[None, None, DeviceState]:
    """The same for all peers, a few at a time: what reads 1,000 at a stretch holds an event loop up
    for tens of milliseconds."""
    return _Answer(only=None, keys=keys).read_in_parts(answer)


def parse_get(answer: bytearray, *, only: bytes | None = None, keys: bool = False) -> DeviceState:
    """Read a dump; raises UapiRefused or MalformedAnswer, which never quotes the answer.

    With `only`, other peers are passed over unread: of a dump of 1,000 peers that saves nearly all
    time. Keys that were not asked for are not copied out of the buffer. The private key is read
    only for the public key that follows from it (this protocol does not tell it).
    """
    return _Answer(only=only, keys=keys).read(answer)


@dataclass(slots=True)
class _Peer:
    public_key: bytes
    psk: PresharedKey | None = None
    psk_mark: bytes = b""
    endpoint: Endpoint | None = None
    seconds: int = 0
    nanoseconds: int = 0
    rx_bytes: int = 0
    tx_bytes: int = 0
    keepalive: int = 0
    allowed_ips: list[Prefix] = field(default_factory=list)

    def status(self) -> PeerStatus:
        stamp = (self.seconds, self.nanoseconds)
        return PeerStatus(
            public_key=self.public_key,
            endpoint=self.endpoint,
            handshake_stamp=stamp if any(stamp) else None,
            rx_bytes=self.rx_bytes,
            tx_bytes=self.tx_bytes,
            allowed_ips=tuple(self.allowed_ips),
            keepalive=self.keepalive,
            psk=self.psk,
            psk_mark=self.psk_mark,
        )


class _Answer:
    """One answer, read line by line."""

    def __init__(self, *, only: bytes | None, keys: bool) -> None:
        self._only = only
        self._keys = keys
        self._public_key: bytes | None = None
        self._listen_port = 0
        self._fwmark = 0
        self._peers: dict[bytes, _Peer] = {}
        self._peer: _Peer | None = None
        self._skipping = False
        self._error: int | None = None

    def read(self, answer: bytearray) -> DeviceState:
        end = self._end(answer)
        if self._only is None:
            self._lines(answer, 0, end)
        else:
            self._lines_of(self._only, answer, end)
        return self._state()

    def read_in_parts(self, answer: bytearray) -> Generator[None, None, DeviceState]:
        start, end = 0, self._end(answer)
        while start < end:
            # Parts end with a line, wherever that is
            stop = answer.find(b"\n", min(start + _PART, end - 1)) + 1
            self._lines(answer, start, stop)
            start = stop
            yield
        return self._state()

    @staticmethod
    def _end(answer: bytearray) -> int:
        if not answer.endswith(b"\n\n"):
            raise MalformedAnswer("wireguard-go's answer does not end with an empty line")
        return len(answer) - 1

    def _state(self) -> DeviceState:
        if self._error is None:
            raise MalformedAnswer("wireguard-go's answer has no errno")
        if self._error != 0:
            raise UapiRefused(self._error, os.strerror(self._error))
        return DeviceState(
            public_key=self._public_key,
            listen_port=self._listen_port,
            fwmark=self._fwmark,
            peers={key: peer.status() for key, peer in self._peers.items()},
        )

    def _lines_of(self, public_key: bytes, answer: bytearray, end: int) -> None:
        """The lines of the interface, those of one peer, and the last one, with errno."""
        last = answer.rfind(b"\n", 0, end - 1) + 1
        first = answer.find(_PEER, 0, last)
        self._lines(answer, 0, last if first < 0 else first + 1)
        start = answer.find(_PEER + hexlify(public_key) + b"\n", 0, last) + 1
        if start:
            stop = answer.find(_PEER, start, last) + 1
            self._lines(answer, start, stop or last)
        self._lines(answer, last, end)

    def _lines(self, answer: bytearray, start: int, end: int) -> None:
        while start < end:
            stop = answer.find(b"\n", start)
            equals = answer.find(b"=", start, stop)
            if equals < 0:
                raise MalformedAnswer("wireguard-go's answer has a line that is not key=value")
            if self._error is not None:
                raise MalformedAnswer("wireguard-go's answer goes on after errno")
            self._line(bytes(answer[start:equals]), answer, equals + 1, stop)
            start = stop + 1

    def _line(self, name: bytes, answer: bytearray, start: int, stop: int) -> None:
        if name == b"errno":
            negative = answer[start : start + 1] == b"-"  # some versions answer -EINVAL
            self._error = _number(answer, start + negative, stop, 2**31)
        elif name == b"public_key":
            self._begin_peer(_key(answer, start, stop))
        elif self._skipping:
            return
        elif self._peer is not None:
            self._peer_line(self._peer, name, answer, start, stop)
        elif name == b"private_key":
            self._public_key = _public_key(answer, start, stop)
        elif name == b"listen_port":
            self._listen_port = _number(answer, start, stop, 65535)
        elif name == b"fwmark":
            self._fwmark = _number(answer, start, stop, 2**32 - 1)

    def _begin_peer(self, public_key: bytes) -> None:
        if public_key in self._peers:
            raise MalformedAnswer("wireguard-go's answer has a peer twice")
        self._peer = _Peer(public_key)
        self._skipping = self._only is not None and public_key != self._only
        if not self._skipping:
            self._peers[public_key] = self._peer

    def _peer_line(
        self, peer: _Peer, name: bytes, answer: bytearray, start: int, stop: int
    ) -> None:
        match name:
            case b"preshared_key":
                # The key is cut out in the calls, so that no name here holds it.
                peer.psk_mark = psk_mark(_key(answer, start, stop))
                if self._keys:
                    peer.psk = PresharedKey(_key(answer, start, stop)) if peer.psk_mark else None
            case b"endpoint":
                peer.endpoint = _endpoint(_text(answer, start, stop))
            case b"last_handshake_time_sec":
                peer.seconds = _number(answer, start, stop, 2**64 - 1)
            case b"last_handshake_time_nsec":
                peer.nanoseconds = _number(answer, start, stop, 10**9)
            case b"rx_bytes":
                peer.rx_bytes = _number(answer, start, stop, 2**64 - 1)
            case b"tx_bytes":
                peer.tx_bytes = _number(answer, start, stop, 2**64 - 1)
            case b"persistent_keepalive_interval":
                peer.keepalive = _number(answer, start, stop, 65535)
            case b"allowed_ip":
                peer.allowed_ips.append(_prefix(_text(answer, start, stop)))
            case _:  # protocol_version, and what later versions may add
                return


def _key(answer: bytearray, start: int, stop: int) -> bytes:
    error = f"wireguard-go's answer has a key that is not {_KEY_DIGITS} hexadecimal digits"
    if stop - start != _KEY_DIGITS:
        raise MalformedAnswer(error)
    try:
        with memoryview(answer) as view, view[start:stop] as digits:
            return unhexlify(digits)
    except ValueError:
        raise MalformedAnswer(error) from None


def _public_key(answer: bytearray, start: int, stop: int) -> bytes:
    return public_key_of(_key(answer, start, stop))


def _text(answer: bytearray, start: int, stop: int) -> str:
    try:
        return answer[start:stop].decode("ascii")
    except UnicodeDecodeError:
        raise MalformedAnswer("wireguard-go's answer is not ASCII") from None


def _number(answer: bytearray, start: int, stop: int, most: int) -> int:
    digits = bytes(answer[start : min(stop, start + _MAX_U64_DIGITS + 1)])
    if not digits.isdigit() or len(digits) > _MAX_U64_DIGITS or int(digits) > most:
        raise MalformedAnswer(f"wireguard-go's answer has a number that is not within 0 to {most}")
    return int(digits)


# Of 1,000 peers, each dump tells the same again, and to read them takes most of its time
@lru_cache(_REMEMBERED)
def _endpoint(text: str) -> Endpoint:
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    try:
        host = str(ip_address(host))  # the same text, whichever backend it comes from
    except ValueError:
        colon = ""
    if not colon or not port.isdigit() or not 0 < int(port[:6]) < 65536:
        raise MalformedAnswer(
            f"wireguard-go's answer has an endpoint {text[:80]!r} that is not address:port"
        )
    return host, int(port)


@lru_cache(_REMEMBERED)
def _prefix(text: str) -> Prefix:
    try:
        return ip_network(text, strict=False)
    except ValueError:
        raise MalformedAnswer(
            f"wireguard-go's answer has an allowed IP {text[:80]!r} that is none"
        ) from None

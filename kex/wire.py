"""Datagrams: one fragment of one message, with its own header and MACs (docs/protocol.md §3).

version/type 1 | flags/suite 1 | index 1 | count 1 | message tag 4 | exchange id 8
| chunk 1..1200 | mac1 8 | mac2 8
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

from kex import labels
from kex.errors import PacketRejected
from kex.identity import Fingerprint

VERSION = 1
"""Major version of the protocol; another one is refused."""

HEADER_LENGTH = 16
MAC_LENGTH = 8
TRAILER_LENGTH = 2 * MAC_LENGTH
MESSAGE_TAG_LENGTH = 4
EXCHANGE_ID_LENGTH = 8
MAX_CHUNK_LENGTH = 1200
"""Bytes of a message in one datagram: 1,232 of UDP payload, an IPv6 packet of 1,280."""
MIN_CHUNK_LENGTH = 500
"""The smallest chunk a node may cut to: an IPv4 packet of 576 still holds it."""
INIT_CONF_LENGTH = 1200
RESP_CONF_PAYLOAD_LENGTH = 1000
REJECT_PAYLOAD_LENGTH = 240
AEAD_TAG_LENGTH = 16
NO_MAC = bytes(MAC_LENGTH)


class MessageType(IntEnum):
    INIT_HELLO = 1
    RESP_HELLO = 2
    INIT_CONF = 3
    RESP_CONF = 4
    COOKIE_REPLY = 5
    IDENTITY_QUERY = 6
    IDENTITY_REPLY = 7
    REJECT = 8


QUESTIONS = (MessageType.INIT_HELLO, MessageType.INIT_CONF, MessageType.IDENTITY_QUERY)
"""What an initiator sends; the others are answers, and an answer has no cookie."""


@dataclass(frozen=True, slots=True)
class Fragment:
    """One datagram, taken apart. Nothing in it has been checked but lengths and ranges."""

    type: MessageType
    suite: int
    index: int
    count: int
    tag: bytes
    exchange_id: bytes
    chunk: bytes
    mac1: bytes
    mac2: bytes

    def header(self) -> bytes:
        """The 16 bytes in front of the chunk."""
        return (
            bytes((VERSION << 4 | self.type, self.suite, self.index, self.count))
            + self.tag
            + self.exchange_id
        )

    def mac1_input(self) -> bytes:
        """What mac1 covers: all before it."""
        return self.header() + self.chunk

    def mac2_input(self) -> bytes:
        """What mac2 covers: all before it, mac1 included."""
        return self.header() + self.chunk + self.mac1

    def datagram(self) -> bytes:
        return self.mac2_input() + self.mac2


_TYPES = {int(message_type): message_type for message_type in MessageType}


def parse_untrusted(datagram: bytes) -> Fragment:
    """Take a datagram apart. Raises PacketRejected; checks lengths and ranges only."""
    if len(datagram) <= HEADER_LENGTH + TRAILER_LENGTH:
        raise PacketRejected("too short")
    if len(datagram) > HEADER_LENGTH + MAX_CHUNK_LENGTH + TRAILER_LENGTH:
        raise PacketRejected("too long")
    if datagram[0] >> 4 != VERSION:
        raise PacketRejected("version")
    message_type = _TYPES.get(datagram[0] & 0x0F)
    if message_type is None:
        raise PacketRejected("type")
    if datagram[1] >> 4:
        raise PacketRejected("flags")
    index, count = datagram[2], datagram[3]
    if not index < count:
        raise PacketRejected("fragment index")
    mac2 = datagram[-MAC_LENGTH:]
    if mac2 != NO_MAC and message_type not in QUESTIONS:
        raise PacketRejected("mac2")
    return Fragment(
        type=message_type,
        suite=datagram[1],
        index=index,
        count=count,
        tag=datagram[4:8],
        exchange_id=datagram[8:16],
        chunk=datagram[16:-16],
        mac1=datagram[-16:-8],
        mac2=mac2,
    )


@lru_cache(maxsize=4096)
def mac_key(message_type: MessageType, fingerprint: Fingerprint) -> bytes:
    """The 32-byte key of mac1 for one message type, under the fingerprint of the node asked.

    A question and its answers share that fingerprint; the type keeps one from passing as the
    other. The fingerprint of the node that asks stands in no datagram (docs/protocol.md §3.2).
    """
    return hashlib.blake2b(
        labels.MAC1 + bytes((message_type, fingerprint.suite)) + fingerprint.digest, digest_size=32
    ).digest()


def mac(key: bytes, data: bytes) -> bytes:
    """Keyed BLAKE2b of 8 bytes: a filter, not an authentication."""
    return hashlib.blake2b(data, digest_size=MAC_LENGTH, key=key).digest()


def mac1_matches(key: bytes, fragment: Fragment) -> bool:
    return hmac.compare_digest(mac(key, fragment.mac1_input()), fragment.mac1)


def mac2_matches(cookie: bytes, fragment: Fragment) -> bool:
    return hmac.compare_digest(mac(cookie, fragment.mac2_input()), fragment.mac2)


def message_tag(
    message_type: MessageType, suite_number: int, exchange_id: bytes, body: bytes
) -> bytes:
    """The 4 bytes that hold the fragments of one message together."""
    prefix = labels.MESSAGE_TAG + bytes((message_type, suite_number)) + exchange_id
    return hashlib.blake2b(prefix + body, digest_size=32).digest()[:MESSAGE_TAG_LENGTH]


def datagram_length(chunk_length: int) -> int:
    """Bytes of a datagram with a chunk of this length."""
    return HEADER_LENGTH + chunk_length + TRAILER_LENGTH


def fragment_count(length: int, chunk_length: int) -> int:
    """How many datagrams a message of `length` bytes takes."""
    return -(-length // chunk_length)


def cut(
    message_type: MessageType,
    suite_number: int,
    exchange_id: bytes,
    body: bytes,
    *,
    key: bytes,
    chunk_length: int = MAX_CHUNK_LENGTH,
) -> tuple[Fragment, ...]:
    """Cut a message into fragments with mac1 under `key` and an empty mac2."""
    tag = message_tag(message_type, suite_number, exchange_id, body)
    count = fragment_count(len(body), chunk_length)
    return tuple(
        seal_fragment(
            Fragment(
                type=message_type,
                suite=suite_number,
                index=index,
                count=count,
                tag=tag,
                exchange_id=exchange_id,
                chunk=body[index * chunk_length : (index + 1) * chunk_length],
                mac1=NO_MAC,
                mac2=NO_MAC,
            ),
            key,
        )
        for index in range(count)
    )


def seal_fragment(fragment: Fragment, key: bytes) -> Fragment:
    """The same fragment with its mac1 filled in."""
    return Fragment(
        type=fragment.type,
        suite=fragment.suite,
        index=fragment.index,
        count=fragment.count,
        tag=fragment.tag,
        exchange_id=fragment.exchange_id,
        chunk=fragment.chunk,
        mac1=mac(key, fragment.mac1_input()),
        mac2=NO_MAC,
    )


def datagrams(fragments: Iterable[Fragment], cookie: bytes | None = None) -> tuple[bytes, ...]:
    """The bytes to send; with a cookie, mac2 is filled in."""
    if cookie is None:
        return tuple(fragment.datagram() for fragment in fragments)
    sealed = []
    for fragment in fragments:
        before = fragment.mac2_input()
        sealed.append(before + mac(cookie, before))
    return tuple(sealed)


def check_fragment_length_untrusted(fragment: Fragment, length: int) -> None:
    """Refuse a fragment that cannot belong to a message of `length` bytes.

    The sender chooses its chunk length (500 to 1,200 bytes); with the count and the total it
    fixes the length of every fragment but for the one free number, so that a fragment that lies
    about its place is refused before it takes memory.
    """
    if not could_be_cut(
        length, index=fragment.index, count=fragment.count, size=len(fragment.chunk)
    ):
        raise PacketRejected("fragment length")


def could_be_cut(length: int, *, index: int, count: int, size: int) -> bool:
    """Whether some legal cut of `length` bytes into `count` has `size` bytes at `index`."""
    if count == 1:
        return size == length
    if index < count - 1:
        return size >= MIN_CHUNK_LENGTH and fragment_count(length, size) == count
    # The last one: what the others leave, for some chunk length that they could have
    others, left = count - 1, length - size
    return (
        left > 0
        and left % others == 0
        and MIN_CHUNK_LENGTH <= left // others <= MAX_CHUNK_LENGTH
        and size <= left // others
    )

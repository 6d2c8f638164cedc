"""What all links of a node share: identities, the keys of biscuits and cookies, and two queues."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from kex import wire
from kex.address import Address
from kex.biscuit import FIRST_NUMBER, KEY_SECONDS, BiscuitKeys, fresh_key
from kex.biscuit import KEY_ID_LENGTH as BISCUIT_KEY_ID_LENGTH
from kex.biscuit import KEY_LENGTH as BISCUIT_KEY_LENGTH
from kex.cookies import SECRET_LENGTH, SECRET_SECONDS, CookieSecret
from kex.events import Event
from kex.identity import Fingerprint, Identity
from kex.secret import Secret
from kex.suites import Suite
from kex.wire import Fragment


class Outgoing(NamedTuple):
    """A datagram to be sent."""

    data: bytes
    address: Address


@dataclass(slots=True)
class Node:
    """State that links share. `suites` holds the suite of every identity and of every peer."""

    suites: Mapping[int, Suite]
    identities: Mapping[Fingerprint, Identity]
    random: Callable[[int], bytes]
    chunk_length: int
    biscuit_keys: BiscuitKeys
    cookie_secret: CookieSecret
    public_keys: dict[Fingerprint, bytes] = field(default_factory=dict)
    """Whole public keys of peers, each checked against its fingerprint."""
    outbox: deque[Outgoing] = field(default_factory=deque)
    events: deque[Event] = field(default_factory=deque)

    @classmethod
    def create(
        cls,
        *,
        suites: Mapping[int, Suite],
        identities: Iterable[Identity],
        random: Callable[[int], bytes],
        chunk_length: int,
        now: float,
    ) -> Node:
        """A node that has just started: fresh keys for biscuits and cookies."""
        if not wire.MIN_CHUNK_LENGTH <= chunk_length <= wire.MAX_CHUNK_LENGTH:
            raise ValueError(
                f"chunks of {chunk_length} bytes; {wire.MIN_CHUNK_LENGTH} to "
                f"{wire.MAX_CHUNK_LENGTH} can be sent"
            )
        biscuit_key = fresh_key(random(BISCUIT_KEY_ID_LENGTH + BISCUIT_KEY_LENGTH))
        return cls(
            suites=suites,
            identities={identity.fingerprint: identity for identity in identities},
            random=random,
            chunk_length=chunk_length,
            biscuit_keys=BiscuitKeys(biscuit_key, None, now + KEY_SECONDS, FIRST_NUMBER),
            cookie_secret=CookieSecret(Secret(random(SECRET_LENGTH)), None, now + SECRET_SECONDS),
        )

    def copy(self) -> Node:
        return Node(
            suites=self.suites,
            identities=self.identities,
            random=self.random,
            chunk_length=self.chunk_length,
            biscuit_keys=self.biscuit_keys,
            cookie_secret=self.cookie_secret,
            public_keys=dict(self.public_keys),
            outbox=deque(self.outbox),
            events=deque(self.events),
        )

    def rotate(self, now: float) -> None:
        """Change the keys whose time has come; a biscuit key is erased after two periods."""
        if now >= self.biscuit_keys.rotate_at:
            fresh = fresh_key(self.random(BISCUIT_KEY_ID_LENGTH + BISCUIT_KEY_LENGTH))
            self.biscuit_keys = self.biscuit_keys.rotated(fresh, now)
        if now >= self.cookie_secret.rotate_at:
            self.cookie_secret = self.cookie_secret.rotated(self.random(SECRET_LENGTH), now)

    def send(
        self, fragments: Iterable[Fragment], address: Address, cookie: bytes | None = None
    ) -> None:
        self.send_datagrams(wire.datagrams(fragments, cookie), address)

    def send_datagrams(self, datagrams: Iterable[bytes], address: Address) -> None:
        self.outbox.extend(Outgoing(data, address) for data in datagrams)

    def emit(self, event: Event) -> None:
        self.events.append(event)

"""Putting the fragments of a message together again, within fixed bounds.

Every chunk that is held has passed mac1. That proves nothing about where it came from: whoever
knows a fingerprint can write any source address on it. So a question without a valid cookie is
never given the place of another one: where the places of its source or its half of the room are
taken, it has to come again with a cookie (kex.endpoint asks for one). Questions with a cookie have
places of their own. The bounds hold whatever arrives: bytes in all, messages for each origin, and
seconds for each message.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from kex.address import Address
from kex.errors import PacketRejected
from kex.load import site
from kex.wire import Fragment, check_fragment_length_untrusted, message_tag

MAX_BYTES = 256 * 1024
"""Bytes of chunks held at one time, over all origins, plus what an entry costs."""
MAX_MESSAGES_PER_ORIGIN = 4
MAX_MESSAGES_PER_SITE = 16
"""With a cookie: a host, or a /64 of IPv6, may have several peers behind it."""
MESSAGE_SECONDS = 10.0
ENTRY_COST = 256
"""Bytes charged for a message in the making beside its chunks."""


class Origin(NamedTuple):
    """What the places of a message are counted under, and how many it has."""

    name: object
    places: int = MAX_MESSAGES_PER_ORIGIN
    proven: bool = True


def unproven(source: Address) -> Origin:
    """Of a question without a valid cookie."""
    return Origin(source, proven=False)


def proven(source: Address) -> Origin:
    """Of a question with a valid cookie: all ports of a host count together."""
    return Origin(site(source.host), MAX_MESSAGES_PER_SITE)


def answering(exchange_id: bytes) -> Origin:
    """Of an answer to an exchange of ours, whatever source is written on it: only the way between
    the two ends has seen that id."""
    return Origin(exchange_id)


class _Key(NamedTuple):
    origin: Origin
    source: Address
    type: int
    suite: int
    exchange_id: bytes
    tag: bytes


@dataclass(frozen=True, slots=True)
class _Partial:
    count: int
    chunks: tuple[tuple[int, bytes], ...]
    deadline: float
    cost: int


@dataclass(slots=True)
class Reassembly:
    """Messages in the making. Copying it copies two dictionaries of immutable entries.

    An entry stays in its place while chunks come: the first is always the oldest, and the first to
    expire.
    """

    partials: dict[_Key, _Partial] = field(default_factory=dict)
    held: int = 0
    per_origin: dict[Origin, int] = field(default_factory=dict)
    """How many of them each origin has."""

    def copy(self) -> Reassembly:
        return Reassembly(dict(self.partials), self.held, dict(self.per_origin))

    def has_room(self, fragment: Fragment, source: Address, now: float) -> bool:
        """Whether a question without a cookie can be taken: no other message loses its place."""
        self.expire(now)
        if fragment.count == 1:
            return True  # it is whole, and takes no place
        if self.is_crowded():
            return False
        origin = unproven(source)
        if self.per_origin.get(origin, 0) < origin.places:
            return True
        return _key(fragment, origin, source) in self.partials

    def add_untrusted(
        self,
        fragment: Fragment,
        *,
        source: Address,
        length: int,
        now: float,
        origin: Origin | None = None,
    ) -> bytes | None:
        """Take one fragment of a message of `length` bytes; give the message when it is whole.

        Where a bound is met, the oldest message of the origin goes, or the oldest of the origin
        that has most. Without an `origin` it is that of a question without a cookie, for which
        has_room() has to be asked first.

        Raises PacketRejected for a fragment that cannot belong there, and for a message whose
        tag does not fit its bytes, or two different chunks for one place: that message is then
        dropped whole, since nobody can tell which of its fragments is false.
        """
        check_fragment_length_untrusted(fragment, length)
        self.expire(now)
        if fragment.count == 1:
            return self._check_tag(fragment, fragment.chunk)
        origin = unproven(source) if origin is None else origin
        key = _key(fragment, origin, source)
        partial = self.partials.get(key)
        if partial is None:
            self._make_room(origin, len(fragment.chunk) + ENTRY_COST)
            partial = _Partial(fragment.count, (), now + MESSAGE_SECONDS, ENTRY_COST)
            self.per_origin[origin] = self.per_origin.get(origin, 0) + 1
            self.held += ENTRY_COST
        else:
            self._check_place(key, partial, fragment)
            if any(index == fragment.index for index, _ in partial.chunks):
                return None
            self._make_room(None, len(fragment.chunk), keep=key)
        chunks = tuple(sorted((*partial.chunks, (fragment.index, fragment.chunk))))
        if len(chunks) == fragment.count:
            self._remove(key)
            return self._check_tag(fragment, b"".join(chunk for _, chunk in chunks))
        self.partials[key] = _Partial(
            partial.count, chunks, partial.deadline, partial.cost + len(fragment.chunk)
        )
        self.held += len(fragment.chunk)
        return None

    def expire(self, now: float) -> None:
        """Drop what has waited too long."""
        while self.partials:
            key, partial = next(iter(self.partials.items()))
            if now < partial.deadline:
                return
            self._remove(key)

    def is_crowded(self) -> bool:
        """Whether half the room is taken: then only proven addresses get more."""
        return self.held > MAX_BYTES // 2

    def next_deadline(self) -> float | None:
        return next((partial.deadline for partial in self.partials.values()), None)

    def _check_place(self, key: _Key, partial: _Partial, fragment: Fragment) -> None:
        same_index = dict(partial.chunks).get(fragment.index)
        if partial.count != fragment.count or same_index not in (None, fragment.chunk):
            self._remove(key)
            raise PacketRejected("fragments disagree")

    @staticmethod
    def _check_tag(fragment: Fragment, body: bytes) -> bytes:
        if message_tag(fragment.type, fragment.suite, fragment.exchange_id, body) != fragment.tag:
            raise PacketRejected("message tag")
        return body

    def _make_room(self, origin: Origin | None, wanted: int, keep: _Key | None = None) -> None:
        if origin is not None and self.per_origin.get(origin, 0) >= origin.places:
            self._remove(next(key for key in self.partials if key.origin == origin))
        while self.held + wanted > MAX_BYTES:
            least_worthy = self._least_worthy(keep)
            if least_worthy is None:
                return
            self._remove(least_worthy)

    def _least_worthy(self, keep: _Key | None) -> _Key | None:
        """Whose place another message gets: one without a proof goes first, then one of the
        origin that has most; among them the oldest."""
        return max(
            (key for key in self.partials if key != keep),
            key=lambda key: (not key.origin.proven, self.per_origin[key.origin]),
            default=None,
        )

    def _remove(self, key: _Key) -> None:
        self.held -= self.partials.pop(key).cost
        origin = key.origin
        if self.per_origin[origin] > 1:
            self.per_origin[origin] -= 1
        else:
            del self.per_origin[origin]


def _key(fragment: Fragment, origin: Origin, source: Address) -> _Key:
    return _Key(origin, source, fragment.type, fragment.suite, fragment.exchange_id, fragment.tag)

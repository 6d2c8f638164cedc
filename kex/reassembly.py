"""Putting the fragments of a message together again, within fixed bounds.

Every chunk that is held has passed mac1 (and, under load, mac2). The bounds hold whatever
arrives: bytes in all, messages per source address, and seconds per message. Where a bound is
met, the oldest message goes: a peer repeats what it sent, a flood does not get more room.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from kex.address import Address
from kex.errors import PacketRejected
from kex.wire import Fragment, check_fragment_length_untrusted, message_tag

MAX_BYTES = 256 * 1024
"""Bytes of chunks held at one time, over all sources, plus what an entry costs."""
MAX_MESSAGES_PER_SOURCE = 4
MESSAGE_SECONDS = 10.0
ENTRY_COST = 256
"""Bytes charged for a message in the making beside its chunks."""

_Key = tuple[Address, int, int, bytes, bytes]


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
    per_source: dict[Address, int] = field(default_factory=dict)
    """How many of them each source has."""

    def copy(self) -> Reassembly:
        return Reassembly(dict(self.partials), self.held, dict(self.per_source))

    def add_untrusted(
        self, fragment: Fragment, *, source: Address, length: int, now: float
    ) -> bytes | None:
        """Take one fragment of a message of `length` bytes; give the message when it is whole.

        Raises PacketRejected for a fragment that cannot belong there, and for a message whose
        tag does not fit its bytes, or two different chunks for one place: that message is then
        dropped whole, since nobody can tell which of its fragments is false.
        """
        check_fragment_length_untrusted(fragment, length)
        self.expire(now)
        if fragment.count == 1:
            return self._check_tag(fragment, fragment.chunk)
        key = (source, fragment.type, fragment.suite, fragment.exchange_id, fragment.tag)
        partial = self.partials.get(key)
        if partial is None:
            self._make_room(source, len(fragment.chunk) + ENTRY_COST)
            partial = _Partial(fragment.count, (), now + MESSAGE_SECONDS, ENTRY_COST)
            self.per_source[source] = self.per_source.get(source, 0) + 1
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

    def _make_room(self, source: Address | None, wanted: int, keep: _Key | None = None) -> None:
        if source is not None and self.per_source.get(source, 0) >= MAX_MESSAGES_PER_SOURCE:
            self._remove(next(key for key in self.partials if key[0] == source))
        while self.held + wanted > MAX_BYTES:
            oldest = next((key for key in self.partials if key != keep), None)
            if oldest is None:
                return
            self._remove(oldest)

    def _remove(self, key: _Key) -> None:
        self.held -= self.partials.pop(key).cost
        source = key[0]
        if self.per_source[source] > 1:
            self.per_source[source] -= 1
        else:
            del self.per_source[source]

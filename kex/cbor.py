"""The CBOR of payloads, read strictly (docs/protocol.md §5.1; RFC 8949).

Written out here because a general decoder reads more than payloads may hold: it turns tags into
big integers, dates and regular expressions, and builds whatever an unknown key holds.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from kex.errors import PacketRejected

UNSIGNED, NEGATIVE, BYTES, TEXT, ARRAY, MAP, TAG, SIMPLE = range(8)
"""The major types."""
MAX_DEPTH = 4
"""Arrays in arrays in the value of a known key: no more than three are ever needed."""
_BOOLEANS = {0xF4: False, 0xF5: True}
"""They have one byte each. A float may have the same argument."""


class _Malformed(Exception):
    """Not well-formed, or of indefinite length."""


class _OtherType(Exception):
    """Well-formed as far as it was read, and of a type that no payload has."""


def decode_map_untrusted(data: bytes, known: Container[str]) -> dict[str, Any]:
    """The one map that `data` is, with the values of the keys in `known`.

    Values are integers, byte strings, texts, booleans, and lists of these. What stands under
    another key has to be well-formed and is not looked at. Raises PacketRejected.
    """
    reader = _Reader(data)
    fields: dict[str, Any] = {}
    seen: set[str] = set()
    name = "CBOR"
    try:
        for _ in range(reader.map_size()):
            name = "CBOR"
            key = reader.text_key()
            if key in seen:
                raise PacketRejected("payload: a key twice")
            seen.add(key)
            if key in known:
                name = key
                fields[key] = reader.value()
            else:
                reader.skip()
    except _Malformed:
        raise PacketRejected("payload: CBOR") from None
    except _OtherType:
        raise PacketRejected(f"payload: {name}") from None
    if not reader.at_end:
        raise PacketRejected("payload: CBOR")
    return fields


class _Reader:
    """Reads one data item after the other. No length that is announced is believed."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def at_end(self) -> bool:
        return self._at == len(self._data)

    def map_size(self) -> int:
        major, size = self._head()
        if major != MAP:
            raise _Malformed
        return size

    def text_key(self) -> str:
        major, size = self._head()
        if major != TEXT:
            raise _Malformed
        return self._text(size)

    def value(self, depth: int = 0) -> Any:
        """An integer, bytes, text, boolean, or a list of them."""
        begin = self._at
        major, argument = self._head()
        if major == UNSIGNED:
            return argument
        if major == NEGATIVE:
            return -1 - argument
        if major == BYTES:
            return self._take(argument)
        if major == TEXT:
            return self._text(argument)
        if major == ARRAY and depth < MAX_DEPTH:
            if argument > len(self._data) - self._at:
                raise _Malformed
            return [self.value(depth + 1) for _ in range(argument)]
        if self._data[begin] in _BOOLEANS:
            return _BOOLEANS[self._data[begin]]
        raise _OtherType

    def skip(self) -> None:
        """One well-formed item, however deep it nests."""
        left = 1
        while left:
            left -= 1
            major, argument = self._head()
            if major in (BYTES, TEXT):
                self._take(argument)
            elif major == ARRAY:
                left += argument
            elif major == MAP:
                left += 2 * argument
            elif major == TAG:
                left += 1

    def _head(self) -> tuple[int, int]:
        """Major type and argument, which may be written in more bytes than it needs."""
        first = self._take(1)[0]
        major, argument = first >> 5, first & 0x1F
        if argument < 24:
            return major, argument
        if argument > 27:  # reserved, or of indefinite length
            raise _Malformed
        argument = int.from_bytes(self._take(1 << (argument - 24)), "big")
        if major == SIMPLE and first & 0x1F == 24 and argument < 32:
            raise _Malformed  # RFC 8949 §3.3: these have one byte
        return major, argument

    def _take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._data):
            raise _Malformed
        taken, self._at = self._data[self._at : end], end
        return taken

    def _text(self, size: int) -> str:
        try:
            return self._take(size).decode()
        except UnicodeDecodeError:
            raise _Malformed from None

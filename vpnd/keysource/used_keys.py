"""Which keys were asked for by their IDs, or delivered: none of them is asked for or used again.

Kept as hashes with a secret of this process, so that memory holds no keys, and bounded: the oldest
goes first.
"""

from __future__ import annotations

import hashlib
import os
from typing import Final
from uuid import UUID

from kex.secret import Secret

REMEMBERED: Final = 50_000
"""A key every two minutes on a link: a day of 70 links, in about 6 MB."""


class UsedKeys:
    """Of one source; it outlives a change of the source's configuration."""

    def __init__(self) -> None:
        self._salt = os.urandom(32)
        self._seen: dict[bytes, None] = {}

    def seen_id(self, sae: str, key_id: str) -> bool:
        return self._id(sae, key_id) in self._seen

    def add_id(self, sae: str, key_id: str) -> None:
        self._add(self._id(sae, key_id))

    def forget_id(self, sae: str, key_id: str) -> None:
        """The key manager said itself that it was not delivered."""
        self._seen.pop(self._id(sae, key_id), None)

    def seen_key(self, key: Secret) -> bool:
        return self._hash(b"key", key.expose()) in self._seen

    def add_key(self, key: Secret) -> None:
        self._add(self._hash(b"key", key.expose()))

    def _id(self, sae: str, key_id: str) -> bytes:
        # A UUID is the same in all its spellings, and hexadecimal digits are in either case
        try:
            key_id = UUID(key_id).hex
        except ValueError:
            key_id = key_id.lower()
        return self._hash(b"id", f"{sae}\0{key_id}".encode())

    def _add(self, entry: bytes) -> None:
        self._seen[entry] = None
        if len(self._seen) > REMEMBERED:
            del self._seen[next(iter(self._seen))]

    def _hash(self, kind: bytes, data: bytes) -> bytes:
        return hashlib.blake2b(data, digest_size=16, key=self._salt, person=kind).digest()

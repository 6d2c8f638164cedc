"""A key in a file that two sites share: what is taken as one, and how it is named.

Taken are 32 to 1,024 bytes as they are, or a text that has nothing but as many bytes in
hexadecimal digits or Base64, with white space around it. Whatever is obviously no key is refused:
better no link than one that rests on `changeme`.
"""

from __future__ import annotations

import binascii
import hashlib
import re
from base64 import b64decode
from itertools import pairwise
from pathlib import Path
from typing import Final

from kex.external import MAX_KEY_LENGTH
from kex.secret import Secret
from vpnd.file_trust import FileFault, read_secret

MIN_STATIC_KEY: Final = 32
"""Bytes."""
MIN_DIFFERENT_BYTES: Final = 16
"""Different values among the first 32 bytes: fewer come once in 10^12 random keys."""

_HOW: Final = "make one: (umask 077; head -c 32 /dev/urandom > FILE), and take it to both ends"
_HEX: Final = re.compile(rb"[0-9A-Fa-f]+")
_BASE64: Final = re.compile(rb"[A-Za-z0-9+/]+={0,2}")
_LONGEST_TEXT: Final = 2 * MAX_KEY_LENGTH + 64


class NoKey(FileFault):
    """A file whose content is not, or obviously cannot be, a key."""


def read_static_key(path: Path) -> Secret:
    """The key in a file. Raises FileFault, NoKey."""
    data = read_secret(path, limit=_LONGEST_TEXT)
    try:
        key = _key_in(data)
        check_is_random(key)
    except ValueError as error:
        raise NoKey(path, str(error), _HOW) from None
    return Secret(key)


def key_hash(key: Secret) -> str:
    """The name under which two ends find out whether they have the same key: 32 hex digits.

    BLAKE2b-128 with a personalisation of its own: it tells nothing of a key that is random.
    """
    return hashlib.blake2b(key.expose(), digest_size=16, person=b"vpnd-file-key-id").hexdigest()


def _key_in(data: bytes) -> bytes:
    text = data.strip(b" \t\r\n")
    if text and all(0x20 <= byte < 0x7F or byte in b"\r\n\t" for byte in text):
        key = _decoded(b"".join(text.split()))
    else:
        key = data
    if not MIN_STATIC_KEY <= len(key) <= MAX_KEY_LENGTH:
        raise ValueError(f"has {len(key)} bytes of key; {MIN_STATIC_KEY} to {MAX_KEY_LENGTH}")
    return key


def _decoded(text: bytes) -> bytes:
    if _HEX.fullmatch(text) and len(text) % 2 == 0:
        return bytes.fromhex(text.decode("ascii"))
    if _BASE64.fullmatch(text) and len(text) % 4 == 0:
        try:
            return b64decode(text, validate=True)
        except binascii.Error:
            pass
    raise ValueError("holds a text that is neither hexadecimal digits nor Base64: no key")


def check_is_random(key: bytes) -> None:
    """Raise ValueError for what no generator of keys has made."""
    if not key.strip(key[:1]):
        raise ValueError("holds one byte over and over: no key")
    if all(0x20 <= byte < 0x7F or byte in b"\r\n\t" for byte in key):
        raise ValueError("holds a text: no key")
    for length in range(2, len(key) // 2 + 1):
        if key == (key[:length] * (len(key) // length + 1))[: len(key)]:
            raise ValueError(f"repeats {length} bytes over and over: no key")
    steps = {(after - before) % 256 for before, after in pairwise(key)}
    if len(steps) == 1:
        raise ValueError("holds a sequence of numbers: no key")
    if len(key) >= MIN_STATIC_KEY and len(set(key[:MIN_STATIC_KEY])) < MIN_DIFFERENT_BYTES:
        raise ValueError("holds too few different bytes to be random: no key")

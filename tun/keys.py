"""WireGuard's key pairs (X25519). A private key is made, handed to the backend, and overwritten."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import NoReturn

from nacl.bindings import crypto_scalarmult_base

from tun.model import KEY_LENGTH

__all__ = ["KeyPair", "PrivateKey", "generate_keypair", "public_key_of"]


class PrivateKey:
    """32 bytes in a buffer of our own, which ``wipe()`` overwrites. Shows itself nowhere.

    Copies that libraries make on the way cannot be reached from here: they are dropped, not
    surely erased (docs/threat-model.md).
    """

    __slots__ = ("_buffer",)

    def __init__(self, buffer: bytearray) -> None:
        """Take the buffer over, without copying; raises ValueError unless it has 32 bytes."""
        if len(buffer) != KEY_LENGTH:
            raise ValueError(f"a private key has {KEY_LENGTH} bytes, not {len(buffer)}")
        self._buffer = buffer

    def expose(self) -> bytearray:
        """The buffer itself (not a copy)."""
        return self._buffer

    def wipe(self) -> None:
        """Overwrite the key with zeros."""
        self._buffer[:] = bytes(KEY_LENGTH)

    def __repr__(self) -> str:
        return "<PrivateKey redacted>"

    def __format__(self, format_spec: str) -> str:
        return repr(self)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a private key is not to be pickled or copied")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPair:
    """A fresh WireGuard key pair; ``private_key.wipe()`` once it was handed over."""

    private_key: PrivateKey
    public_key: bytes


def generate_keypair() -> KeyPair:
    """Make a key pair from the system's random generator, clamped as in RFC 7748 §5."""
    buffer = bytearray(os.urandom(KEY_LENGTH))
    buffer[0] &= 248
    buffer[31] &= 127
    buffer[31] |= 64
    return KeyPair(private_key=PrivateKey(buffer), public_key=public_key_of(buffer))


def public_key_of(private_key: bytes | bytearray) -> bytes:
    """The X25519 public key (32 bytes) of a private key (32 bytes)."""
    return crypto_scalarmult_base(bytes(private_key))

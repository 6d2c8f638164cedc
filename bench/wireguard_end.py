"""The answering end of a WireGuard handshake, and no more: for many far ends in one process.

Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s as in WireGuard's paper, sections 5.4.2 and 5.4.3. It makes
and answers what a real WireGuard at the near end needs to have a session; packets are not carried.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

INITIATION_LENGTH: Final = 148
_INITIATION: Final = b"\x01\0\0\0"
_RESPONSE: Final = b"\x02\0\0\0"
_CONSTRUCTION: Final = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"
_IDENTIFIER: Final = b"WireGuard v1 zx2c4 Jason@zx2c4.com"
_LABEL_MAC1: Final = b"mac1----"
_NONCE: Final = bytes(12)


class NotForUs(Exception):
    """Not a handshake initiation that this end can answer."""


@dataclass(frozen=True, slots=True)
class Response:
    """The answer to an initiation, and the public key of who began it."""

    message: bytes
    initiator: bytes


class WireGuardEnd:
    """One WireGuard key pair; `psk` is what the next handshake is made with."""

    def __init__(self) -> None:
        self._private = X25519PrivateKey.generate()
        self.public_key = self._private.public_key().public_bytes_raw()
        self.psk = bytes(32)

    def answer(self, message: bytes) -> Response:
        """The response to a handshake initiation. Raises NotForUs."""
        if len(message) != INITIATION_LENGTH or message[:4] != _INITIATION:
            raise NotForUs
        chain = _hash(_CONSTRUCTION)
        mixed = _hash(_hash(chain + _IDENTIFIER) + self.public_key)
        their_ephemeral = message[8:40]
        chain = _kdf(chain, their_ephemeral, 1)[0]
        mixed = _hash(mixed + their_ephemeral)
        chain, key = _kdf(chain, _dh(self._private, their_ephemeral), 2)
        initiator = _open(key, message[40:88], mixed)
        mixed = _hash(mixed + message[40:88])
        chain, key = _kdf(chain, _dh(self._private, initiator), 2)
        _open(key, message[88:116], mixed)
        mixed = _hash(mixed + message[88:116])

        ephemeral = X25519PrivateKey.generate()
        public = ephemeral.public_key().public_bytes_raw()
        chain = _kdf(chain, public, 1)[0]
        mixed = _hash(mixed + public)
        chain = _kdf(chain, _dh(ephemeral, their_ephemeral), 1)[0]
        chain = _kdf(chain, _dh(ephemeral, initiator), 1)[0]
        chain, tau, key = _kdf(chain, self.psk, 3)
        mixed = _hash(mixed + tau)
        nothing = ChaCha20Poly1305(key).encrypt(_NONCE, b"", mixed)
        response = _RESPONSE + os.urandom(4) + message[4:8] + public + nothing
        mac_key = _hash(_LABEL_MAC1 + initiator)
        mac1 = hashlib.blake2s(response, key=mac_key, digest_size=16).digest()
        return Response(response + mac1 + bytes(16), initiator)


def _hash(data: bytes) -> bytes:
    return hashlib.blake2s(data).digest()


def _kdf(key: bytes, data: bytes, count: int) -> list[bytes]:
    secret = hmac.digest(key, data, "blake2s")
    made: list[bytes] = []
    for number in range(1, count + 1):
        made.append(hmac.digest(secret, (made[-1] if made else b"") + bytes((number,)), "blake2s"))
    return made


def _dh(private: X25519PrivateKey, public: bytes) -> bytes:
    return private.exchange(X25519PublicKey.from_public_bytes(public))


def _open(key: bytes, sealed: bytes, mixed: bytes) -> bytes:
    try:
        return ChaCha20Poly1305(key).decrypt(_NONCE, sealed, mixed)
    except InvalidTag:
        raise NotForUs from None

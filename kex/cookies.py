"""Cookies: proof of a source address, asked for under load only (WireGuard's mechanism).

A cookie is a MAC over the source address under a secret of 32 bytes that changes every two
minutes. It travels sealed with XChaCha20-Poly1305 under a key from the fingerprint of the node
that was asked, with the mac1 of the fragment it answers as associated data, so that only who sent
that fragment can be meant and only who knows the fingerprint can read it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt,
)
from nacl.exceptions import CryptoError

from kex import labels
from kex.address import Address
from kex.errors import PacketRejected
from kex.identity import Fingerprint
from kex.secret import Secret

COOKIE_LENGTH = 16
NONCE_LENGTH = 24
COOKIE_REPLY_LENGTH = NONCE_LENGTH + COOKIE_LENGTH + 16
SECRET_LENGTH = 32
SECRET_SECONDS = 120.0
"""Life of the secret; the one before is accepted for as long again."""
COOKIE_SECONDS = 120.0
"""How long a cookie that was received is used."""


@dataclass(frozen=True, slots=True)
class CookieSecret:
    """The secret in use, the one before it, and when it is due to change."""

    current: Secret
    previous: Secret | None
    rotate_at: float

    def rotated(self, fresh: bytes, now: float) -> CookieSecret:
        """With a fresh secret. After a sleep of more than a period the one before is over, too."""
        if now < self.rotate_at + SECRET_SECONDS:
            return CookieSecret(Secret(fresh), self.current, self.rotate_at + SECRET_SECONDS)
        return CookieSecret(Secret(fresh), None, now + SECRET_SECONDS)

    def cookie(self, source: Address) -> bytes:
        """The cookie that `source` is given now."""
        return _cookie(self.current, source)

    def accepted(self, source: Address) -> tuple[bytes, ...]:
        """The cookies that `source` may use."""
        secrets = (self.current,) if self.previous is None else (self.current, self.previous)
        return tuple(_cookie(secret, source) for secret in secrets)


def _cookie(secret: Secret, source: Address) -> bytes:
    return hashlib.blake2b(
        labels.COOKIE + source.encoded(), key=secret.expose(), digest_size=COOKIE_LENGTH
    ).digest()


def reply_key(asked: Fingerprint) -> bytes:
    """The 32-byte key of every CookieReply of the node that was asked."""
    return hashlib.blake2b(
        labels.COOKIE_KEY + bytes((asked.suite,)) + asked.digest, digest_size=32
    ).digest()


def seal_cookie(asked: Fingerprint, *, nonce: bytes, mac1: bytes, cookie: bytes) -> bytes:
    """The body of CookieReply: nonce ‖ sealed cookie, 56 bytes."""
    return nonce + crypto_aead_xchacha20poly1305_ietf_encrypt(cookie, mac1, nonce, reply_key(asked))


def open_cookie_untrusted(asked: Fingerprint, *, body: bytes, mac1: bytes) -> bytes:
    """The cookie of 16 bytes. Raises PacketRejected."""
    if len(body) != COOKIE_REPLY_LENGTH:
        raise PacketRejected("cookie length")
    try:
        return crypto_aead_xchacha20poly1305_ietf_decrypt(
            body[NONCE_LENGTH:], mac1, body[:NONCE_LENGTH], reply_key(asked)
        )
    except CryptoError as error:
        raise PacketRejected("cookie") from error

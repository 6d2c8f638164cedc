"""A suite without cryptography: small, fast, and as strict about what it opens as a real one.

Every message of it fits into one datagram, and a step of the key exchange costs tens of
microseconds, so that a test can take millions of them. It hides nothing: whoever sees a
ciphertext has the secret.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from hashlib import blake2b

from kex.biscuit import FINGERPRINT_LENGTH, KEY_ID_LENGTH, NUMBER_LENGTH
from kex.errors import AuthenticationFailed, PacketRejected
from kex.mlkem import Encapsulation
from kex.secret import Secret
from kex.suites import TAG_LENGTH, RandomSource, Suite

SIZE = 16
"""Bytes of a hash, a public key and a ciphertext."""


@dataclass(frozen=True, slots=True)
class StandInKey:
    """A private key; its public key is a hash of its seed."""

    seed: Secret
    public_key: bytes

    def decapsulate(self, ciphertext: bytes) -> bytes:
        if len(ciphertext) != SIZE:
            raise PacketRejected("ciphertext length")
        return _shared_secret(self.public_key, ciphertext)


class StandInSuite(Suite):
    """Has the number of suite 1."""

    def __init__(self, random: RandomSource) -> None:
        # Not the constructor of a real suite: nothing of what it sets up is used here
        self._random = random
        self.number = 1
        self.protocol_name = b"stand-in"
        self.hash_length = self.public_key_length = self.ciphertext_length = SIZE
        self.biscuit_length = (
            KEY_ID_LENGTH + NUMBER_LENGTH + 2 * SIZE + FINGERPRINT_LENGTH + TAG_LENGTH
        )
        self.set_message_lengths()

    def hash(self, data: bytes) -> bytes:
        return blake2b(data, digest_size=SIZE).digest()

    def hmac(self, key: bytes, data: bytes) -> bytes:
        return blake2b(data, key=key, digest_size=SIZE).digest()

    def hkdf_expand(self, prk: bytes, info: bytes, length: int) -> bytes:
        return blake2b(info, key=prk, digest_size=length).digest()

    def noise_hkdf(self, ck: bytes, ikm: bytes, outputs: int) -> tuple[bytes, ...]:
        out = blake2b(ikm, key=ck, digest_size=outputs * SIZE).digest()
        return tuple(out[i * SIZE : (i + 1) * SIZE] for i in range(outputs))

    def seal(self, key: bytes, nonce: int, ad: bytes, plaintext: bytes) -> bytes:
        return plaintext + _tag(key, nonce, ad, plaintext)

    def open(self, key: bytes, nonce: int, ad: bytes, ciphertext: bytes) -> bytes:
        plaintext, tag = ciphertext[:-TAG_LENGTH], ciphertext[-TAG_LENGTH:]
        if not hmac.compare_digest(tag, _tag(key, nonce, ad, plaintext)):
            raise AuthenticationFailed
        return plaintext

    def private_key(self, seed: bytes) -> StandInKey:
        return StandInKey(Secret(seed), blake2b(seed, digest_size=SIZE).digest())

    def encapsulate(self, ek: bytes) -> Encapsulation:
        ciphertext = self.random(SIZE)
        return Encapsulation(shared_secret=_shared_secret(ek, ciphertext), ciphertext=ciphertext)

    def check_public_key(self, ek: bytes) -> None:
        if len(ek) != SIZE:
            raise PacketRejected("public key length")


def _shared_secret(public_key: bytes, ciphertext: bytes) -> bytes:
    return blake2b(ciphertext, key=public_key, digest_size=32).digest()


def _tag(key: bytes, nonce: int, ad: bytes, plaintext: bytes) -> bytes:
    state = blake2b(ad, key=key, digest_size=TAG_LENGTH, salt=nonce.to_bytes(8, "big"))
    state.update(len(ad).to_bytes(8, "big") + plaintext)
    return state.digest()

"""The two suites: which KEM, AEAD and hash go together, and the operations over them.

Everything above this module sees cryptography through :class:`Suite` alone, so that a test can
put a small and fast stand-in there, and randomness comes from outside.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from kex.errors import AuthenticationFailed, HandshakeFailed
from kex.hybrid_kem import (
    DRAWS,
    PRIVATE_SEED_LENGTH,
    HybridKem,
    NoScalar,
    mlkem768_x25519,
    mlkem1024_p384,
)
from kex.mlkem import Encapsulation, MlKemProvider, OpenSslMlKem
from kex.secret import Secret

AEAD_KEY_LENGTH: Final = 32
TAG_LENGTH: Final = 16
MAX_NONCE: Final = 2**64 - 2  # Noise rev. 34 §5.1 reserves 2^64-1

RandomSource = Callable[[int], bytes]


class PrivateKey(Protocol):
    """A long-term or ephemeral KEM private key, loaded once; equal if and only if its seed is."""

    @property
    def seed(self) -> Secret:
        """The 32 bytes that it is made of."""

    @property
    def public_key(self) -> bytes:
        """``Suite.public_key_length`` bytes."""

    def decapsulate(self, ciphertext: bytes) -> bytes:
        """The 32-byte shared secret; PacketRejected on a malformed ciphertext."""


@dataclass(frozen=True, slots=True)
class _Definition:
    protocol_name: bytes
    kem: Callable[[MlKemProvider], HybridKem]
    aead: type[ChaCha20Poly1305] | type[AESGCM]
    nonce_order: Literal["little", "big"]
    hash_name: str
    biscuit_length: int


_DEFINITIONS: Final = {
    1: _Definition(
        protocol_name=b"Noise_pqIK_MLKEM768X25519_ChaChaPoly_SHA256",
        kem=mlkem768_x25519,
        aead=ChaCha20Poly1305,
        nonce_order="little",  # Noise rev. 34 §12.3
        hash_name="sha256",
        biscuit_length=128,
    ),
    2: _Definition(
        protocol_name=b"Noise_pqIK_MLKEM1024P384_AESGCM_SHA384",
        kem=mlkem1024_p384,
        aead=AESGCM,
        nonce_order="big",  # Noise rev. 34 §12.4
        hash_name="sha384",
        biscuit_length=160,
    ),
}
SUITE_NUMBERS: Final[tuple[int, ...]] = tuple(_DEFINITIONS)


class Suite:
    """One suite with its source of randomness. All lengths in bytes; never changes once made.

    A stand-in for tests overrides the methods and sets the lengths that it likes: nothing above
    uses more than what is public here.
    """

    number: int
    protocol_name: bytes
    public_key_length: int
    ciphertext_length: int
    hash_length: int
    message1_length: int
    message2_length: int
    biscuit_length: int

    def __init__(
        self, number: int, *, random: RandomSource, ml_kem: MlKemProvider | None = None
    ) -> None:
        """ValueError on an unknown number; ``random(n)`` gives n unpredictable bytes."""
        if number not in _DEFINITIONS:
            known = ", ".join(map(str, SUITE_NUMBERS))
            raise ValueError(f"unknown suite {number}; the suites are {known}")
        definition = _DEFINITIONS[number]
        self._kem = definition.kem(ml_kem or OpenSslMlKem())
        self._random = random
        self._aead = definition.aead
        self._nonce_order = definition.nonce_order
        self._hash_name = definition.hash_name
        self._hash = getattr(hashlib, definition.hash_name)
        self.number = number
        self.protocol_name = definition.protocol_name
        self.hash_length = self._hash().digest_size
        self.biscuit_length = definition.biscuit_length
        self.public_key_length = self._kem.public_key_length
        self.ciphertext_length = self._kem.ciphertext_length
        self.set_message_lengths()

    def set_message_lengths(self) -> None:
        """From the lengths of key and ciphertext: pqIK with two empty payloads.

        Message 1 is ct, e, {s}, {}; message 2 is ct, {ct}, {}, where {x} has a tag of 16 bytes.
        """
        self.message1_length = self.ciphertext_length + 2 * self.public_key_length + 2 * TAG_LENGTH
        self.message2_length = 2 * self.ciphertext_length + 2 * TAG_LENGTH

    def __repr__(self) -> str:
        return f"<suite {self.number}: {self.protocol_name.decode()}>"

    def __copy__(self) -> Suite:
        return self

    def __deepcopy__(self, memo: object) -> Suite:
        return self

    # Randomness

    def random(self, length: int) -> bytes:
        """``length`` bytes of the injected source; ValueError if it gives another number."""
        value = self._random(length)
        if len(value) != length:
            raise ValueError(f"asked the random source for {length} bytes, got {len(value)}")
        return value

    # Hash, HMAC (RFC 2104), HKDF (RFC 5869)

    def hash(self, data: bytes) -> bytes:
        """``hash_length`` bytes."""
        digest: bytes = self._hash(data).digest()
        return digest

    def hmac(self, key: bytes, data: bytes) -> bytes:
        """``hash_length`` bytes."""
        return hmac.digest(key, data, self._hash_name)

    def hkdf_extract(self, salt: bytes, ikm: bytes) -> bytes:
        """The pseudorandom key, ``hash_length`` bytes (RFC 5869 §2.2)."""
        return self.hmac(salt, ikm)

    def hkdf_expand(self, prk: bytes, info: bytes, length: int) -> bytes:
        """``length`` bytes, at most 255 times ``hash_length`` (RFC 5869 §2.3)."""
        if not 0 < length <= 255 * self.hash_length:
            raise ValueError(f"HKDF cannot give {length} bytes")
        block = output = self.hmac(prk, info + b"\x01")
        while len(output) < length:
            block = self.hmac(prk, block + info + bytes([len(output) // self.hash_length + 1]))
            output += block
        return output[:length]

    def noise_hkdf(self, ck: bytes, ikm: bytes, outputs: int) -> tuple[bytes, ...]:
        """HKDF of Noise rev. 34 §4.3: two or three outputs of ``hash_length`` bytes each."""
        if outputs not in (2, 3):
            raise ValueError("Noise's HKDF has two or three outputs")
        temp_key = self.hmac(ck, ikm)
        output1 = self.hmac(temp_key, b"\x01")
        output2 = self.hmac(temp_key, output1 + b"\x02")
        if outputs == 2:
            return output1, output2
        return output1, output2, self.hmac(temp_key, output2 + b"\x03")

    # AEAD

    def seal(self, key: bytes, nonce: int, ad: bytes, plaintext: bytes) -> bytes:
        """Ciphertext and 16-byte tag under a 32-byte key; nonce at most 2^64-2, used once."""
        if not 0 <= nonce <= MAX_NONCE:
            raise ValueError("AEAD nonce out of range")
        wire_nonce = b"\0\0\0\0" + nonce.to_bytes(8, self._nonce_order)
        return self._aead(key).encrypt(wire_nonce, plaintext, ad)

    def open(self, key: bytes, nonce: int, ad: bytes, ciphertext: bytes) -> bytes:
        """The plaintext; AuthenticationFailed unless key, nonce, ad and every byte fit."""
        if not 0 <= nonce <= MAX_NONCE:
            # A nonce may have come off the wire (biscuit number): nothing was sealed under this one
            raise AuthenticationFailed("AEAD nonce out of range")
        wire_nonce = b"\0\0\0\0" + nonce.to_bytes(8, self._nonce_order)
        try:
            return self._aead(key).decrypt(wire_nonce, ciphertext, ad)
        except InvalidTag:
            raise AuthenticationFailed from None

    # KEM

    def generate_private_key(self) -> PrivateKey:
        """A key pair of a fresh 32-byte seed; one that makes no scalar of P-384 is drawn again.
        HandshakeFailed where the random source never gives another."""
        for _ in range(DRAWS):
            try:
                return self.private_key(self.random(PRIVATE_SEED_LENGTH))
            except NoScalar:
                continue
        raise HandshakeFailed("the random generator gave no private key")

    def private_key(self, seed: bytes) -> PrivateKey:
        """The key pair of a 32-byte seed; ValueError on another length."""
        return self._kem.private_key(seed)

    def encapsulate(self, ek: bytes) -> Encapsulation:
        """A fresh 32-byte secret for the holder of ``ek``; PacketRejected if ``ek`` is unsound."""
        return self._kem.encapsulate(ek, random=self.random)

    def check_public_key(self, ek: bytes) -> None:
        """Length, FIPS 203 §7.2 modulus check, group element; raises PacketRejected."""
        self._kem.check_public_key(ek)


def suite(number: int, *, random: RandomSource, ml_kem: MlKemProvider | None = None) -> Suite:
    """The suite of this number over a source of randomness; ValueError on an unknown number."""
    return Suite(number, random=random, ml_kem=ml_kem)

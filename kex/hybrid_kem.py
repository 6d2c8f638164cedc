"""Hybrid KEMs of draft-irtf-cfrg-concrete-hybrid-kems: ML-KEM and a Diffie-Hellman group.

A secret comes out that stays secret while either of the two is unbroken:
``SHA3-256(ss_PQ ‖ ss_T ‖ ct_T ‖ ek_T ‖ label)``. Public keys and ciphertexts are the ML-KEM part
followed by the group part; a private key is a 32-byte seed, expanded by SHAKE256.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from cryptography.hazmat.primitives.asymmetric import ec, x25519

from kex import labels
from kex.errors import HandshakeFailed, PacketRejected
from kex.mlkem import (
    ML_KEM_768,
    ML_KEM_1024,
    SEED_LENGTH,
    Encapsulation,
    MlKemParameterSet,
    MlKemPrivateKey,
    MlKemProvider,
    OpenSslMlKem,
)
from kex.secret import Secret

PRIVATE_SEED_LENGTH: Final = 32
DRAWS: Final = 4
"""How often random bytes are drawn where they make no scalar: one draw fails once in 2^194 with
P-384, so that a generator that fails all of them is broken."""


class NoScalar(ValueError):
    """Random bytes of which no private key of the group can be made: others have to be drawn."""


class GroupPrivateKey(Protocol):
    """A Diffie-Hellman private key, loaded once."""

    @property
    def public_key(self) -> bytes:
        """The encoded public element."""

    def exchange(self, element: bytes) -> bytes:
        """The shared x-coordinate; PacketRejected on a bad element or an all-zero result."""


class Group(Protocol):
    """A Diffie-Hellman group; lengths in bytes."""

    @property
    def name(self) -> str:
        """As in the name of the KEM."""

    @property
    def element_length(self) -> int:
        """Of an encoded element."""

    @property
    def seed_length(self) -> int:
        """Of the random bytes that a private key is made of (Nseed of the draft)."""

    def private_key(self, seed: bytes) -> GroupPrivateKey:
        """The key of ``seed_length`` bytes; NoScalar where none can be made of them."""

    def check_element(self, element: bytes) -> None:
        """Raises PacketRejected for what no honest key holder sends."""


# The u-coordinates of the points of small order (RFC 7748 §6.1 leaves the check to the protocol),
# reduced and not; bit 255 is masked before comparing, as X25519 itself does. With each of them
# the result is all zeros, whatever the private key.
_P25519: Final = 2**255 - 19
_LOW_ORDER: Final = frozenset(
    value.to_bytes(32, "little")
    for value in (
        0,
        1,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
        _P25519 - 1,
        _P25519,
        _P25519 + 1,
    )
)


class _X25519PrivateKey:
    __slots__ = ("_key", "public_key")

    def __init__(self, seed: bytes) -> None:
        self._key = x25519.X25519PrivateKey.from_private_bytes(seed)
        self.public_key = self._key.public_key().public_bytes_raw()

    def exchange(self, element: bytes) -> bytes:
        if len(element) != X25519.element_length:
            raise PacketRejected("X25519 element has a wrong length")
        try:
            return self._key.exchange(x25519.X25519PublicKey.from_public_bytes(element))
        except ValueError as error:  # the library raises it for a result of all zeros
            raise PacketRejected("X25519 result is all zeros") from error


@dataclass(frozen=True, slots=True)
class _X25519Group:
    name: str = "X25519"
    element_length: int = 32
    seed_length: int = 32

    def private_key(self, seed: bytes) -> GroupPrivateKey:
        return _X25519PrivateKey(seed)

    def check_element(self, element: bytes) -> None:
        if len(element) != self.element_length:
            raise PacketRejected("X25519 element has a wrong length")
        if element[:31] + bytes([element[31] & 0x7F]) in _LOW_ORDER:
            raise PacketRejected("X25519 element has a small order")


class _NistPrivateKey:
    __slots__ = ("_group", "_key", "public_key")

    def __init__(self, group: NistGroup, scalar: int) -> None:
        self._group = group
        self._key = ec.derive_private_key(scalar, group.curve)
        numbers = self._key.public_key().public_numbers()
        size = group.scalar_length
        self.public_key = (
            b"\x04" + numbers.x.to_bytes(size, "big") + numbers.y.to_bytes(size, "big")
        )

    def exchange(self, element: bytes) -> bytes:
        return self._key.exchange(ec.ECDH(), self._group.load_untrusted(element))


@dataclass(frozen=True, slots=True)
class NistGroup:
    """A curve of SP 800-186 with uncompressed points (SEC 1 §2.3.3), ``order`` its group order."""

    name: str
    curve: ec.EllipticCurve
    order: int
    scalar_length: int
    seed_length: int

    @property
    def element_length(self) -> int:
        return 1 + 2 * self.scalar_length

    def private_key(self, seed: bytes) -> GroupPrivateKey:
        return _NistPrivateKey(self, self._scalar(seed))

    def check_element(self, element: bytes) -> None:
        self.load_untrusted(element)

    def load_untrusted(self, element: bytes) -> ec.EllipticCurvePublicKey:
        """The point; PacketRejected unless it is uncompressed, on the curve, and not infinity."""
        if len(element) != self.element_length or element[0] != 0x04:
            raise PacketRejected(f"{self.name} element is not an uncompressed point")
        try:
            # The library checks the curve equation; the curves have cofactor 1
            return ec.EllipticCurvePublicKey.from_encoded_point(self.curve, element)
        except ValueError as error:
            raise PacketRejected(f"{self.name} element is not on the curve") from error

    def _scalar(self, seed: bytes) -> int:
        """Rejection sampling of the draft (RandomScalar): the first window that is a scalar."""
        if len(seed) != self.seed_length:
            raise ValueError(f"a {self.name} seed has {self.seed_length} bytes, not {len(seed)}")
        for start in range(0, self.seed_length, self.scalar_length):
            scalar = int.from_bytes(seed[start : start + self.scalar_length], "big")
            if 0 < scalar < self.order:
                return scalar
        raise NoScalar(f"no {self.name} scalar in these random bytes")


X25519: Final = _X25519Group()
P384: Final = NistGroup(
    name="P-384",
    curve=ec.SECP384R1(),
    order=int(
        "ffffffffffffffffffffffffffffffffffffffffffffffff"
        "c7634d81f4372ddf581a0db248b0a77aecec196accc52973",
        16,
    ),
    scalar_length=48,
    seed_length=48,
)


class HybridPrivateKey:
    """A private key of a hybrid KEM: its 32-byte seed, and both parts loaded for fast use.

    Two are equal if and only if KEM and seed are.
    """

    __slots__ = ("_group_key", "_kem", "_ml_kem_key", "public_key", "seed")

    def __init__(
        self,
        kem: HybridKem,
        seed: Secret,
        *,
        ml_kem_key: MlKemPrivateKey,
        group_key: GroupPrivateKey,
    ) -> None:
        self.seed = seed
        self.public_key = ml_kem_key.public_key + group_key.public_key
        self._kem = kem
        self._ml_kem_key = ml_kem_key
        self._group_key = group_key

    def decapsulate(self, ciphertext: bytes) -> bytes:
        """The 32-byte shared secret.

        A tampered ML-KEM part gives another secret and no error (implicit rejection); a wrong
        length or a bad group element raises PacketRejected.
        """
        kem = self._kem
        if len(ciphertext) != kem.ciphertext_length:
            raise PacketRejected(f"{kem.name} ciphertext has a wrong length")
        split = kem.parameter_set.ciphertext_length
        ct_t = ciphertext[split:]
        ss_t = self._group_key.exchange(ct_t)
        ss_pq = self._ml_kem_key.decapsulate(ciphertext[:split])
        return kem.combine(ss_pq, ss_t, ct_t=ct_t, ek_t=self._group_key.public_key)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, HybridPrivateKey):
            return NotImplemented
        return self._kem.name == other._kem.name and self.seed == other.seed

    def __hash__(self) -> int:
        return hash((self._kem.name, self.seed))

    def __repr__(self) -> str:
        return f"<{self._kem.name} private key>"

    def __copy__(self) -> HybridPrivateKey:
        return self

    def __deepcopy__(self, memo: object) -> HybridPrivateKey:
        return self


@dataclass(frozen=True, slots=True)
class HybridKem:
    """One hybrid KEM over a provider of ML-KEM."""

    name: str
    parameter_set: MlKemParameterSet
    group: Group
    label: bytes
    ml_kem: MlKemProvider

    @property
    def public_key_length(self) -> int:
        """In bytes."""
        return self.parameter_set.encapsulation_key_length + self.group.element_length

    @property
    def ciphertext_length(self) -> int:
        """In bytes."""
        return self.parameter_set.ciphertext_length + self.group.element_length

    def private_key(self, seed: bytes) -> HybridPrivateKey:
        """The key pair of a 32-byte seed; ValueError on another length."""
        if len(seed) != PRIVATE_SEED_LENGTH:
            raise ValueError(f"a private key is {PRIVATE_SEED_LENGTH} bytes, not {len(seed)}")
        expanded = hashlib.shake_256(seed).digest(SEED_LENGTH + self.group.seed_length)
        return HybridPrivateKey(
            self,
            Secret(seed),
            ml_kem_key=self.ml_kem.private_key(self.parameter_set, expanded[:SEED_LENGTH]),
            group_key=self.group.private_key(expanded[SEED_LENGTH:]),
        )

    def encapsulate(self, ek: bytes, *, random: Callable[[int], bytes]) -> Encapsulation:
        """A fresh secret for the holder of ``ek``; PacketRejected if that is no sound key.

        ML-KEM's randomness is drawn first, by its provider, then the group's from ``random``:
        the order in which the draft splits the randomness of an encapsulation.
        """
        if len(ek) != self.public_key_length:
            raise PacketRejected(f"{self.name} public key has a wrong length")
        split = self.parameter_set.encapsulation_key_length
        ek_t = ek[split:]
        post_quantum = self.ml_kem.encapsulate(self.parameter_set, ek[:split])
        ephemeral = self._ephemeral(random)
        ct_t = ephemeral.public_key
        return Encapsulation(
            shared_secret=self.combine(
                post_quantum.shared_secret, ephemeral.exchange(ek_t), ct_t=ct_t, ek_t=ek_t
            ),
            ciphertext=post_quantum.ciphertext + ct_t,
        )

    def _ephemeral(self, random: Callable[[int], bytes]) -> GroupPrivateKey:
        for _ in range(DRAWS):
            try:
                return self.group.private_key(random(self.group.seed_length))
            except NoScalar:
                continue
        raise HandshakeFailed(f"the random generator gave no {self.group.name} scalar")

    def check_public_key(self, ek: bytes) -> None:
        """Length, ML-KEM modulus check (FIPS 203 §7.2) and group element; raises PacketRejected."""
        if len(ek) != self.public_key_length:
            raise PacketRejected(f"{self.name} public key has a wrong length")
        split = self.parameter_set.encapsulation_key_length
        self.group.check_element(ek[split:])
        self.ml_kem.check_encapsulation_key(self.parameter_set, ek[:split])

    def combine(self, ss_pq: bytes, ss_t: bytes, *, ct_t: bytes, ek_t: bytes) -> bytes:
        """The combiner of the draft: 32 bytes that depend on both secrets."""
        return hashlib.sha3_256(ss_pq + ss_t + ct_t + ek_t + self.label).digest()


def mlkem768_x25519(ml_kem: MlKemProvider | None = None) -> HybridKem:
    """MLKEM768-X25519, also known as X-Wing: public key 1216 bytes, ciphertext 1120."""
    return HybridKem(
        name="MLKEM768-X25519",
        parameter_set=ML_KEM_768,
        group=X25519,
        label=labels.KEM_MLKEM768_X25519,
        ml_kem=ml_kem or OpenSslMlKem(),
    )


def mlkem1024_p384(ml_kem: MlKemProvider | None = None) -> HybridKem:
    """MLKEM1024-P384: public key 1665 bytes, ciphertext 1665."""
    return HybridKem(
        name="MLKEM1024-P384",
        parameter_set=ML_KEM_1024,
        group=P384,
        label=labels.KEM_MLKEM1024_P384,
        ml_kem=ml_kem or OpenSslMlKem(),
    )

"""ML-KEM (FIPS 203): its sizes, what a provider of it offers, and the provider over OpenSSL."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Protocol

from cryptography.hazmat.primitives.asymmetric import mlkem

from kex.errors import PacketRejected

SEED_LENGTH: Final = 64  # d ‖ z, FIPS 203 §7.1
SHARED_SECRET_LENGTH: Final = 32


@dataclass(frozen=True, slots=True)
class MlKemParameterSet:
    """A parameter set of FIPS 203 §8; lengths in bytes (its table 3)."""

    name: str
    k: int
    encapsulation_key_length: int
    ciphertext_length: int


ML_KEM_768: Final = MlKemParameterSet(
    name="ML-KEM-768", k=3, encapsulation_key_length=1184, ciphertext_length=1088
)
ML_KEM_1024: Final = MlKemParameterSet(
    name="ML-KEM-1024", k=4, encapsulation_key_length=1568, ciphertext_length=1568
)


@dataclass(frozen=True, slots=True)
class Encapsulation:
    """What encapsulating gives: 32 secret bytes, and the ciphertext for the holder of the key."""

    shared_secret: bytes = field(repr=False)
    ciphertext: bytes


class MlKemPrivateKey(Protocol):
    """A decapsulation key, loaded once."""

    @property
    def public_key(self) -> bytes:
        """The encapsulation key."""

    def decapsulate(self, ciphertext: bytes) -> bytes:
        """The 32-byte shared secret.

        A tampered ciphertext of the right length gives a pseudorandom secret and no error
        (implicit rejection, FIPS 203 §6.3); one of another length raises PacketRejected.
        """


class MlKemProvider(Protocol):
    """An implementation of ML-KEM. It takes its encapsulation randomness from its own source."""

    @property
    def name(self) -> str:
        """For status output and logs."""

    def private_key(self, parameter_set: MlKemParameterSet, seed: bytes) -> MlKemPrivateKey:
        """The key of the 64-byte seed d ‖ z (FIPS 203 §7.1); ValueError on another length."""

    def encapsulate(self, parameter_set: MlKemParameterSet, ek: bytes) -> Encapsulation:
        """Encapsulate to ``ek``; PacketRejected where check_encapsulation_key would raise it."""

    def check_encapsulation_key(self, parameter_set: MlKemParameterSet, ek: bytes) -> None:
        """Length and modulus check of FIPS 203 §7.2; raises PacketRejected."""


_N: Final = 256
_Q: Final = 3329
_MATRIX_SEED_LENGTH: Final = 32  # ρ, the end of an encapsulation key (FIPS 203 §5.1)


def _lanes(value: int, k: int) -> int:
    """The value in each of the 24-bit lanes that two 12-bit coefficients take."""
    return int.from_bytes(value.to_bytes(3, "little") * (k * _N // 2), "little")


# By k: a coefficient alone in its lane; what lifts q to bit 12; bit 12
_LANES: Final = {k: (_lanes(0xFFF, k), _lanes(2**12 - _Q, k), _lanes(2**12, k)) for k in (3, 4)}


def check_encapsulation_key_untrusted(parameter_set: MlKemParameterSet, ek: bytes) -> None:
    """Length and modulus check of FIPS 203 §7.2; raises PacketRejected.

    All coefficients at once, as two whole numbers, the even ones and the odd ones: a fifth of what
    it costs to load the key. The data is public, so time need not be constant.
    """
    if len(ek) != parameter_set.encapsulation_key_length:
        raise PacketRejected("ML-KEM encapsulation key has a wrong length")
    mask, lift, carry = _LANES[parameter_set.k]
    packed = int.from_bytes(ek[:-_MATRIX_SEED_LENGTH], "little")
    if (((packed & mask) + lift) | ((packed >> 12 & mask) + lift)) & carry:
        raise PacketRejected("ML-KEM encapsulation key fails the modulus check")


_PRIVATE_KEYS: Final[
    dict[str, type[mlkem.MLKEM768PrivateKey] | type[mlkem.MLKEM1024PrivateKey]]
] = {
    ML_KEM_768.name: mlkem.MLKEM768PrivateKey,
    ML_KEM_1024.name: mlkem.MLKEM1024PrivateKey,
}
_PUBLIC_KEYS: Final[dict[str, type[mlkem.MLKEM768PublicKey] | type[mlkem.MLKEM1024PublicKey]]] = {
    ML_KEM_768.name: mlkem.MLKEM768PublicKey,
    ML_KEM_1024.name: mlkem.MLKEM1024PublicKey,
}


class _OpenSslPrivateKey:
    __slots__ = ("_ciphertext_length", "_key", "public_key")

    def __init__(
        self,
        key: mlkem.MLKEM768PrivateKey | mlkem.MLKEM1024PrivateKey,
        parameter_set: MlKemParameterSet,
    ) -> None:
        self._key = key
        self._ciphertext_length = parameter_set.ciphertext_length
        self.public_key = key.public_key().public_bytes_raw()

    def decapsulate(self, ciphertext: bytes) -> bytes:
        if len(ciphertext) != self._ciphertext_length:
            raise PacketRejected("ML-KEM ciphertext has a wrong length")
        return self._key.decapsulate(ciphertext)


class OpenSslMlKem:
    """ML-KEM of the OpenSSL that the ``cryptography`` package brings along."""

    name: Final = "openssl"

    def private_key(self, parameter_set: MlKemParameterSet, seed: bytes) -> MlKemPrivateKey:
        if len(seed) != SEED_LENGTH:
            raise ValueError(f"an ML-KEM seed has {SEED_LENGTH} bytes, not {len(seed)}")
        key = _PRIVATE_KEYS[parameter_set.name].from_seed_bytes(seed)
        return _OpenSslPrivateKey(key, parameter_set)

    def encapsulate(self, parameter_set: MlKemParameterSet, ek: bytes) -> Encapsulation:
        shared_secret, ciphertext = self._load_untrusted(parameter_set, ek).encapsulate()
        return Encapsulation(shared_secret=shared_secret, ciphertext=ciphertext)

    def check_encapsulation_key(self, parameter_set: MlKemParameterSet, ek: bytes) -> None:
        check_encapsulation_key_untrusted(parameter_set, ek)

    @staticmethod
    def _load_untrusted(
        parameter_set: MlKemParameterSet, ek: bytes
    ) -> mlkem.MLKEM768PublicKey | mlkem.MLKEM1024PublicKey:
        if len(ek) != parameter_set.encapsulation_key_length:
            raise PacketRejected("ML-KEM encapsulation key has a wrong length")
        try:
            # OpenSSL makes the modulus check of FIPS 203 §7.2 as it decodes; a test holds it to it
            return _PUBLIC_KEYS[parameter_set.name].from_public_bytes(ek)
        except ValueError as error:
            raise PacketRejected("ML-KEM encapsulation key fails the modulus check") from error

"""A second implementation of ML-KEM, and suites whose every output is decided by given bytes.

kyber-py is FIPS 203 in plain Python: slow, not constant-time, and independent of OpenSSL. It is
also the only way to give an encapsulation its randomness, which OpenSSL keeps to itself. Used by
tests and by whatever makes test vectors; never by the daemon.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric import ec
from kyber_py.ml_kem import (  # type: ignore[import-untyped]
    ML_KEM_768 as KYBER_768,
)
from kyber_py.ml_kem import (
    ML_KEM_1024 as KYBER_1024,
)

from kex.errors import PacketRejected
from kex.hybrid_kem import HybridKem, NistGroup
from kex.mlkem import (
    ML_KEM_768,
    ML_KEM_1024,
    Encapsulation,
    MlKemParameterSet,
    MlKemPrivateKey,
    MlKemProvider,
    OpenSslMlKem,
)
from kex.suites import RandomSource, Suite, suite

_KYBER = {ML_KEM_768.name: KYBER_768, ML_KEM_1024.name: KYBER_1024}


class GivenBytes:
    """A source of randomness that hands out given bytes in order, and no more."""

    def __init__(self, *parts: bytes) -> None:
        self._rest = b"".join(parts)

    def __call__(self, length: int) -> bytes:
        if length > len(self._rest):
            raise ValueError(f"asked for {length} bytes, {len(self._rest)} are left")
        value, self._rest = self._rest[:length], self._rest[length:]
        return value

    def __len__(self) -> int:
        return len(self._rest)


class SeededBytes:
    """An endless source that depends on its seed alone: SHAKE256(seed ‖ 8-byte call number)."""

    def __init__(self, seed: bytes) -> None:
        self._seed = seed
        self._calls = 0

    def __call__(self, length: int) -> bytes:
        block = hashlib.shake_256(self._seed + self._calls.to_bytes(8, "big"))
        self._calls += 1
        return block.digest(length)


class _KyberPrivateKey:
    def __init__(self, parameter_set: MlKemParameterSet, seed: bytes) -> None:
        self._kyber = _KYBER[parameter_set.name]
        self._ciphertext_length = parameter_set.ciphertext_length
        ek, self._dk = self._kyber.key_derive(seed)
        self.public_key = bytes(ek)

    def decapsulate(self, ciphertext: bytes) -> bytes:
        if len(ciphertext) != self._ciphertext_length:
            raise PacketRejected("ML-KEM ciphertext has a wrong length")
        return bytes(self._kyber.decaps(self._dk, ciphertext))


class KyberPyMlKem:
    """All of ML-KEM by kyber-py; ``random(32)`` is the m of an encapsulation (FIPS 203 §6.2)."""

    name = "kyber-py"

    def __init__(self, random: Callable[[int], bytes]) -> None:
        self._random = random

    def private_key(self, parameter_set: MlKemParameterSet, seed: bytes) -> MlKemPrivateKey:
        return _KyberPrivateKey(parameter_set, seed)

    def encapsulate(self, parameter_set: MlKemParameterSet, ek: bytes) -> Encapsulation:
        try:
            secret, ciphertext = _KYBER[parameter_set.name]._encaps_internal(ek, self._random(32))
        except ValueError as error:
            raise PacketRejected(str(error)) from error
        return Encapsulation(shared_secret=bytes(secret), ciphertext=bytes(ciphertext))

    def check_encapsulation_key(self, parameter_set: MlKemParameterSet, ek: bytes) -> None:
        try:
            _KYBER[parameter_set.name]._encaps_internal(ek, bytes(32))
        except ValueError as error:
            raise PacketRejected(str(error)) from error


class DeterministicMlKem(OpenSslMlKem):
    """OpenSSL for keys and decapsulation, kyber-py for encapsulation with given randomness."""

    def __init__(self, random: Callable[[int], bytes]) -> None:
        self._kyber = KyberPyMlKem(random)

    def encapsulate(self, parameter_set: MlKemParameterSet, ek: bytes) -> Encapsulation:
        return self._kyber.encapsulate(parameter_set, ek)


def deterministic_suite(number: int, random: RandomSource) -> Suite:
    """A suite that takes all its randomness from ``random``.

    A key pair takes 32 bytes; an encapsulation 32 for ML-KEM and then 32 for X25519 or 48 for
    P-384, the order in which published vectors give it.
    """
    return suite(number, random=random, ml_kem=DeterministicMlKem(random))


P256 = NistGroup(
    name="P-256",
    curve=ec.SECP256R1(),
    order=int("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551", 16),
    scalar_length=32,
    seed_length=96,
)


def mlkem768_p256(ml_kem: MlKemProvider) -> HybridKem:
    """The third KEM of the draft, in no suite: it exercises the rejection of scalars."""
    return HybridKem(
        name="MLKEM768-P256",
        parameter_set=ML_KEM_768,
        group=P256,
        label=b"MLKEM768-P256",
        ml_kem=ml_kem,
    )

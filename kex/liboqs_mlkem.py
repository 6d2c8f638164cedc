"""ML-KEM by liboqs, through the wrapper that its project publishes (liboqs-python).

This module imports neither: whoever wants the provider loads the library and hands the wrapper's
class in. That takes an environment, files and a linker, which kex does not know.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

from kex.errors import PacketRejected
from kex.mlkem import (
    ML_KEM_768,
    ML_KEM_1024,
    SEED_LENGTH,
    Encapsulation,
    MlKemParameterSet,
    MlKemPrivateKey,
    check_encapsulation_key_untrusted,
)


class KeyEncapsulation(Protocol):
    """What is used of ``oqs.KeyEncapsulation``: a mechanism, and the last key made with it."""

    secret_key: Any
    """The expanded decapsulation key (FIPS 203 §6.1) in C's memory."""

    def generate_keypair_seed(self, seed: bytes) -> bytes:
        """The encapsulation key of a 64-byte seed; ``secret_key`` is a new buffer afterwards."""

    def encap_secret(self, public_key: bytes) -> tuple[bytes, bytes]:
        """Ciphertext and shared secret, in this order."""

    def decap_secret(self, ciphertext: bytes) -> bytes:
        """The shared secret, under ``secret_key``."""


class _LiboqsPrivateKey:
    __slots__ = ("_ciphertext_length", "_mechanism", "_secret_key", "public_key")

    def __init__(
        self, mechanism: KeyEncapsulation, parameter_set: MlKemParameterSet, seed: bytes
    ) -> None:
        self.public_key = mechanism.generate_keypair_seed(seed)
        self._mechanism = mechanism
        self._secret_key = mechanism.secret_key
        self._ciphertext_length = parameter_set.ciphertext_length

    def decapsulate(self, ciphertext: bytes) -> bytes:
        if len(ciphertext) != self._ciphertext_length:
            raise PacketRejected("ML-KEM ciphertext has a wrong length")
        self._mechanism.secret_key = self._secret_key
        return self._mechanism.decap_secret(ciphertext)


class LiboqsMlKem:
    """ML-KEM of liboqs. One object of the wrapper serves all keys of a parameter set.

    An object for each key would have to be freed by hand, and there is no moment for that. The
    price: it must not be used by two threads at once, for the key is set just before it is used.
    """

    name: Final = "liboqs"

    def __init__(self, mechanism: Callable[[str], KeyEncapsulation]) -> None:
        """``mechanism`` is the wrapper's class; what it raises for an unknown name passes."""
        self._mechanisms = {
            parameter_set.name: mechanism(parameter_set.name)
            for parameter_set in (ML_KEM_768, ML_KEM_1024)
        }

    def private_key(self, parameter_set: MlKemParameterSet, seed: bytes) -> MlKemPrivateKey:
        if len(seed) != SEED_LENGTH:
            raise ValueError(f"an ML-KEM seed has {SEED_LENGTH} bytes, not {len(seed)}")
        return _LiboqsPrivateKey(self._mechanisms[parameter_set.name], parameter_set, seed)

    def encapsulate(self, parameter_set: MlKemParameterSet, ek: bytes) -> Encapsulation:
        self.check_encapsulation_key(parameter_set, ek)
        ciphertext, shared_secret = self._mechanisms[parameter_set.name].encap_secret(ek)
        return Encapsulation(shared_secret=shared_secret, ciphertext=ciphertext)

    def check_encapsulation_key(self, parameter_set: MlKemParameterSet, ek: bytes) -> None:
        # Not left to the library: only its newer versions check, and only as they encapsulate
        check_encapsulation_key_untrusted(parameter_set, ek)

"""Each implementation of ML-KEM understands every other, alone and in whole exchanges.

OpenSSL's, liboqs's, and kyber-py as the third that is neither.
"""

from __future__ import annotations

import itertools
import os
from typing import Any

import pytest

from kex.errors import PacketRejected
from kex.identity import Identity
from kex.liboqs_mlkem import LiboqsMlKem
from kex.mlkem import ML_KEM_768, ML_KEM_1024, MlKemParameterSet, MlKemProvider, OpenSslMlKem
from kex.suites import suite
from tests.kex.harness import NAMES, SUITES, finish, identity, pair, run_exchange
from tests.kex.reference import KyberPyMlKem, SeededBytes
from tests.kex.test_hybrid_kem import Q, with_coefficient
from tests.liboqs import liboqs

PROVIDERS = ("openssl", "liboqs", "kyber-py")
PAIRS = pytest.mark.parametrize(("one", "other"), [*itertools.product(PROVIDERS, PROVIDERS)])
PARAMETER_SETS = pytest.mark.parametrize(
    "parameters", [ML_KEM_768, ML_KEM_1024], ids=lambda parameters: parameters.name
)


def provider(name: str) -> MlKemProvider:
    if name == "liboqs":
        return liboqs()
    return OpenSslMlKem() if name == "openssl" else KyberPyMlKem(os.urandom)


@PARAMETER_SETS
@PAIRS
def test_one_decapsulates_what_the_other_encapsulated(
    one: str, other: str, parameters: MlKemParameterSet
) -> None:
    seed = os.urandom(64)
    holder, sender = provider(one), provider(other)
    key, twin = holder.private_key(parameters, seed), sender.private_key(parameters, seed)
    assert key.public_key == twin.public_key
    assert len(key.public_key) == parameters.encapsulation_key_length
    sent = sender.encapsulate(parameters, key.public_key)
    assert len(sent.ciphertext) == parameters.ciphertext_length
    assert key.decapsulate(sent.ciphertext) == sent.shared_secret

    spoiled = bytes([sent.ciphertext[0] ^ 1]) + sent.ciphertext[1:]
    # Implicit rejection gives a defined secret, J(z ‖ c): both must have the same
    assert key.decapsulate(spoiled) == twin.decapsulate(spoiled)
    assert key.decapsulate(spoiled) != sent.shared_secret
    assert key.decapsulate(sent.ciphertext) == sent.shared_secret


@pytest.mark.parametrize("number", SUITES)
@PAIRS
def test_whole_exchanges(one: str, other: str, number: int) -> None:
    network = pair(
        number,
        ends={
            name: _end(number, name, kind) for name, kind in zip(NAMES, (one, other), strict=False)
        },
    )
    first = run_exchange(network, "left", "right")
    assert run_exchange(network, "right", "left") != first
    finish(network)


def _end(number: int, name: str, kind: str) -> dict[str, Any]:
    """A node whose every key computes with this provider, its identity's included."""
    random = SeededBytes(f"{kind} {name}".encode())
    suites = {n: suite(n, random=random, ml_kem=provider(kind)) for n in SUITES}
    seed = identity(number, name).private_key.seed.expose()
    own = Identity(suites[number], suites[number].private_key(seed))
    assert own.fingerprint == identity(number, name).fingerprint
    return {"suites": suites, "identities": (own,)}


@PARAMETER_SETS
def test_liboqs_keys_do_not_get_into_each_others_way(parameters: MlKemParameterSet) -> None:
    """They share one object of the wrapper."""
    ml_kem = liboqs()
    keys = [ml_kem.private_key(parameters, os.urandom(64)) for _ in range(8)]
    sent = [ml_kem.encapsulate(parameters, key.public_key) for key in keys]
    for key, encapsulation in reversed([*zip(keys, sent, strict=True)]):
        assert key.decapsulate(encapsulation.ciphertext) == encapsulation.shared_secret


class _Untouched:
    """In the place of liboqs, where it must not even be asked."""

    secret_key = None

    def generate_keypair_seed(self, seed: bytes) -> bytes:
        raise AssertionError("not reached")

    def encap_secret(self, public_key: bytes) -> tuple[bytes, bytes]:
        raise AssertionError("not reached")

    def decap_secret(self, ciphertext: bytes) -> bytes:
        raise AssertionError("not reached")


@PARAMETER_SETS
def test_liboqs_never_sees_an_unsound_key(parameters: MlKemParameterSet) -> None:
    """The modulus check is our own: an older liboqs has none."""
    ml_kem = LiboqsMlKem(lambda _: _Untouched())
    ek = OpenSslMlKem().private_key(parameters, bytes(64)).public_key
    for index in range(256 * parameters.k):
        with pytest.raises(PacketRejected):
            ml_kem.encapsulate(parameters, with_coefficient(ek, index, Q))
        ml_kem.check_encapsulation_key(parameters, with_coefficient(ek, index, Q - 1))
    for value in range(Q, 4096):
        with pytest.raises(PacketRejected):
            ml_kem.encapsulate(
                parameters, with_coefficient(ek, value % (256 * parameters.k), value)
            )
    for length in (0, len(ek) - 1, len(ek) + 1):
        with pytest.raises(PacketRejected):
            ml_kem.encapsulate(parameters, bytes(length))
    # The end is ρ, any 32 bytes
    ml_kem.check_encapsulation_key(parameters, ek[:-32] + b"\xff" * 32)


@PARAMETER_SETS
@pytest.mark.parametrize("name", PROVIDERS)
def test_wrong_lengths(name: str, parameters: MlKemParameterSet) -> None:
    ml_kem = provider(name)
    if name != "kyber-py":
        with pytest.raises(ValueError, match="64 bytes"):
            ml_kem.private_key(parameters, bytes(63))
    key = ml_kem.private_key(parameters, bytes(64))
    for length in (0, parameters.ciphertext_length - 1, parameters.ciphertext_length + 1):
        with pytest.raises(PacketRejected):
            key.decapsulate(bytes(length))

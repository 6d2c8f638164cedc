"""The hybrid KEMs against published vectors, and ML-KEM by OpenSSL against kyber-py."""

from __future__ import annotations

import copy
import os
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from kex.errors import HandshakeFailed, PacketRejected
from kex.hybrid_kem import P384, HybridKem, mlkem768_x25519, mlkem1024_p384
from kex.mlkem import ML_KEM_768, ML_KEM_1024, MlKemParameterSet, MlKemProvider, OpenSslMlKem
from tests.kex.reference import DeterministicMlKem, GivenBytes, KyberPyMlKem, mlkem768_p256
from tests.kex.vectors import HYBRID_KEM

KEMS = {
    "MLKEM768-X25519": mlkem768_x25519,
    "MLKEM1024-P384": mlkem1024_p384,
    "MLKEM768-P256": mlkem768_p256,
}
PARAMETER_SETS = pytest.mark.parametrize(
    "parameters", [ML_KEM_768, ML_KEM_1024], ids=lambda parameters: parameters.name
)
VECTORS = pytest.mark.parametrize(
    "vector", HYBRID_KEM, ids=[f"{v['kem']}-{i}" for i, v in enumerate(HYBRID_KEM)]
)
Q = 3329
OPENSSL = OpenSslMlKem()
X_WING = mlkem768_x25519()
P384_KEM = mlkem1024_p384()
X_WING_KEY = X_WING.private_key(bytes(range(32)))
P384_KEY = P384_KEM.private_key(bytes(range(32)))


@VECTORS
@pytest.mark.parametrize("provider", ["openssl", "kyber-py"])
def test_published_vectors(vector: dict[str, Any], provider: str) -> None:
    seed, public_key, ciphertext, shared_secret, randomness = (
        bytes.fromhex(vector[key])
        for key in (
            "private_key_seed",
            "public_key",
            "ciphertext",
            "shared_secret",
            "encaps_randomness",
        )
    )
    random = GivenBytes(randomness)
    ml_kem: MlKemProvider = (
        DeterministicMlKem(random) if provider == "openssl" else KyberPyMlKem(random)
    )
    kem = KEMS[vector["kem"]](ml_kem)

    private_key = kem.private_key(seed)
    assert private_key.public_key == public_key
    assert len(public_key) == kem.public_key_length
    kem.check_public_key(public_key)

    encapsulation = kem.encapsulate(public_key, random=random)
    assert encapsulation.ciphertext == ciphertext
    assert encapsulation.shared_secret == shared_secret
    assert len(random) == 0

    assert len(ciphertext) == kem.ciphertext_length
    assert private_key.decapsulate(ciphertext) == shared_secret


def test_every_kem_has_vectors() -> None:
    assert {vector["kem"] for vector in HYBRID_KEM} == set(KEMS)


@PARAMETER_SETS
def test_openssl_and_kyber_py_are_the_same_ml_kem(parameters: MlKemParameterSet) -> None:
    seed = os.urandom(64)
    kyber = KyberPyMlKem(os.urandom)
    ours, theirs = OPENSSL.private_key(parameters, seed), kyber.private_key(parameters, seed)
    assert ours.public_key == theirs.public_key
    for provider in (OPENSSL, kyber):
        encapsulation = provider.encapsulate(parameters, ours.public_key)
        assert ours.decapsulate(encapsulation.ciphertext) == encapsulation.shared_secret
        assert theirs.decapsulate(encapsulation.ciphertext) == encapsulation.shared_secret
        spoiled = bytes([encapsulation.ciphertext[0] ^ 1]) + encapsulation.ciphertext[1:]
        # The secret of an implicit rejection is defined too: J(z ‖ c)
        assert ours.decapsulate(spoiled) == theirs.decapsulate(spoiled)
        assert ours.decapsulate(spoiled) != encapsulation.shared_secret


def with_coefficient(ek: bytes, index: int, value: int) -> bytes:
    """``ek`` with its 12-bit coefficient of this index (ByteEncode12, FIPS 203 §4.2.1) replaced."""
    pair = index // 2 * 3
    low = ek[pair] | (ek[pair + 1] & 0x0F) << 8
    high = ek[pair + 1] >> 4 | ek[pair + 2] << 4
    low, high = (value, high) if index % 2 == 0 else (low, value)
    return ek[:pair] + (low | high << 12).to_bytes(3, "little") + ek[pair + 3 :]


@PARAMETER_SETS
def test_every_unreduced_coefficient_is_refused(parameters: MlKemParameterSet) -> None:
    ek = OPENSSL.private_key(parameters, bytes(64)).public_key
    for index in range(256 * parameters.k):
        with pytest.raises(PacketRejected):
            OPENSSL.check_encapsulation_key(parameters, with_coefficient(ek, index, Q))
        OPENSSL.check_encapsulation_key(parameters, with_coefficient(ek, index, Q - 1))
    for value in range(Q, 4096):
        bad = with_coefficient(ek, value % (256 * parameters.k), value)
        with pytest.raises(PacketRejected):
            OPENSSL.check_encapsulation_key(parameters, bad)
        with pytest.raises(PacketRejected):
            OPENSSL.encapsulate(parameters, bad)


@PARAMETER_SETS
@pytest.mark.parametrize("index", [0, 1, 767])
@pytest.mark.parametrize("value", [Q, 4095])
def test_kyber_py_refuses_the_same_keys(
    parameters: MlKemParameterSet, index: int, value: int
) -> None:
    ek = OPENSSL.private_key(parameters, bytes(64)).public_key
    with pytest.raises(PacketRejected):
        KyberPyMlKem(os.urandom).check_encapsulation_key(
            parameters, with_coefficient(ek, index, value)
        )


@PARAMETER_SETS
@pytest.mark.parametrize("change", [-1, 1])
def test_wrong_lengths_of_ml_kem(parameters: MlKemParameterSet, change: int) -> None:
    with pytest.raises(PacketRejected):
        OPENSSL.check_encapsulation_key(
            parameters, bytes(parameters.encapsulation_key_length + change)
        )
    with pytest.raises(PacketRejected):
        OPENSSL.encapsulate(parameters, bytes(parameters.encapsulation_key_length + change))
    key = OPENSSL.private_key(parameters, bytes(64))
    with pytest.raises(PacketRejected):
        key.decapsulate(bytes(parameters.ciphertext_length + change))
    with pytest.raises(ValueError, match="64 bytes"):
        OPENSSL.private_key(parameters, bytes(64 + change))


@pytest.mark.parametrize("kem", [X_WING, P384_KEM], ids=lambda kem: kem.name)
@pytest.mark.parametrize("length", [0, 1, -1, "+1", "twice"])
def test_wrong_lengths_of_hybrids(kem: HybridKem, length: int | str) -> None:
    key = kem.private_key(bytes(32))
    encapsulation = kem.encapsulate(key.public_key, random=os.urandom)

    def cut(value: bytes) -> bytes:
        if isinstance(length, int):
            return value[:length]
        return value + (b"\0" if length == "+1" else value)

    with pytest.raises(PacketRejected):
        kem.check_public_key(cut(key.public_key))
    with pytest.raises(PacketRejected):
        kem.encapsulate(cut(key.public_key), random=os.urandom)
    with pytest.raises(PacketRejected):
        key.decapsulate(cut(encapsulation.ciphertext))
    with pytest.raises(ValueError, match="32 bytes"):
        kem.private_key(bytes(33))
    assert key.decapsulate(encapsulation.ciphertext) == encapsulation.shared_secret


@settings(deadline=None)
@given(
    kem_key=st.sampled_from([(X_WING, X_WING_KEY), (P384_KEM, P384_KEY)]),
    data=st.data(),
)
def test_a_tampered_ml_kem_part_gives_another_secret(kem_key: Any, data: st.DataObject) -> None:
    kem, key = kem_key
    encapsulation = kem.encapsulate(key.public_key, random=os.urandom)
    bit = data.draw(st.integers(0, 8 * kem.parameter_set.ciphertext_length - 1))
    spoiled = bytearray(encapsulation.ciphertext)
    spoiled[bit // 8] ^= 1 << bit % 8
    secret = key.decapsulate(bytes(spoiled))
    assert len(secret) == 32
    assert secret != encapsulation.shared_secret
    assert key.decapsulate(bytes(spoiled)) == secret
    assert key.decapsulate(encapsulation.ciphertext) == encapsulation.shared_secret


# Points of small order, as https://cr.yp.to/ecdh.html lists them, each with bit 255 clear
LOW_ORDER = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
]


@pytest.mark.parametrize("element", LOW_ORDER)
@pytest.mark.parametrize("top_bit", [0, 0x80])
def test_x25519_points_of_small_order_are_refused(element: str, top_bit: int) -> None:
    point = bytearray.fromhex(element)
    point[31] |= top_bit
    ek = X_WING_KEY.public_key[:-32] + point
    with pytest.raises(PacketRejected):
        X_WING.check_public_key(ek)
    with pytest.raises(PacketRejected):
        X_WING.encapsulate(ek, random=os.urandom)
    ciphertext = X_WING.encapsulate(X_WING_KEY.public_key, random=os.urandom).ciphertext
    with pytest.raises(PacketRejected):
        X_WING_KEY.decapsulate(ciphertext[:-32] + bytes(point))


def bad_p384_points() -> dict[str, bytes]:
    good = P384_KEY.public_key[-97:]
    point = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP384R1(), good)
    compressed = point.public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    field = 2**384 - 2**128 - 2**96 + 2**32 - 1
    hybrid = bytes([6 + (good[-1] & 1)])
    return {
        "off the curve": good[:-1] + bytes([good[-1] ^ 1]),
        "zero": b"\x04" + bytes(96),
        "infinity, padded": bytes(97),
        "compressed, padded": compressed + bytes(97 - len(compressed)),
        "hybrid form": hybrid + good[1:],
        "x not reduced": b"\x04" + field.to_bytes(48, "big") + good[49:],
        "y not reduced": good[:49] + (2**384 - 1).to_bytes(48, "big"),
    }


@pytest.mark.parametrize("name", bad_p384_points())
def test_bad_p384_points_are_refused(name: str) -> None:
    point = bad_p384_points()[name]
    with pytest.raises(PacketRejected):
        P384_KEM.check_public_key(P384_KEY.public_key[:-97] + point)
    with pytest.raises(PacketRejected):
        P384_KEM.encapsulate(P384_KEY.public_key[:-97] + point, random=os.urandom)
    good = P384_KEM.encapsulate(P384_KEY.public_key, random=os.urandom)
    with pytest.raises(PacketRejected):
        P384_KEY.decapsulate(good.ciphertext[:-97] + point)
    assert P384_KEY.decapsulate(good.ciphertext) == good.shared_secret


@given(point=st.binary(min_size=96, max_size=96))
def test_random_bytes_are_no_p384_point(point: bytes) -> None:
    with pytest.raises(PacketRejected):
        P384.check_element(b"\x04" + point)


def test_the_rejection_rule_takes_the_first_window_that_is_a_scalar() -> None:
    kem = mlkem768_p256(OPENSSL)
    too_large, zero, scalar = b"\xff" * 32, bytes(32), bytes(31) + b"\x05"
    key = kem.group.private_key(too_large + zero + scalar)
    assert key.public_key == kem.group.private_key(scalar * 3).public_key
    with pytest.raises(ValueError, match="no P-256 scalar"):
        kem.group.private_key(too_large + zero + zero)


@pytest.mark.parametrize("stuck", [b"\0", b"\xff"])
def test_a_generator_that_is_stuck_ends_the_exchange(stuck: bytes) -> None:
    with pytest.raises(HandshakeFailed):
        P384_KEM.encapsulate(P384_KEY.public_key, random=lambda length: stuck * length)


@pytest.mark.parametrize("unfit", [bytes(48), b"\xff" * 48])
def test_random_bytes_that_make_no_scalar_are_drawn_again(unfit: bytes) -> None:
    """Once in 2^194: an initiator or responder of this suite must not end in an error for it."""
    scalar = bytes(47) + b"\x05"
    draws = [unfit, unfit, scalar]
    one = P384_KEM.encapsulate(P384_KEY.public_key, random=lambda length: draws.pop(0))
    assert not draws
    assert one.ciphertext[1568:] == P384_KEM.group.private_key(scalar).public_key
    assert P384_KEY.decapsulate(one.ciphertext) == one.shared_secret


def test_private_keys_are_values_without_a_readable_secret() -> None:
    seed = bytes(range(32))
    key = X_WING.private_key(seed)
    assert key == X_WING_KEY
    assert hash(key) == hash(X_WING_KEY)
    assert key != X_WING.private_key(bytes(32))
    assert key != P384_KEM.private_key(seed)
    assert key != seed
    assert repr(key) == "<MLKEM768-X25519 private key>"
    assert copy.deepcopy(key) is key
    assert copy.copy(key) is key
    assert key.seed.expose() == seed


def test_an_encapsulation_does_not_show_its_secret() -> None:
    encapsulation = X_WING.encapsulate(X_WING_KEY.public_key, random=os.urandom)
    assert "secret" not in repr(encapsulation)
    assert repr(encapsulation.shared_secret) not in repr(encapsulation)

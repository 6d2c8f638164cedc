"""The suites: their sizes, and their operations against the vectors of the RFCs."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from hypothesis import given
from hypothesis import strategies as st

from kex.errors import AuthenticationFailed, HandshakeFailed, PacketRejected
from kex.hybrid_kem import NoScalar
from kex.suites import MAX_NONCE, SUITE_NUMBERS, PrivateKey, Suite, suite
from tests.kex.reference import SeededBytes, deterministic_suite

SUITES = {number: suite(number, random=os.urandom) for number in SUITE_NUMBERS}
EACH = pytest.mark.parametrize("each", SUITES.values(), ids=lambda each: f"suite{each.number}")
KEY = bytes(range(32))


def test_sizes() -> None:
    one, two = SUITES[1], SUITES[2]
    assert (one.public_key_length, two.public_key_length) == (1216, 1665)
    assert (one.ciphertext_length, two.ciphertext_length) == (1120, 1665)
    assert (one.hash_length, two.hash_length) == (32, 48)
    assert (one.message1_length, two.message1_length) == (3584, 5027)
    assert (one.message2_length, two.message2_length) == (2272, 3362)
    assert (one.biscuit_length, two.biscuit_length) == (128, 160)
    assert len(two.protocol_name) == 38
    assert [each.number for each in SUITES.values()] == [1, 2]


@pytest.mark.parametrize("number", [0, 3, -1, 255])
def test_an_unknown_suite(number: int) -> None:
    with pytest.raises(ValueError, match="unknown suite"):
        suite(number, random=os.urandom)


def test_hmac_of_rfc_4231_case_2() -> None:
    key, data = b"Jefe", b"what do ya want for nothing?"
    assert SUITES[1].hmac(key, data).hex() == (
        "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    )
    assert SUITES[2].hmac(key, data).hex() == (
        "af45d2e376484031617f78d2b58a6b1b9c7ef464f5a01b47e42ec3736322445e"
        "8e2240ca5e69e2c78b3239ecfab21649"
    )


def test_hash_of_abc() -> None:
    assert SUITES[1].hash(b"abc").hex().startswith("ba7816bf8f01cfea414140de5dae2223")
    assert SUITES[2].hash(b"abc").hex().startswith("cb00753f45a35e8bb5a03d699ac65007")


def test_hkdf_of_rfc_5869() -> None:
    one = SUITES[1]
    prk = one.hkdf_extract(bytes(range(13)), b"\x0b" * 22)  # A.1
    assert prk.hex() == "077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5"
    assert one.hkdf_expand(prk, bytes(range(0xF0, 0xFA)), 42).hex() == (
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    )
    prk = one.hkdf_extract(bytes(range(0x60, 0xB0)), bytes(range(0x50)))  # A.2
    assert one.hkdf_expand(prk, bytes(range(0xB0, 0x100)), 82).hex() == (
        "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c"
        "59045a99cac7827271cb41c65e590e09da3275600c2f09b8367793a9aca3db71"
        "cc30c58179ec3e87c14c01d5c1f3434f1d87"
    )
    prk = one.hkdf_extract(b"", b"\x0b" * 22)  # A.3: no salt, no info
    assert one.hkdf_expand(prk, b"", 42).hex() == (
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"
    )


@EACH
@given(ck=st.binary(min_size=48, max_size=48), ikm=st.binary(max_size=64))
def test_noises_hkdf_is_that_of_rfc_5869_with_empty_info(
    each: Suite, ck: bytes, ikm: bytes
) -> None:
    ck = ck[: each.hash_length]
    whole = each.hkdf_expand(each.hkdf_extract(ck, ikm), b"", 3 * each.hash_length)
    assert b"".join(each.noise_hkdf(ck, ikm, 3)) == whole
    assert each.noise_hkdf(ck, ikm, 2) == each.noise_hkdf(ck, ikm, 3)[:2]


@EACH
def test_hkdf_has_limits(each: Suite) -> None:
    assert len(each.hkdf_expand(b"k", b"", 255 * each.hash_length)) == 255 * each.hash_length
    for length in (0, -1, 255 * each.hash_length + 1):
        with pytest.raises(ValueError, match="HKDF"):
            each.hkdf_expand(b"k", b"", length)
    for outputs in (1, 4):
        with pytest.raises(ValueError, match="two or three"):
            each.noise_hkdf(b"k", b"", outputs)


@pytest.mark.parametrize("nonce", [0, 1, 255, 256, 2**32, MAX_NONCE])
def test_nonces_are_little_endian_for_chacha_and_big_endian_for_aes(nonce: int) -> None:
    ours = SUITES[1].seal(KEY, nonce, b"ad", b"text")
    wire = bytes(4) + nonce.to_bytes(8, "little")
    assert ours == ChaCha20Poly1305(KEY).encrypt(wire, b"text", b"ad")
    ours = SUITES[2].seal(KEY, nonce, b"ad", b"text")
    wire = bytes(4) + nonce.to_bytes(8, "big")
    assert ours == AESGCM(KEY).encrypt(wire, b"text", b"ad")


@EACH
@given(
    nonce=st.integers(0, MAX_NONCE),
    ad=st.binary(max_size=64),
    plaintext=st.binary(max_size=64),
    data=st.data(),
)
def test_what_is_sealed_opens_only_untouched(
    each: Suite, nonce: int, ad: bytes, plaintext: bytes, data: st.DataObject
) -> None:
    sealed = each.seal(KEY, nonce, ad, plaintext)
    assert len(sealed) == len(plaintext) + 16
    assert each.open(KEY, nonce, ad, sealed) == plaintext
    bit = data.draw(st.integers(0, 8 * len(sealed) - 1))
    spoiled = bytearray(sealed)
    spoiled[bit // 8] ^= 1 << bit % 8
    wrong: list[Callable[[], bytes]] = [
        lambda: each.open(KEY, nonce, ad, bytes(spoiled)),
        lambda: each.open(KEY, nonce, ad + b"\0", sealed),
        lambda: each.open(KEY, (nonce + 1) % MAX_NONCE, ad, sealed),
        lambda: each.open(bytes(32), nonce, ad, sealed),
        lambda: each.open(KEY, nonce, ad, sealed[:-1]),
        lambda: each.open(KEY, nonce, ad, sealed + b"\0"),
    ]
    for attempt in wrong:
        with pytest.raises(AuthenticationFailed):
            attempt()


@EACH
def test_short_ciphertexts_and_nonces_out_of_range(each: Suite) -> None:
    for length in range(16):
        with pytest.raises(AuthenticationFailed):
            each.open(KEY, 0, b"", bytes(length))
    for nonce in (-1, MAX_NONCE + 1, 2**64):
        with pytest.raises(ValueError, match="out of range"):
            each.seal(KEY, nonce, b"", b"")
        with pytest.raises(AuthenticationFailed):
            each.open(KEY, nonce, b"", bytes(16))
    assert each.open(KEY, 0, b"", each.seal(KEY, 0, b"", b"")) == b""


@EACH
def test_kem(each: Suite) -> None:
    key = each.generate_private_key()
    assert len(key.public_key) == each.public_key_length
    assert each.private_key(key.seed.expose()) == key
    each.check_public_key(key.public_key)
    encapsulation = each.encapsulate(key.public_key)
    assert len(encapsulation.ciphertext) == each.ciphertext_length
    assert key.decapsulate(encapsulation.ciphertext) == encapsulation.shared_secret
    with pytest.raises(PacketRejected):
        each.check_public_key(key.public_key[:-1])
    with pytest.raises(ValueError, match="32 bytes"):
        each.private_key(bytes(31))


class Unfit(Suite):
    """Some seeds make no private key: no such seed of P-384 will ever be found."""

    def private_key(self, seed: bytes) -> PrivateKey:
        if seed[0] == 0:
            raise NoScalar("this one")
        return super().private_key(seed)


def test_a_seed_that_makes_no_private_key_is_drawn_again() -> None:
    draws = [bytes(32), bytes(32), b"\1" * 32]
    key = Unfit(2, random=lambda length: draws.pop(0)).generate_private_key()
    assert key.seed.expose() == b"\1" * 32
    with pytest.raises(HandshakeFailed):
        Unfit(2, random=bytes).generate_private_key()


@pytest.mark.parametrize("number", SUITE_NUMBERS)
def test_all_randomness_is_injected(number: int) -> None:
    one, other = (deterministic_suite(number, SeededBytes(b"seed")) for _ in range(2))
    key = one.generate_private_key()
    assert key == other.generate_private_key()
    assert one.encapsulate(key.public_key) == other.encapsulate(key.public_key)
    assert one.random(5) == other.random(5)


def test_a_source_that_gives_too_little_is_noticed() -> None:
    with pytest.raises(ValueError, match="got 3"):
        suite(1, random=lambda length: b"abc").generate_private_key()


@EACH
def test_a_suite_is_shared_and_not_copied(each: Suite) -> None:
    assert copy.copy(each) is each
    assert copy.deepcopy({"suite": each})["suite"] is each
    assert each.protocol_name.decode() in repr(each)

"""Fingerprints, their text form and every way to mistype it, and the file of an identity."""

from __future__ import annotations

import base64
import hashlib
import os
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kex import bech32m
from kex.errors import InvalidIdentity, KexError
from kex.identity import TEXT_LENGTH, Fingerprint, Identity
from kex.suites import SUITE_NUMBERS, Suite, suite
from tests.examples import examples

FINGERPRINTS = st.builds(
    Fingerprint, st.sampled_from(SUITE_NUMBERS), st.binary(min_size=32, max_size=32)
)
ANY = Fingerprint(1, bytes(range(32)))


def suite_of(number: int) -> Suite:
    return suite(number, random=os.urandom)


@cache
def identity(number: int) -> Identity:
    return Identity.generate(suite_of(number))


# BIP 350, "Test vectors for Bech32m"

VALID = [
    "A1LQFN3A",
    "a1lqfn3a",
    "an83characterlonghumanreadablepartthatcontainsthetheexcludedcharactersbioandnumber11sg7hg6",
    "abcdef1l7aum6echk45nj3s0wdvt2fg8x9yrzpqzd3ryx",
    "11llllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllludsr8",
    "split1checkupstagehandshakeupstreamerranterredcaperredlc445v",
    "?1v759aa",
]
INVALID = {
    "\x201xj0phk": "does not belong",
    "\x7f1g6xzxy": "does not belong",
    "\x801vctc34": "does not belong",
    "an84characterslonghumanreadablepartthatcontainsthetheexcludedcharactersbioandnumber11d6pts4": (
        "longer than 90"
    ),
    "qyrz8wqd2c9m": "has no '1'",
    "1qyrz8wqd2c9m": "no prefix",
    "y1b0jsk6g": r"character 3 \('b'\)",
    "lt1igcx5c0": r"character 4 \('i'\)",
    "in1muywd": "too short",
    "mm1crxm3i": r"character 9 \('i'\)",
    "au1s5cgom": r"character 8 \('o'\)",
    "M1VUXWEZ": "checksum",
    "16plkw9": "no prefix",
    "1p2gdwpf": "no prefix",
}


@pytest.mark.parametrize("text", VALID)
def test_bip_350_valid(text: str) -> None:
    prefix, values = bech32m.decode_values(text)
    assert bech32m.encode_values(prefix, values) == text.lower()


@pytest.mark.parametrize("text", INVALID)
def test_bip_350_invalid(text: str) -> None:
    with pytest.raises(InvalidIdentity, match=INVALID[text]):
        bech32m.decode_values(text)


@pytest.mark.parametrize(
    "text", ["a12uel5l", "split1checkupstagehandshakeupstreamerranterredcaperred2y9e3w"]
)
def test_the_older_bech32_is_no_bech32m(text: str) -> None:
    with pytest.raises(InvalidIdentity, match="checksum"):
        bech32m.decode_values(text)


@given(data=st.binary(max_size=48))
def test_bytes_survive_the_text(data: bytes) -> None:
    assert bech32m.decode(bech32m.encode("vpnd", data)) == ("vpnd", data)


def test_bytes_are_grouped_as_in_an_address_of_bip_350() -> None:
    program = "79be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798"
    _, values = bech32m.decode_values(bech32m.encode("any", bytes.fromhex(program)))
    address = "bc1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vqzk5jj0"
    assert bech32m.encode_values("bc", [1, *values]) == address


def test_a_text_over_90_characters_is_not_made() -> None:
    with pytest.raises(ValueError, match="90"):
        bech32m.encode("vpnd", bytes(50))


@pytest.mark.parametrize("values", [[0] * 52 + [1], [0] * 54, [0]])
def test_leftover_bits_are_refused(values: list[int]) -> None:
    with pytest.raises(InvalidIdentity, match="whole byte"):
        bech32m.decode(bech32m.encode_values("vpnd", values))


@given(fingerprint=FINGERPRINTS)
def test_a_fingerprint_survives_its_text(fingerprint: Fingerprint) -> None:
    text = fingerprint.text()
    assert len(text) == TEXT_LENGTH
    assert text.startswith("vpnd1")
    assert Fingerprint.parse(text) == fingerprint
    assert Fingerprint.parse(text.upper()) == fingerprint


def refuses(text: str) -> InvalidIdentity:
    with pytest.raises(InvalidIdentity) as caught:
        Fingerprint.parse(text)
    assert str(caught.value)
    return caught.value


CHARACTERS = st.one_of(
    st.sampled_from("qpzry9x8gf2tvdw0s3jn54khce6mua7l1bioQPZ -\n\u212a\u017f"), st.characters()
)


@settings(max_examples=examples(400))
@given(
    fingerprint=FINGERPRINTS,
    index=st.integers(0, TEXT_LENGTH - 1),
    character=CHARACTERS,
    capital=st.booleans(),
)
def test_any_single_wrong_character_is_refused(
    fingerprint: Fingerprint, index: int, character: str, capital: bool
) -> None:
    text = fingerprint.text().upper() if capital else fingerprint.text()
    if text[index] != character:
        refuses(text[:index] + character + text[index + 1 :])


@settings(max_examples=examples(200))
@given(fingerprint=FINGERPRINTS, index=st.integers(0, TEXT_LENGTH), character=CHARACTERS)
def test_any_lost_added_or_swapped_character_is_refused(
    fingerprint: Fingerprint, index: int, character: str
) -> None:
    text = fingerprint.text()
    refuses(text[:index] + character + text[index:])
    if index < TEXT_LENGTH:
        refuses(text[:index] + text[index + 1 :])
    if index < TEXT_LENGTH - 1 and text[index] != text[index + 1]:
        refuses(text[:index] + text[index + 1] + text[index] + text[index + 2 :])


@settings(max_examples=examples(200))
@given(
    fingerprint=FINGERPRINTS,
    changes=st.dictionaries(
        st.integers(5, TEXT_LENGTH - 1),
        st.sampled_from("qpzry9x8gf2tvdw0s3jn54khce6mua7l"),
        min_size=2,
        max_size=4,
    ),
)
def test_up_to_four_wrong_characters_are_refused(
    fingerprint: Fingerprint, changes: dict[int, str]
) -> None:
    text = list(fingerprint.text())
    for index, character in changes.items():
        text[index] = character
    if "".join(text) != fingerprint.text():
        refuses("".join(text))


def test_every_wrong_character_in_every_place_is_refused_and_located() -> None:
    text = ANY.text()
    for index in range(5, TEXT_LENGTH):
        for character in "qpzry9x8gf2tvdw0s3jn54khce6mua7l":
            if character == text[index]:
                continue
            error = refuses(text[:index] + character + text[index + 1 :])
            assert error.position == index + 1
            # ... and the message does not tell which character would be right there
            assert str(error).endswith(f"character {index + 1} is probably wrong")


@pytest.mark.parametrize(
    ("text", "message", "position"),
    [
        ("", "begins with vpnd1", 1),
        ("wg1" + ANY.text()[3:], "begins with vpnd1", 1),
        (ANY.text()[:-1], "has 63", None),
        (ANY.text() + "q", "has 65", None),
        (ANY.text() + "\n", "character 65", 65),
        (" " + ANY.text(), "character 1 ", 1),
        (ANY.text()[:30] + ANY.text()[30:].upper(), "capital and small", None),
        (ANY.text()[:20] + "b" + ANY.text()[21:], "character 21 ('b')", 21),
        (ANY.text()[:20] + "1" + ANY.text()[21:], "character 21 ('1')", 21),
        (ANY.text()[:20] + "é" + ANY.text()[21:], "character 21 ", 21),
        (ANY.text()[:20] + "0000" + ANY.text()[24:], "more than one", None),
        (Fingerprint(7, bytes(32)).text(), "suite 7", None),
    ],
)
def test_messages_say_what_and_where(text: str, message: str, position: int | None) -> None:
    error = refuses(text)
    assert message in str(error)
    assert position == error.position
    assert error.hint
    assert isinstance(error, ValueError)
    assert isinstance(error, KexError)


@pytest.mark.parametrize("number", SUITE_NUMBERS)
def test_a_fingerprint_is_what_the_protocol_says(number: int) -> None:
    mine = identity(number)
    expected = hashlib.sha384(b"vpnd identity v1" + bytes([number]) + mine.public_key).digest()
    assert mine.fingerprint == Fingerprint(number, expected[:32])
    assert Fingerprint.of(number, mine.public_key) == mine.fingerprint
    assert Fingerprint.of(3 - number, mine.public_key).digest != mine.fingerprint.digest


def test_a_fixed_fingerprint() -> None:
    # Any change of the text form would lock every configured peer out
    assert Fingerprint(1, bytes(range(32))).text() == (
        "vpnd1qyqqzqsrqszsvpcgpy9qkrqdpc83qygjzv2p29shrqv35xcur50p7nnutnv"
    )
    assert Fingerprint(2, bytes(32)).text() == (
        "vpnd1qgqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq4sk8ez"
    )


@pytest.mark.parametrize(("number", "length"), [(1, 31), (1, 33), (256, 32), (-1, 32)])
def test_impossible_fingerprints_are_not_made(number: int, length: int) -> None:
    with pytest.raises(ValueError, match=r"32 bytes|does not fit"):
        Fingerprint(number, bytes(length))


@given(a=FINGERPRINTS, b=FINGERPRINTS)
def test_fingerprints_are_ordered_by_digest_then_suite(a: Fingerprint, b: Fingerprint) -> None:
    key_a, key_b = (a.digest, a.suite), (b.digest, b.suite)
    assert (a < b) == (key_a < key_b)
    assert (a <= b) == (key_a <= key_b)
    assert (a > b) == (key_a > key_b)
    assert (a >= b) == (key_a >= key_b)
    assert Fingerprint(2, bytes(32)) < Fingerprint(1, b"\x01" + bytes(31))
    assert Fingerprint(1, bytes(32)) < Fingerprint(2, bytes(32))


@pytest.mark.parametrize("number", SUITE_NUMBERS)
def test_an_identity_survives_its_file(number: int) -> None:
    mine = identity(number)
    text = mine.to_file_text()
    assert text.startswith(f"vpnd-identity-v1 {number} ")
    assert text.endswith("\n")
    again = Identity.from_file_text(text, suite_of=suite_of)
    assert again == mine
    assert again.fingerprint == mine.fingerprint
    assert again.suite.number == number
    assert again != identity(3 - number)


def test_an_identity_shows_no_secret() -> None:
    mine = identity(1)
    seed = mine.private_key.seed.expose()
    for form in (repr(mine), str(mine), f"{mine}"):
        assert seed.hex() not in form
        assert base64.b64encode(seed).decode() not in form
        assert repr(seed)[2:-1] not in form


GOOD_SEED = base64.b64encode(bytes(range(1, 33))).decode()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "vpnd-identity-v1 1\n",
        f"vpnd-identity-v2 1 {GOOD_SEED}\n",
        f"vpnd-identity-v1 1 {GOOD_SEED} more\n",
        f"vpnd-identity-v1 3 {GOOD_SEED}\n",
        f"vpnd-identity-v1 01 {GOOD_SEED}\n",
        f"vpnd-identity-v1 one {GOOD_SEED}\n",
        f"vpnd-identity-v1 1 {GOOD_SEED[:-1]}\n",
        f"vpnd-identity-v1 1 {GOOD_SEED[:-4]}\n",
        f"vpnd-identity-v1 1 {'AAAA' + GOOD_SEED}\n",
        f"vpnd-identity-v1 1 {'*' + GOOD_SEED}\n",
        f"vpnd-identity-v1 1 é{GOOD_SEED}\n",
    ],
)
def test_a_broken_identity_file_is_refused_without_being_quoted(text: str) -> None:
    with pytest.raises(InvalidIdentity) as caught:
        Identity.from_file_text(text, suite_of=suite_of)
    assert caught.value.hint
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert GOOD_SEED[:8] not in str(caught.value)

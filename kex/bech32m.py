"""Bech32m (BIP 350): text with a prefix and a checksum made for being read aloud and typed.

Up to four wrong characters are always noticed in texts of at most 90.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from kex.errors import InvalidIdentity

MAX_LENGTH: Final = 90
CHECKSUM_LENGTH: Final = 6
SEPARATOR: Final = "1"
_CHARSET: Final = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_VALUES: Final = {character: value for value, character in enumerate(_CHARSET)}
_GENERATOR: Final = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
_CONSTANT: Final = 0x2BC830A3


def encode(prefix: str, data: bytes) -> str:
    """The text of ``data`` under a lower-case prefix; ValueError over 90 characters."""
    return encode_values(prefix, _regroup(data, 8, 5, pad=True))


def encode_values(prefix: str, values: list[int]) -> str:
    """The text of five-bit values under a lower-case prefix; ValueError over 90 characters."""
    if len(prefix) + 1 + len(values) + CHECKSUM_LENGTH > MAX_LENGTH:
        raise ValueError(f"Bech32m text would be longer than {MAX_LENGTH} characters")
    padded = [*_expand(prefix), *values, *([0] * CHECKSUM_LENGTH)]
    checksum = _polymod(padded) ^ _CONSTANT
    digits = [(checksum >> 5 * (CHECKSUM_LENGTH - 1 - i)) & 31 for i in range(CHECKSUM_LENGTH)]
    return prefix + SEPARATOR + "".join(_CHARSET[value] for value in (*values, *digits))


def decode(text: str) -> tuple[str, bytes]:
    """Prefix, in lower case, and data; InvalidIdentity says what is wrong, and where if it can."""
    prefix, values = decode_values(text)
    try:
        return prefix, bytes(_regroup(values, 5, 8, pad=False))
    except ValueError as error:
        raise InvalidIdentity("the text does not end on a whole byte") from error


def decode_values(text: str) -> tuple[str, list[int]]:
    """Prefix, in lower case, and five-bit values without the checksum; InvalidIdentity."""
    for position, character in enumerate(text, start=1):
        if not "!" <= character <= "~":
            raise InvalidIdentity(
                f"character {position} ({character!a}) does not belong here", position=position
            )
    if len(text) > MAX_LENGTH:
        raise InvalidIdentity(f"the text is longer than {MAX_LENGTH} characters")
    lowered = text.lower()
    if text not in (lowered, text.upper()):
        raise InvalidIdentity(
            "the text mixes capital and small letters", hint="write all of it in small letters"
        )
    prefix, separator, rest = lowered.rpartition(SEPARATOR)
    if not separator:
        raise InvalidIdentity(f"the text has no {SEPARATOR!r} after its prefix")
    if not prefix:
        raise InvalidIdentity(f"the text has no prefix before its {SEPARATOR!r}", position=1)
    if len(rest) < CHECKSUM_LENGTH:
        raise InvalidIdentity("the text is too short to hold its checksum")
    values = []
    for position, character in enumerate(rest, start=len(prefix) + 2):
        if character not in _VALUES:
            raise InvalidIdentity(
                f"character {position} ({character!r}) is not one that is used here",
                position=position,
                hint="the text never has b, i, o or 1 after its prefix: look for 6, l, 0 and l",
            )
        values.append(_VALUES[character])
    _verify(prefix, values)
    return prefix, values[:-CHECKSUM_LENGTH]


def _verify(prefix: str, values: list[int]) -> None:
    residue = _polymod([*_expand(prefix), *values]) ^ _CONSTANT
    if residue == 0:
        return
    index = _find_single_mistake(residue, len(values))
    if index is None:
        raise InvalidIdentity(
            "the checksum does not fit: more than one character is wrong",
            hint="copy the text again, whole",
        )
    position = len(prefix) + 2 + index
    # The right character is known here, and is not told: who corrects one mistake blindly may
    # make a valid text of a third party's out of two (BIP 173, "Error correction")
    raise InvalidIdentity(
        f"the checksum does not fit: character {position} is probably wrong",
        position=position,
        hint="compare it with the original",
    )


def _find_single_mistake(residue: int, length: int) -> int | None:
    """Which one of ``length`` values, changed, would make up for ``residue`` (None: no one does).

    The checksum is linear: a change of one value, seen from the end, moves on through the steps
    that follow it in the same way whatever the other values are.
    """
    changes = list(range(1, 32))
    for index in reversed(range(length)):
        if residue in changes:
            return index
        changes = [_step(change, 0) for change in changes]
    return None


def _step(state: int, value: int) -> int:
    top = state >> 25
    state = (state & 0x1FFFFFF) << 5 ^ value
    for bit, generator in enumerate(_GENERATOR):
        if top >> bit & 1:
            state ^= generator
    return state


def _polymod(values: Iterable[int]) -> int:
    state = 1
    for value in values:
        state = _step(state, value)
    return state


def _expand(prefix: str) -> list[int]:
    codes = prefix.encode("ascii")
    return [code >> 5 for code in codes] + [0] + [code & 31 for code in codes]


def _regroup(values: Iterable[int], from_bits: int, to_bits: int, *, pad: bool) -> list[int]:
    """The same bits in groups of another size; ValueError on leftover bits that are no padding."""
    accumulator = bits = 0
    result = []
    for value in values:
        accumulator = accumulator << from_bits | value
        bits += from_bits
        while bits >= to_bits:
            bits -= to_bits
            result.append(accumulator >> bits)
            accumulator &= (1 << bits) - 1
    if pad:
        if bits:
            result.append(accumulator << (to_bits - bits))
    elif bits >= from_bits or accumulator:
        raise ValueError("leftover bits")
    return result

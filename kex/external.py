"""Keys from outside, where they enter the exchange: names and IDs on the wire, keys in the root.

The key exchange asks (an event), is answered, mixes, and proves equality before anything is
installed. Where the keys come from is not its business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from kex.secret import Secret

MAX_EXTERNAL_KEYS = 4
MAX_NAME_LENGTH = 64
"""Bytes of a key manager's name, a source type."""
MAX_SAE_LENGTH = 300
"""Bytes. There are applications with IDs of 291 characters."""
MAX_KEY_ID_LENGTH = 300
"""Bytes. Long ones fit as long as the whole payload does (docs/protocol.md §5.5)."""
MAX_KEY_IDS = 4
"""IDs behind one external key (a key of 512 bits may be two of 256)."""
MIN_KEY_LENGTH = 16
MAX_KEY_LENGTH = 1024
"""Bytes of one external key."""


NOT_PRINTABLE = (
    # Controls, spaces but U+0020, line ends, surrogates, private use, and what steers the direction
    # of a text or is not seen at all: as code points, for categories change with each Unicode
    *((0x0000, 0x001F), (0x007F, 0x00A0), (0x00AD, 0x00AD), (0x0600, 0x0605), (0x061C, 0x061C)),
    *((0x06DD, 0x06DD), (0x070F, 0x070F), (0x0890, 0x0891), (0x08E2, 0x08E2), (0x1680, 0x1680)),
    *((0x180E, 0x180E), (0x2000, 0x200F), (0x2028, 0x202F), (0x205F, 0x206F), (0x3000, 0x3000)),
    *((0xD800, 0xF8FF), (0xFEFF, 0xFEFF), (0xFFF9, 0xFFFB), (0x110BD, 0x110BD)),
    *((0x110CD, 0x110CD), (0x13430, 0x1343F), (0x1BCA0, 0x1BCA3), (0x1D173, 0x1D17A)),
    *((0xE0000, 0xE007F), (0xF0000, 0x10FFFF)),
)
"""The first and last of each range of code points that a name or a key ID never holds."""


def is_printable(text: str) -> bool:
    """Whether a name or a key ID may go over the wire (docs/protocol.md §5.2)."""
    if text.isascii():
        return text.isprintable()
    return not any(low <= ord(char) <= high for char in text for low, high in NOT_PRINTABLE)


class ExternalMode(IntEnum):
    """The policy of one end of a link; the numbers stand on the wire."""

    OFF = 0
    PREFER = 1
    REQUIRE = 2


@dataclass(frozen=True, slots=True, order=True)
class ExternalKeyReference:
    """What both ends say of one external key: never secret. Sorted by type, source, SAE, IDs."""

    source_type: str
    source: str
    sae: str
    key_ids: tuple[str, ...]
    bits: int


@dataclass(frozen=True, slots=True)
class ExternalKey:
    """A reference and its key; None where the source had none (mode `prefer`)."""

    reference: ExternalKeyReference
    key: Secret | None

    @property
    def present(self) -> bool:
        return self.key is not None


def in_fixed_order(keys: Sequence[ExternalKey]) -> tuple[ExternalKey, ...]:
    """The order in which keys are listed and mixed."""
    return tuple(sorted(keys, key=lambda external: external.reference))


def root_input(keys: Sequence[ExternalKey]) -> bytes:
    """For each source: presence byte, length in 2 bytes, key. Never XOR, never without lengths."""
    parts = []
    for external in keys:
        key = b"" if external.key is None else external.key.expose()
        parts.append(bytes((external.present,)) + len(key).to_bytes(2, "big") + key)
    return b"".join(parts)


def check(keys: Sequence[ExternalKey]) -> None:
    """Raise ValueError for keys that cannot be mixed: it is the caller's mistake."""
    if len(keys) > MAX_EXTERNAL_KEYS:
        raise ValueError(f"{len(keys)} external keys; at most {MAX_EXTERNAL_KEYS} can be mixed")
    for external in keys:
        check_reference(external.reference)
        if external.key is not None:
            check_key(external.reference, external.key)


def check_key(reference: ExternalKeyReference, key: Secret) -> None:
    """Raise ValueError for a key that is not as long as its reference says, or out of bounds."""
    if len(key) * 8 != reference.bits:
        raise ValueError(
            f"the key of {reference.source} has {len(key) * 8} bits, announced are {reference.bits}"
        )
    check_bits(reference.bits)


def check_bits(bits: int) -> None:
    """Raise ValueError for a length that is not mixed."""
    if bits % 8 or not MIN_KEY_LENGTH <= bits // 8 <= MAX_KEY_LENGTH:
        raise ValueError(
            f"a key of {bits} bits; whole bytes are mixed, {8 * MIN_KEY_LENGTH} to "
            f"{8 * MAX_KEY_LENGTH} bits"
        )


def check_reference(reference: ExternalKeyReference) -> None:
    """Raise ValueError for a reference that does not fit its bounds."""
    names = (reference.source_type, reference.source, reference.sae)
    if not all(is_printable(text) for text in (*names, *reference.key_ids)):
        raise ValueError("a name or a key ID holds a character that is not printable")
    for name, most in zip(names, (MAX_NAME_LENGTH, MAX_NAME_LENGTH, MAX_SAE_LENGTH), strict=True):
        if len(name.encode()) > most:
            raise ValueError(f"a name of {len(name.encode())} bytes; at most {most}")
    if len(reference.key_ids) > MAX_KEY_IDS:
        raise ValueError(f"{len(reference.key_ids)} key IDs; at most {MAX_KEY_IDS}")
    for key_id in reference.key_ids:
        if len(key_id.encode()) > MAX_KEY_ID_LENGTH:
            raise ValueError(
                f"a key ID of {len(key_id.encode())} bytes; at most {MAX_KEY_ID_LENGTH}"
            )
    if not 0 <= reference.bits <= MAX_KEY_LENGTH * 8:
        raise ValueError(f"a key of {reference.bits} bits; at most {8 * MAX_KEY_LENGTH}")

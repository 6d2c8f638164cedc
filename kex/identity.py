"""Who a node is: a long-term key pair, its fingerprint, and the text forms of both."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from kex import bech32m, labels
from kex.errors import InvalidIdentity
from kex.suites import SUITE_NUMBERS, PrivateKey, Suite

DIGEST_LENGTH: Final = 32
TEXT_PREFIX: Final = "vpnd"
TEXT_LENGTH: Final = 64  # prefix 4, separator 1, 53 for 1 + 32 bytes, checksum 6
FILE_HEADER: Final = "vpnd-identity-v1"


@lru_cache(maxsize=4096)
def _text(data: bytes) -> str:
    # Asked for whenever a link is shown, and a hundred times as slow as looking it up
    return bech32m.encode(TEXT_PREFIX, data)


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """The name of a long-term public key: its suite, and 32 bytes of a hash over both.

    Fingerprints are ordered by their digests first, so that two ends agree on which of them is
    the smaller one whatever suites they use.
    """

    suite: int
    digest: bytes

    def __post_init__(self) -> None:
        if len(self.digest) != DIGEST_LENGTH:
            raise ValueError(f"a fingerprint has {DIGEST_LENGTH} bytes, not {len(self.digest)}")
        if not 0 <= self.suite <= 255:
            raise ValueError(f"suite {self.suite} does not fit into a byte")

    @classmethod
    def of(cls, suite_number: int, public_key: bytes) -> Fingerprint:
        """First 32 bytes of SHA-384("vpnd identity v1" ‖ suite ‖ public key), in every suite."""
        hashed = hashlib.sha384(labels.IDENTITY + bytes([suite_number]) + public_key).digest()
        return cls(suite_number, hashed[:DIGEST_LENGTH])

    def text(self) -> str:
        """64 characters that begin with "vpnd1": Bech32m over suite byte ‖ digest."""
        return _text(bytes([self.suite]) + self.digest)

    @classmethod
    def parse(cls, text: str) -> Fingerprint:
        """The fingerprint of a text; InvalidIdentity, with position and hint where it can tell.

        All small or all capital letters (as a QR code may have them); nothing before or after.
        """
        if not text.isascii() or any(character.isspace() for character in text):
            bad = next(c for c in text if c.isspace() or not c.isascii())
            position = text.index(bad) + 1
            raise InvalidIdentity(
                f"character {position} ({bad!a}) does not belong into a fingerprint",
                position=position,
                hint="copy the text alone, without spaces or line breaks",
            )
        if not text.lower().startswith(TEXT_PREFIX + bech32m.SEPARATOR):
            raise InvalidIdentity(
                f"a fingerprint begins with {TEXT_PREFIX}{bech32m.SEPARATOR}, this text does not",
                position=1,
                hint="`vpnctl id` on the other node prints it",
            )
        if len(text) != TEXT_LENGTH:
            raise InvalidIdentity(
                f"a fingerprint has {TEXT_LENGTH} characters, this text has {len(text)}",
                hint="characters were lost or doubled in copying: copy the text again, whole",
            )
        second_one = text.find(bech32m.SEPARATOR, len(TEXT_PREFIX) + 1)
        if second_one != -1:  # it would move the end of the prefix, and confuse the message
            raise InvalidIdentity(
                f"character {second_one + 1} ('1') is not one that is used here",
                position=second_one + 1,
                hint="it may be an l",
            )
        _, data = bech32m.decode(text)
        if data[0] not in SUITE_NUMBERS:
            known = ", ".join(map(str, SUITE_NUMBERS))
            raise InvalidIdentity(
                f"the fingerprint is of suite {data[0]}, which is not known here",
                hint=f"this version knows suites {known}: the other node may be newer",
            )
        return cls(data[0], data[1:])

    def __lt__(self, other: Fingerprint) -> bool:
        return (self.digest, self.suite) < (other.digest, other.suite)

    def __le__(self, other: Fingerprint) -> bool:
        return (self.digest, self.suite) <= (other.digest, other.suite)

    def __gt__(self, other: Fingerprint) -> bool:
        return (self.digest, self.suite) > (other.digest, other.suite)

    def __ge__(self, other: Fingerprint) -> bool:
        return (self.digest, self.suite) >= (other.digest, other.suite)

    def __repr__(self) -> str:
        return f"<Fingerprint {self.text()}>"


@dataclass(frozen=True, slots=True)
class Identity:
    """A long-term key pair of one suite; two are equal if suite and seed are."""

    suite: Suite = field(compare=False)
    private_key: PrivateKey
    fingerprint: Fingerprint = field(init=False)

    def __post_init__(self) -> None:
        fingerprint = Fingerprint.of(self.suite.number, self.private_key.public_key)
        object.__setattr__(self, "fingerprint", fingerprint)

    @classmethod
    def generate(cls, suite: Suite) -> Identity:
        """A new one, of the suite's randomness."""
        return cls(suite, suite.generate_private_key())

    @property
    def public_key(self) -> bytes:
        """``Suite.public_key_length`` bytes."""
        return self.private_key.public_key

    def to_file_text(self) -> str:
        """One line, "vpnd-identity-v1 <suite> <seed in Base64>". It is the private key."""
        seed = base64.b64encode(self.private_key.seed.expose()).decode("ascii")
        return f"{FILE_HEADER} {self.suite.number} {seed}\n"

    @classmethod
    def from_file_text(cls, text: str, *, suite_of: Callable[[int], Suite]) -> Identity:
        """The identity of such a line; ``suite_of`` gives the suite of a known number.

        InvalidIdentity otherwise; its message never holds a part of the text.
        """
        fields = text.split()
        if len(fields) != 3 or fields[0] != FILE_HEADER:
            raise InvalidIdentity(
                f'not an identity file: it is one line, "{FILE_HEADER} SUITE SEED"',
                hint="restore it from a backup; without one, `vpnctl id new NAME` makes another "
                "identity, which every peer has to pin",
            )
        if fields[1] not in map(str, SUITE_NUMBERS):
            known = ", ".join(map(str, SUITE_NUMBERS))
            raise InvalidIdentity(
                "the identity file names a suite that is not known here",
                hint=f"this version knows suites {known}",
            )
        suite = suite_of(int(fields[1]))
        try:
            seed = base64.b64decode(fields[2], validate=True)
            private_key = suite.private_key(seed)
        except (binascii.Error, ValueError):
            # Without its cause: that might quote the seed in a traceback
            raise InvalidIdentity(
                "the seed in the identity file is not 32 bytes in Base64",
                hint="restore the file from a backup",
            ) from None
        return cls(suite, private_key)

"""The biscuit: the responder's whole state, sealed to itself and carried by the initiator.

    key id 8 | number 8 | AEAD(biscuit key, nonce = number, ck ‖ h ‖ initiator's fingerprint)

128 bytes in suite 1, 160 in suite 2. The associated data binds it to the exchange id and to the
identity that was addressed. The key lives in memory only, for 2 minutes as the current one and
2 more as the one before: when it is erased, the exchanges it sealed are forward secret.
"""

from __future__ import annotations

from dataclasses import dataclass

from kex import labels
from kex.errors import PacketRejected
from kex.identity import Fingerprint
from kex.secret import Secret
from kex.suites import Suite

KEY_ID_LENGTH = 8
NUMBER_LENGTH = 8
KEY_LENGTH = 32
KEY_SECONDS = 120.0
FIRST_NUMBER = 1
FINGERPRINT_LENGTH = 32


@dataclass(frozen=True, slots=True)
class BiscuitKey:
    key_id: bytes
    key: Secret


@dataclass(frozen=True, slots=True)
class BiscuitKeys:
    """The current key, the one before, when it is due to change, and the next number.

    One 64-bit counter serves all keys and all identities and is never reset while the process
    lives, so that numbers of one peer can be compared across a change of key.
    """

    current: BiscuitKey
    previous: BiscuitKey | None
    rotate_at: float
    next_number: int

    def rotated(self, fresh: BiscuitKey, now: float) -> BiscuitKeys:
        """With a fresh key. After a sleep of more than a period the one before is over, too."""
        if now < self.rotate_at + KEY_SECONDS:
            # Counted from when the change was due, so that no key lives for more than 4 minutes
            due = self.rotate_at + KEY_SECONDS
            return BiscuitKeys(fresh, self.current, due, self.next_number)
        return BiscuitKeys(fresh, None, now + KEY_SECONDS, self.next_number)

    def numbered(self) -> tuple[int, BiscuitKeys]:
        """The number of the next biscuit, and the keys with that number used up."""
        after = BiscuitKeys(self.current, self.previous, self.rotate_at, self.next_number + 1)
        return self.next_number, after


@dataclass(frozen=True, slots=True)
class Biscuit:
    """What the responder has to remember between its RespHello and the InitConf."""

    number: int
    ck: Secret
    h: bytes
    initiator: Fingerprint


def fresh_key(random: bytes) -> BiscuitKey:
    """A key from 40 random bytes."""
    return BiscuitKey(random[:KEY_ID_LENGTH], Secret(random[KEY_ID_LENGTH:]))


def seal(
    suite: Suite, key: BiscuitKey, biscuit: Biscuit, *, exchange_id: bytes, local: Fingerprint
) -> bytes:
    """The sealed biscuit: `suite.biscuit_length` bytes."""
    number = biscuit.number.to_bytes(NUMBER_LENGTH, "big")
    plaintext = biscuit.ck.expose() + biscuit.h + biscuit.initiator.digest
    ad = _associated_data(key.key_id, exchange_id, local)
    return key.key_id + number + suite.seal(key.key.expose(), biscuit.number, ad, plaintext)


def open_untrusted(
    suite: Suite, keys: BiscuitKeys, sealed: bytes, *, exchange_id: bytes, local: Fingerprint
) -> Biscuit:
    """Open a biscuit of ours. Raises PacketRejected: not ours, too old, changed, or with a number
    that was never handed out, whatever its seal says: accepted once, such a number would shut its
    peer out until the counter has caught up, long after a stolen key is gone (RC1)."""
    key_id = sealed[:KEY_ID_LENGTH]
    known = (keys.current, keys.previous)
    key = next((k for k in known if k is not None and k.key_id == key_id), None)
    if key is None or len(sealed) != suite.biscuit_length:
        raise PacketRejected("biscuit key")
    number = int.from_bytes(sealed[KEY_ID_LENGTH : KEY_ID_LENGTH + NUMBER_LENGTH], "big")
    if not FIRST_NUMBER <= number < keys.next_number:
        raise PacketRejected("biscuit number")
    body = sealed[KEY_ID_LENGTH + NUMBER_LENGTH :]
    ad = _associated_data(key_id, exchange_id, local)
    plaintext = suite.open(key.key.expose(), number, ad, body)
    size = suite.hash_length
    return Biscuit(
        number=number,
        ck=Secret(plaintext[:size]),
        h=plaintext[size : 2 * size],
        initiator=Fingerprint(suite.number, plaintext[2 * size :]),
    )


def _associated_data(key_id: bytes, exchange_id: bytes, local: Fingerprint) -> bytes:
    return labels.BISCUIT + key_id + exchange_id + local.digest

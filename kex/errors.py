"""The errors of the key exchange: which of them leave the state as it was, and which do not."""

from __future__ import annotations


class KexError(Exception):
    """Base of every error that the key exchange raises on purpose."""


class PacketRejected(KexError):
    """The other end's bytes were refused; the state is untouched, and the exchange goes on waiting.

    ``reason`` is a short text for counters and logs. It never holds secret bytes.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class AuthenticationFailed(PacketRejected):
    """An AEAD tag did not fit: a wrong key, a wrong transcript, or tampered bytes."""

    def __init__(self, reason: str = "authentication tag does not fit") -> None:
        super().__init__(reason)


class MalformedAnswer(KexError):
    """The responder's answer is genuine, and what it says cannot be read: waiting for another one
    is of no use, for it would repeat the same bytes.

    ``reason`` is a short text, as that of PacketRejected.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class HandshakeFailed(KexError):
    """This exchange is dead; a new one has to begin with new ephemeral keys."""


class InvalidIdentity(KexError, ValueError):
    """The text form of a fingerprint or of an identity could not be read.

    ``position`` counts characters from 1 and is ``None`` where no single character is to blame;
    ``hint`` says what to do, and is empty where the message says it already.
    """

    def __init__(self, message: str, *, position: int | None = None, hint: str = "") -> None:
        super().__init__(message)
        self.position = position
        self.hint = hint

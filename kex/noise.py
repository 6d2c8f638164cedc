"""PQNoise pqIK (Angel, Dowling, Hülsing, Schwabe, Weber, ACM CCS 2022) with empty payloads.

    pqIK:   <- s   ...   -> skem, e, s     <- ekem, skem

As its implementations have it (the Rust crate clatter; Nyquist in Go), which differ from the
paper's appendix: ``e`` is never encrypted, each encrypted token has its own tag, skem uses
MixKeyAndHash, Split is the plain one of Noise. The rest is Noise rev. 34, §5.

All states are immutable: a function computes on values and returns new ones, so that a message
that is refused leaves nothing behind, and the state that refused it can take the next one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kex import labels
from kex.errors import PacketRejected
from kex.secret import Secret
from kex.suites import AEAD_KEY_LENGTH, TAG_LENGTH, PrivateKey, Suite


@dataclass(frozen=True, slots=True)
class SymmetricState:
    """SymmetricState and CipherState of Noise rev. 34 §5.1 and §5.2, as one value.

    ``ck`` and ``h`` have ``Suite.hash_length`` bytes, ``k`` 32 or is None before the first secret
    is mixed in, ``n`` counts what was sealed under ``k``.
    """

    ck: Secret
    h: bytes
    k: Secret | None = None
    n: int = 0

    @classmethod
    def initialize(cls, suite: Suite) -> SymmetricState:
        """InitializeSymmetric(protocol name): padded with zeros if it fits into a hash."""
        name = suite.protocol_name
        if len(name) <= suite.hash_length:
            h = name.ljust(suite.hash_length, b"\0")
        else:
            h = suite.hash(name)
        return cls(ck=Secret(h), h=h)

    def mix_hash(self, suite: Suite, data: bytes) -> SymmetricState:
        """MixHash(data)."""
        return SymmetricState(self.ck, suite.hash(self.h + data), self.k, self.n)

    def mix_key(self, suite: Suite, ikm: bytes) -> SymmetricState:
        """MixKey(ikm); the AEAD key is the first 32 bytes where the hash is longer."""
        ck, temp_k = suite.noise_hkdf(self.ck.expose(), ikm, 2)
        return SymmetricState(ck=Secret(ck), h=self.h, k=Secret(temp_k[:AEAD_KEY_LENGTH]))

    def mix_key_and_hash(self, suite: Suite, ikm: bytes) -> SymmetricState:
        """MixKeyAndHash(ikm); the AEAD key is the first 32 bytes where the hash is longer."""
        ck, temp_h, temp_k = suite.noise_hkdf(self.ck.expose(), ikm, 3)
        h = suite.hash(self.h + temp_h)
        return SymmetricState(ck=Secret(ck), h=h, k=Secret(temp_k[:AEAD_KEY_LENGTH]))

    def encrypt_and_hash(self, suite: Suite, plaintext: bytes) -> tuple[SymmetricState, bytes]:
        """EncryptAndHash(plaintext): the next state, and what goes out (plain before any key)."""
        if self.k is None:
            return self.mix_hash(suite, plaintext), plaintext
        ciphertext = suite.seal(self.k.expose(), self.n, self.h, plaintext)
        h = suite.hash(self.h + ciphertext)
        return SymmetricState(self.ck, h, self.k, self.n + 1), ciphertext

    def decrypt_and_hash(self, suite: Suite, ciphertext: bytes) -> tuple[SymmetricState, bytes]:
        """DecryptAndHash(ciphertext): the next state, and the plaintext; AuthenticationFailed."""
        if self.k is None:
            return self.mix_hash(suite, ciphertext), ciphertext
        plaintext = suite.open(self.k.expose(), self.n, self.h, ciphertext)
        h = suite.hash(self.h + ciphertext)
        return SymmetricState(self.ck, h, self.k, self.n + 1), plaintext

    def split(self, suite: Suite) -> Session:
        """Split(), with the initiator's sending key first."""
        return split(suite, ck=self.ck, h=self.h)


@dataclass(frozen=True, slots=True)
class Session:
    """What both ends hold after message 2: the chaining key, the transcript, a key each way."""

    ck: Secret
    h: bytes
    k_i2r: Secret
    k_r2i: Secret


def split(suite: Suite, *, ck: Secret, h: bytes) -> Session:
    """Split() from ck alone, which is what a responder has left of a handshake."""
    first, second = suite.noise_hkdf(ck.expose(), b"", 2)
    return Session(
        ck=ck,
        h=h,
        k_i2r=Secret(first[:AEAD_KEY_LENGTH]),
        k_r2i=Secret(second[:AEAD_KEY_LENGTH]),
    )


@dataclass(frozen=True, slots=True)
class InitiatorState:
    """The initiator between its message 1 and an answer to it."""

    symmetric: SymmetricState
    static: PrivateKey
    ephemeral: PrivateKey


@dataclass(frozen=True, slots=True)
class ResponderState:
    """The responder between reading message 1 and answering it.

    Whoever made message 1 knew the responder's public key, no more: ``remote_public_key`` is a
    claim, which holds once something arrives under ``Session.k_i2r``.
    """

    symmetric: SymmetricState
    remote_public_key: bytes
    remote_ephemeral: bytes


# Called with the name of each step and the state after it. Published test vectors are made with it
# and checked with it; what it sees is secret.
StepObserver = Callable[[str, SymmetricState], None]


def _unobserved(step: str, state: SymmetricState) -> None:
    pass


def _begin(suite: Suite, responder_public_key: bytes, observe: StepObserver) -> SymmetricState:
    symmetric = SymmetricState.initialize(suite)
    observe("InitializeSymmetric(protocol name)", symmetric)
    symmetric = symmetric.mix_hash(suite, labels.PROLOGUE)
    observe("MixHash(prologue)", symmetric)
    symmetric = symmetric.mix_hash(suite, responder_public_key)
    observe("<- s: MixHash(rs)", symmetric)
    return symmetric


def initiator_start(
    suite: Suite,
    static: PrivateKey,
    remote_public_key: bytes,
    *,
    observe: StepObserver = _unobserved,
) -> tuple[InitiatorState, bytes]:
    """Message 1 (``Suite.message1_length`` bytes), and the state that waits for its answer.

    PacketRejected if ``remote_public_key`` is no sound key: it once came over the wire.
    """
    ephemeral = suite.generate_private_key()
    symmetric = _begin(suite, remote_public_key, observe)
    skem = suite.encapsulate(remote_public_key)
    symmetric, ciphertext = symmetric.encrypt_and_hash(suite, skem.ciphertext)
    observe("-> skem: EncryptAndHash(ct)", symmetric)
    symmetric = symmetric.mix_key_and_hash(suite, skem.shared_secret)
    observe("-> skem: MixKeyAndHash(ss)", symmetric)
    symmetric = symmetric.mix_hash(suite, ephemeral.public_key)
    observe("-> e: MixHash(e)", symmetric)
    symmetric, sealed_static = symmetric.encrypt_and_hash(suite, static.public_key)
    observe("-> s: EncryptAndHash(s)", symmetric)
    symmetric, sealed_payload = symmetric.encrypt_and_hash(suite, b"")
    observe("-> payload: EncryptAndHash(payload1)", symmetric)
    state = InitiatorState(symmetric=symmetric, static=static, ephemeral=ephemeral)
    return state, ciphertext + ephemeral.public_key + sealed_static + sealed_payload


def responder_read(
    suite: Suite,
    static: PrivateKey,
    message1: bytes,
    *,
    observe: StepObserver = _unobserved,
) -> ResponderState:
    """Open message 1; PacketRejected unless every part of it is sound.

    One decapsulation and no encapsulation: the caller looks ``remote_public_key`` up first.
    """
    if len(message1) != suite.message1_length:
        raise PacketRejected("message 1 has a wrong length")
    e_start = suite.ciphertext_length
    s_start = e_start + suite.public_key_length
    payload_start = s_start + suite.public_key_length + TAG_LENGTH
    remote_ephemeral = message1[e_start:s_start]

    symmetric = _begin(suite, static.public_key, observe)
    # There is no key yet: the first ciphertext came plain
    symmetric, ciphertext = symmetric.decrypt_and_hash(suite, message1[:e_start])
    observe("-> skem: EncryptAndHash(ct)", symmetric)
    symmetric = symmetric.mix_key_and_hash(suite, static.decapsulate(ciphertext))
    observe("-> skem: MixKeyAndHash(ss)", symmetric)
    symmetric = symmetric.mix_hash(suite, remote_ephemeral)
    observe("-> e: MixHash(e)", symmetric)
    symmetric, remote_static = symmetric.decrypt_and_hash(suite, message1[s_start:payload_start])
    observe("-> s: EncryptAndHash(s)", symmetric)
    symmetric, _ = symmetric.decrypt_and_hash(suite, message1[payload_start:])
    observe("-> payload: EncryptAndHash(payload1)", symmetric)
    suite.check_public_key(remote_ephemeral)
    suite.check_public_key(remote_static)
    return ResponderState(
        symmetric=symmetric, remote_public_key=remote_static, remote_ephemeral=remote_ephemeral
    )


def responder_write(
    suite: Suite, state: ResponderState, *, observe: StepObserver = _unobserved
) -> tuple[Session, bytes]:
    """Message 2 (``Suite.message2_length`` bytes), and the session."""
    ekem = suite.encapsulate(state.remote_ephemeral)
    symmetric = state.symmetric.mix_hash(suite, ekem.ciphertext)
    observe("<- ekem: MixHash(ct)", symmetric)
    symmetric = symmetric.mix_key(suite, ekem.shared_secret)
    observe("<- ekem: MixKey(ss)", symmetric)
    skem = suite.encapsulate(state.remote_public_key)
    symmetric, sealed_ciphertext = symmetric.encrypt_and_hash(suite, skem.ciphertext)
    observe("<- skem: EncryptAndHash(ct)", symmetric)
    symmetric = symmetric.mix_key_and_hash(suite, skem.shared_secret)
    observe("<- skem: MixKeyAndHash(ss)", symmetric)
    symmetric, sealed_payload = symmetric.encrypt_and_hash(suite, b"")
    observe("<- payload: EncryptAndHash(payload2)", symmetric)
    return symmetric.split(suite), ekem.ciphertext + sealed_ciphertext + sealed_payload


def initiator_finish(
    suite: Suite,
    state: InitiatorState,
    message2: bytes,
    *,
    observe: StepObserver = _unobserved,
) -> Session:
    """The session of an answer; PacketRejected leaves ``state`` good for another answer.

    The session authenticates the responder: nobody else could have read message 1.
    """
    if len(message2) != suite.message2_length:
        raise PacketRejected("message 2 has a wrong length")
    skem_start = suite.ciphertext_length
    payload_start = skem_start + suite.ciphertext_length + TAG_LENGTH
    ekem_ciphertext = message2[:skem_start]

    symmetric = state.symmetric.mix_hash(suite, ekem_ciphertext)
    observe("<- ekem: MixHash(ct)", symmetric)
    symmetric = symmetric.mix_key(suite, state.ephemeral.decapsulate(ekem_ciphertext))
    observe("<- ekem: MixKey(ss)", symmetric)
    symmetric, skem_ciphertext = symmetric.decrypt_and_hash(
        suite, message2[skem_start:payload_start]
    )
    observe("<- skem: EncryptAndHash(ct)", symmetric)
    symmetric = symmetric.mix_key_and_hash(suite, state.static.decapsulate(skem_ciphertext))
    observe("<- skem: MixKeyAndHash(ss)", symmetric)
    symmetric, _ = symmetric.decrypt_and_hash(suite, message2[payload_start:])
    observe("<- payload: EncryptAndHash(payload2)", symmetric)
    return symmetric.split(suite)

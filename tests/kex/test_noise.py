"""pqIK against two whole handshakes of an independent implementation, and what it refuses."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kex import labels, noise
from kex.errors import AuthenticationFailed, PacketRejected
from kex.noise import InitiatorState, ResponderState, Session, SymmetricState
from kex.secret import Secret
from kex.suites import PrivateKey, Suite, suite
from tests.examples import examples
from tests.kex.reference import GivenBytes, deterministic_suite
from tests.kex.vectors import PQIK

SUITES = pytest.mark.parametrize("number", [1, 2])
VECTORS = pytest.mark.parametrize("vector", PQIK, ids=[f"suite{v['suite']}" for v in PQIK])


class Trace:
    """The steps of one end, in the form in which the vectors have them."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []

    def __call__(self, step: str, state: SymmetricState) -> None:
        k = None if state.k is None else state.k.expose().hex()
        self.steps.append(
            {"step": step, "ck": state.ck.expose().hex(), "h": state.h.hex(), "k": k, "n": state.n}
        )


def check_session(suite: Suite, session: Session, vector: dict[str, Any]) -> None:
    assert session.ck.expose().hex() == vector["ck"]
    assert session.h.hex() == vector["h"]
    assert session.k_i2r.expose().hex() == vector["k_i2r"]
    assert session.k_r2i.expose().hex() == vector["k_r2i"]
    # The probes are 16 zero bytes, sealed under each transport key, nonce 0, no associated data
    for key, probe in ((session.k_i2r, "probe_i2r"), (session.k_r2i, "probe_r2i")):
        assert suite.seal(key.expose(), 0, b"", bytes(16)).hex() == vector[probe]
        assert suite.open(key.expose(), 0, b"", bytes.fromhex(vector[probe])) == bytes(16)


@VECTORS
def test_whole_handshake_step_by_step(vector: dict[str, Any]) -> None:
    def given_bytes(*path: tuple[str, str]) -> GivenBytes:
        return GivenBytes(*(bytes.fromhex(vector[part][key]) for part, key in path))

    number = vector["suite"]
    initiator_random = given_bytes(("initiator_ephemeral", "seed"), ("message1_skem", "eseed"))
    responder_random = given_bytes(("message2_ekem", "eseed"), ("message2_skem", "eseed"))
    initiator = deterministic_suite(number, initiator_random)
    responder = deterministic_suite(number, responder_random)
    assert initiator.protocol_name.decode() == vector["protocol_name"]
    assert labels.PROLOGUE.hex() == vector["prologue"]
    assert vector["payload1"] == vector["payload2"] == ""
    statics = []
    for end in ("initiator_static", "responder_static"):
        key = initiator.private_key(bytes.fromhex(vector[end]["seed"]))
        assert key.public_key.hex() == vector[end]["public"]
        statics.append(key)
    initiator_trace, responder_trace = Trace(), Trace()

    waiting, message1 = noise.initiator_start(
        initiator, statics[0], statics[1].public_key, observe=initiator_trace
    )
    assert message1.hex() == vector["message1"]
    assert len(message1) == vector["message1_length"] == initiator.message1_length
    assert waiting.symmetric.ck.expose().hex() == vector["ck_after_message1"]
    assert waiting.symmetric.h.hex() == vector["h_after_message1"]
    assert waiting.ephemeral.public_key.hex() == vector["initiator_ephemeral"]["public"]

    asked = noise.responder_read(responder, statics[1], message1, observe=responder_trace)
    assert asked.remote_public_key == statics[0].public_key
    assert asked.symmetric == waiting.symmetric
    responder_session, message2 = noise.responder_write(responder, asked, observe=responder_trace)
    assert message2.hex() == vector["message2"]
    assert len(message2) == vector["message2_length"] == responder.message2_length

    session = noise.initiator_finish(initiator, waiting, message2, observe=initiator_trace)
    assert session == responder_session
    assert initiator_trace.steps == vector["trace"]
    assert responder_trace.steps == vector["trace"]
    check_session(initiator, session, vector)
    assert len(initiator_random) == len(responder_random) == 0


@VECTORS
def test_each_shared_secret_of_the_vectors(vector: dict[str, Any]) -> None:
    any_suite = suite(vector["suite"], random=os.urandom)
    for part in ("message1_skem", "message2_ekem", "message2_skem"):
        key = any_suite.private_key(bytes.fromhex(vector[vector[part]["to"]]["seed"]))
        secret = key.decapsulate(bytes.fromhex(vector[part]["ciphertext"]))
        assert secret.hex() == vector[part]["shared_secret"]


@dataclass(frozen=True)
class Exchange:
    """An honest exchange of one suite, with everything that both ends had in hand."""

    suite: Suite
    initiator: PrivateKey
    responder: PrivateKey
    waiting: InitiatorState
    message1: bytes
    asked: ResponderState
    message2: bytes
    session: Session

    def still_completes(self) -> None:
        """What was refused has changed nothing: the honest messages go through as before."""
        assert noise.responder_read(self.suite, self.responder, self.message1) == self.asked
        assert noise.initiator_finish(self.suite, self.waiting, self.message2) == self.session


@cache
def exchange(number: int) -> Exchange:
    real = suite(number, random=os.urandom)
    a, b = real.generate_private_key(), real.generate_private_key()
    waiting, message1 = noise.initiator_start(real, a, b.public_key)
    asked = noise.responder_read(real, b, message1)
    session, message2 = noise.responder_write(real, asked)
    return Exchange(real, a, b, waiting, message1, asked, message2, session)


@SUITES
def test_both_ends_agree_and_every_exchange_is_fresh(number: int) -> None:
    ex = exchange(number)
    ex.still_completes()
    assert ex.asked.remote_public_key == ex.initiator.public_key
    again, message1 = noise.initiator_start(ex.suite, ex.initiator, ex.responder.public_key)
    assert message1 != ex.message1
    assert again != ex.waiting
    session, message2 = noise.responder_write(ex.suite, ex.asked)
    assert message2 != ex.message2
    assert session != ex.session
    assert noise.initiator_finish(ex.suite, ex.waiting, message2) == session
    with pytest.raises(PacketRejected):
        noise.initiator_finish(ex.suite, again, ex.message2)


@settings(deadline=None)
@given(number=st.sampled_from([1, 2]), data=st.data())
def test_any_flipped_bit_is_refused(number: int, data: st.DataObject) -> None:
    ex = exchange(number)

    def flip(message: bytes) -> bytes:
        bit = data.draw(st.integers(0, 8 * len(message) - 1))
        spoiled = bytearray(message)
        spoiled[bit // 8] ^= 1 << bit % 8
        return bytes(spoiled)

    with pytest.raises(PacketRejected):
        noise.responder_read(ex.suite, ex.responder, flip(ex.message1))
    with pytest.raises(PacketRejected):
        noise.initiator_finish(ex.suite, ex.waiting, flip(ex.message2))
    ex.still_completes()


@settings(deadline=None, max_examples=examples(30))
@given(number=st.sampled_from([1, 2]), noise_bytes=st.binary(max_size=64), cut=st.integers(0, 200))
def test_any_other_length_is_refused(number: int, noise_bytes: bytes, cut: int) -> None:
    ex = exchange(number)
    for message in (noise_bytes, ex.message1[:-1], ex.message1[:cut], ex.message1 + b"\0"):
        with pytest.raises(PacketRejected):
            noise.responder_read(ex.suite, ex.responder, message)
    for message in (noise_bytes, ex.message2[:-1], ex.message2[:cut], ex.message2 + b"\0"):
        with pytest.raises(PacketRejected):
            noise.initiator_finish(ex.suite, ex.waiting, message)
    ex.still_completes()


@SUITES
def test_a_message_for_another_node_is_refused(number: int) -> None:
    ex = exchange(number)
    other = ex.suite.generate_private_key()
    with pytest.raises(AuthenticationFailed):
        noise.responder_read(ex.suite, other, ex.message1)
    ex.still_completes()


@SUITES
def test_an_answer_of_who_does_not_hold_the_key_is_refused(number: int) -> None:
    # Everything in message 2 but the chaining key can be made from what went over the wire
    ex = exchange(number)
    guessed = ResponderState(
        symmetric=SymmetricState(
            ck=Secret(bytes(ex.suite.hash_length)),
            h=ex.waiting.symmetric.h,
            k=Secret(bytes(32)),
            n=2,
        ),
        remote_public_key=ex.initiator.public_key,
        remote_ephemeral=ex.asked.remote_ephemeral,
    )
    _, message2 = noise.responder_write(ex.suite, guessed)
    with pytest.raises(AuthenticationFailed):
        noise.initiator_finish(ex.suite, ex.waiting, message2)
    ex.still_completes()


class OtherPublicKey:
    """A private key that announces a public key which is not its own."""

    def __init__(self, real: PrivateKey, public_key: bytes) -> None:
        self.seed = real.seed
        self.public_key = public_key
        self.decapsulate = real.decapsulate


class UnsoundEphemeral(Suite):
    """A suite of an initiator who sends ephemeral keys of his own making."""

    sent: bytes

    def generate_private_key(self) -> PrivateKey:
        return OtherPublicKey(super().generate_private_key(), self.sent)


def unsound_keys(number: int, good: bytes) -> list[bytes]:
    group_length = 32 if number == 1 else 97
    unreduced = b"\xff\xff\xff" + good[3:]  # two coefficients of 4095
    bad_element = good[:-group_length] + bytes(group_length)
    return [unreduced, bad_element]


@SUITES
@pytest.mark.parametrize("which", [0, 1], ids=["unreduced", "bad element"])
def test_unsound_keys_in_a_well_made_message_are_refused(number: int, which: int) -> None:
    ex = exchange(number)
    unsound = unsound_keys(number, ex.initiator.public_key)[which]
    evil = UnsoundEphemeral(number, random=os.urandom)
    evil.sent = unsound
    _, message1 = noise.initiator_start(evil, ex.initiator, ex.responder.public_key)
    with pytest.raises(PacketRejected) as ephemeral_error:
        noise.responder_read(ex.suite, ex.responder, message1)
    static = OtherPublicKey(ex.initiator, unsound)
    _, message1 = noise.initiator_start(ex.suite, static, ex.responder.public_key)
    with pytest.raises(PacketRejected) as static_error:
        noise.responder_read(ex.suite, ex.responder, message1)
    # Every tag was right: it is the check of the key that refused them
    assert not isinstance(ephemeral_error.value, AuthenticationFailed)
    assert not isinstance(static_error.value, AuthenticationFailed)
    # ... and an initiator who was given such a key for the responder's refuses it himself
    with pytest.raises(PacketRejected):
        noise.initiator_start(ex.suite, ex.initiator, unsound)
    ex.still_completes()


@SUITES
def test_a_bad_group_element_as_first_ciphertext_is_refused(number: int) -> None:
    ex = exchange(number)
    end = ex.suite.ciphertext_length
    start = end - (32 if number == 1 else 97)
    for message, read in (
        (ex.message1, lambda m: noise.responder_read(ex.suite, ex.responder, m)),
        (ex.message2, lambda m: noise.initiator_finish(ex.suite, ex.waiting, m)),
    ):
        with pytest.raises(PacketRejected, match=r"all zeros|not an uncompressed point"):
            read(message[:start] + bytes(end - start) + message[end:])
    ex.still_completes()


@SUITES
def test_states_are_values_that_show_no_secret(number: int) -> None:
    ex = exchange(number)
    states = [ex.waiting, ex.asked, ex.session]
    assert len(set(states)) == 3
    secrets = [ex.session.ck, ex.session.k_i2r, ex.session.k_r2i, ex.asked.symmetric.ck]
    secrets += [ex.initiator.seed, ex.waiting.ephemeral.seed]
    text = repr(states)
    for secret in secrets:
        assert repr(secret.expose())[2:-1] not in text
        assert secret.expose().hex() not in text
    with pytest.raises(AttributeError):
        ex.session.ck = Secret(b"")  # type: ignore[misc]


def test_the_name_of_a_suite_is_padded_or_hashed() -> None:
    first = SymmetricState.initialize(suite(1, random=os.urandom))
    second = SymmetricState.initialize(suite(2, random=os.urandom))
    assert len(first.h) == 32
    assert second.h == b"Noise_pqIK_MLKEM1024P384_AESGCM_SHA384" + bytes(10)
    assert first.ck.expose() == first.h
    assert second.ck.expose() == second.h
    assert first.k is None


@SUITES
def test_each_encryption_under_a_key_takes_the_next_nonce(number: int) -> None:
    real = suite(number, random=os.urandom)
    start = SymmetricState.initialize(real).mix_key(real, b"secret")
    first, one = start.encrypt_and_hash(real, b"")
    second, two = first.encrypt_and_hash(real, b"")
    assert len(one) == 16  # an empty payload still has its tag, and changes h
    assert (start.n, first.n, second.n) == (0, 1, 2)
    assert len({start.h, first.h, second.h}) == 3
    assert start.decrypt_and_hash(real, one) == (first, b"")
    with pytest.raises(AuthenticationFailed):
        start.decrypt_and_hash(real, two)
    assert start.mix_key(real, b"secret").n == second.mix_key_and_hash(real, b"secret").n == 0

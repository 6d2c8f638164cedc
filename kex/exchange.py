"""An exchange of our own, from InitHello to the key: the initiator's steps.

An `Exchange` is a value: each step takes one and gives the next, so that a step that fails has
changed nothing. When to take a step, and whose exchange goes first, is decided in kex.link.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any

from kex import noise, payload, schedule, wire
from kex.address import Address
from kex.errors import MalformedAnswer, PacketRejected
from kex.events import StartReason
from kex.external import ExternalKey, ExternalKeyReference, in_fixed_order
from kex.external import check as check_external_keys
from kex.identity import Fingerprint, Identity
from kex.noise import InitiatorState, Session
from kex.payload import Announcement, InitiatorPayload, Refusal, ResponderPayload
from kex.schedule import Exporter, Root, SessionKey
from kex.suites import Suite
from kex.wire import Fragment, MessageType


class Phase(Enum):
    """What an exchange of ours waits for."""

    IDENTITY = auto()
    """IdentityReply: the peer's public key."""
    HELLO = auto()
    """RespHello."""
    KEYS = auto()
    """External keys."""
    CONF = auto()
    """RespConf or Reject."""
    INSTALLING = auto()
    """The key is being installed."""
    OVER = auto()


class Input(Enum):
    """What moves an exchange on."""

    IDENTITY_KNOWN = auto()
    RESP_HELLO = auto()
    EXTERNAL_KEYS = auto()
    RESP_CONF = auto()
    REJECT = auto()
    TIME_OUT = auto()
    CROSSED = auto()
    INSTALLED = auto()
    INSTALL_FAILED = auto()


TRANSITIONS: dict[tuple[Phase, Input], Phase] = {
    (Phase.IDENTITY, Input.IDENTITY_KNOWN): Phase.HELLO,
    (Phase.IDENTITY, Input.REJECT): Phase.OVER,
    (Phase.IDENTITY, Input.TIME_OUT): Phase.OVER,
    (Phase.IDENTITY, Input.CROSSED): Phase.OVER,
    (Phase.HELLO, Input.RESP_HELLO): Phase.KEYS,
    (Phase.HELLO, Input.TIME_OUT): Phase.OVER,
    (Phase.HELLO, Input.CROSSED): Phase.OVER,
    (Phase.KEYS, Input.EXTERNAL_KEYS): Phase.CONF,
    (Phase.KEYS, Input.TIME_OUT): Phase.OVER,
    (Phase.KEYS, Input.CROSSED): Phase.OVER,
    (Phase.CONF, Input.RESP_CONF): Phase.INSTALLING,
    (Phase.CONF, Input.REJECT): Phase.OVER,
    (Phase.CONF, Input.TIME_OUT): Phase.OVER,
    (Phase.CONF, Input.CROSSED): Phase.OVER,
    (Phase.INSTALLING, Input.INSTALLED): Phase.OVER,
    (Phase.INSTALLING, Input.INSTALL_FAILED): Phase.OVER,
}
"""All ways through an exchange; the diagram in docs/protocol.md is made from this table."""


@dataclass(frozen=True, slots=True)
class Established:
    """What CO1 gave: the key, and what the peer said of itself."""

    key: SessionKey
    peer: Announcement


@dataclass(frozen=True, slots=True)
class Exchange:
    """One exchange of ours in flight."""

    exchange_id: bytes
    local: Fingerprint
    remote: Fingerprint
    address: Address
    reason: StartReason
    attempt: int
    phase: Phase = Phase.IDENTITY
    without_external: bool = False
    sent: tuple[Fragment, ...] = ()
    """The last message of ours, kept as it was: a repetition is the same bytes."""
    noise: InitiatorState | None = None
    session: Session | None = None
    exporter: Exporter | None = None
    biscuit: bytes = b""
    external: tuple[ExternalKey, ...] = ()
    ahead: frozenset[ExternalKeyReference] = frozenset()
    """Those of the external keys that were had before the exchange began."""
    root: Root | None = None
    established: Established | None = None
    install_failures: int = 0

    @property
    def ends_fallback(self) -> bool:
        """Whether it is to give a key with external keys, or none."""
        return self.reason is StartReason.END_FALLBACK

    def after(self, happened: Input, **changes: Any) -> Exchange:
        """The exchange in the phase that `happened` leads to; a KeyError is a bug of ours."""
        return replace(self, phase=TRANSITIONS[self.phase, happened], **changes)


def query_identity(exchange: Exchange, *, length: int, chunk_length: int) -> Exchange:
    """Ask for the peer's public key of `length` bytes: one padded query for each fragment."""
    key = wire.mac_key(MessageType.IDENTITY_QUERY, exchange.remote)
    shape = wire.cut(
        MessageType.IDENTITY_QUERY,
        exchange.remote.suite,
        exchange.exchange_id,
        bytes(length),
        key=key,
        chunk_length=chunk_length,
    )
    return replace(exchange, sent=shape)


def begin(
    suite: Suite, identity: Identity, exchange: Exchange, public_key: bytes, *, chunk_length: int
) -> Exchange:
    """IH: write InitHello (pqIK message 1) under the peer's public key."""
    state, message = noise.initiator_start(suite, identity.private_key, public_key)
    sent = wire.cut(
        MessageType.INIT_HELLO,
        suite.number,
        exchange.exchange_id,
        message,
        key=wire.mac_key(MessageType.INIT_HELLO, exchange.remote),
        chunk_length=chunk_length,
    )
    return exchange.after(Input.IDENTITY_KNOWN, noise=state, sent=sent)


def read_resp_hello_untrusted(suite: Suite, exchange: Exchange, body: bytes) -> Exchange:
    """IC0: read RespHello; on failure (PacketRejected) the Noise state is as it was."""
    if exchange.noise is None:
        raise PacketRejected("phase")
    message, biscuit = body[: suite.message2_length], body[suite.message2_length :]
    session = noise.initiator_finish(suite, exchange.noise, message)
    return exchange.after(
        Input.RESP_HELLO,
        session=session,
        exporter=schedule.export(suite, session.ck, session.h),
        biscuit=biscuit,
        noise=None,
        sent=(),
    )


def confirm(
    suite: Suite,
    exchange: Exchange,
    announcement: Announcement,
    external: tuple[ExternalKey, ...],
    *,
    chunk_length: int,
) -> Exchange:
    """IC1 to IC4: mix the external keys and write InitConf.

    Raises ValueError where the external keys or the payload do not fit their bounds.
    """
    if exchange.session is None or exchange.exporter is None:
        raise ValueError("InitConf comes after RespHello")
    check_external_keys(external)
    external = in_fixed_order(external)
    k_i2r = exchange.session.k_i2r.expose()
    h = exchange.session.h
    # IC2: P_i, C_i, h3
    p_i = payload.encode_initiator(
        InitiatorPayload(announcement, payload.listing(external)), initiator_payload_length(suite)
    )
    c_i = suite.seal(k_i2r, 0, h + exchange.biscuit, p_i)
    h3 = schedule.transcript3(
        suite, h=h, exchange_id=exchange.exchange_id, biscuit=exchange.biscuit, c_i=c_i
    )
    # IC3: root
    root = schedule.mix_root(suite, exchange.exporter, h3, external)
    # IC4: confirm_i, sealed, so that nobody on the way can fake a disagreement
    envelope = suite.seal(k_i2r, 1, h3, schedule.confirmation(suite, root))
    sent = wire.cut(
        MessageType.INIT_CONF,
        suite.number,
        exchange.exchange_id,
        exchange.biscuit + c_i + envelope,
        key=wire.mac_key(MessageType.INIT_CONF, exchange.remote),
        chunk_length=chunk_length,
    )
    return exchange.after(
        Input.EXTERNAL_KEYS, external=external, root=root, sent=sent, session=None
    )


def read_resp_conf_untrusted(
    suite: Suite, exchange: Exchange, body: bytes
) -> tuple[ResponderPayload, Exchange]:
    """CO1: open C_r, which proves that the responder holds the same root.

    Raises PacketRejected, the exchange as it was, unless the AEAD opens; MalformedAnswer where it
    does, and P_r cannot be read.
    """
    if exchange.root is None:
        raise PacketRejected("phase")
    p_r = suite.open(exchange.root.k_resp.expose(), 0, exchange.root.h3, body)
    try:
        answer = payload.decode_responder_untrusted(p_r)
    except PacketRejected as error:
        raise MalformedAnswer(error.reason) from error
    key = schedule.session_key(suite, exchange.root, body)
    established = Established(key, answer.announcement)
    return answer, exchange.after(Input.RESP_CONF, established=established, sent=())


def read_reject_untrusted(suite: Suite, exchange: Exchange, body: bytes) -> Refusal:
    """What the responder says of why it refused. Raises PacketRejected unless the AEAD opens;
    MalformedAnswer where it does, and the reason cannot be read."""
    if exchange.exporter is None or exchange.root is None:
        raise PacketRejected("phase")
    plaintext = suite.open(exchange.exporter.k_rej.expose(), 0, exchange.root.h3, body)
    try:
        return payload.decode_refusal_untrusted(plaintext)
    except PacketRejected as error:
        raise MalformedAnswer(error.reason) from error


def initiator_payload_length(suite: Suite) -> int:
    """P_i fills InitConf up to its 1,200 bytes: 1,008 in suite 1, 960 in suite 2."""
    envelope = suite.hash_length + wire.AEAD_TAG_LENGTH
    return wire.INIT_CONF_LENGTH - suite.biscuit_length - wire.AEAD_TAG_LENGTH - envelope

"""The responder's steps: stateless up to InitConf, then one outcome that is final.

`Responding` is a value: an InitConf that was accepted and whose outcome is being worked out.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, replace
from enum import Enum, auto

from kex import biscuit as biscuits
from kex import noise, payload, schedule, wire
from kex.address import Address
from kex.biscuit import Biscuit, BiscuitKeys
from kex.errors import PacketRejected
from kex.exchange import initiator_payload_length
from kex.external import ExternalKey
from kex.identity import Fingerprint
from kex.payload import Announcement, Refusal, ResponderPayload
from kex.schedule import Exporter, Root, SessionKey
from kex.suites import Suite
from kex.wire import Fragment, MessageType


class Stage(Enum):
    """What the outcome of an accepted InitConf waits for."""

    KEYS = auto()
    INSTALLING = auto()


@dataclass(frozen=True, slots=True)
class OpenedInitConf:
    """An InitConf that is authenticated: the initiator holds k_i2r of this exchange."""

    exchange_id: bytes
    local: Fingerprint
    biscuit: Biscuit
    exporter: Exporter
    h3: bytes
    p_i: bytes
    confirm_i: bytes


@dataclass(frozen=True, slots=True)
class Responding:
    """An InitConf whose number is used up."""

    opened: OpenedInitConf
    source: Address
    proved: bool
    """Whether the initiator was seen to receive at the source."""
    stage: Stage
    listing: tuple[payload.ExternalListing, ...]
    peer: Announcement
    root: Root | None = None
    key: SessionKey | None = None
    answer: tuple[Fragment, ...] = ()
    """RespConf, held back until the key is installed."""

    @property
    def exchange_id(self) -> bytes:
        return self.opened.exchange_id


def answer_init_hello(
    suite: Suite,
    state: noise.ResponderState,
    keys: BiscuitKeys,
    *,
    exchange_id: bytes,
    local: Fingerprint,
    chunk_length: int,
) -> tuple[tuple[Fragment, ...], int, BiscuitKeys]:
    """RH: write RespHello. Gives its fragments, the biscuit's number, and the keys after it."""
    session, message = noise.responder_write(suite, state)
    initiator = Fingerprint.of(suite.number, state.remote_public_key)
    number, keys = keys.numbered()
    sealed = biscuits.seal(
        suite,
        keys.current,
        Biscuit(number, session.ck, session.h, initiator),
        exchange_id=exchange_id,
        local=local,
    )
    fragments = wire.cut(
        MessageType.RESP_HELLO,
        suite.number,
        exchange_id,
        message + sealed,
        key=wire.mac_key(MessageType.RESP_HELLO, local),
        chunk_length=chunk_length,
    )
    return fragments, number, keys


def open_biscuit_untrusted(
    suite: Suite, keys: BiscuitKeys, body: bytes, *, exchange_id: bytes, local: Fingerprint
) -> Biscuit:
    """RC1, first part: the biscuit in front of an InitConf. Raises PacketRejected."""
    sealed = body[: suite.biscuit_length]
    return biscuits.open_untrusted(suite, keys, sealed, exchange_id=exchange_id, local=local)


def open_init_conf_untrusted(
    suite: Suite, biscuit: Biscuit, body: bytes, *, exchange_id: bytes, local: Fingerprint
) -> OpenedInitConf:
    """RC1, second part: open C_i and the envelope of confirm_i. Raises PacketRejected.

    On success the initiator is authenticated.
    """
    sealed = body[: suite.biscuit_length]
    c_i_length = initiator_payload_length(suite) + wire.AEAD_TAG_LENGTH
    c_i = body[suite.biscuit_length : suite.biscuit_length + c_i_length]
    envelope = body[suite.biscuit_length + c_i_length :]
    session = noise.split(suite, ck=biscuit.ck, h=biscuit.h)
    k_i2r = session.k_i2r.expose()
    p_i = suite.open(k_i2r, 0, biscuit.h + sealed, c_i)
    h3 = schedule.transcript3(suite, h=biscuit.h, exchange_id=exchange_id, biscuit=sealed, c_i=c_i)
    confirm_i = suite.open(k_i2r, 1, h3, envelope)
    return OpenedInitConf(
        exchange_id=exchange_id,
        local=local,
        biscuit=biscuit,
        exporter=schedule.export(suite, biscuit.ck, biscuit.h),
        h3=h3,
        p_i=p_i,
        confirm_i=confirm_i,
    )


class ConfirmationMismatch(PacketRejected):
    """The initiator's root is another one: the external keys differ."""


def complete(
    suite: Suite,
    responding: Responding,
    external: tuple[ExternalKey, ...],
    announcement: Announcement,
    *,
    chunk_length: int,
) -> Responding:
    """RC1 end and RC2: root, confirm_i, C_r, PSK. Raises ConfirmationMismatch."""
    opened = responding.opened
    root = schedule.mix_root(suite, opened.exporter, opened.h3, external)
    if not hmac.compare_digest(schedule.confirmation(suite, root), opened.confirm_i):
        raise ConfirmationMismatch("confirm_i")
    mixed = sum(key.present for key in external)
    p_r = payload.encode_responder(
        ResponderPayload(announcement, mixed, suite.number), wire.RESP_CONF_PAYLOAD_LENGTH
    )
    c_r = suite.seal(root.k_resp.expose(), 0, root.h3, p_r)
    return replace(
        responding,
        stage=Stage.INSTALLING,
        root=root,
        key=schedule.session_key(suite, root, c_r),
        answer=_to_initiator(suite, opened, MessageType.RESP_CONF, c_r, chunk_length),
    )


def refuse(
    suite: Suite, opened: OpenedInitConf, refusal: Refusal, *, chunk_length: int
) -> tuple[Fragment, ...]:
    """Reject, for an initiator that is authenticated."""
    plaintext = payload.encode_refusal(refusal, wire.REJECT_PAYLOAD_LENGTH)
    sealed = suite.seal(opened.exporter.k_rej.expose(), 0, opened.h3, plaintext)
    return _to_initiator(suite, opened, MessageType.REJECT, sealed, chunk_length)


def _to_initiator(
    suite: Suite,
    opened: OpenedInitConf,
    message_type: MessageType,
    body: bytes,
    chunk_length: int,
) -> tuple[Fragment, ...]:
    return wire.cut(
        message_type,
        suite.number,
        opened.exchange_id,
        body,
        key=wire.mac_key(message_type, opened.local),
        chunk_length=chunk_length,
    )

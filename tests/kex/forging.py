"""What an attacker makes who knows fingerprints, or who holds the keys of a session."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kex import schedule, wire
from kex.exchange import Exchange
from kex.external import ExternalKey
from kex.identity import Fingerprint
from kex.suites import Suite
from kex.wire import Fragment, MessageType

from .harness import Moment, Network, identity


def fingerprint_for(kind: MessageType, suite: int, *, sender: str, receiver: str) -> Fingerprint:
    """Under whose fingerprint a message has its mac1: that of the node that was asked."""
    return identity(suite, receiver if kind in wire.QUESTIONS else sender).fingerprint


def mac_key(moment: Moment, kind: MessageType | None = None) -> bytes:
    """The key of mac1 for a datagram in the place of the genuine one."""
    fragment = wire.parse_untrusted(moment.data)
    kind = fragment.type if kind is None else kind
    who = fingerprint_for(
        kind, fragment.suite, sender=moment.flying.sender, receiver=moment.receiver.name
    )
    return wire.mac_key(kind, who)


def changed(moment: Moment, **fields: Any) -> bytes:
    """The genuine datagram with other header fields or another chunk, and mac1 made to fit."""
    fragment = replace(wire.parse_untrusted(moment.data), **fields)
    return wire.seal_fragment(fragment, mac_key(moment, fragment.type)).datagram()


def resealed(moment: Moment, before_mac1: bytes) -> bytes:
    """Any bytes with a mac1 that fits, which no parser of ours might make."""
    return before_mac1 + wire.mac(mac_key(moment), before_mac1) + wire.NO_MAC


def changed_suite(moment: Moment, suite: int) -> bytes:
    """The genuine datagram with another suite's number, and mac1 for the same digest there."""
    genuine = wire.parse_untrusted(moment.data)
    who = fingerprint_for(
        genuine.type, genuine.suite, sender=moment.flying.sender, receiver=moment.receiver.name
    )
    key = wire.mac_key(genuine.type, Fingerprint(suite, who.digest))
    return wire.seal_fragment(replace(genuine, suite=suite), key).datagram()


def body_of(moment: Moment, network: Network) -> bytes:
    """The whole message that the genuine datagram is a part of; `network` has sent it."""
    genuine = wire.parse_untrusted(moment.data)
    chunks = {}
    for flying in network.log:
        fragment = wire.parse_untrusted(flying.data)
        if (fragment.tag, fragment.exchange_id) == (genuine.tag, genuine.exchange_id):
            chunks[fragment.index] = fragment.chunk
    return b"".join(chunks[index] for index in sorted(chunks))


def message(
    moment: Moment,
    body: bytes,
    *,
    exchange_id: bytes | None = None,
    chunk_length: int = wire.MAX_CHUNK_LENGTH,
) -> list[bytes]:
    """A whole message of the genuine one's type, with tag and mac1 made to fit."""
    genuine = wire.parse_untrusted(moment.data)
    fragments = wire.cut(
        genuine.type,
        genuine.suite,
        genuine.exchange_id if exchange_id is None else exchange_id,
        body,
        key=mac_key(moment),
        chunk_length=chunk_length,
    )
    return list(wire.datagrams(fragments))


def whole(datagrams: list[bytes]) -> tuple[Fragment, bytes]:
    """The header of the first fragment, and the body of all."""
    fragments = sorted((wire.parse_untrusted(d) for d in datagrams), key=lambda f: f.index)
    return fragments[0], b"".join(fragment.chunk for fragment in fragments)


def init_conf(
    suite: Suite,
    exchange: Exchange,
    p_i: bytes,
    *,
    external: tuple[ExternalKey, ...] = (),
    confirm_i: bytes | None = None,
) -> list[bytes]:
    """InitConf with any P_i, by an initiator whose exchange has got its RespHello."""
    assert exchange.session is not None
    assert exchange.exporter is not None
    k_i2r, h = exchange.session.k_i2r.expose(), exchange.session.h
    c_i = suite.seal(k_i2r, 0, h + exchange.biscuit, p_i)
    h3 = schedule.transcript3(
        suite, h=h, exchange_id=exchange.exchange_id, biscuit=exchange.biscuit, c_i=c_i
    )
    root = schedule.mix_root(suite, exchange.exporter, h3, external)
    proof = schedule.confirmation(suite, root) if confirm_i is None else confirm_i
    body = exchange.biscuit + c_i + suite.seal(k_i2r, 1, h3, proof)
    fragments = wire.cut(
        MessageType.INIT_CONF,
        suite.number,
        exchange.exchange_id,
        body,
        key=wire.mac_key(MessageType.INIT_CONF, exchange.remote),
    )
    return list(wire.datagrams(fragments))


def resp_conf(suite: Suite, exchange: Exchange, p_r: bytes) -> list[bytes]:
    """RespConf with any P_r, by a responder that holds the root."""
    assert exchange.root is not None
    c_r = suite.seal(exchange.root.k_resp.expose(), 0, exchange.root.h3, p_r)
    return _answer(suite, exchange, MessageType.RESP_CONF, c_r)


def reject(suite: Suite, exchange: Exchange, plaintext: bytes) -> list[bytes]:
    """Reject with any plaintext, by a responder of this exchange."""
    assert exchange.root is not None
    assert exchange.exporter is not None
    sealed = suite.seal(exchange.exporter.k_rej.expose(), 0, exchange.root.h3, plaintext)
    return _answer(suite, exchange, MessageType.REJECT, sealed)


def _answer(suite: Suite, exchange: Exchange, kind: MessageType, body: bytes) -> list[bytes]:
    fragments = wire.cut(
        kind,
        suite.number,
        exchange.exchange_id,
        body,
        key=wire.mac_key(kind, exchange.remote),
    )
    return list(wire.datagrams(fragments))

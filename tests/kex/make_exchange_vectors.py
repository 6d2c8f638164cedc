"""Whole exchanges with given randomness, for who writes a second implementation.

    python -m tests.kex.make_exchange_vectors

writes docs/vectors/exchange-suite1.json and exchange-suite2.json. The datagrams are those of two
real endpoints; what lies between them is computed once more from the randomness that they drew,
and has to give the same datagrams. docs/vectors/README.md says what each field means.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cbor2

from kex import biscuit as biscuits
from kex import cookies, labels, noise, schedule, wire
from kex.biscuit import Biscuit
from kex.events import KeyEstablished, RejectSent
from kex.exchange import initiator_payload_length
from kex.external import ExternalKey, in_fixed_order, root_input
from kex.identity import Fingerprint, Identity
from kex.secret import Secret
from kex.suites import RandomSource, Suite
from kex.wire import Fragment, MessageType

from .harness import (
    ADDRESSES,
    REQUIRE,
    End,
    Network,
    absent,
    disagreeing,
    external_key,
    identity,
    pair,
    same_key,
    under_load,
)
from .reference import GivenBytes, SeededBytes, deterministic_suite

FOLDER = Path(__file__).parent.parent.parent / "docs" / "vectors"
INITIATOR, RESPONDER = "left", "right"
DIRECTIONS = {INITIATOR: "initiator to responder", RESPONDER: "responder to initiator"}
ESEED_LENGTH = {1: 32 + 32, 2: 32 + 48}
GROUP_SEED_LENGTH = {1: 32, 2: 48}


@dataclass(frozen=True)
class Case:
    """One exchange. `keys` are those that the sources give at both ends, unless the responder
    holds others and refuses."""

    name: str
    keys: tuple[ExternalKey, ...] = ()
    under_load: bool = False
    fetches_identity: bool = False
    is_refused: bool = False


CASES = (
    Case("no external keys"),
    Case("one external key", keys=(external_key("kme-a"),)),
    Case("two external keys", keys=(external_key("kme-a"), external_key("kme-b", length=64))),
    Case(
        "two external keys listed, one of them not present",
        keys=(absent(external_key("kme-a")), external_key("kme-b")),
    ),
    Case(
        "the responder holds another key and refuses",
        keys=(external_key("kme-a"),),
        is_refused=True,
    ),
    Case("the responder asks for a cookie", under_load=True),
    Case("the initiator fetches the responder's public key", fetches_identity=True),
)


@dataclass
class Recorder:
    """A source of randomness that remembers what it gave."""

    source: RandomSource
    given: list[bytes] = field(default_factory=list)

    def __call__(self, length: int) -> bytes:
        value = self.source(length)
        self.given.append(value)
        return value

    def of_lengths(self, *lengths: int) -> Iterator[bytes]:
        """The values that were given, which have these lengths one after the other."""
        for value, length in zip(self.given, lengths, strict=True):
            if len(value) != length:
                raise ValueError(f"{len(value)} bytes were drawn where {length} were expected")
            yield value


@dataclass
class Run:
    """A case, carried out: the network afterwards, and the randomness of each end."""

    case: Case
    suite: int
    network: Network
    kem_random: dict[str, Recorder]
    node_random: dict[str, Recorder]

    def end(self, name: str) -> End:
        return self.network[name]

    def body(self, kind: MessageType) -> bytes:
        (body,) = self.network.bodies(kind)
        return body


def run(case: Case, number: int) -> Run:
    kem_random, node_random, ends = {}, {}, {}
    for name in (INITIATOR, RESPONDER):
        seed = f"exchange vector, suite {number}, {case.name}, {name}".encode()
        kem_random[name] = Recorder(SeededBytes(seed + b", KEM"))
        node_random[name] = Recorder(SeededBytes(seed + b", node"))
        ends[name] = {
            "suites": {number: deterministic_suite(number, kem_random[name])},
            "random": node_random[name],
        }
    if case.under_load:
        ends[RESPONDER]["load"] = under_load()
    link = {"external_mode": REQUIRE} if case.keys else {}
    network = pair(
        number,
        know_keys=not case.fetches_identity,
        ends=ends,
        links={INITIATOR: link, RESPONDER: link},
    )
    network[INITIATOR].source = lambda wanted: case.keys
    network[RESPONDER].source = (
        disagreeing if case.is_refused else lambda wanted: in_fixed_order(case.keys)
    )
    network.start(INITIATOR, RESPONDER)
    network.settle()
    if case.is_refused:
        if not network[RESPONDER].events_of(RejectSent):
            raise ValueError("the exchange should have been refused")
    else:
        same_key(network)
    return Run(case, number, network, kem_random, node_random)


# ---- what lies between the datagrams


def vector(made: Run) -> dict[str, Any]:
    """All of one exchange, as docs/vectors/README.md lists it."""
    suite = deterministic_suite(made.suite, GivenBytes())
    ends = {name: identity(made.suite, name) for name in (INITIATOR, RESPONDER)}
    fields: dict[str, Any] = {
        "name": made.case.name,
        "suite": made.suite,
        "protocol_name": suite.protocol_name.decode(),
        "kem": {1: "MLKEM768-X25519", 2: "MLKEM1024-P384"}[made.suite],
        "prologue": labels.PROLOGUE.hex(),
    }
    noise_fields, session = handshake(made, suite, ends)
    fields |= noise_fields
    fields |= identities(ends)
    exchange_id = fragments(made, MessageType.INIT_HELLO)[0].exchange_id
    fields["exchange_id"] = exchange_id.hex()
    fields["mac1_keys"] = mac1_keys(made, ends)
    fields |= biscuit_fields(made, suite, ends, session, exchange_id)
    fields |= confirmation_fields(made, suite, session, exchange_id)
    if made.case.under_load:
        fields["cookies"] = cookie_fields(made, ends[RESPONDER].fingerprint)
    fields["datagrams"] = [
        {
            "direction": DIRECTIONS[flying.sender],
            "type": flying.type.name,
            "data": flying.data.hex(),
        }
        for flying in made.network.log
    ]
    return fields


def fragments(made: Run, kind: MessageType) -> list[Fragment]:
    return [wire.parse_untrusted(f.data) for f in made.network.log if f.type is kind]


def handshake(
    made: Run, suite: Suite, ends: dict[str, Identity]
) -> tuple[dict[str, Any], noise.Session]:
    """The Noise part, under the names that published vectors of it have."""
    group = GROUP_SEED_LENGTH[made.suite]
    drawn = list(made.kem_random[INITIATOR].of_lengths(32, 32, group))
    ephemeral_seed, skem1 = drawn[0], drawn[1] + drawn[2]
    drawn = list(made.kem_random[RESPONDER].of_lengths(32, group, 32, group))
    ekem2, skem2 = drawn[0] + drawn[1], drawn[2] + drawn[3]

    initiator_suite = deterministic_suite(made.suite, GivenBytes(ephemeral_seed, skem1))
    static = {name: one.private_key for name, one in ends.items()}
    state, message1 = noise.initiator_start(
        initiator_suite, static[INITIATOR], static[RESPONDER].public_key
    )
    responder_suite = deterministic_suite(made.suite, GivenBytes(ekem2, skem2))
    read = noise.responder_read(responder_suite, static[RESPONDER], message1)
    session, message2 = noise.responder_write(responder_suite, read)
    if message1 != made.body(MessageType.INIT_HELLO):
        raise ValueError("message 1 is not the one that was sent")
    if message2 != made.body(MessageType.RESP_HELLO)[: suite.message2_length]:
        raise ValueError("message 2 is not the one that was sent")

    size = suite.ciphertext_length
    second = message2[size : 2 * size + 16]
    after_ekem = read.symmetric.mix_hash(suite, message2[:size]).mix_key(
        suite, state.ephemeral.decapsulate(message2[:size])
    )
    skem2_ciphertext = after_ekem.decrypt_and_hash(suite, second)[1]
    ephemeral = suite.private_key(ephemeral_seed)
    return {
        "initiator_static": key_pair(static[INITIATOR]),
        "responder_static": key_pair(static[RESPONDER]),
        "initiator_ephemeral": key_pair(ephemeral),
        "message1_skem": kem("responder_static", skem1, message1[:size], static[RESPONDER]),
        "message2_ekem": kem("initiator_ephemeral", ekem2, message2[:size], ephemeral),
        "message2_skem": kem("initiator_static", skem2, skem2_ciphertext, static[INITIATOR]),
        "payload1": "",
        "payload2": "",
        "message1_length": len(message1),
        "message2_length": len(message2),
        "message1": message1.hex(),
        "message2": message2.hex(),
        "ck_after_message1": state.symmetric.ck.expose().hex(),
        "h_after_message1": state.symmetric.h.hex(),
        "ck": session.ck.expose().hex(),
        "h": session.h.hex(),
        "k_i2r": session.k_i2r.expose().hex(),
        "k_r2i": session.k_r2i.expose().hex(),
        "probe_i2r": suite.seal(session.k_i2r.expose(), 0, b"", bytes(16)).hex(),
        "probe_r2i": suite.seal(session.k_r2i.expose(), 0, b"", bytes(16)).hex(),
    }, session


def key_pair(key: Any) -> dict[str, str]:
    return {"seed": key.seed.expose().hex(), "public": key.public_key.hex()}


def kem(to: str, eseed: bytes, ciphertext: bytes, key: Any) -> dict[str, str]:
    return {
        "to": to,
        "eseed": eseed.hex(),
        "ciphertext": ciphertext.hex(),
        "shared_secret": key.decapsulate(ciphertext).hex(),
    }


def identities(ends: dict[str, Identity]) -> dict[str, Any]:
    names = {INITIATOR: "initiator_fingerprint", RESPONDER: "responder_fingerprint"}
    return {
        names[end]: {"digest": one.fingerprint.digest.hex(), "text": one.fingerprint.text()}
        for end, one in ends.items()
    }


def mac1_keys(made: Run, ends: dict[str, Identity]) -> dict[str, str]:
    """Of every type that is sent in this exchange."""
    asked = ends[RESPONDER].fingerprint
    return {flying.type.name: wire.mac_key(flying.type, asked).hex() for flying in made.network.log}


def biscuit_fields(
    made: Run,
    suite: Suite,
    ends: dict[str, Identity],
    session: noise.Session,
    exchange_id: bytes,
) -> dict[str, Any]:
    key = biscuits.fresh_key(made.node_random[RESPONDER].given[0])
    local, initiator = ends[RESPONDER].fingerprint, ends[INITIATOR].fingerprint
    contents = Biscuit(1, session.ck, session.h, initiator)
    sealed = biscuits.seal(suite, key, contents, exchange_id=exchange_id, local=local)
    if sealed != made.body(MessageType.RESP_HELLO)[suite.message2_length :]:
        raise ValueError("the biscuit is not the one that was sent")
    plaintext = session.ck.expose() + session.h + initiator.digest
    return {
        "biscuit_key_id": key.key_id.hex(),
        "biscuit_key": key.key.expose().hex(),
        "biscuit_number": contents.number,
        "biscuit_associated_data": (labels.BISCUIT + key.key_id + exchange_id + local.digest).hex(),
        "biscuit_plaintext": plaintext.hex(),
        "biscuit": sealed.hex(),
    }


def confirmation_fields(
    made: Run, suite: Suite, session: noise.Session, exchange_id: bytes
) -> dict[str, Any]:
    """From Split() to the key, or to the Reject."""
    body = made.body(MessageType.INIT_CONF)
    biscuit = body[: suite.biscuit_length]
    end = suite.biscuit_length + initiator_payload_length(suite) + 16
    c_i, envelope = body[suite.biscuit_length : end], body[end:]
    k_i2r = session.k_i2r.expose()
    p_i = suite.open(k_i2r, 0, session.h + biscuit, c_i)
    exporter = schedule.export(suite, session.ck, session.h)
    h3 = schedule.transcript3(suite, h=session.h, exchange_id=exchange_id, biscuit=biscuit, c_i=c_i)
    keys = in_fixed_order(made.case.keys)
    root = schedule.mix_root(suite, exporter, h3, keys)
    confirm_i = schedule.confirmation(suite, root)
    if suite.open(k_i2r, 1, h3, envelope) != confirm_i:
        raise ValueError("confirm_i is not the one that was sent")
    fields: dict[str, Any] = {
        "exporter": exporter.exporter.expose().hex(),
        "k_rej": exporter.k_rej.expose().hex(),
        "p_i": p_i.hex(),
        "p_i_fields": payload_fields(p_i),
        "c_i": c_i.hex(),
        "h3": h3.hex(),
        "external_keys": [external_fields(key) for key in keys],
        "root_input": root_input(keys).hex(),
        "root": root.root.expose().hex(),
        "conf_i": root.conf_i.expose().hex(),
        "confirm_i": confirm_i.hex(),
        "confirm_i_sealed": envelope.hex(),
        "k_resp": root.k_resp.expose().hex(),
        "psk_root": root.psk_root.expose().hex(),
    }
    if made.case.is_refused:
        return fields | reject_fields(made, suite, exporter, h3, keys)
    return fields | key_fields(made, suite, root)


def key_fields(made: Run, suite: Suite, root: schedule.Root) -> dict[str, Any]:
    c_r = made.body(MessageType.RESP_CONF)
    p_r = suite.open(root.k_resp.expose(), 0, root.h3, c_r)
    key = schedule.session_key(suite, root, c_r)
    for name in (INITIATOR, RESPONDER):
        installed = made.end(name).events_of(KeyEstablished)[-1]
        if (installed.psk, installed.key_id) != (key.psk, key.key_id):
            raise ValueError("the key is not the one that was installed")
    return {
        "p_r": p_r.hex(),
        "p_r_fields": payload_fields(p_r),
        "c_r": c_r.hex(),
        "h4": key.h4.hex(),
        "psk": key.psk.expose().hex(),
        "key_id": key.key_id,
    }


def reject_fields(
    made: Run,
    suite: Suite,
    exporter: schedule.Exporter,
    h3: bytes,
    keys: Sequence[ExternalKey],
) -> dict[str, Any]:
    sealed = made.body(MessageType.REJECT)
    reason = suite.open(exporter.k_rej.expose(), 0, h3, sealed)
    held = [ExternalKey(key.reference, Secret(bytes(key.reference.bits // 8))) for key in keys]
    return {
        "responder_external_keys": [external_fields(key) for key in held],
        "reject_reason": reason.hex(),
        "reject_fields": payload_fields(reason),
        "reject": sealed.hex(),
    }


def external_fields(external: ExternalKey) -> dict[str, Any]:
    reference = external.reference
    return {
        "source_type": reference.source_type,
        "source": reference.source,
        "sae": reference.sae,
        "key_ids": list(reference.key_ids),
        "bits": reference.bits,
        "present": external.present,
        "key": None if external.key is None else external.key.expose().hex(),
    }


def payload_fields(data: bytes) -> Any:
    """The CBOR map, with byte strings in hex."""
    return in_hex(cbor2.loads(data[2 : 2 + int.from_bytes(data[:2], "big")]))


def in_hex(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {name: in_hex(each) for name, each in value.items()}
    if isinstance(value, list):
        return [in_hex(each) for each in value]
    return value


def cookie_fields(made: Run, asked: Fingerprint) -> dict[str, Any]:
    """The replies in order; each answers the fragment whose mac1 is its associated data."""
    secret = cookies.CookieSecret(Secret(made.node_random[RESPONDER].given[1]), None, 0.0)
    cookie = secret.cookie(ADDRESSES[INITIATOR])
    replies = []
    first = [f for f in fragments(made, MessageType.INIT_HELLO) if f.mac2 == wire.NO_MAC]
    for question, reply in zip(first, fragments(made, MessageType.COOKIE_REPLY), strict=True):
        opened = cookies.open_cookie_untrusted(asked, body=reply.chunk, mac1=question.mac1)
        if opened != cookie:
            raise ValueError("the cookie is not the one that was sent")
        replies.append(
            {
                "answers_mac1": question.mac1.hex(),
                "nonce": reply.chunk[: cookies.NONCE_LENGTH].hex(),
                "body": reply.chunk.hex(),
            }
        )
    return {
        "secret": secret.current.expose().hex(),
        "address": ADDRESSES[INITIATOR].encoded().decode(),
        "cookie": cookie.hex(),
        "key": cookies.reply_key(asked).hex(),
        "replies": replies,
    }


def text(number: int) -> str:
    """The file of one suite."""
    return json.dumps([vector(run(case, number)) for case in CASES], indent=1) + "\n"


def path(number: int) -> Path:
    return FOLDER / f"exchange-suite{number}.json"


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for number in (1, 2):
        path(number).write_text(text(number))
        print(path(number).relative_to(FOLDER.parent.parent))


if __name__ == "__main__":
    main()

"""The second implementation at one end, an endpoint of ours at the other: they agree on a key."""

from __future__ import annotations

from typing import Any

import pytest

from kex.address import Address
from kex.external import ExternalKey, ExternalMode

from . import second_implementation as second
from .harness import ADDRESSES, SUITES, Network, agreeing, external_key, identity, pair
from .reference import SeededBytes
from .second_implementation import Listed, Noise, Responder, Suite

INIT_HELLO, RESP_HELLO, INIT_CONF, RESP_CONF, REJECT = 1, 2, 3, 4, 8
US, THEM = "left", "right"
HERE: Address = ADDRESSES[THEM]
GROUP_SEED = {1: 32, 2: 48}
P_I_LENGTH = {1: 1008, 2: 960}
FIELDS: dict[str, Any] = {
    "a key of minor version 7": {"unheard of": [1, 2, b"3"]},
    "starts": True,
    "interval": 3600,
    "mode": 1,
    "prefixes": [[8, bytes([10, 0, 0, 0])]],
    "port": 1,
    "wg": b"second".ljust(32, b"."),
    "minor": 7,
}


class Second:
    """The node `right`, which is not one of ours."""

    def __init__(self, number: int, network: Network, chunk_length: int) -> None:
        self.suite: Suite = second.SUITES[number]
        self.random = SeededBytes(b"second")
        self.network, self.chunk_length = network, chunk_length
        ours, theirs = identity(number, US), identity(number, THEM)
        self.our_key, self.our_digest = ours.public_key, ours.fingerprint.digest
        self.seed = theirs.private_key.seed.expose()
        self.public_key = self.suite.key_pair(self.seed)[0]
        self.digest = second.fingerprint(number, self.public_key)

    def encapsulate(self, public_key: bytes) -> tuple[bytes, bytes]:
        eseed = self.random(32) + self.random(GROUP_SEED[self.suite.number])
        return self.suite.encapsulate(public_key, eseed)

    def send(self, kind: int, exchange_id: bytes, body: bytes) -> None:
        asked = self.our_digest if kind in second.QUESTIONS else self.digest
        key = second.mac1_key(kind, self.suite.number, asked)
        datagrams = second.cut(
            kind, self.suite.number, exchange_id, body, key, chunk_length=self.chunk_length
        )
        for datagram in datagrams:
            self.network[US].endpoint.receive_datagram(datagram, HERE, self.network.now)
        self.network.collect()

    def receive(self, kind: int) -> tuple[bytes, bytes]:
        datagrams = [flying.data for flying in self.network.in_flight]
        self.network.in_flight.clear()
        asked = self.digest if kind in second.QUESTIONS else self.our_digest
        key = second.mac1_key(kind, self.suite.number, asked)
        got, exchange_id, body = second.join(datagrams, key)
        assert got == kind
        return exchange_id, body


def schedule(suite: Suite, noise: Noise, h3: bytes, external: bytes) -> tuple[bytes, bytes, bytes]:
    """confirm_i, k_resp, psk_root."""
    exporter = suite.mac(noise.ck, b"vpnd exporter" + noise.h)
    root = suite.mac(exporter, h3 + external)
    conf_i = suite.expand(root, b"vpnd confirmation initiator", suite.hash_length)
    k_resp = suite.expand(root, b"vpnd key resp", 32)
    psk_root = suite.expand(root, b"vpnd psk root", suite.hash_length)
    return suite.mac(conf_i, h3), k_resp, psk_root


def key_of(suite: Suite, psk_root: bytes, h3: bytes, c_r: bytes) -> tuple[bytes, str]:
    h4 = suite.digest(h3 + c_r)
    psk = suite.expand(psk_root, b"wireguard psk" + h4, 32)
    return psk, suite.digest(b"vpnd key id" + h4)[:4].hex()


def check_key(network: Network, psk: bytes, key_id: str) -> None:
    installed = network[US].installed[-1]
    assert (installed.psk.expose(), installed.key_id) == (psk, key_id)
    assert installed.peer.wireguard_key == FIELDS["wg"]
    assert installed.peer.minor == 7


class Initiating(Second):
    """An exchange that the second implementation begins."""

    def hello(self) -> None:
        """InitHello, and what comes back."""
        suite = self.suite
        ephemeral_seed = self.random(32)
        ephemeral = suite.key_pair(ephemeral_seed)[0]
        self.noise = Noise(suite, self.our_key)
        self.exchange_id = self.random(8)
        message1 = self.noise.message1(self.encapsulate(self.our_key), ephemeral, self.public_key)
        self.send(INIT_HELLO, self.exchange_id, message1)
        _, body = self.receive(RESP_HELLO)
        message2, self.biscuit = body[: -suite.biscuit_length], body[-suite.biscuit_length :]
        self.noise.read_message2(message2, ephemeral_seed, self.seed)

    def confirm(self, keys: list[Listed], **changes: Any) -> None:
        """InitConf, with these external keys in the order that they are given in."""
        suite = self.suite
        k_i2r, _ = self.noise.split()
        fields = FIELDS | {"keys": [each.entry for each in keys]} | changes
        p_i = second.padded(fields, P_I_LENGTH[suite.number])
        c_i = suite.seal(k_i2r, 0, self.noise.h + self.biscuit, p_i)
        self.h3 = suite.digest(self.noise.h + self.exchange_id + self.biscuit + c_i)
        external = second.root_input([each.key for each in keys])
        confirm_i, self.k_resp, self.psk_root = schedule(suite, self.noise, self.h3, external)
        sealed = suite.seal(k_i2r, 1, self.h3, confirm_i)
        self.send(INIT_CONF, self.exchange_id, self.biscuit + c_i + sealed)

    def key(self) -> tuple[bytes, str, Any]:
        """From RespConf: the PSK, the key id, and what P_r says."""
        _, c_r = self.receive(RESP_CONF)
        fields = second.payload_fields(self.suite.open(self.k_resp, 0, self.h3, c_r))
        return *key_of(self.suite, self.psk_root, self.h3, c_r), fields

    def refusal(self) -> Any:
        """From Reject: what it says."""
        _, sealed = self.receive(REJECT)
        exporter = self.suite.mac(self.noise.ck, b"vpnd exporter" + self.noise.h)
        k_rej = self.suite.expand(exporter, b"vpnd key reject", 32)
        return second.payload_fields(self.suite.open(k_rej, 0, self.h3, sealed))


class Responding(Second):
    """An exchange that an endpoint of ours begins."""

    def hello(self) -> None:
        """Take InitHello, which is on its way, and answer."""
        suite = self.suite
        self.exchange_id, hello = self.receive(INIT_HELLO)
        self.noise = Noise(suite, self.public_key)
        ephemeral, static = self.noise.read_message1(hello, self.seed)
        assert static == self.our_key
        message2 = self.noise.message2(self.encapsulate(ephemeral), self.encapsulate(static))
        self.biscuit = self.random(suite.biscuit_length)
        self.send(RESP_HELLO, self.exchange_id, message2 + self.biscuit)

    def answer(self, policy: Responder) -> tuple[Any, tuple[bytes, str] | None]:
        """Take InitConf and answer it: what P_i says, and the key unless it was refused."""
        suite = self.suite
        _, body = self.receive(INIT_CONF)
        end = suite.biscuit_length + P_I_LENGTH[suite.number] + 16
        c_i, envelope = body[suite.biscuit_length : end], body[end:]
        k_i2r, _ = self.noise.split()
        fields = second.payload_fields(suite.open(k_i2r, 0, self.noise.h + self.biscuit, c_i))
        h3 = suite.digest(self.noise.h + self.exchange_id + self.biscuit + c_i)
        try:
            keys = policy.keys_of(fields["keys"])
            external = second.root_input(keys)
            confirm_i, k_resp, psk_root = schedule(suite, self.noise, h3, external)
            second.check_same(confirm_i, suite.open(k_i2r, 1, h3, envelope))
        except second.Refused as refused:
            exporter = suite.mac(self.noise.ck, b"vpnd exporter" + self.noise.h)
            k_rej = suite.expand(exporter, b"vpnd key reject", 32)
            said = second.reason(refused.code, "by the second", refused.failed)
            self.send(REJECT, self.exchange_id, suite.seal(k_rej, 0, h3, said))
            return fields, None
        mixed = sum(key is not None for key in keys)
        p_r = second.padded(FIELDS | {"mixed": mixed, "suite": suite.number}, 1000)
        c_r = suite.seal(k_resp, 0, h3, p_r)
        self.send(RESP_CONF, self.exchange_id, c_r)
        return fields, key_of(suite, psk_root, h3, c_r)


@pytest.fixture(params=SUITES, ids=["suite 1", "suite 2"])
def number(request: pytest.FixtureRequest) -> int:
    value: int = request.param
    return value


@pytest.mark.parametrize("chunk_length", [500, 1200])
@pytest.mark.parametrize("keys", [(), ("kme",)], ids=["no keys", "a key"])
def test_second_as_initiator(number: int, keys: tuple[str, ...], chunk_length: int) -> None:
    network = pair(number, links={US: {"external_mode": ExternalMode.PREFER}})
    network[US].source = lambda wanted: tuple(
        # The source is asked by the names of the listing
        ExternalKey(entry.reference, external_key(entry.reference.source).key)
        for entry in wanted.listing
    )
    node = Second(number, network, chunk_length)
    suite, exchange_id = node.suite, b"from 2nd"
    ephemeral_seed = node.random(32)
    ephemeral = suite.key_pair(ephemeral_seed)[0]
    noise = Noise(suite, node.our_key)
    hello = noise.message1(node.encapsulate(node.our_key), ephemeral, node.public_key)
    node.send(INIT_HELLO, exchange_id, hello)

    answered, body = node.receive(RESP_HELLO)
    assert answered == exchange_id
    message2, biscuit = body[: -suite.biscuit_length], body[-suite.biscuit_length :]
    noise.read_message2(message2, ephemeral_seed, node.seed)
    k_i2r, _ = noise.split()
    values = [external_key(name) for name in keys]
    listed = [
        [
            k.reference.source_type,
            k.reference.source,
            k.reference.sae,
            ["id"],
            k.reference.bits,
            True,
        ]
        for k in values
    ]
    p_i = second.padded(FIELDS | {"keys": listed}, P_I_LENGTH[number])
    c_i = suite.seal(k_i2r, 0, noise.h + biscuit, p_i)
    h3 = suite.digest(noise.h + exchange_id + biscuit + c_i)
    external = second.root_input([k.key.expose() for k in values if k.key is not None])
    confirm_i, k_resp, psk_root = schedule(suite, noise, h3, external)
    node.send(INIT_CONF, exchange_id, biscuit + c_i + suite.seal(k_i2r, 1, h3, confirm_i))

    _, c_r = node.receive(RESP_CONF)
    fields = second.payload_fields(suite.open(k_resp, 0, h3, c_r))
    assert fields["wg"] == b"left".ljust(32, b".").hex()
    assert (fields["suite"], fields["mixed"]) == (number, len(keys))
    check_key(network, *key_of(suite, psk_root, h3, c_r))


@pytest.mark.parametrize("chunk_length", [500, 1200])
@pytest.mark.parametrize("keys", [(), ("kme", "other")], ids=["no keys", "two keys"])
def test_second_as_responder(number: int, keys: tuple[str, ...], chunk_length: int) -> None:
    mode = ExternalMode.REQUIRE if keys else ExternalMode.OFF
    network = pair(number, links={US: {"external_mode": mode}})
    network[US].source = agreeing(*keys)
    node = Second(number, network, chunk_length)
    suite = node.suite
    network.start(US, THEM)
    exchange_id, hello = node.receive(INIT_HELLO)
    noise = Noise(suite, node.public_key)
    ephemeral, static = noise.read_message1(hello, node.seed)
    assert static == node.our_key
    message2 = noise.message2(node.encapsulate(ephemeral), node.encapsulate(static))
    # Its biscuits are made in another way: a number into a table
    biscuit = node.random(suite.biscuit_length)
    node.send(RESP_HELLO, exchange_id, message2 + biscuit)

    _, body = node.receive(INIT_CONF)
    end = suite.biscuit_length + P_I_LENGTH[number] + 16
    c_i, envelope = body[suite.biscuit_length : end], body[end:]
    assert body[: suite.biscuit_length] == biscuit
    k_i2r, _ = noise.split()
    fields = second.payload_fields(suite.open(k_i2r, 0, noise.h + biscuit, c_i))
    assert [entry[1] for entry in fields["keys"]] == sorted(keys)
    h3 = suite.digest(noise.h + exchange_id + biscuit + c_i)
    values = [external_key(entry[1]).key for entry in fields["keys"]]
    external = second.root_input([value.expose() for value in values if value is not None])
    confirm_i, k_resp, psk_root = schedule(suite, noise, h3, external)
    assert suite.open(k_i2r, 1, h3, envelope) == confirm_i
    p_r = second.padded(FIELDS | {"mixed": len(keys), "suite": number}, 1000)
    c_r = suite.seal(k_resp, 0, h3, p_r)
    node.send(RESP_CONF, exchange_id, c_r)
    check_key(network, *key_of(suite, psk_root, h3, c_r))

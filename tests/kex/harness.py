"""Whole endpoints with the real suites, on a network that a test holds in its hands.

Nothing is sent by itself: datagrams lie in `Network.in_flight` until `deliver()`, `settle()` or
`advance()` takes them on, time stands still until `advance()`. A network can be copied at any
moment, so that one recorded moment serves many attacks.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from kex import wire
from kex.address import Address
from kex.endpoint import Endpoint
from kex.errors import PacketRejected
from kex.events import (
    Event,
    ExternalKeysWanted,
    KeyConfirmed,
    KeyEstablished,
    Role,
    StartReason,
)
from kex.external import ExternalKey, ExternalKeyReference, ExternalMode
from kex.identity import Identity
from kex.link_config import LinkConfig
from kex.load import Load
from kex.secret import Secret
from kex.suites import RandomSource, Suite
from kex.suites import suite as make_suite
from kex.wire import MessageType

from .reference import SeededBytes, deterministic_suite

SUITES = (1, 2)
NEVER = 1e9
"""A first exchange at this time does not begin by itself."""
ADDRESSES = {
    "left": Address("192.0.2.1", 51821),
    "right": Address("2001:db8::2", 51822),
    "third": Address("198.51.100.3", 51823),
}
NAMES = tuple(ADDRESSES)
PREFER, REQUIRE, OFF = ExternalMode.PREFER, ExternalMode.REQUIRE, ExternalMode.OFF

KeySource = Callable[[ExternalKeysWanted], "tuple[ExternalKey, ...] | str"]
"""Answers ExternalKeysWanted: with keys, or with a text where none can be had."""


def external_key(name: str, *, length: int = 32, key: bytes | None = None) -> ExternalKey:
    """An external key that is decided by its name, as two key managers would give it."""
    value = SeededBytes(b"external " + name.encode())(length) if key is None else key
    reference = ExternalKeyReference(
        source_type="qkd",
        source=name,
        sae=f"sae-{name}",
        key_ids=(f"id-{name}",),
        bits=8 * len(value),
    )
    return ExternalKey(reference, Secret(value))


def absent(external: ExternalKey) -> ExternalKey:
    """The same source without its key."""
    return ExternalKey(external.reference, None)


def agreeing(*names: str) -> KeySource:
    """A source in which both ends find the same keys."""

    def answer(wanted: ExternalKeysWanted) -> tuple[ExternalKey, ...]:
        if wanted.role is Role.INITIATOR:
            return tuple(external_key(name) for name in names)
        return tuple(
            external_key(entry.reference.source)
            if entry.present
            else ExternalKey(entry.reference, None)
            for entry in wanted.listing
        )

    return answer


def disagreeing(wanted: ExternalKeysWanted) -> tuple[ExternalKey, ...]:
    """For the responder: keys of the right length that are not the initiator's."""
    return tuple(
        ExternalKey(entry.reference, Secret(bytes(entry.reference.bits // 8)))
        for entry in wanted.listing
    )


@functools.cache
def identity(suite_number: int, name: str) -> Identity:
    """A lasting identity for each name; those of NAMES are in ascending order of fingerprints."""
    suite = make_suite(suite_number, random=SeededBytes(b"identity of nobody"))
    if name not in NAMES:
        return Identity(suite, suite.private_key(SeededBytes(name.encode())(32)))
    made = (Identity(suite, suite.private_key(SeededBytes(n.encode())(32))) for n in NAMES)
    return sorted(made, key=lambda one: one.fingerprint)[NAMES.index(name)]


@dataclass
class End:
    """One node: its endpoint, and a daemon that does what it is told."""

    name: str
    endpoint: Endpoint
    address: Address
    events: list[Event] = field(default_factory=list)
    source: KeySource | None = None
    installs: bool = True
    """Whether KeyEstablished is answered at once."""

    def copy(self) -> End:
        return replace(self, endpoint=self.endpoint.copy(), events=list(self.events))

    @property
    def installed(self) -> list[KeyEstablished]:
        """The keys that were handed out here and confirmed, in order."""
        confirmed = {event.key_id for event in self.events_of(KeyConfirmed)}
        return [key for key in self.events_of(KeyEstablished) if key.key_id in confirmed]

    _E = TypeVar("_E", bound=Event)

    def events_of(self, kind: type[_E]) -> list[_E]:
        return [event for event in self.events if isinstance(event, kind)]

    def exchange(self, peer: str) -> Any:
        """The exchange in flight with `peer`, or None."""
        return self.endpoint.link(peer).exchange

    def take_events(self, now: float) -> None:
        """Answer what has happened."""
        while (event := self.endpoint.next_event()) is not None:
            self.events.append(event)
            if isinstance(event, KeyEstablished) and self.installs:
                self.endpoint.key_installed(event.link, event.token, now)
            elif isinstance(event, ExternalKeysWanted) and self.source is not None:
                answer = self.source(event)
                if isinstance(answer, str):
                    self.endpoint.external_keys_failed(event.link, event.token, answer, now)
                else:
                    self.endpoint.external_keys(event.link, event.token, answer, now)


@dataclass(frozen=True)
class Flying:
    """A datagram on its way."""

    sender: str
    data: bytes
    source: Address
    destination: Address

    @property
    def type(self) -> MessageType:
        return MessageType(self.data[0] & 0x0F)


@dataclass
class Network:
    ends: dict[str, End]
    now: float = 1000.0
    in_flight: deque[Flying] = field(default_factory=deque)
    log: list[Flying] = field(default_factory=list)
    """Every datagram that was ever sent."""
    rejected: list[tuple[Flying, str]] = field(default_factory=list)

    def __getitem__(self, name: str) -> End:
        return self.ends[name]

    def copy(self) -> Network:
        return Network(
            {name: end.copy() for name, end in self.ends.items()},
            self.now,
            deque(self.in_flight),
            list(self.log),
            list(self.rejected),
        )

    def at(self, address: Address) -> End:
        """The node that is reached at an address."""
        return next(end for end in self.ends.values() if end.address == address)

    def collect(self) -> None:
        """Answer events and put what was sent on its way."""
        for end in self.ends.values():
            end.take_events(self.now)
            for data, address in end.endpoint.datagrams_to_send():
                flying = Flying(end.name, data, end.address, address)
                self.in_flight.append(flying)
                self.log.append(flying)

    def start(self, initiator: str = "left", responder: str = "right") -> None:
        self[initiator].endpoint.request_exchange(responder, StartReason.REQUESTED, self.now)
        self.collect()

    def deliver(self) -> Flying:
        """Bring the oldest datagram to its receiver."""
        flying = self.in_flight.popleft()
        receiver = self.at(flying.destination)
        try:
            receiver.endpoint.receive_datagram(flying.data, flying.source, self.now)
        except PacketRejected as error:
            self.rejected.append((flying, error.reason))
        self.collect()
        return flying

    def settle(self) -> None:
        """Deliver until nothing is on its way; no time passes."""
        for _ in range(10_000):
            if not self.in_flight:
                return
            self.deliver()
        raise AssertionError("the ends never stop talking")

    def settle_until(self, kind: MessageType) -> None:
        """Deliver until the next datagram on its way is of this type."""
        while not self.in_flight or self.in_flight[0].type is not kind:
            if not self.in_flight:
                raise AssertionError(f"no {kind.name} was sent")
            self.deliver()

    def advance(self, seconds: float) -> None:
        """Let time pass from timer to timer, delivering everything at once."""
        until = self.now + seconds
        while True:
            self.settle()
            due = [end.endpoint.next_timer() for end in self.ends.values()]
            at = max(self.now, min((time for time in due if time is not None), default=until))
            if at > until:
                break
            self.now = at
            for end in self.ends.values():
                timer = end.endpoint.next_timer()
                if timer is not None and timer <= self.now:
                    end.endpoint.handle_timer(self.now)
            self.collect()
        self.now = until

    def bodies(self, kind: MessageType, sender: str | None = None) -> list[bytes]:
        """The messages of a type that were sent, put together again, each once."""
        chunks: dict[tuple[bytes, bytes], dict[int, bytes]] = {}
        for flying in self.log:
            if flying.type is kind and sender in (None, flying.sender):
                fragment = wire.parse_untrusted(flying.data)
                place = chunks.setdefault((fragment.exchange_id, fragment.tag), {})
                place[fragment.index] = fragment.chunk
        return [b"".join(c[index] for index in sorted(c)) for c in chunks.values()]


def make_end(
    name: str,
    *,
    suite_numbers: tuple[int, ...] = (1,),
    seed: bytes = b"",
    deterministic: bool = False,
    chunk_length: int = wire.MAX_CHUNK_LENGTH,
    load: Load | None = None,
    identities: tuple[Identity, ...] | None = None,
    suites: dict[int, Suite] | None = None,
    random: RandomSource | None = None,
    now: float = 1000.0,
) -> End:
    """A node without links. Its randomness depends on name and seed; that of the encapsulations
    only where it is `deterministic`, for the reference that can do that is slow."""
    randomness = SeededBytes(seed + name.encode()) if random is None else random
    make = deterministic_suite if deterministic else _plain_suite
    endpoint = Endpoint(
        suites={n: make(n, randomness) for n in SUITES} if suites is None else suites,
        identities=identities or tuple(identity(n, name) for n in suite_numbers),
        random=randomness,
        now=now,
        chunk_length=chunk_length,
        load=load,
    )
    return End(name, endpoint, ADDRESSES[name])


def _plain_suite(number: int, random: RandomSource) -> Suite:
    return make_suite(number, random=random)


def link_config(at: str, peer: str, *, suite: int = 1, **changes: Any) -> LinkConfig:
    """The link at one end, named after its peer."""
    config: dict[str, Any] = {
        "name": peer,
        "locals": (identity(suite, at).fingerprint,),
        "remotes": (identity(suite, peer).fingerprint,),
        "wireguard_key": at.encode().ljust(32, b"."),
        "wireguard_port": 51820,
        "address": ADDRESSES[peer],
    }
    return LinkConfig(**(config | changes))


def join(network: Network, one: str, other: str, *, suite: int = 1, **changes: Any) -> None:
    """A link between two nodes, at both ends; each knows the other's public key already."""
    for at, peer in ((one, other), (other, one)):
        endpoint = network[at].endpoint
        config = link_config(at, peer, suite=suite, **changes)
        endpoint.add_link(config, network.now, start_at=NEVER)
        far = identity(suite, peer)
        endpoint.know_public_key(far.fingerprint, far.public_key)


def pair(
    suite: int = 1,
    *,
    know_keys: bool = True,
    ends: dict[str, dict[str, Any]] | None = None,
    links: dict[str, dict[str, Any]] | None = None,
    **both: Any,
) -> Network:
    """Two nodes, `left` (the smaller fingerprint) and `right`, with one link between them.

    `ends` and `links` hold what differs at one end, for make_end() and for its LinkConfig; other
    keyword arguments go to make_end() of both. No exchange begins by itself.
    """
    network = Network({})
    for name in ("left", "right"):
        options = {"suite_numbers": (suite,), **both, **(ends or {}).get(name, {})}
        network.ends[name] = make_end(name, **options)
    for at, peer in (("left", "right"), ("right", "left")):
        endpoint = network[at].endpoint
        config = link_config(at, peer, suite=suite, **(links or {}).get(at, {}))
        endpoint.add_link(config, network.now, start_at=NEVER)
        if know_keys:
            far = identity(suite, peer)
            endpoint.know_public_key(far.fingerprint, far.public_key)
    return network


def triangle(suite: int = 1) -> Network:
    """Three nodes, each linked with the other two."""
    network = Network({name: make_end(name, suite_numbers=(suite,)) for name in NAMES})
    for one, other in (("left", "right"), ("left", "third"), ("right", "third")):
        join(network, one, other, suite=suite)
    return network


def run_exchange(network: Network, initiator: str = "left", responder: str = "right") -> str:
    """One whole exchange, nothing lost; both ends install the same key. Gives its key id."""
    network.start(initiator, responder)
    network.settle()
    return same_key(network, initiator, responder)


def same_key(network: Network, one: str = "left", other: str = "right") -> str:
    """The key id of the newest key of both ends, which is the same key. Fails otherwise."""
    keys = []
    for at, peer in ((one, other), (other, one)):
        installed = [key for key in network[at].installed if key.link == peer]
        assert installed, f"{at} has installed no key"
        link_key = network[at].endpoint.link(peer).key
        assert link_key is not None
        assert link_key.key_id == installed[-1].key_id
        keys.append(installed[-1])
    assert keys[0].key_id == keys[1].key_id
    assert keys[0].psk == keys[1].psk
    return keys[0].key_id


def finish(network: Network, one: str = "left", other: str = "right") -> str:
    """However it stands: in time, a real exchange completes, with a key that is new."""
    before = {key.token for name in (one, other) for key in network[name].installed}
    for name in (one, other):
        network[name].source = agreeing("kme")
        network[name].installs = True
    network.collect()
    for _ in range(60):
        network.advance(1.0)
        fresh = [
            [key for key in network[name].installed if key.token not in before]
            for name in (one, other)
        ]
        quiet = all(network[at].exchange(peer) is None for at, peer in ((one, other), (other, one)))
        if all(fresh) and quiet:
            return same_key(network, one, other)
        if network.now % 20 < 1 and quiet:
            network.start(one, other)
    raise AssertionError("no exchange completed within a minute")


@dataclass
class Moment:
    """Just before a genuine datagram arrives: `network` holds it as the next one in flight."""

    network: Network
    flying: Flying

    @property
    def type(self) -> MessageType:
        return self.flying.type

    @property
    def data(self) -> bytes:
        return self.flying.data

    @property
    def receiver(self) -> End:
        return self.network.at(self.flying.destination)

    def genuine(self) -> Network:
        """A copy in which the datagram has arrived."""
        network = self.network.copy()
        network.deliver()
        return network


def moments(network: Network) -> Iterator[Moment]:
    """Deliver everything, stopping before each datagram."""
    while network.in_flight:
        yield Moment(network.copy(), network.in_flight[0])
        network.deliver()


@functools.cache
def captured(suite: int) -> tuple[Moment, ...]:
    """A moment for every datagram of exchanges in which each message type occurs."""
    plain = pair(suite, know_keys=False, ends=_unloaded())
    plain.start()
    found = list(moments(plain))
    same_key(plain)

    loaded = pair(suite, ends={"right": {"load": under_load()}})
    loaded.start()
    found += [m for m in moments(loaded) if m.type is MessageType.COOKIE_REPLY][:1]
    same_key(loaded)

    disputed = pair(suite, links=both_require(), ends=_unloaded())
    disputed["left"].source = agreeing("kme")
    disputed["right"].source = disagreeing
    disputed.start()
    found += [m for m in moments(disputed) if m.type is MessageType.REJECT]
    assert {m.type for m in found} == set(MessageType)
    return tuple(found)


def captured_of(suite: int, kind: MessageType) -> list[Moment]:
    """The moments of one type, each with a network of its own."""
    return [Moment(m.network.copy(), m.flying) for m in captured(suite) if m.type is kind]


def under_load() -> Load:
    """A load that never ends."""
    return Load(at=0.0, tokens=0.0, rate=0.0, high=True)


def never_loaded() -> Load:
    """So that a test may open as many InitHello as it likes."""
    return Load(at=0.0, tokens=1e9, burst=1e9)


def _unloaded() -> dict[str, dict[str, Any]]:
    return {name: {"load": never_loaded()} for name in ("left", "right")}


def both_require() -> dict[str, dict[str, Any]]:
    """For pair(): both ends of the link require an external key."""
    return {name: {"external_mode": REQUIRE} for name in ("left", "right")}


def refused(end: End, datagram: bytes, source: Address, now: float) -> str:
    """Deliver a datagram that must be refused: state, outbox and events as before. The reason."""
    before = end.endpoint.state()
    try:
        end.endpoint.receive_datagram(datagram, source, now)
    except PacketRejected as error:
        reason = error.reason
    else:
        raise AssertionError(f"accepted: {datagram[:32].hex()}… ({len(datagram)} bytes)")
    assert end.endpoint.state() == before, f"refused ({reason}), but the state has changed"
    assert not end.endpoint.datagrams_to_send()
    assert end.endpoint.next_event() is None
    return reason


def message_refused(end: End, datagrams: list[bytes], source: Address, now: float) -> str:
    """Deliver a whole message that must be refused, with its last fragment at the latest. The
    reason; nothing is left of it."""
    before, reason = end.endpoint.state(), ""
    for datagram in datagrams:
        try:
            end.endpoint.receive_datagram(datagram, source, now)
        except PacketRejected as error:
            reason = error.reason
    assert reason, "no fragment of the message was refused"
    assert end.endpoint.state() == before, f"refused ({reason}), but the state has changed"
    return reason

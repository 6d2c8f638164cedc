"""Two real endpoints as a graph: what each can do next, and what comes of it.

A step runs the real Endpoint once, on a copy, and its outcome is remembered: the same end in the
same state does the same. Time stands still at 0, so whatever waits for the clock may happen at
any moment. An end is numbered 0 if its fingerprint is the smaller one, else 1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import NamedTuple

from kex import wire
from kex.address import Address
from kex.biscuit import KEY_ID_LENGTH, KEY_LENGTH, NUMBER_LENGTH
from kex.endpoint import Endpoint
from kex.errors import PacketRejected
from kex.events import ExternalKeysWanted, KeyEstablished, LinkExpired, Role, StartReason
from kex.exchange import Phase
from kex.external import ExternalKey, ExternalKeyReference, ExternalMode
from kex.identity import Identity
from kex.link import Link, Timer
from kex.link_config import LinkConfig
from kex.load import Load
from kex.responder import Stage
from kex.secret import Secret
from kex.wire import MessageType
from tests.kex.stand_in import SIZE, StandInSuite

LINK = "peer"
OLD_PSK = bytes(32)
"""On both interfaces at first."""
ADDRESSES = (Address("192.0.2.1", 1), Address("192.0.2.2", 2))
NAMES = ("smaller", "larger")
CACHE_IS_OVER = 11.0
"""A time at which no answer to an InitHello is kept any more."""
REFERENCE = ExternalKeyReference("file", "f", "", ("1",), 128)
RIGHT_KEY = Secret(b"the same at both")
OTHER_KEY = Secret(b"not the same key")
BISCUIT_RANDOM_LENGTH = KEY_ID_LENGTH + KEY_LENGTH


class Do(Enum):
    """What can happen at one end."""

    DELIVER = auto()
    DELIVER_LATE = auto()
    """An InitHello, when the kept answer to it is gone."""
    START = auto()
    RESTART = auto()
    RESTART_INSTALLED = auto()
    """A restart after the key was installed, before that was reported."""
    GIVE_UP = auto()
    REPEAT = auto()
    KEYS_LATE = auto()
    EXPIRE = auto()
    INSTALLED = auto()
    INSTALL_FAILED = auto()
    INSTALL_FAILED_LATE = auto()
    """The installation is reported as failed, and yet the key is on the interface."""
    KEYS = auto()
    OTHER_KEYS = auto()
    NO_KEYS = auto()


FAULTS = frozenset(
    {
        Do.DELIVER_LATE,
        Do.EXPIRE,
        Do.INSTALL_FAILED,
        Do.INSTALL_FAILED_LATE,
        Do.OTHER_KEYS,
        Do.NO_KEYS,
    }
)
RESTARTS = frozenset({Do.RESTART, Do.RESTART_INSTALLED})


class Action(NamedTuple):
    """`message` is a number of `TwoEnds.messages`; `token` belongs to what is answered."""

    do: Do
    message: int = -1
    token: bytes = b""


class Step(NamedTuple):
    """The end after it, and the messages it sent, by number."""

    core: int
    sent: tuple[int, ...]


class Dice:
    """Randomness as a function of how often this end has begun: the same in every order of
    events that leads to the same state."""

    def __init__(self) -> None:
        self.end = 0
        self.epoch = 0
        self.started = 0

    def __call__(self, length: int) -> bytes:
        if length == wire.EXCHANGE_ID_LENGTH:
            self.started += 1
            return exchange_id(self.end, self.started)
        if length == SIZE:  # of an encapsulation: its key makes the secret another one
            return bytes(SIZE)
        if length == 2:  # jitter
            return b"\x80\x00"
        if length == BISCUIT_RANDOM_LENGTH:
            return biscuit_random(self.end, self.epoch)
        seed = bytes((self.end, self.epoch, self.started, length))
        return hashlib.blake2b(seed, digest_size=length).digest()


def biscuit_random(end: int, epoch: int) -> bytes:
    """Key id and key of the biscuits of one epoch."""
    return hashlib.blake2b(bytes((end, epoch)), digest_size=BISCUIT_RANDOM_LENGTH).digest()


def exchange_id(end: int, number: int) -> bytes:
    return bytes((end, number)) + bytes(6)


@dataclass(frozen=True, slots=True)
class Core:
    """One end: the endpoint, what is on its interface, and which events it has not answered."""

    endpoint: Endpoint
    epoch: int
    """How often it was started anew."""
    started: int
    """How many exchanges it has begun, over all epochs."""
    psk: bytes | None
    open_events: tuple[ExternalKeysWanted | KeyEstablished, ...] = ()

    @property
    def link(self) -> Link:
        return self.endpoint.link(LINK)

    def key(self) -> Hashable:
        events = tuple((type(event).__name__, event.token) for event in self.open_events)
        state = self.endpoint.state(with_times=False)
        return (state, self.epoch, self.started, self.psk, events)


@dataclass(frozen=True, slots=True)
class Message:
    """A datagram on the network. Every message is one datagram here."""

    to: int
    data: bytes
    type: MessageType
    exchange_id: bytes
    biscuit: tuple[bytes, int] = (b"", 0)
    """Of an InitConf: key id and number."""

    def __str__(self) -> str:
        return f"{self.type.name} of {exchange_name(self.exchange_id)}"


def exchange_name(identifier: bytes) -> str:
    return f"the {NAMES[identifier[0]]}'s exchange {identifier[1]}"


@dataclass(frozen=True, slots=True)
class Facts:
    """What the exploration has to know of an end, read once for each state of it."""

    psk: bytes | None
    quiet: bool
    """No exchange of its own in flight or due."""
    answering: bool
    renews: bool
    """A next renewal is planned."""
    exchange_id: bytes
    phase: Phase | None
    biscuit_key: bytes
    last_accepted: int
    epoch: int
    started: int
    actions: tuple[Action, ...]
    """All but deliveries."""
    good_answer: Action | None
    """To an event: the right keys, or that a key is installed."""
    can_start: bool
    time_out: Action | None


class TwoEnds:
    """The graph. `modes` are the policies for external keys, smaller end first.

    With `rotating`, each end holds two identities and begins its own exchanges with another pair
    than the peer does, in such a way that each end is the smaller one in its own. `addressed`
    says which end has the other's address configured; one without learns it from the other.
    """

    def __init__(
        self,
        *,
        modes: tuple[ExternalMode, ExternalMode] = (ExternalMode.OFF, ExternalMode.OFF),
        rotating: bool = False,
        addressed: tuple[bool, bool] = (True, True),
    ) -> None:
        self.modes = modes
        self.addressed = addressed
        self.cores: list[Core] = []
        self.facts: list[Facts] = []
        self.messages: list[Message] = []
        self.steps_run = 0  # how often the real code ran
        self._dice = Dice()
        self._suite = StandInSuite(self._dice)
        seeds = (bytes((n,)) * 32 for n in range(4 if rotating else 2))
        known = sorted(
            (Identity(self._suite, self._suite.private_key(seed)) for seed in seeds),
            key=lambda identity: identity.fingerprint,
        )
        # Own identities of both ends, the one that its own exchanges use first
        self._identities = (
            ((known[0], known[3]), (known[1], known[2]))
            if rotating
            else (
                (known[0],),
                (known[1],),
            )
        )
        self._configs = tuple(self._config(end) for end in (0, 1))
        self._core_numbers: dict[Hashable, int] = {}
        self._message_numbers: dict[tuple[int, bytes], int] = {}
        self._steps: dict[tuple[int, Action], Step] = {}
        # By h3 of an InitConf: the root of the initiator that sent it
        self._roots: dict[bytes, Secret] = {}
        # By the number of a RespConf: the PSK on the interface of the responder that sent it
        self._confirmed: dict[int, bytes] = {}

    def _config(self, end: int) -> LinkConfig:
        return LinkConfig(
            name=LINK,
            locals=tuple(own.fingerprint for own in self._identities[end]),
            # In the other order: what the peer uses first is not what is used towards it
            remotes=tuple(other.fingerprint for other in reversed(self._identities[1 - end])),
            wireguard_key=bytes((end,)) * 32,
            wireguard_port=51820,
            address=ADDRESSES[1 - end] if self.addressed[end] else None,
            external_mode=self.modes[end],
        )

    # ---- ends

    def fresh(self, end: int, *, epoch: int = 0, started: int = 0, psk: bytes | None) -> Core:
        """An end whose daemon has just started, with what it finds on the interface."""
        self._dice.end, self._dice.epoch, self._dice.started = end, epoch, started
        endpoint = Endpoint(
            suites={1: self._suite},
            identities=self._identities[end],
            random=self._dice,
            now=0.0,
            load=Load(0.0, tokens=1e9, burst=1e9),
        )
        for other in self._identities[1 - end]:
            endpoint.know_public_key(other.fingerprint, other.public_key)
        endpoint.add_link(self._configs[end], 0.0)
        if psk is not None:
            endpoint.adopt(
                LINK, "adopted", wireguard_key=bytes(32), installed_at=0.0, expires_at=600.0
            )
        return Core(endpoint, epoch, started, psk)

    def number(self, end: int, core: Core) -> int:
        """The number of an end in this state."""
        key = (end, core.key())
        number = self._core_numbers.get(key)
        if number is None:
            number = self._core_numbers[key] = len(self.cores)
            self.cores.append(core)
            self.facts.append(_facts(end, core))
        return number

    # ---- steps

    def step(self, end: int, core: int, action: Action) -> Step:
        """What comes of an action at one end."""
        known = self._steps.get((core, action))
        if known is None:
            known = self._steps[core, action] = self._run(end, core, action)
            self.steps_run += 1
        return known

    def _run(self, end: int, number: int, action: Action) -> Step:
        before = self.cores[number]
        if action.do in RESTARTS:
            return self._restarted(end, before, action)
        self._dice.end, self._dice.epoch, self._dice.started = end, before.epoch, before.started
        endpoint = before.endpoint.copy()
        try:
            psk = self._act(endpoint, before, action)
        except PacketRejected:
            after = replace(before, endpoint=endpoint, started=self._dice.started)
            if after.key() != before.key() or endpoint.datagrams_to_send():
                raise AssertionError("a refused datagram changed the state") from None
            return Step(number, ())
        events = [event for event in before.open_events if not _is_answer_to(action, event)]
        while (event := endpoint.next_event()) is not None:
            if isinstance(event, LinkExpired):
                psk = None
            if isinstance(event, KeyEstablished):
                self._check_confirmed(endpoint.link(LINK), event, action)
            if isinstance(event, (KeyEstablished, ExternalKeysWanted)):
                events.append(event)
        link = endpoint.link(LINK)
        core = Core(
            endpoint=endpoint,
            epoch=before.epoch,
            started=self._dice.started,
            psk=psk,
            open_events=tuple(events),
        )
        core = self._without_stale_events(core, link)
        return Step(self.number(end, core), self._sent(end, core, link))

    def _act(self, endpoint: Endpoint, before: Core, action: Action) -> bytes | None:
        """Do it; gives the PSK that is on the interface then."""
        do, token = action.do, action.token
        if do is Do.DELIVER or do is Do.DELIVER_LATE:
            message = self.messages[action.message]
            now = CACHE_IS_OVER if do is Do.DELIVER_LATE else 0.0
            endpoint.receive_datagram(message.data, ADDRESSES[1 - message.to], now)
        elif do is Do.START:
            endpoint.request_exchange(LINK, StartReason.REQUESTED, 0.0)
        elif do in _TIMERS:
            endpoint.fire(LINK, _TIMERS[do], 0.0)
        elif do is Do.INSTALLED:
            endpoint.key_installed(LINK, token, 0.0)
            return _to_install(before, token)
        elif do is Do.INSTALL_FAILED:
            endpoint.install_failed(LINK, token, "failed", 0.0)
        elif do is Do.INSTALL_FAILED_LATE:
            endpoint.install_failed(LINK, token, "failed", 0.0)
            return _to_install(before, token)
        elif do is Do.NO_KEYS:
            endpoint.external_keys_failed(LINK, token, "none", 0.0)
        else:
            key = RIGHT_KEY if do is Do.KEYS else OTHER_KEY
            endpoint.external_keys(LINK, token, (ExternalKey(REFERENCE, key),), 0.0)
        return before.psk

    def _restarted(self, end: int, before: Core, action: Action) -> Step:
        psk = before.psk
        if action.do is Do.RESTART_INSTALLED:
            psk = _to_install(before, action.token)
        core = self.fresh(end, epoch=before.epoch + 1, started=before.started, psk=psk)
        return Step(self.number(end, core), ())

    @staticmethod
    def _without_stale_events(core: Core, link: Link) -> Core:
        """Leave out events that nothing waits for any more: a late answer changes nothing."""
        waiting = {event.token for event in core.open_events if _is_waited_for(link, event)}
        stale = [event for event in core.open_events if event.token not in waiting]
        for event in stale:
            endpoint = core.endpoint.copy()
            if isinstance(event, KeyEstablished):
                endpoint.key_installed(LINK, event.token, 0.0)
            else:
                endpoint.external_keys_failed(LINK, event.token, "late", 0.0)
            if endpoint.state(with_times=False) != core.endpoint.state(with_times=False):
                raise AssertionError("a late answer changed the state")
        kept = tuple(event for event in core.open_events if event.token in waiting)
        return replace(core, open_events=kept)

    def _sent(self, end: int, core: Core, link: Link) -> tuple[int, ...]:
        numbers = []
        for data, address in core.endpoint.datagrams_to_send():
            if address != ADDRESSES[1 - end]:
                raise AssertionError(f"sent to {address}")
            number = self._message(1 - end, data)
            numbers.append(number)
            message = self.messages[number]
            if message.type is MessageType.INIT_CONF and link.exchange and link.exchange.root:
                self._roots[link.exchange.root.h3] = link.exchange.root.root
            elif message.type is MessageType.RESP_CONF and number not in self._confirmed:
                if core.psk is None:
                    raise AssertionError("RespConf before the key is on the interface")
                self._confirmed[number] = core.psk
        return tuple(numbers)

    def _message(self, to: int, data: bytes) -> int:
        number = self._message_numbers.get((to, data))
        if number is None:
            number = self._message_numbers[to, data] = len(self.messages)
            fragment = wire.parse_untrusted(data)
            biscuit = (b"", 0)
            if fragment.type is MessageType.INIT_CONF:
                key_id, rest = fragment.chunk[:KEY_ID_LENGTH], fragment.chunk[KEY_ID_LENGTH:]
                biscuit = (key_id, int.from_bytes(rest[:NUMBER_LENGTH], "big"))
            self.messages.append(Message(to, data, fragment.type, fragment.exchange_id, biscuit))
        return number

    def _check_confirmed(self, link: Link, event: KeyEstablished, action: Action) -> None:
        """No key is handed out unless the other end is known to hold it."""
        if action.do is Do.OTHER_KEYS:
            raise AssertionError("a key is handed out although the external keys differ")
        if event.role is Role.RESPONDER:
            responding = link.responding
            if responding is None or responding.root is None:
                raise AssertionError("a key without an InitConf")
            if self._roots[responding.opened.h3] != responding.root.root:
                raise AssertionError("the initiator holds another root")
        elif action.do is Do.DELIVER and self._confirmed[action.message] != event.psk.expose():
            raise AssertionError("the responder did not install this key")


def _facts(end: int, core: Core) -> Facts:
    link = core.link
    exchange = link.exchange
    actions = tuple(_actions(core, link))

    def first(*wanted: Do) -> Action | None:
        return next((action for action in actions if action.do in wanted), None)

    return Facts(
        psk=core.psk,
        quiet=not link.exchange_due,
        answering=link.responding is not None,
        renews=link.renew_at is not None,
        exchange_id=b"" if exchange is None else exchange.exchange_id,
        phase=None if exchange is None else exchange.phase,
        biscuit_key=biscuit_random(end, core.epoch)[:KEY_ID_LENGTH],
        last_accepted=link.last_accepted,
        epoch=core.epoch,
        started=core.started,
        actions=actions,
        good_answer=first(Do.INSTALLED, Do.KEYS),
        can_start=first(Do.START) is not None,
        time_out=first(Do.GIVE_UP, Do.KEYS_LATE),
    )


def _actions(core: Core, link: Link) -> list[Action]:
    actions = [Action(Do.RESTART)]
    if link.exchange is None and link.responding is None and link.address is not None:
        actions.append(Action(Do.START))
    if link.exchange_deadline is not None:
        actions.append(Action(Do.GIVE_UP))
    if link.responder_deadline is not None:
        actions.append(Action(Do.KEYS_LATE))
    if link.key is not None:
        actions.append(Action(Do.EXPIRE))
    for event in core.open_events:
        token = event.token
        if isinstance(event, KeyEstablished):
            answers = [
                Do.INSTALLED,
                Do.INSTALL_FAILED,
                Do.INSTALL_FAILED_LATE,
                Do.RESTART_INSTALLED,
            ]
        elif event.role is Role.INITIATOR:
            answers = [Do.KEYS, Do.NO_KEYS]
        else:
            answers = [Do.KEYS, Do.OTHER_KEYS, Do.NO_KEYS]
        actions += [Action(do, token=token) for do in answers]
    return actions


def _is_answer_to(action: Action, event: ExternalKeysWanted | KeyEstablished) -> bool:
    if action.token != event.token:
        return False
    if isinstance(event, KeyEstablished):
        return action.do in (Do.INSTALLED, Do.INSTALL_FAILED, Do.INSTALL_FAILED_LATE)
    return action.do in (Do.KEYS, Do.OTHER_KEYS, Do.NO_KEYS)


def _is_waited_for(link: Link, event: KeyEstablished | ExternalKeysWanted) -> bool:
    if event.role is Role.RESPONDER:
        stage = Stage.INSTALLING if isinstance(event, KeyEstablished) else Stage.KEYS
        responding = link.responding
        return (
            responding is not None
            and responding.exchange_id == event.token
            and responding.stage is stage
        )
    phase = Phase.INSTALLING if isinstance(event, KeyEstablished) else Phase.KEYS
    own = link.exchange
    return own is not None and own.exchange_id == event.token and own.phase is phase


def _to_install(core: Core, token: bytes) -> bytes:
    for event in core.open_events:
        if isinstance(event, KeyEstablished) and event.token == token:
            return event.psk.expose()
    raise AssertionError("no key of that token")


_TIMERS = {
    Do.GIVE_UP: Timer.EXCHANGE,
    Do.REPEAT: Timer.RETRANSMIT,
    Do.KEYS_LATE: Timer.RESPONDER_KEYS,
    Do.EXPIRE: Timer.LIFETIME,
}

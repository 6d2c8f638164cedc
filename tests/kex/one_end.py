"""One end of an exploration, and all that can happen at it."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

from kex import wire
from kex.biscuit import KEY_ID_LENGTH, KEY_LENGTH
from kex.endpoint import Endpoint
from kex.events import ExternalKeysWanted, KeyEstablished, Role
from kex.exchange import Phase
from kex.link import Link
from kex.responder import Stage
from tests.kex.stand_in import SIZE

LINK = "peer"
NAMES = ("smaller", "larger")
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
    CHANGE = auto()
    """Another configuration: the next one that is planned."""
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


def exchange_name(identifier: bytes) -> str:
    return f"the {NAMES[identifier[0]]}'s exchange {identifier[1]}"


@dataclass(frozen=True, slots=True)
class Core:
    """One end: the endpoint, what is on its interface, and which events it has not answered."""

    endpoint: Endpoint
    epoch: int
    """How often it was started anew."""
    started: int
    """How many exchanges it has begun, over all epochs."""
    psk: bytes | None
    changed: int = 0
    """How often its configuration was changed."""
    open_events: tuple[ExternalKeysWanted | KeyEstablished, ...] = ()

    @property
    def link(self) -> Link:
        return self.endpoint.link(LINK)

    def key(self) -> Hashable:
        events = tuple((type(event).__name__, event.token) for event in self.open_events)
        state = self.endpoint.state(with_times=False)
        return (state, self.epoch, self.started, self.psk, self.changed, events)


@dataclass(frozen=True, slots=True)
class Facts:
    """What the exploration has to know of an end, read once for each state of it."""

    psk: bytes | None
    quiet: bool
    """No exchange of its own in flight or due."""
    in_doubt: bool
    answering: bool
    renews: bool
    """A next renewal is planned."""
    exchange_id: bytes
    phase: Phase | None
    biscuit_key: bytes
    last_accepted: int
    epoch: int
    started: int
    changed: int
    actions: tuple[Action, ...]
    """All but deliveries."""
    good_answer: Action | None
    """To an event: the right keys, or that a key is installed."""
    can_start: bool
    time_out: Action | None


def facts_of(end: int, core: Core) -> Facts:
    link = core.link
    exchange = link.exchange
    actions = tuple(_actions(core, link))

    def first(*wanted: Do) -> Action | None:
        return next((action for action in actions if action.do in wanted), None)

    return Facts(
        psk=core.psk,
        quiet=not link.exchange_due,
        in_doubt=link.in_doubt,
        answering=link.responding is not None,
        renews=link.renew_at is not None,
        exchange_id=b"" if exchange is None else exchange.exchange_id,
        phase=None if exchange is None else exchange.phase,
        biscuit_key=biscuit_random(end, core.epoch)[:KEY_ID_LENGTH],
        last_accepted=link.last_accepted,
        epoch=core.epoch,
        started=core.started,
        changed=core.changed,
        actions=actions,
        good_answer=first(Do.INSTALLED, Do.KEYS),
        can_start=first(Do.START) is not None,
        time_out=first(Do.GIVE_UP, Do.KEYS_LATE),
    )


def _actions(core: Core, link: Link) -> list[Action]:
    actions = [Action(Do.RESTART), Action(Do.CHANGE)]
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


def is_answer_to(action: Action, event: ExternalKeysWanted | KeyEstablished) -> bool:
    if action.token != event.token:
        return False
    if isinstance(event, KeyEstablished):
        return action.do in (Do.INSTALLED, Do.INSTALL_FAILED, Do.INSTALL_FAILED_LATE)
    return action.do in (Do.KEYS, Do.OTHER_KEYS, Do.NO_KEYS)


def is_waited_for(link: Link, event: KeyEstablished | ExternalKeysWanted) -> bool:
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


def key_to_install(core: Core, token: bytes) -> bytes:
    for event in core.open_events:
        if isinstance(event, KeyEstablished) and event.token == token:
            return event.psk.expose()
    raise AssertionError("no key of that token")

"""Two real endpoints as a graph: what each can do next, and what comes of it.

A step runs the real Endpoint once, on a copy, and its outcome is remembered: the same end in the
same state does the same. Time stands still at 0, so whatever waits for the clock may happen at
any moment. With one identity each, end 0 is the smaller one; with lists it is only called so.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import NamedTuple

from kex import wire
from kex.address import Address
from kex.biscuit import KEY_ID_LENGTH, NUMBER_LENGTH
from kex.endpoint import Endpoint
from kex.errors import PacketRejected
from kex.events import ExternalKeysWanted, KeyEstablished, LinkExpired, Role, StartReason
from kex.external import ExternalKey, ExternalKeyReference, ExternalMode
from kex.identity import Identity
from kex.link import Link, Timer
from kex.link_config import LinkConfig
from kex.load import Load
from kex.secret import Secret
from kex.wire import MessageType
from tests.kex.one_end import (
    LINK,
    RESTARTS,
    Action,
    Core,
    Dice,
    Do,
    Facts,
    exchange_name,
    facts_of,
    is_answer_to,
    is_waited_for,
    key_to_install,
)
from tests.kex.stand_in import StandInSuite

OLD_PSK = bytes(32)
"""On both interfaces at first."""
ADDRESSES = (Address("192.0.2.1", 1), Address("192.0.2.2", 2))
CACHE_IS_OVER = 11.0
"""A time at which no answer to an InitHello is kept any more."""
REFERENCE = ExternalKeyReference("file", "f", "", ("1",), 128)
RIGHT_KEY = Secret(b"the same at both")
OTHER_KEY = Secret(b"not the same key")


class Step(NamedTuple):
    """The end after it, and the messages it sent, by number."""

    core: int
    sent: tuple[int, ...]


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


class Lists(NamedTuple):
    """The identities in an end's configuration, in order of use, each as its rank: 0 is the
    smallest fingerprint of all at both ends."""

    own: tuple[int, ...]
    peers: tuple[int, ...]

    def __str__(self) -> str:
        own, peers = ("".join(map(str, ranks)) for ranks in self)
        return f"{own}>{peers}"

    @property
    def pairs(self) -> frozenset[tuple[int, int]]:
        return frozenset((own, peer) for own in self.own for peer in self.peers)


Configurations = tuple[Lists, Lists]
"""Of end 0 and of end 1."""
ONE_EACH: Configurations = (Lists((0,), (1,)), Lists((1,), (0,)))


class Change(NamedTuple):
    """What is changed next: these lists at this end."""

    end: int
    lists: Lists


class TwoEnds:
    """The graph. `modes` are the policies for external keys, end 0 first.

    `lists` are the identities at first, and `changes` what becomes of them, one after the other.
    `addressed` says which end has the other's address configured; one without learns it from the
    other.
    """

    def __init__(
        self,
        *,
        modes: tuple[ExternalMode, ExternalMode] = (ExternalMode.OFF, ExternalMode.OFF),
        lists: Configurations = ONE_EACH,
        changes: tuple[Change, ...] = (),
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
        self.changes = changes
        plans = [[lists[end], *(c.lists for c in changes if c.end == end)] for end in (0, 1)]
        ranks = [
            sorted(
                {rank for plan in plans[end] for rank in plan.own}
                | {rank for plan in plans[1 - end] for rank in plan.peers}
            )
            for end in (0, 1)
        ]
        known = sorted(
            (
                Identity(self._suite, self._suite.private_key(bytes((n,)) * 32))
                for n in range(1 + max(*ranks[0], *ranks[1]))
            ),
            key=lambda identity: identity.fingerprint,
        )
        self._identities = [[known[rank] for rank in ranks[end]] for end in (0, 1)]
        self._lists = plans
        self._configs = [[self._config(end, plan, known) for plan in plans[end]] for end in (0, 1)]
        self._core_numbers: dict[Hashable, int] = {}
        self._message_numbers: dict[tuple[int, bytes], int] = {}
        self._steps: dict[tuple[int, Action], Step] = {}
        # By h3 of an InitConf: the root of the initiator that sent it
        self._roots: dict[bytes, Secret] = {}
        # By the number of a RespConf: the PSK on the interface of the responder that sent it
        self._confirmed: dict[int, bytes] = {}

    def _config(self, end: int, lists: Lists, known: list[Identity]) -> LinkConfig:
        return LinkConfig(
            name=LINK,
            locals=tuple(known[rank].fingerprint for rank in lists.own),
            remotes=tuple(known[rank].fingerprint for rank in lists.peers),
            wireguard_key=bytes((end,)) * 32,
            wireguard_port=51820,
            address=ADDRESSES[1 - end] if self.addressed[end] else None,
            external_mode=self.modes[end],
        )

    def next_change(self, changed: int) -> int | None:
        """The end whose configuration is the next to change, after so many at both together."""
        return self.changes[changed].end if changed < len(self.changes) else None

    def can_agree(self, changed: tuple[int, int]) -> bool:
        """Whether each end accepts the exchanges that the other begins."""
        ends = [self._lists[end][changed[end]] for end in (0, 1)]
        return all(
            (there.peers[0], there.own[0]) in here.pairs for here, there in (ends, reversed(ends))
        )

    # ---- ends

    def fresh(
        self,
        end: int,
        *,
        epoch: int = 0,
        started: int = 0,
        changed: int = 0,
        psk: bytes | None,
    ) -> Core:
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
        endpoint.add_link(self._configs[end][changed], 0.0)
        if psk is not None:
            endpoint.adopt(
                LINK, "adopted", wireguard_key=bytes(32), installed_at=0.0, expires_at=600.0
            )
        return Core(endpoint, epoch, started, psk, changed)

    def number(self, end: int, core: Core) -> int:
        """The number of an end in this state."""
        key = (end, core.key())
        number = self._core_numbers.get(key)
        if number is None:
            number = self._core_numbers[key] = len(self.cores)
            self.cores.append(core)
            self.facts.append(facts_of(end, core))
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
            psk = self._act(end, endpoint, before, action)
        except PacketRejected:
            after = replace(before, endpoint=endpoint, started=self._dice.started)
            if after.key() != before.key() or endpoint.datagrams_to_send():
                raise AssertionError("a refused datagram changed the state") from None
            return Step(number, ())
        events = [event for event in before.open_events if not is_answer_to(action, event)]
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
            changed=before.changed + (action.do is Do.CHANGE),
            open_events=tuple(events),
        )
        core = self._without_stale_events(core, link)
        return Step(self.number(end, core), self._sent(end, core, link))

    def _act(self, end: int, endpoint: Endpoint, before: Core, action: Action) -> bytes | None:
        """Do it; gives the PSK that is on the interface then."""
        do, token = action.do, action.token
        if do is Do.DELIVER or do is Do.DELIVER_LATE:
            message = self.messages[action.message]
            now = CACHE_IS_OVER if do is Do.DELIVER_LATE else 0.0
            endpoint.receive_datagram(message.data, ADDRESSES[1 - message.to], now)
        elif do is Do.START:
            endpoint.request_exchange(LINK, StartReason.REQUESTED, 0.0)
        elif do is Do.CHANGE:
            endpoint.update_link(self._configs[end][before.changed + 1], 0.0)
        elif do in _TIMERS:
            endpoint.fire(LINK, _TIMERS[do], 0.0)
        elif do is Do.INSTALLED:
            endpoint.key_installed(LINK, token, 0.0)
            return key_to_install(before, token)
        elif do is Do.INSTALL_FAILED:
            endpoint.install_failed(LINK, token, "failed", 0.0)
        elif do is Do.INSTALL_FAILED_LATE:
            endpoint.install_failed(LINK, token, "failed", 0.0)
            return key_to_install(before, token)
        elif do is Do.NO_KEYS:
            endpoint.external_keys_failed(LINK, token, "none", 0.0)
        else:
            key = RIGHT_KEY if do is Do.KEYS else OTHER_KEY
            endpoint.external_keys(LINK, token, (ExternalKey(REFERENCE, key),), 0.0)
        return before.psk

    def _restarted(self, end: int, before: Core, action: Action) -> Step:
        psk = before.psk
        if action.do is Do.RESTART_INSTALLED:
            psk = key_to_install(before, action.token)
        core = self.fresh(
            end,
            epoch=before.epoch + 1,
            started=before.started,
            changed=before.changed,
            psk=psk,
        )
        return Step(self.number(end, core), ())

    @staticmethod
    def _without_stale_events(core: Core, link: Link) -> Core:
        """Leave out events that nothing waits for any more: a late answer changes nothing."""
        waiting = {event.token for event in core.open_events if is_waited_for(link, event)}
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


_TIMERS = {
    Do.GIVE_UP: Timer.EXCHANGE,
    Do.REPEAT: Timer.RETRANSMIT,
    Do.KEYS_LATE: Timer.RESPONDER_KEYS,
    Do.EXPIRE: Timer.LIFETIME,
}

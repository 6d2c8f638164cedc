"""A simulated gateway: it does what the daemon does, and is the simulation's way to the real code.

It carries datagrams, sets PSKs on its interface, answers events, adopts what it finds there after
a restart, and reports WireGuard's sessions.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from kex.address import Address
from kex.endpoint import Endpoint
from kex.errors import PacketRejected
from kex.events import (
    ExchangeStarted,
    ExternalKeysWanted,
    KeyConfirmed,
    KeyEstablished,
    LinkExpired,
    Role,
    StartReason,
)
from kex.external import ExternalKey, ExternalKeyReference
from kex.identity import Identity
from kex.link_config import LinkConfig
from kex.link_state import NotPossible
from kex.secret import Secret
from kex.suites import RandomSource, Suite
from kex.wire import MessageType
from tests.kex.wireguard import OVERDUE, WATCH, Tunnel
from tests.kex.world import Broken, Started, World

SuiteMaker = Callable[[RandomSource], Suite]


@dataclass(frozen=True, slots=True)
class Installed:
    """What is on an interface for one peer, and what the daemon has noted about it."""

    psk: bytes
    key_id: str
    at: float
    expires_at: float


class Site:
    """A gateway: an endpoint and an interface."""

    def __init__(
        self,
        world: World,
        name: str,
        number: int,
        *,
        make_suite: SuiteMaker,
        identities: int = 1,
    ) -> None:
        self.world = world
        self.name = name
        self.address = Address(f"192.0.2.{number}", 51821)
        self._source = random.Random(world.random.random())
        self.suite = make_suite(self._source.randbytes)
        self.identities = [Identity.generate(self.suite) for _ in range(identities)]
        self.configs: dict[str, LinkConfig] = {}
        self.installed: dict[str, Installed] = {}
        self.tunnels: dict[str, Tunnel] = {}
        self.wake = 0.0
        self.is_up = True
        self.endpoint = self._endpoint()
        world.sites.append(self)
        world.by_address[self.address] = self
        world.after(self._source.random() * WATCH, self._look)

    def _endpoint(self) -> Endpoint:
        return Endpoint(
            suites={self.suite.number: self.suite},
            identities=self.identities,
            random=self._source.randbytes,
            now=self.world.now,
        )

    # ---- the daemon's life

    def add_link(self, config: LinkConfig) -> None:
        self.configs[config.name] = config
        if self.is_up:
            self.endpoint.add_link(config, self.world.now)
            self._pump()

    def update_link(self, config: LinkConfig) -> None:
        self.configs[config.name] = config
        if self.is_up:
            self.endpoint.update_link(config, self.world.now)
            self._pump()

    def restart(self, *, seconds: float = 0.0, keeps_interface: bool = True) -> None:
        """The daemon dies, and is there again later; or the whole host."""
        self.world.counts["restarts"] += 1
        self.is_up = False
        self.wake = float("inf")
        if not keeps_interface:
            self.installed.clear()
            for tunnel in self.tunnels.values():
                tunnel.session_at = None
        self.world.after(seconds, self._come_back)

    def _come_back(self) -> None:
        if self.is_up:
            return  # killed twice, and back already
        self.is_up = True
        self.endpoint = self._endpoint()
        for name, config in self.configs.items():
            self.endpoint.add_link(config, self.world.now)
            found = self.installed.get(name)
            if found is not None:
                self.endpoint.adopt(
                    name,
                    found.key_id,
                    wireguard_key=self.tunnels[name].other(self).wireguard_key(name),
                    installed_at=found.at,
                    expires_at=found.expires_at,
                )
                session_at = self.tunnels[name].session_at
                if session_at is not None:
                    self.endpoint.session_started(name, session_at, self.world.now)
        self._pump()

    def wireguard_key(self, link: str) -> bytes:
        """Of the interface that the tunnel behind the other end's link `link` ends at."""
        return next(
            self.configs[own].wireguard_key
            for own, tunnel in self.tunnels.items()
            if link in tunnel.links
        )

    def request(self, link: str) -> None:
        if self.is_up and link in self.endpoint.links():
            with suppress(NotPossible):
                self.endpoint.request_exchange(link, StartReason.REQUESTED, self.world.now)
            self._pump()

    def request_all(self) -> None:
        for link in self.configs:
            self.request(link)

    def is_at_work(self, link: str) -> bool:
        """Whether an exchange is in flight here, or due and possible."""
        if not self.is_up or link not in self.endpoint.links():
            return True
        state = self.endpoint.link(link)
        owes = state.exchange_due and state.address is not None
        return owes or state.responding is not None

    # ---- what comes in

    def receive(self, data: bytes, source: Address) -> None:
        if not self.is_up:
            return
        try:
            self.endpoint.receive_datagram(data, source, self.world.now)
        except PacketRejected as error:
            self.world.counts[f"refused: {error.reason}"] += 1
        self._pump()

    def on_timer(self) -> None:
        self.endpoint.handle_timer(self.world.now)
        self._pump()

    def session_started(self, link: str, at: float) -> None:
        if self.is_up:
            self.endpoint.session_started(link, at, self.world.now)
            self._pump()

    def _look(self) -> None:
        """The watch over handshakes."""
        self.world.after(WATCH, self._look)
        if not self.is_up:
            return
        for link, found in self.installed.items():
            session_at = self.tunnels[link].session_at
            since = found.at if session_at is None else session_at
            if self.world.now > max(since + OVERDUE, found.at + 15):
                self.world.counts["overdue"] += 1
                with suppress(NotPossible):
                    self.endpoint.request_exchange(
                        link, StartReason.HANDSHAKE_OVERDUE, self.world.now
                    )
        self._pump()

    # ---- what comes out

    def _pump(self) -> None:
        world = self.world
        for data, target in self.endpoint.datagrams_to_send():
            if data[0] & 0x0F == MessageType.INIT_CONF:
                self._note_root(data[8:16])
            world.carry(data, self.address, target)
        while (event := self.endpoint.next_event()) is not None:
            if isinstance(event, KeyEstablished):
                self._install(event)
            elif isinstance(event, ExternalKeysWanted):
                self._fetch_keys(event)
            elif isinstance(event, LinkExpired):
                if abs(world.now - self.installed[event.link].expires_at) > 0.001:
                    raise Broken("closed too early or too late")
                world.counts["lifetimes over"] += 1
                del self.installed[event.link]
                self.tunnels[event.link].session_at = None
            elif isinstance(event, ExchangeStarted):
                world.counts["exchanges"] += 1
                self._note_start(event)
            elif isinstance(event, KeyConfirmed):
                world.counts["keys"] += 1
        wake = self.endpoint.next_timer()
        self.wake = float("inf") if wake is None else wake
        world.watch()

    def _note_root(self, exchange_id: bytes) -> None:
        for name in self.endpoint.links():
            own = self.endpoint.link(name).exchange
            if own is not None and own.exchange_id == exchange_id and own.root is not None:
                self.world.roots[exchange_id] = own.root.root.expose()

    def _note_start(self, event: ExchangeStarted) -> None:
        now = self.world.now
        session_at = self.tunnels[event.link].session_at
        found = self.installed.get(event.link)
        self.world.started.append(
            Started(
                self.name,
                event.link,
                now,
                event.reason,
                None if session_at is None else now - session_at,
                None if found is None else now - found.at,
            )
        )

    def _install(self, event: KeyEstablished) -> None:
        self._check_confirmed(event)
        fails = self.world.random.random() < self.world.weather.install_fails
        endpoint = self.endpoint

        def done() -> None:
            if endpoint is not self.endpoint or not self.is_up:
                return  # the daemon that asked for it is gone
            if fails:
                endpoint.install_failed(event.link, event.token, "failed", self.world.now)
            else:
                expires_at = self.world.now + self.configs[event.link].lifetime
                self.installed[event.link] = Installed(
                    event.psk.expose(), event.key_id, self.world.now, expires_at
                )
                if event.role is Role.RESPONDER:
                    self.world.answered[event.token] = event.psk.expose()
                endpoint.key_installed(event.link, event.token, self.world.now)
                self.tunnels[event.link].begin()
            self._pump()

        self.world.after(self.world.random.random() * self.world.weather.install_seconds, done)

    def _check_confirmed(self, event: KeyEstablished) -> None:
        if event.role is Role.INITIATOR:
            if self.world.answered.get(event.token) != event.psk.expose():
                raise Broken("an initiator gets a key that the responder did not install")
            return
        responding = self.endpoint.link(event.link).responding
        if responding is None or responding.root is None:
            raise Broken("a responder gets a key without an InitConf")
        if self.world.roots.get(event.token) != responding.root.root.expose():
            raise Broken("a responder gets a key that the initiator does not hold")

    def _fetch_keys(self, event: ExternalKeysWanted) -> None:
        """Two key managers that mostly agree."""
        weather, chance = self.world.weather, self.world.random.random()
        endpoint = self.endpoint
        differs = weather.keys_fail <= chance < weather.keys_fail + weather.keys_differ

        def done() -> None:
            if endpoint is not self.endpoint or not self.is_up:
                return
            if chance < weather.keys_fail:
                endpoint.external_keys_failed(event.link, event.token, "none", self.world.now)
            elif event.role is Role.INITIATOR:
                key = external_key(event.token, b"")
                endpoint.external_keys(event.link, event.token, (key,), self.world.now)
            else:
                keys = tuple(
                    ExternalKey(
                        entry.reference,
                        external_key(event.token, b"other" if differs else b"").key
                        if entry.present
                        else None,
                    )
                    for entry in event.listing
                )
                endpoint.external_keys(event.link, event.token, keys, self.world.now)
            self._pump()

        self.world.after(self.world.random.random() * 2 * weather.keys_seconds, done)


def external_key(token: bytes, salt: bytes) -> ExternalKey:
    """A key of 128 bits that is decided by the exchange it is for."""
    reference = ExternalKeyReference("qkd", "kme", "sae", (token.hex(),), 128)
    return ExternalKey(reference, Secret((token + salt).ljust(16, b".")))


@dataclass(frozen=True, slots=True)
class LinkPlan:
    """A link between two sites. `options` are further fields of each end's LinkConfig."""

    ends: tuple[int, int] = (0, 1)
    identities: tuple[int, int] = (0, 0)
    """Which of its identities each end uses."""
    addressed: tuple[bool, bool] = (True, True)
    begins: tuple[float, float] = (0.0, 0.0)
    options: tuple[Mapping[str, Any], Mapping[str, Any]] = ({}, {})


def connect(world: World, plan: LinkPlan) -> Tunnel:
    """Configure a link at both ends; each end adds it at its own time."""
    sites = [world.sites[number] for number in plan.ends]
    number = len(world.tunnels)
    names = [f"{sites[1 - end].name}-{number}" for end in (0, 1)]
    tunnel = Tunnel(world, (sites[0], sites[1]), (names[0], names[1]))
    for end in (0, 1):
        config = LinkConfig(
            name=names[end],
            locals=(sites[end].identities[plan.identities[end]].fingerprint,),
            remotes=(sites[1 - end].identities[plan.identities[1 - end]].fingerprint,),
            wireguard_key=bytes((plan.ends[end] + 1, number)) * 16,
            wireguard_port=51820,
            address=sites[1 - end].address if plan.addressed[end] else None,
        )
        config = replace(config, **plan.options[end])
        world.at(plan.begins[end], partial(sites[end].add_link, config))
    return tunnel

"""The key exchange of a node: datagrams, timers and answers in, datagrams and events out.

    receive_datagram  handle_timer  next_timer  datagrams_to_send  next_event
    external_keys  external_keys_failed  key_installed  install_failed

Time is CLOCK_BOOTTIME in seconds and comes in as `now`; randomness comes from the injected
suites. A datagram that is refused (PacketRejected) leaves the state as it was.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kex import answering, cookies, initiating, noise, reassembly, responder, wire
from kex.address import Address
from kex.callers import Caller, Callers
from kex.claims import Claims, installing
from kex.errors import KexError, PacketRejected
from kex.events import Event, IdentityLearned, RejectCode, StartReason, WireGuardKeyYielded
from kex.exchange import Exchange, Phase
from kex.external import ExternalKey, ExternalKeyReference
from kex.identity import Fingerprint, Identity
from kex.link import Link, Timer
from kex.link_config import LinkConfig
from kex.load import Load, site
from kex.node import Node, Outgoing
from kex.payload import Traffic
from kex.reassembly import Origin, Reassembly
from kex.suites import Suite
from kex.wire import Fragment, MessageType

HELLO_CACHE_SECONDS = 10.0
HELLO_CACHE_ENTRIES = 256
_TO_RESPONDER = (MessageType.INIT_HELLO, MessageType.INIT_CONF, MessageType.IDENTITY_QUERY)
_BEGIN = (MessageType.INIT_HELLO, MessageType.IDENTITY_QUERY)


_Pair = tuple[Fingerprint, Fingerprint]
"""Identities: ours, theirs."""


class UnknownLink(KexError, KeyError):
    """No link of that name."""


@dataclass(frozen=True, slots=True)
class EndpointStatistics:
    """A snapshot. `rejected` counts refused datagrams by reason."""

    rejected: Mapping[str, int]
    accepted: int
    cookie_replies: int
    reassembly_bytes: int
    reassembly_messages: int
    under_load: bool


class Endpoint:
    """All links of one node, on one UDP port. Copying it is cheap: its parts are values."""

    def __init__(
        self,
        *,
        suites: Mapping[int, Suite],
        identities: Iterable[Identity],
        random: Callable[[int], bytes],
        now: float,
        chunk_length: int = wire.MAX_CHUNK_LENGTH,
        load: Load | None = None,
    ) -> None:
        self._node = Node.create(
            suites=suites, identities=identities, random=random, chunk_length=chunk_length, now=now
        )
        self._links: dict[str, Link] = {}
        self._pairs: dict[_Pair, str] = {}
        self._dead: dict[_Pair, int] = {}
        """For each pair, the last biscuit number of before it came to the link that has it."""
        self._exchanges: dict[bytes, str] = {}
        self._kept: dict[bytes, str] = {}
        self._wireguard_keys: dict[bytes, frozenset[str]] = {}
        self._peer_sites: Counter[str] = Counter()
        """How many links have a peer there, as far as is known."""
        self._indexed: dict[str, _Indexed] = {}
        self._timers: list[tuple[float, str]] = []
        self._reassembly = Reassembly()
        self._hellos: dict[bytes, _AnsweredHello] = {}
        self._load = load or Load(now)
        self._rejected: Counter[str] = Counter()
        self._accepted = 0
        self._cookie_replies = 0
        self._callers = Callers()
        self._index_identities()

    def _index_identities(self) -> None:
        identities = self._node.identities
        self._mac_keys = {
            (kind, suite): [
                (own, wire.mac_key(kind, own)) for own in identities if own.suite == suite
            ]
            for kind in MessageType
            for suite in {own.suite for own in identities}
        }

    # ---- links

    def add_link(self, config: LinkConfig, now: float, *, start_at: float | None = None) -> None:
        """A new link; its first exchange begins at `start_at`, or now. Raises ValueError."""
        if config.name in self._links:
            raise ValueError(f"link {config.name}: there is one of that name")
        claimed = _claimed(config, self._pairs, self._node.identities)
        last = self._node.biscuit_keys.next_number - 1
        # Only these, and not all anew: a start adds a thousand links
        self._pairs.update(dict.fromkeys(claimed, config.name))
        self._dead.update(dict.fromkeys(claimed, last))
        link = Link(
            config=config,
            retry_at=now if start_at is None else start_at,
            # What was handed out before is dead: a link that was removed and comes back has
            # forgotten which of it was used up, and the biscuit keys live on
            last_accepted=last,
        )
        self._links[config.name] = link
        self._note(link)
        self._claim(link, now)

    def update_link(self, config: LinkConfig, now: float) -> None:
        """Change a link; others are left alone. Raises UnknownLink, ValueError."""
        self.update_links([config], now)

    def update_links(
        self,
        configs: Iterable[LinkConfig],
        now: float,
        *,
        identities: Iterable[Identity] | None = None,
    ) -> None:
        """Change links, and this node's own identities where given, in one step: all or nothing.

        In one step, because two links may trade identities. A link whose configuration is what
        it was is left alone. Raises UnknownLink, ValueError.
        """
        changed = {config.name: config for config in configs}
        links = {name: self._link(name) for name in changed}
        # An address that changes, which is most often all, costs nothing for the other links
        if identities is not None or any(
            config.pairs != links[name].config.pairs for name, config in changed.items()
        ):
            self._claim_pairs(changed, identities)
        for name, link in links.items():
            link.reconfigure(self._node, changed[name], now)
            self._note(link)
        for link in links.values():
            self._claim(link, now)

    def _claim_pairs(
        self, changed: Mapping[str, LinkConfig], identities: Iterable[Identity] | None
    ) -> None:
        """Who has which pair of identities, once these links are changed. Raises ValueError."""
        held = self._node.identities
        if identities is not None:
            held = {identity.fingerprint: identity for identity in identities}
        pairs: dict[_Pair, str] = {}
        # Those that stay as they are first: it is a changed one that is told
        for name in sorted(self._links, key=changed.__contains__):
            config = changed.get(name, self._links[name].config)
            pairs.update(dict.fromkeys(_claimed(config, pairs, held), name))
        self._node.identities = held
        self._give_pairs(pairs)
        self._index_identities()

    def _give_pairs(self, pairs: dict[_Pair, str]) -> None:
        """Let these links have these pairs of identities from now on.

        What was used up stays used up, whoever has the pair: a biscuit handed out before a link
        got its pair is dead, and so is the answer that is kept for an exchange under a pair that
        the link has no more.
        """
        before, self._pairs = self._pairs, pairs
        last = self._node.biscuit_keys.next_number - 1
        came = {pair for pair, name in pairs.items() if before.get(pair) != name}
        self._dead = {pair: last if pair in came else self._dead[pair] for pair in pairs}
        for pair, name in before.items():
            link = self._links.get(name)
            if link is not None and pairs.get(pair) != name:
                answering.forget(link, pair)

    def end_key(self, name: str, at: float, now: float) -> None:
        """Let the key that a link has live until `at` at the latest, and begin an exchange for
        another one: the identity that it was agreed with is no longer the peer's. Raises
        UnknownLink."""
        link = self._link(name)
        link.end_key(at, now)
        self._note(link)

    def remove_link(self, name: str) -> None:
        """Forget a link. Raises UnknownLink."""
        link = self._link(name)
        link.exchange = link.kept = None
        self._note(link)
        self._note_wireguard_keys(name, set(self._indexed[name][3]), set())
        self._note_sites(self._indexed[name][4], frozenset())
        del self._links[name], self._indexed[name]
        for pair in link.config.pairs:
            del self._pairs[pair], self._dead[pair]

    def hold(self) -> None:
        """Begin no more exchanges; those under way go on: before a stop."""
        for link in self._links.values():
            link.held = True
            self._note(link)

    def set_identities(self, identities: Iterable[Identity]) -> None:
        """Change the node's own identities. Raises ValueError for one that a link uses and that
        would be gone, or that is a peer's."""
        held = {identity.fingerprint: identity for identity in identities}
        for (local, remote), name in self._pairs.items():
            if local not in held:
                raise ValueError(f"link {name}: uses an identity that would be gone")
            if remote in held:
                raise ValueError(f"link {name}: the peer has an identity of this node")
        self._node.identities = held
        self._index_identities()

    def know_public_key(self, fingerprint: Fingerprint, public_key: bytes) -> None:
        """A peer's whole public key from a cache. Raises ValueError if it does not fit."""
        if Fingerprint.of(fingerprint.suite, public_key) != fingerprint:
            raise ValueError("the public key does not belong to the fingerprint")
        try:
            self._node.suites[fingerprint.suite].check_public_key(public_key)
        except PacketRejected as error:
            raise ValueError(f"the public key is not sound: {error.reason}") from error
        self._node.public_keys[fingerprint] = public_key

    def knows_public_key(self, fingerprint: Fingerprint) -> bool:
        """Whether a peer's whole public key is here already."""
        return fingerprint in self._node.public_keys

    def link(self, name: str) -> Link:
        """A copy of a link's state, to read. Raises UnknownLink."""
        return self._link(name).copy()

    def look_at(self, name: str) -> Link:
        """A link's state as it stands: to read at once, and neither to keep nor to change. Raises
        UnknownLink."""
        return self._link(name)

    def links(self) -> Sequence[str]:
        return tuple(self._links)

    def _link(self, name: str) -> Link:
        try:
            return self._links[name]
        except KeyError:
            raise UnknownLink(name) from None

    # ---- datagrams

    def receive_datagram(self, datagram: bytes, source: Address, now: float) -> None:
        """Take a datagram. PacketRejected: refused, counted, and the state is as it was."""
        self._node.rotate(now)  # after a sleep a datagram may come before the timers (P3)
        try:
            self._receive_untrusted(datagram, source, now)
        except PacketRejected as error:
            self._rejected[error.reason] += 1
            raise
        self._accepted += 1

    def _receive_untrusted(self, datagram: bytes, source: Address, now: float) -> None:
        fragment = wire.parse_untrusted(datagram)
        suite = self._node.suites.get(fragment.suite)
        if suite is None:
            raise PacketRejected("suite")
        if fragment.type in _TO_RESPONDER:
            local = self._addressed_untrusted(fragment, suite, source, now)
            if fragment.type is MessageType.IDENTITY_QUERY:
                self._answer_query_untrusted(fragment, local, source)
                return
            length = self._message_length(suite, fragment.type)
            wire.check_fragment_length_untrusted(fragment, length)
            proven = self._has_cookie(fragment, source)
            if not proven and self._wants_cookie(fragment, source, now):
                self._ask_for_cookie_untrusted(fragment, local, source, len(datagram))
                return
            origin = reassembly.proven(source) if proven else reassembly.unproven(source)
            body = self._reassembled_untrusted(fragment, source, origin, length, now)
            if body is not None and fragment.type is MessageType.INIT_HELLO:
                self._init_hello_untrusted(suite, local, fragment, body, source, now)
            elif body is not None:
                self._init_conf_untrusted(suite, local, fragment, body, source, now)
            return
        link, exchange = self._answered_untrusted(fragment)
        if fragment.type is MessageType.COOKIE_REPLY:
            self._cookie_reply_untrusted(fragment, link, exchange, now)
        else:
            length = self._message_length(suite, fragment.type)
            origin = reassembly.answering(exchange.exchange_id)
            body = self._reassembled_untrusted(fragment, source, origin, length, now)
            if body is not None:
                self._answer_untrusted(suite, fragment.type, body, link, exchange, now)
        self._note(link)

    def _addressed_untrusted(
        self, fragment: Fragment, suite: Suite, source: Address, now: float
    ) -> Fingerprint:
        """The identity of ours that a question is for: mac1 says it."""
        for own, key in self._mac_keys.get((fragment.type, fragment.suite), ()):
            if wire.mac1_matches(key, fragment):
                return own
        if fragment.index == 0 and fragment.type in _BEGIN and _could_begin(suite, fragment):
            self._callers.note(source, fragment.exchange_id, now)
        raise PacketRejected("mac1")

    def _answered_untrusted(self, fragment: Fragment) -> tuple[Link, Exchange]:
        """The link whose exchange an answer belongs to."""
        name = self._exchanges.get(fragment.exchange_id)
        link = None if name is None else self._links[name]
        if link is None or link.exchange is None:
            raise PacketRejected("no such exchange")
        exchange = link.exchange
        key = wire.mac_key(fragment.type, exchange.remote)
        if fragment.suite != exchange.remote.suite or not wire.mac1_matches(key, fragment):
            raise PacketRejected("mac1")
        if exchange.phase is not _ANSWERED_IN.get(fragment.type, exchange.phase):
            raise PacketRejected("phase")
        return link, exchange

    @staticmethod
    def _message_length(suite: Suite, kind: MessageType) -> int:
        """Every message of a type and suite has one length, in bytes."""
        if kind is MessageType.INIT_HELLO:
            return suite.message1_length
        if kind is MessageType.RESP_HELLO:
            return suite.message2_length + suite.biscuit_length
        if kind is MessageType.IDENTITY_REPLY:
            return suite.public_key_length
        return _FIXED_LENGTHS[kind]

    def _reassembled_untrusted(
        self, fragment: Fragment, source: Address, origin: Origin, length: int, now: float
    ) -> bytes | None:
        return self._reassembly.add_untrusted(
            fragment, source=source, length=length, now=now, origin=origin
        )

    # ---- as the responder

    def _has_cookie(self, fragment: Fragment, source: Address) -> bool:
        """Whether mac2 proves that the sender receives at the source address."""
        return fragment.mac2 != wire.NO_MAC and any(
            wire.mac2_matches(cookie, fragment)
            for cookie in self._node.cookie_secret.accepted(source)
        )

    def _wants_cookie(self, fragment: Fragment, source: Address, now: float) -> bool:
        """Whether a fragment without a cookie is not taken: under load, and where it would need
        the place of another one."""
        return self._load.is_high(now) or not self._reassembly.has_room(fragment, source, now)

    def _ask_for_cookie_untrusted(
        self, fragment: Fragment, local: Fingerprint, source: Address, length: int
    ) -> None:
        """A fragment that is not taken gets a cookie, and takes neither memory nor a public-key
        operation. Raises PacketRejected where the answer would be longer than `length`."""
        if wire.datagram_length(cookies.COOKIE_REPLY_LENGTH) > length:
            raise PacketRejected("no cookie")
        body = cookies.seal_cookie(
            local,
            nonce=self._node.random(cookies.NONCE_LENGTH),
            mac1=fragment.mac1,
            cookie=self._node.cookie_secret.cookie(source),
        )
        key = wire.mac_key(MessageType.COOKIE_REPLY, local)
        reply = wire.cut(
            MessageType.COOKIE_REPLY, fragment.suite, fragment.exchange_id, body, key=key
        )
        self._node.send(reply, source)
        self._cookie_replies += 1

    def _answer_query_untrusted(
        self, fragment: Fragment, local: Fingerprint, source: Address
    ) -> None:
        """Give the one fragment of our public key that the query names and is as long as."""
        public_key = self._node.identities[local].public_key
        length = len(public_key)
        wire.check_fragment_length_untrusted(fragment, length)
        size = len(fragment.chunk)
        if fragment.count > 1 and fragment.index == fragment.count - 1:
            chunk_length = (length - size) // (fragment.count - 1)
        else:
            chunk_length = size
        key = wire.mac_key(MessageType.IDENTITY_REPLY, local)
        reply = wire.cut(
            MessageType.IDENTITY_REPLY,
            fragment.suite,
            fragment.exchange_id,
            public_key,
            key=key,
            chunk_length=chunk_length,
        )
        self._node.send(reply[fragment.index : fragment.index + 1], source)

    def _init_hello_untrusted(
        self,
        suite: Suite,
        local: Fingerprint,
        fragment: Fragment,
        body: bytes,
        source: Address,
        now: float,
    ) -> None:
        digest = hashlib.sha256(local.digest + fragment.exchange_id + body).digest()
        cached = self._hellos.get(digest)
        if cached is not None and now < cached.until:
            if cached.number > self._dead.get(cached.pair, cached.number):
                link = self._links.get(cached.link)
                if link is not None:
                    link.answered_again(cached.number, source)
                self._node.send_datagrams(cached.datagrams, source)
                return
            del self._hellos[digest]  # the pair has changed hands: that biscuit is dead
        if self._load.is_high(now):
            known = site(source.host) in self._peer_sites
            if not self._load.admits(source, now, known=known):
                raise PacketRejected("rate")
        self._load.charge(now)
        state = noise.responder_read(suite, self._node.identities[local].private_key, body)
        # RH0: an unknown initiator ends here, before any encapsulation
        initiator = Fingerprint.of(suite.number, state.remote_public_key)
        name = self._pairs.get((local, initiator))
        if name is None:
            self._callers.note(source, fragment.exchange_id, now, called=local, claimed=initiator)
            raise PacketRejected("unknown peer")
        self._callers.answered(source)
        fragments, number, keys = responder.answer_init_hello(
            suite,
            state,
            self._node.biscuit_keys,
            exchange_id=fragment.exchange_id,
            local=local,
            chunk_length=self._node.chunk_length,
        )
        self._node.biscuit_keys = keys
        self._links[name].highest_issued = number
        self._links[name].answered_hello(number, source)
        datagrams = wire.datagrams(fragments)
        self._forget_hellos(now)
        if len(self._hellos) < HELLO_CACHE_ENTRIES:
            self._hellos[digest] = _AnsweredHello(
                now + HELLO_CACHE_SECONDS, name, (local, initiator), number, datagrams
            )
        self._node.send_datagrams(datagrams, source)

    def _init_conf_untrusted(
        self,
        suite: Suite,
        local: Fingerprint,
        fragment: Fragment,
        body: bytes,
        source: Address,
        now: float,
    ) -> None:
        # RC1: a repetition is known by its bytes, before anything is opened
        digest = hashlib.sha256(local.digest + fragment.exchange_id + body).digest()
        repeated = self._kept.get(digest)
        if repeated is not None:
            answering.repeat(self._links[repeated], self._node, source)
            return
        biscuit = responder.open_biscuit_untrusted(
            suite,
            self._node.biscuit_keys,
            body,
            exchange_id=fragment.exchange_id,
            local=local,
        )
        name = self._pairs.get((local, biscuit.initiator))
        if name is None:
            raise PacketRejected("unknown peer")
        if biscuit.number <= self._dead[local, biscuit.initiator]:
            raise PacketRejected("old biscuit")
        link = self._links[name]
        opened = responder.open_init_conf_untrusted(
            suite, biscuit, body, exchange_id=fragment.exchange_id, local=local
        )
        answering.init_conf_untrusted(
            link,
            self._node,
            opened,
            source=source,
            digest=digest,
            claims=self._claims,
            now=now,
        )
        self._note(link)
        self._claim(link, now)

    @property
    def _claims(self) -> Claims:
        return Claims(self._links, self._wireguard_keys)

    # ---- as the initiator

    def _cookie_reply_untrusted(
        self, fragment: Fragment, link: Link, exchange: Exchange, now: float
    ) -> None:
        if fragment.count != 1:
            raise PacketRejected("fragment count")
        for sent in exchange.sent:
            try:
                cookie = cookies.open_cookie_untrusted(
                    exchange.remote, body=fragment.chunk, mac1=sent.mac1
                )
            except PacketRejected:
                continue
            until = now + cookies.COOKIE_SECONDS
            initiating.cookie_received(link, self._node, cookie, until, now)
            return
        raise PacketRejected("cookie")

    def _answer_untrusted(
        self,
        suite: Suite,
        kind: MessageType,
        body: bytes,
        link: Link,
        exchange: Exchange,
        now: float,
    ) -> None:
        if kind is MessageType.IDENTITY_REPLY:
            if Fingerprint.of(suite.number, body) != exchange.remote:
                raise PacketRejected("public key")
            try:
                suite.check_public_key(body)
            except PacketRejected as error:
                # Its fingerprint fits: there is no other key to wait for
                initiating.identity_unsound(link, self._node, error.reason, now)
                return
            self._node.public_keys[exchange.remote] = body
            self._node.emit(IdentityLearned(link.name, exchange.remote, body))
            initiating.identity_learnt(link, self._node, body, now)
        elif kind is MessageType.RESP_HELLO:
            initiating.resp_hello_untrusted(link, self._node, body, now)
        elif kind is MessageType.RESP_CONF:
            initiating.resp_conf_untrusted(link, self._node, body, self._claims, now)
            self._note(link)
            self._claim(link, now)
        else:
            initiating.reject_untrusted(link, self._node, body, now)

    # ---- time

    def next_timer(self) -> float | None:
        """When handle_timer() wants to be called."""
        self._drop_stale_timers()
        at = [self._node.biscuit_keys.rotate_at, self._node.cookie_secret.rotate_at]
        if self._timers:
            at.append(self._timers[0][0])
        deadline = self._reassembly.next_deadline()
        if deadline is not None:
            at.append(deadline)
        return min(at)

    def handle_timer(self, now: float, *, at_most: int | None = None) -> None:
        """Do what is due; for `at_most` links, where given: what is left stays due."""
        self._node.rotate(now)
        self._reassembly.expire(now)
        self._forget_hellos(now)
        self._drop_stale_timers()
        handled: set[str] = set()
        due_again: list[tuple[float, str]] = []
        while self._timers and self._timers[0][0] <= now and len(handled) != at_most:
            # Taken off before it is handled: one link's trouble does not come back at once, and
            # does not keep the others waiting
            entry = heapq.heappop(self._timers)
            if entry[1] in handled:
                due_again.append(entry)  # what it has become is due already: next time
            else:
                handled.add(entry[1])
                link = self._links[entry[1]]
                for at, timer in link.timers():
                    if at <= now and (at, timer) in link.timers():
                        link.fire(self._node, timer, now)
                self._note(link, again=True)
            self._drop_stale_timers()
        for entry in due_again:
            heapq.heappush(self._timers, entry)

    def _forget_hellos(self, now: float) -> None:
        # All live equally long, so the oldest stands first
        while self._hellos:
            digest, answered = next(iter(self._hellos.items()))
            if now < answered.until:
                return
            del self._hellos[digest]

    def _drop_stale_timers(self) -> None:
        while self._timers:
            at, name = self._timers[0]
            if self._indexed.get(name, _NOT_INDEXED)[2] == at:
                return
            heapq.heappop(self._timers)

    def _note(self, link: Link, *, again: bool = False) -> None:
        """Bring the indexes of exchanges, kept answers, WireGuard keys and timers up to date."""
        exchange_id = None if link.exchange is None else link.exchange.exchange_id
        kept = None if link.kept is None else link.kept.digest
        at = link.next_timer()
        before = self._indexed.get(link.name, _NOT_INDEXED)
        if before[0] != exchange_id:
            if before[0] is not None:
                self._exchanges.pop(before[0], None)
            if exchange_id is not None:
                self._exchanges[exchange_id] = link.name
        if before[1] != kept:
            if before[1] is not None:
                self._kept.pop(before[1], None)
            if kept is not None:
                self._kept[kept] = link.name
        if at is not None and (again or before[2] != at):
            heapq.heappush(self._timers, (at, link.name))
        keys = (link.peer_wireguard_key, link.config.peer_wireguard_key, installing(link))
        if before[3] != keys:
            self._note_wireguard_keys(link.name, set(before[3]), set(keys))
        sites = frozenset(site(address.host) for address in link.known_addresses)
        if before[4] != sites:
            self._note_sites(before[4], sites)
        self._indexed[link.name] = (exchange_id, kept, at, keys, sites)

    def _note_wireguard_keys(
        self, name: str, before: set[bytes | None], now: set[bytes | None]
    ) -> None:
        """A link has to do with other WireGuard keys; several links may with the same one."""
        for key in before - now:
            if key is not None:
                left = self._wireguard_keys.pop(key) - {name}
                if left:
                    self._wireguard_keys[key] = left
        for key in now - before:
            if key is not None:
                self._wireguard_keys[key] = self._wireguard_keys.get(key, frozenset()) | {name}

    def _claim(self, link: Link, now: float) -> None:
        """Let a link have the WireGuard key that is its peer's, wherever another one has it."""
        claims = self._claims
        claims.take(link, self._node, now)
        claims.give_back(link, self._node, now)
        for name in {
            event.link for event in self._node.events if isinstance(event, WireGuardKeyYielded)
        }:
            self._note(self._links[name])

    def _note_sites(self, before: frozenset[str], now: frozenset[str]) -> None:
        """A link's peer is known to be elsewhere; several may be at one site."""
        self._peer_sites.update(now)
        self._peer_sites.subtract(before)
        for name in before:
            if not self._peer_sites[name]:
                del self._peer_sites[name]

    # ---- what comes out

    def datagrams_to_send(self) -> list[Outgoing]:
        """The datagrams made since the last call, in order."""
        out = list(self._node.outbox)
        self._node.outbox.clear()
        return out

    def next_event(self) -> Event | None:
        """The oldest event that was not taken yet; None when there is none."""
        return self._node.events.popleft() if self._node.events else None

    def next_caller(self) -> Caller | None:
        """Somebody to tell of who calls and is not answered; None when there is none. What is
        handed out is bounded, however many call."""
        return self._callers.untold.popleft() if self._callers.untold else None

    def callers(self, now: float) -> Sequence[Caller]:
        """Who has called lately and was not answered, the most frequent first."""
        self._callers.expire(now)
        listed = (
            caller
            for caller in self._callers.callers.values()
            if caller.claimed is None or (caller.called, caller.claimed) not in self._pairs
        )
        return sorted(listed, key=lambda caller: -caller.calls)

    # ---- what else comes in

    def external_keys(
        self,
        name: str,
        token: bytes,
        keys: tuple[ExternalKey, ...],
        now: float,
        *,
        holders: str = "",
        ahead: frozenset[ExternalKeyReference] = frozenset(),
    ) -> None:
        """Answer ExternalKeysWanted. Too late is no error. Raises UnknownLink, ValueError.

        `holders` names who gave the keys, at the responder: it stands in the Reject where the
        two ends turn out to hold different ones. `ahead` are those that an initiator had before
        the exchange began: where the peer cannot have one of them, one more exchange follows at
        once, in which fresh keys are to be given.
        """
        link = self._link(name)
        if answering.wants_keys(link, token):
            answering.check_claim(link, self._node, self._claims, now)
        link.external_keys(self._node, token, keys, now, holders=holders, ahead=ahead)
        self._note(link)
        self._claim(link, now)

    def external_keys_failed(
        self,
        name: str,
        token: bytes,
        detail: str,
        now: float,
        *,
        code: RejectCode = RejectCode.KEY_MANAGER,
        failed: tuple[int, ...] = (),
    ) -> None:
        """Answer ExternalKeysWanted: no key can be had (KEY_MANAGER), or none that may be used:
        it is known to differ from the other end's (KEY_MISMATCH), or is not what this end asks
        for (POLICY). With the last two an initiator does not go on without, in no mode.

        `failed` are indexes into the listing, ascending, for the initiator to know which of its
        sources to leave out. Raises UnknownLink, and ValueError for another code.
        """
        link = self._link(name)
        link.external_keys_failed(self._node, token, detail, now, code=code, failed=failed)
        self._note(link)

    def key_installed(self, name: str, token: bytes, now: float) -> None:
        """Answer KeyEstablished: it is installed and was read back. Raises UnknownLink."""
        link = self._link(name)
        link.key_installed(self._node, token, now)
        self._note(link)
        self._claim(link, now)

    def install_failed(self, name: str, token: bytes, detail: str, now: float) -> None:
        """Answer KeyEstablished: it could not be installed. Raises UnknownLink."""
        link = self._link(name)
        link.install_failed(self._node, token, detail, now)
        self._note(link)

    def request_exchange(self, name: str, reason: StartReason, now: float) -> None:
        """Start an exchange now. Raises UnknownLink, NotPossible."""
        link = self._link(name)
        link.request(self._node, reason, now)
        self._note(link)

    def session_started(self, name: str, at: float, now: float) -> None:
        """A WireGuard session began at `at`, in the endpoint's time. Raises UnknownLink."""
        link = self._link(name)
        link.session_started(self._node, at, now)
        self._note(link)

    def count_traffic(self, name: str, traffic: Traffic | None) -> None:
        """What WireGuard has counted of the link here, to be told in its next payloads; None where
        that is not known. Raises UnknownLink."""
        self._link(name).traffic = traffic

    def adopt(
        self,
        name: str,
        key_id: str,
        *,
        wireguard_key: bytes,
        installed_at: float,
        expires_at: float,
        proved: bool = False,
    ) -> None:
        """Take over a key that an earlier run installed for a peer with this WireGuard key;
        `proved` if a WireGuard handshake was made with it. Raises UnknownLink.
        """
        link = self._link(name)
        link.adopt(
            key_id,
            wireguard_key=wireguard_key,
            installed_at=installed_at,
            expires_at=expires_at,
            proved=proved,
        )
        self._note(link)
        self._claim(link, installed_at)

    def key_taken_up(self, name: str, wireguard_key: bytes) -> None:
        """A WireGuard handshake with the peer of this WireGuard key (32 bytes) has taken up a key
        of the link: the peer has that WireGuard key, and has the last answer. Raises UnknownLink.
        """
        self._link(name).taken_up(wireguard_key)

    def fire(self, name: str, timer: Timer, now: float) -> None:
        """Let one timer of one link be up, whatever its time: for tests that explore orders."""
        link = self._link(name)
        link.fire(self._node, timer, now)
        self._note(link)

    # ---- as a value

    def statistics(self) -> EndpointStatistics:
        return EndpointStatistics(
            rejected=dict(self._rejected),
            accepted=self._accepted,
            cookie_replies=self._cookie_replies,
            reassembly_bytes=self._reassembly.held,
            reassembly_messages=len(self._reassembly.partials),
            under_load=self._load.high,
        )

    def copy(self) -> Endpoint:
        """An independent endpoint in the same state; counters of statistics start anew."""
        twin = Endpoint.__new__(Endpoint)
        twin.__dict__.update(self.__dict__)
        twin._node = self._node.copy()
        twin._links = {name: link.copy() for name, link in self._links.items()}
        twin._pairs = dict(self._pairs)
        twin._dead = dict(self._dead)
        twin._exchanges = dict(self._exchanges)
        twin._kept = dict(self._kept)
        twin._wireguard_keys = dict(self._wireguard_keys)
        twin._peer_sites = Counter(self._peer_sites)
        twin._indexed = dict(self._indexed)
        twin._timers = list(self._timers)
        twin._reassembly = self._reassembly.copy()
        twin._hellos = dict(self._hellos)
        twin._load = self._load.copy()
        twin._rejected = Counter()
        twin._callers = self._callers.copy()
        return twin

    def state(self, *, with_times: bool = True) -> Hashable:
        """The whole state as a value, to be compared; without counters, and if asked for without
        times: then only what the order rules depend on is left."""
        node = self._node
        links: tuple[Any, ...] = tuple(
            link.state(with_times=with_times) for link in self._links.values()
        )
        shared: tuple[Any, ...] = (
            node.biscuit_keys.next_number,
            tuple(node.public_keys),
            frozenset(self._hellos),
        )
        if with_times:
            shared += (
                node.biscuit_keys,
                node.cookie_secret,
                tuple(self._reassembly.partials.items()),
                tuple(node.outbox),
                tuple(node.events),
                tuple(self._dead.items()),
            )
        return (*shared, links)


def _claimed(
    config: LinkConfig,
    pairs: Mapping[_Pair, str],
    held: Mapping[Fingerprint, Identity],
) -> frozenset[_Pair]:
    """The pairs of identities of a link, where no other link has one of them. Raises ValueError."""
    claimed = config.pairs
    for pair in claimed:
        if pair in pairs:
            raise ValueError(
                f"link {config.name}: the same pair of identities as link {pairs[pair]}; "
                "a parallel link needs an identity of its own"
            )
        if pair[0] not in held:
            raise ValueError(f"link {config.name}: an identity that this node does not hold")
        if pair[1] in held:
            raise ValueError(f"link {config.name}: the peer has an identity of this node")
    return claimed


def _could_begin(suite: Suite, fragment: Fragment) -> bool:
    """Whether a datagram has a length that one of a node which begins an exchange can have."""
    hello = fragment.type is MessageType.INIT_HELLO
    length = suite.message1_length if hello else suite.public_key_length
    size = len(fragment.chunk)
    return wire.could_be_cut(length, index=fragment.index, count=fragment.count, size=size)


@dataclass(frozen=True, slots=True)
class _AnsweredHello:
    """An InitHello that was answered a moment ago, and how."""

    until: float
    link: str
    pair: tuple[Fingerprint, Fingerprint]
    """Identities (ours, theirs) of the exchange."""
    number: int
    """Of the biscuit."""
    datagrams: tuple[bytes, ...]


_Indexed = tuple[bytes | None, bytes | None, float | None, tuple[bytes | None, ...], frozenset[str]]
"""Of a link: exchange id, digest of the kept answer, next timer, WireGuard keys of the peer's, and
where the peer is known to be."""
_NOT_INDEXED: _Indexed = (None, None, None, (), frozenset())
_FIXED_LENGTHS = {
    MessageType.INIT_CONF: wire.INIT_CONF_LENGTH,
    MessageType.RESP_CONF: wire.RESP_CONF_PAYLOAD_LENGTH + wire.AEAD_TAG_LENGTH,
    MessageType.REJECT: wire.REJECT_PAYLOAD_LENGTH + wire.AEAD_TAG_LENGTH,
}
_ANSWERED_IN = {
    MessageType.RESP_HELLO: Phase.HELLO,
    MessageType.RESP_CONF: Phase.CONF,
    MessageType.REJECT: Phase.CONF,
    MessageType.IDENTITY_REPLY: Phase.IDENTITY,
}

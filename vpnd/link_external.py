"""A link's keys from outside: asked for, remembered by name, and held against the link's policy.

ExternalKeysWanted ──▶ the link's sources, side by side ──▶ policy ──▶ external_keys
KeyEstablished     ──▶ what was mixed ──▶ fallback begun, gone on or ended

What is decided is decided in vpnd.external_policy; the keys themselves pass through and are not
kept. Nothing here holds up the link's other work.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import trio

from kex.errors import KexError
from kex.events import (
    ExchangeFailed,
    ExternalKeysWanted,
    FailureCode,
    KeyEstablished,
    RejectCode,
    RejectSent,
    Role,
)
from kex.external import ExternalKey, ExternalKeyReference, ExternalMode
from kex.secret import Secret
from vpnd import external_policy as policy
from vpnd.ask_sources import Answers, ask_all
from vpnd.clock import boottime
from vpnd.config_model import ExternalKeys, PeerConfig
from vpnd.engine import Engine
from vpnd.external_policy import Needed, Step
from vpnd.fallback_watch import FallbackWatch
from vpnd.journal import Journal
from vpnd.keysource.base import (
    Correspondent,
    KeyFetchedAhead,
    KeySource,
    SourceError,
    SourceFault,
)
from vpnd.listed_keys import (
    NoOwner,
    SourceFinder,
    StaticKeysDiffer,
    absent_entry,
    holders,
    manager_of,
    means,
    owner,
)
from vpnd.mixed_key import MixedKey
from vpnd.source_use import SourceUse

ANSWER_MARGIN: Final = 0.25
"""Seconds before the key exchange's own deadline: what was had by then is to be used."""
OTHER_POLICY: Final = "the policy for external keys was changed during the exchange"
KEPT_THE_KEY: Final = (FailureCode.REFUSED, FailureCode.EXTERNAL_KEYS)
"""How an exchange ends without a key and leaves the link as it was before."""
KEPT_TOKENS: Final = 4
"""Exchanges whose sources are remembered: one of each role, and the two before."""


@dataclass(slots=True)
class Asked:
    """What is remembered of an exchange, by its token."""

    mixed: tuple[MixedKey, ...] = ()
    reason: str = ""
    """Why the key of a source is not in it."""
    must: str | None = None
    """The source without which the exchange is to give no key."""
    better: bool = False
    """Whether the exchange is to give a better key than the one in use, or none."""
    ahead: frozenset[str] = frozenset()
    """The sources of those of its keys that were fetched ahead."""
    limited: bool = False
    """Whether this end's own limits are why there is no key."""
    over: trio.Event = field(default_factory=trio.Event)
    outcome: str = ""
    """Once it is over: empty for a key, else why there is none."""
    key_id: str = ""


class LinkExternal:
    """The external keys of one link."""

    def __init__(
        self,
        peer: PeerConfig,
        *,
        engine: Engine,
        find: SourceFinder,
        watch: FallbackWatch,
        journal: Journal,
    ) -> None:
        self._peer = peer
        self._engine = engine
        self._find = find
        self._journal = journal
        self.watch = watch
        self._asked: dict[bytes, Asked] = {}
        self._left_out: dict[str, float] = {}
        """Sources that the peer could not have a key of, and until when they are left out."""
        self._used_at: float | None = None
        """When the sources were last asked for an exchange of this link's own."""
        self._refusal = ""
        """Why the last exchange of this link's own was refused, if it was about external keys."""
        self._own_refusal = ""
        """Why this end has refused the peer's last exchange, if its sources had no key."""
        self._afresh: set[str] = set()
        """Sources whose key that was fetched ahead the peer could not have: the next is fresh."""
        self._wanted: list[ExternalKeysWanted] = []
        self._news = trio.Event()
        self._scopes: dict[Role, tuple[bytes, trio.CancelScope]] = {}

    # ---- what is configured

    @property
    def config(self) -> ExternalKeys:
        return self._peer.external_keys

    def mode_of(self, peer: PeerConfig) -> ExternalMode:
        """The mode that exchanges go by with this configuration, now."""
        over = self.watch.over_with(peer.external_keys)
        return policy.effective_mode(peer.external_keys, over_limit=over)

    def take(self, peer: PeerConfig) -> bool:
        """Go by this configuration from now on; whether another key is wanted for that."""
        before, self._peer = self._peer, peer
        changed = peer.external_keys != before.external_keys
        if changed:
            self._left_out.clear()
            self._used_at = None  # what the new policy asks for must not wait for `min_interval`
            self.watch.take(peer.external_keys)
        return changed

    @property
    def used_lately(self) -> bool:
        """Whether `min_interval` since this link's last use of its sources is not over."""
        return self._used_at is not None and boottime() < self._used_at + self.config.min_interval

    @property
    def wants_another(self) -> bool:
        """Whether the key that was set last lacks what a policy asks for that has become stricter
        since its exchange began."""
        return self.config.mode == "require" and not self.watch.newest_has(Needed.by(self.config))

    # ---- what the key exchange says; nothing here blocks

    def wanted(self, event: ExternalKeysWanted) -> None:
        self._wanted.append(event)
        self._news.set()

    def failed(self, event: ExchangeFailed) -> None:
        """An exchange of this link's own is over without a key."""
        asked = self._asked.get(event.exchange_id)
        self._cancel(Role.INITIATOR, event.exchange_id)
        if event.reject in (RejectCode.KEY_MANAGER, RejectCode.POLICY):
            self._refusal = f'the peer says "{event.detail}"'
        if asked is None:
            return
        if event.reject is RejectCode.KEY_MANAGER and not event.failed:
            self._ask_afresh(asked.ahead)
        for reference in event.failed:
            for mixed in asked.mixed:
                if not means(mixed, reference):
                    continue
                if mixed.source in asked.ahead:
                    self._ask_afresh({mixed.source})
                else:
                    self._leave_out(mixed.source, event.detail)
        still = asked.better or self.watch.over
        if still and event.code in KEPT_THE_KEY and not asked.limited:
            refused = event.code is FailureCode.REFUSED
            self.watch.still_missing(self._refusal if refused else event.detail)
        asked.outcome = event.detail or event.code.value
        asked.over.set()

    def _ask_afresh(self, sources: Collection[str]) -> None:
        """The peer could not have keys that were fetched ahead: a key manager may have lost them,
        and may well have others."""
        if sources:
            self._afresh.update(sources)
            self._used_at = None  # the sources were not used for that exchange, but before it

    def gives_better_or_none(self, event: ExchangeFailed) -> bool:
        """Whether an exchange that gave no key was only to bring missing keys back, and has left
        the link as it was."""
        asked = self._asked.get(event.exchange_id)
        return asked is not None and asked.better and event.code in KEPT_THE_KEY

    def _leave_out(self, source: str, detail: str) -> None:
        self._left_out[source] = boottime() + policy.LEFT_OUT_SECONDS
        names = {use.source for use in self.config.uses} - self._left_out.keys()
        if Needed.by(self.config).met(names, names):
            self._journal.record(
                "source_left_out",
                peer=self._peer.name,
                level="warning",
                source=source,
                reason=f'the peer says "{detail}"',
                seconds=policy.LEFT_OUT_SECONDS,
            )

    def refused(self, event: RejectSent) -> None:
        """This end has refused an exchange of the peer's."""
        self._cancel(Role.RESPONDER, event.exchange_id)

    def _cancel(self, role: Role, token: bytes) -> None:
        running = self._scopes.get(role)
        if running is not None and running[0] == token:
            running[1].cancel()

    def established(self, event: KeyEstablished, in_force: str = "") -> None:
        """The key of an exchange is on the interface: what it has decides about the fallback.

        `in_force` is the ID of the key that WireGuard's session goes on with meanwhile.
        """
        asked = self._asked.get(event.token, Asked())
        mixed = asked.mixed if any(entry.present for entry in event.external) else ()
        names = [each.source for each in mixed]
        reason = ""
        if policy.missing(self.config, names):
            reason = self._why_missing(event, asked, names)
        self.watch.key_set(
            event.key_id,
            mixed,
            reason,
            lifetime=self._peer.key_lifetime,
            in_force=in_force,
        )
        if not policy.is_fallback(self.config, names):
            self._own_refusal = ""
            if event.role is Role.INITIATOR:
                self._refusal = ""
        asked.key_id = event.key_id
        asked.over.set()

    def _why_missing(self, event: KeyEstablished, asked: Asked, mixed: list[str]) -> str:
        lacking = ", ".join(policy.missing(self.config, mixed))
        if event.role is Role.RESPONDER:
            absent = [each.reference for each in event.external if not each.present]
            if absent:
                named = ", ".join(each.source or each.source_type for each in absent)
                return f"the peer had no key from its {named}"
            return self._own_refusal or f"the peer's exchange had no key of {lacking}"
        if asked.reason:
            return asked.reason
        left_out = [name for name in self._left_out if name not in mixed]
        if self._refusal:
            return self._refusal
        return f"left out: {', '.join(left_out)}" if left_out else f"no key of {lacking}"

    # ---- what takes time

    async def run(self) -> None:
        """Answer what the key exchange asks for, and watch a fallback's limit."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.watch.run)
            while True:
                while self._wanted:
                    event = self._wanted.pop(0)
                    scope = trio.CancelScope()
                    before = self._scopes.get(event.role)
                    if before is not None:
                        before[1].cancel()  # the exchange that it was for is over
                    self._scopes[event.role] = (event.token, scope)
                    nursery.start_soon(self._answer, event, scope)
                await self._news.wait()
                self._news = trio.Event()

    async def _answer(self, event: ExternalKeysWanted, scope: trio.CancelScope) -> None:
        answer = self._as_initiator if event.role is Role.INITIATOR else self._as_responder
        with scope:
            try:
                await answer(event)
            except Exception as error:
                # A bug, or what cannot be sent: this exchange ends, and with it nothing else
                self._journal.record(
                    "internal_error", peer=self._peer.name, level="error", exc_info=error
                )
                self._give_up(event, "internal error", code=RejectCode.POLICY)
        if self._scopes.get(event.role, (b"", scope))[1] is scope:
            self._scopes.pop(event.role, None)

    def _remembered(self, token: bytes) -> Asked:
        asked = self._asked.setdefault(token, Asked())
        while len(self._asked) > KEPT_TOKENS:
            del self._asked[next(iter(self._asked))]
        return asked

    # ---- as the initiator

    async def _as_initiator(self, event: ExternalKeysWanted) -> None:
        asked = self._remembered(event.token)
        asked.better = event.ends_fallback
        external = self.config
        deadline = event.deadline - ANSWER_MARGIN
        limited = await self._wait_for_turn(external, deadline)
        uses = external.uses if asked.better else self._to_ask(external, asked.must)
        if limited is None:
            self._used_at = boottime()
            answers = await self._obtain(uses, deadline)
        else:
            answers = Answers({}, {use.source: limited for use in uses})
        asked.ahead = frozenset(
            name for name, key in answers.given.items() if isinstance(key, KeyFetchedAhead)
        )
        faults = [error.fault for error in answers.failed.values()]
        asked.limited = bool(faults) and set(faults) == {SourceFault.LIMITED}
        decision = policy.as_initiator(
            external,
            self.mode_of(self._peer),
            given=answers.given,
            failed=answers.failed,
            must=asked.must,
            good_key_lives=self.watch.good_key_lives,
            better_than=self.watch.newest if asked.better else None,
        )
        asked.reason = policy.told(answers.failed.values())
        if external is not self.config:
            self._give_up(event, OTHER_POLICY, code=RejectCode.POLICY)
            return
        if decision.step is Step.END:
            self._give_up(event, decision.reason, code=decision.code)
            return
        now = boottime()
        asked.mixed = tuple(
            MixedKey.of(name, key.reference, now)
            for name, key in sorted(answers.given.items(), key=lambda had: had[1].reference)
        )
        if answers.failed:
            self._tell_missing(event, answers.failed)
        absent = [absent_entry(use, self._find(use.source)) for use in external.uses]
        keys = [
            answers.given.get(use.source, nothing)
            for use, nothing in zip(external.uses, absent, strict=True)
        ]
        ahead = [
            key.reference for key in answers.given.values() if isinstance(key, KeyFetchedAhead)
        ]
        self._hand_over(event, tuple(keys), ahead=frozenset(ahead))

    async def _wait_for_turn(self, external: ExternalKeys, deadline: float) -> SourceError | None:
        """Wait until the link's sources may be used again; an error where that is too late."""
        if self._used_at is None:
            return None
        at = self._used_at + external.min_interval
        if at >= deadline:
            names = ", ".join(use.source for use in external.uses)
            return SourceError(
                names,
                SourceFault.LIMITED,
                f"used {boottime() - self._used_at:.0f} s ago by this link, whose min_interval is "
                f"{external.min_interval} s",
            )
        await trio.sleep(max(0.0, at - boottime()))
        return None

    def _to_ask(self, external: ExternalKeys, must: str | None) -> tuple[SourceUse, ...]:
        now = boottime()
        self._left_out = {name: until for name, until in self._left_out.items() if now < until}
        return policy.to_ask(external, left_out=self._left_out, must=must)

    async def _obtain(
        self, uses: tuple[SourceUse, ...], deadline: float
    ) -> Answers[str, ExternalKey]:
        afresh, self._afresh = self._afresh, set()

        async def obtain(use: SourceUse) -> ExternalKey:
            source = self._named(use.source)
            return await source.obtain(self._far(use), fresh=use.source in afresh)

        questions = {use.source: (use.source, partial(obtain, use)) for use in uses}
        return await ask_all(questions, deadline, self._journal)

    def _named(self, name: str) -> KeySource:
        source = self._find(name)
        if source is None:
            raise SourceError(name, SourceFault.FILE, "is no longer configured")
        return source

    def _far(self, use: SourceUse) -> Correspondent:
        return Correspondent(self._peer.name, use.peer_sae or "")

    def _tell_missing(self, event: ExternalKeysWanted, failed: Mapping[str, SourceError]) -> None:
        self._journal.record(
            "external_keys_missing",
            peer=self._peer.name,
            level="warning",
            role=event.role.value,
            sources=", ".join(failed),
            code=", ".join(sorted({error.fault.value for error in failed.values()})),
            reason=policy.told(failed.values()),
        )

    # ---- as the responder

    async def _as_responder(self, event: ExternalKeysWanted) -> None:
        asked = self._remembered(event.token)
        external = self.config
        owners: dict[int, SourceUse] = {}
        errors: dict[int, SourceError] = {}
        for at, entry in enumerate(event.listing):
            if entry.present:
                try:
                    owners[at] = owner(external, self._find, self._peer.name, entry.reference)
                except SourceError as error:
                    errors[at] = error
        objection = policy.as_responder(
            external,
            self.mode_of(self._peer),
            [use.source for use in owners.values()],
            peers=event.peer_mode or ExternalMode.OFF,
        )
        if errors:
            self._refuse(event, errors, owners)
            return
        if objection:
            self._give_up(event, objection, code=RejectCode.POLICY)
            return
        answers = await self._retrieve(event, owners)
        if answers.failed:
            self._refuse(event, answers.failed, owners)
            return
        if external is not self.config:
            self._give_up(event, OTHER_POLICY, code=RejectCode.KEY_MANAGER)
            return
        now = boottime()
        asked.mixed = tuple(
            MixedKey.of(use.source, event.listing[at].reference, now) for at, use in owners.items()
        )
        keys = tuple(
            ExternalKey(entry.reference, answers.given.get(at))
            for at, entry in enumerate(event.listing)
        )
        self._hand_over(event, keys, holders(event.listing, owners, self._find))

    async def _retrieve(
        self, event: ExternalKeysWanted, owners: Mapping[int, SourceUse]
    ) -> Answers[int, Secret]:
        async def retrieve(at: int) -> Secret:
            use = owners[at]
            reference = event.listing[at].reference
            return await self._named(use.source).retrieve(self._far(use), reference)

        questions = {at: (use.source, partial(retrieve, at)) for at, use in owners.items()}
        return await ask_all(questions, event.deadline - ANSWER_MARGIN, self._journal)

    def _refuse(
        self,
        event: ExternalKeysWanted,
        errors: Mapping[int, SourceError],
        owners: Mapping[int, SourceUse],
    ) -> None:
        code, failed = policy.refusal(errors)
        self._own_refusal = policy.told(errors.values())
        for error in errors.values():
            self._journal.record(
                "external_keys_missing",
                peer=self._peer.name,
                level="warning",
                role=event.role.value,
                sources=error.source,
                code=error.fault.value,
                reason=str(error),
            )
        # Addresses and certificates of this end's key managers are not the peer's business
        detail = "; ".join(
            error.reason
            if isinstance(error, (StaticKeysDiffer, NoOwner))
            else f"{self._manager(owners[at])} at the responder: {error.fault.value}"
            for at, error in errors.items()
        )
        self._give_up(event, detail, code=code, failed=failed)

    def _manager(self, use: SourceUse) -> str:
        return manager_of(self._find(use.source), use.source)

    # ---- answers

    def _hand_over(
        self,
        event: ExternalKeysWanted,
        keys: tuple[ExternalKey, ...],
        holders: str = "",
        *,
        ahead: frozenset[ExternalKeyReference] = frozenset(),
    ) -> None:
        try:
            with self._engine.driving() as (endpoint, now):
                endpoint.external_keys(
                    self._peer.name, event.token, keys, now, holders=holders, ahead=ahead
                )
        except ValueError as error:
            # A source has given what cannot be mixed or sent
            self._give_up(event, str(error), code=RejectCode.POLICY)
        except KexError:
            return  # the link is gone meanwhile

    def _give_up(
        self,
        event: ExternalKeysWanted,
        reason: str,
        *,
        code: RejectCode,
        failed: tuple[int, ...] = (),
    ) -> None:
        detail = policy.bounded(reason) if event.role is Role.RESPONDER else reason
        try:
            with self._engine.driving() as (endpoint, now):
                endpoint.external_keys_failed(
                    self._peer.name, event.token, detail, now, code=code, failed=failed
                )
        except KexError:
            return  # the link is gone meanwhile

    # ---- one exchange that somebody waits for

    def demand(self, token: bytes, source: str) -> Asked:
        """Let the exchange of this token, just begun, give no key without one of `source`."""
        asked = self._remembered(token)
        asked.must = source
        return asked

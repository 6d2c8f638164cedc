"""What all sources have in common that are asked over HTTPS.

obtain ──▶ a key fetched ahead, or _fetch: a fresh one
retrieve ──▶ _ask_for, again and again while the answer is that it is not there yet
run ──▶ fetches ahead, keeps the stock, watches certificates
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

import trio

from kex.external import (
    MAX_KEY_IDS,
    ExternalKey,
    ExternalKeyReference,
    check_bits,
    check_reference,
)
from kex.secret import Secret
from vpnd.clock import boottime
from vpnd.config_key_sources import RemoteSourceConfig
from vpnd.keysource.addresses import Address
from vpnd.keysource.base import (
    INITIATOR_SECONDS,
    RESPONDER_SECONDS,
    Correspondent,
    ProbeStep,
    SourceError,
    SourceFault,
    SourceListener,
    SourceStatus,
    SourceType,
)
from vpnd.keysource.certificate_watch import CertificateWatch
from vpnd.keysource.etsi014 import DeliveredKey
from vpnd.keysource.health import Health
from vpnd.keysource.https_call import Answer
from vpnd.keysource.key_manager import AT_ONCE, AskFailed, BadAnswer, KeyManager
from vpnd.keysource.probing import Question, ask_question, probe_address
from vpnd.keysource.reserve import Reserve
from vpnd.keysource.stock import DAY, Stock, keys_of
from vpnd.keysource.token_bucket import TokenBucket
from vpnd.keysource.used_keys import UsedKeys

LOOK_SECONDS: Final = 300.0
"""Between two looks at the stock for a far end."""
SPARE: Final = 1.0
"""Seconds before the caller's deadline at which a source gives up by itself: so that its reason is
told in time on a busy machine, too."""
NOT_YET: Final = (0.25, 0.5, 1.0)
"""Seconds until a key that is not there yet is asked for again; then always the last."""
MAYBE_NOT_YET: Final = frozenset({400, 401, 404})
"""What key managers answer, in words of their own, for a key that they do not have. They say the
same to an application that they do not know: so it counts as that only where another call, made
after the first such answer, was answered."""
AHEAD_AT_ONCE: Final = 4

UNKNOWN_HINT: Final = (
    "not synchronised yet, fetched by somebody else, or does it know the two ends by other names?"
)

T = TypeVar("T")


@dataclass(slots=True)
class Had:
    """What came of the calls by ID for one key."""

    since: float
    """When the first of them was made (trio's clock)."""
    parts: dict[str, DeliveredKey] = field(default_factory=dict)
    """Of several that make the key, by ID."""


class RemoteSource(ABC):
    """One configured source (KeySource) over HTTPS."""

    _type: SourceType
    _key_id: re.Pattern[str]
    """What the specification allows as a key ID."""
    _key_id_is: str
    """In words."""

    def __init__(
        self,
        name: str,
        config: RemoteSourceConfig,
        listener: SourceListener,
        *,
        used: UsedKeys,
        what: str,
        low_water: int | None = None,
        clock: Callable[[], float] = boottime,
    ) -> None:
        self._name = name
        self._config = config
        self.used = used
        self._manager = KeyManager(name, config, what)
        self._health = Health(name, listener)
        self._bucket = TokenBucket(config.max_keys_per_minute)
        self._reserve = Reserve(clock)
        self._stock = Stock(clock, low_water)
        self._watch = CertificateWatch(self._manager, self._health)
        self._fars: dict[str, Correspondent] = {}
        """Who was asked for lately, by ID."""
        self._looked_at: dict[str, float] = {}
        self._answered_at: dict[str, float] = {}
        """When it last answered a question about a far end that gives no key."""
        self._asked_at: dict[str, float] = {}
        self._stirred = trio.Event()
        # Each kind waits for its own: a responder has 8 s, and looks must not take its place
        self._obtaining = trio.CapacityLimiter(AT_ONCE)
        self._retrieving = trio.CapacityLimiter(AT_ONCE)
        self._aside = trio.CapacityLimiter(AHEAD_AT_ONCE)

    @property
    def name(self) -> str:
        return self._name

    @property
    def source_type(self) -> SourceType:
        return self._type

    # ---- what differs

    @abstractmethod
    async def _fetch(self, far: Correspondent, room: trio.CapacityLimiter) -> ExternalKey:
        """A fresh key. Raises SourceError; AskFailed where the key manager was asked."""

    @abstractmethod
    async def _ask_for(
        self, far: Correspondent, reference: ExternalKeyReference, had: Had
    ) -> Secret:
        """The key of a reference, asked for once but for the parts in `had`, to which those that
        come are added. Raises SourceError."""

    @abstractmethod
    async def _look(self, far: Correspondent, room: trio.CapacityLimiter) -> None:
        """What the key manager says of itself and of the stock. Raises SourceError."""

    @abstractmethod
    def _questions(self, far: Correspondent | None) -> Sequence[Question]:
        """What a test asks; the first of each address, the others of the first that answers. None
        of them may give a key."""

    # ---- the two ends of an exchange

    async def obtain(self, far: Correspondent, *, fresh: bool = False) -> ExternalKey:
        """IC1: see KeySource."""
        self._seen(far)
        if fresh:
            self._reserve.throw_away(far)
        ready = self._reserve.take(far)
        if ready is None:
            with self._told(far):
                with trio.CancelScope(deadline=_until(INITIATOR_SECONDS)):
                    ready = await self._fetch_limited(far, self._obtaining)
                if ready is None:
                    raise self._too_late(INITIATOR_SECONDS)
        self._health.counters["obtained"] += 1
        self._reserve.used(far)
        self._stir()
        return ready

    async def retrieve(self, far: Correspondent, reference: ExternalKeyReference) -> Secret:
        """RC1: see KeySource."""
        self._seen(far)
        with self._told(far):
            self._check_asked(far, reference)
            key = await self._ask_until_there(far, reference)
            self._health.counters["retrieved"] += 1
            self._stock.used(far.peer_id, len(reference.key_ids), new=False)
            return key

    async def _ask_until_there(self, far: Correspondent, reference: ExternalKeyReference) -> Secret:
        """Asked for again only where the answer says that nothing was delivered."""
        until = _until(RESPONDER_SECONDS)
        pauses = iter(NOT_YET)
        had = Had(trio.current_time())
        not_yet: AskFailed | None = None
        with trio.CancelScope(deadline=until):
            while True:
                try:
                    return await self._ask_for(far, reference, had)
                except AskFailed as error:
                    failed = await self._not_yet(far, had, error)
                    pause = next(pauses, NOT_YET[-1])
                    again = failed.fault in (SourceFault.UNKNOWN_KEY, SourceFault.UNAVAILABLE)
                    late = trio.current_time() + pause >= until
                    if failed.consumed or not again or late:
                        raise failed from None
                    not_yet = failed
                    self._health.counters["asked_again"] += 1
                    await trio.sleep(pause)
        # That the last question got no answer in time says less than the answer before
        raise not_yet or self._too_late(RESPONDER_SECONDS)

    async def _not_yet(self, far: Correspondent, had: Had, failed: AskFailed) -> AskFailed:
        """What a failed call by ID means: where the key manager answers another question about
        this far end, it is the key that it does not have."""
        known = failed.fault in (SourceFault.UNKNOWN_KEY, SourceFault.UNAVAILABLE)
        if failed.consumed or known or failed.status not in MAYBE_NOT_YET:
            return failed
        if not self._is_known(far, had):
            try:
                await self._look(far, self._retrieving)
            except SourceError:
                return failed
            if not self._is_known(far, had):
                return failed
        unknown = AskFailed(self._name, SourceFault.UNKNOWN_KEY, failed.reason, UNKNOWN_HINT)
        unknown.status = failed.status
        return unknown

    def _is_known(self, far: Correspondent, had: Had) -> bool:
        at = self._answered_at.get(far.peer_id)
        return at is not None and at > had.since

    def _answered(self, far: Correspondent) -> None:
        self._answered_at[far.peer_id] = trio.current_time()

    def _read_by_id(
        self, far: Correspondent, had: Had, read: Callable[[Answer, Address], T]
    ) -> Callable[[Answer, Address], T]:
        """`read` for an answer to a call by ID: another address may have what this one has not."""

        def read_untrusted(answer: Answer, address: Address) -> T:
            try:
                return read(answer, address)
            except BadAnswer as bad:
                if answer.status in MAYBE_NOT_YET and bad.undelivered and self._is_known(far, had):
                    raise BadAnswer(
                        SourceFault.UNKNOWN_KEY, bad.reason, UNKNOWN_HINT, undelivered=True
                    ) from None
                raise

        return read_untrusted

    def serves(self, far: Correspondent, reference: ExternalKeyReference) -> bool:
        return reference.source_type == self._type.value and reference.sae == far.peer_id

    def _check_asked(self, far: Correspondent, reference: ExternalKeyReference) -> None:
        """Raise SourceError for a reference that cannot be asked for."""
        ids = reference.key_ids
        try:
            check_reference(reference)
            check_bits(reference.bits)
            if not ids or len(ids) > MAX_KEY_IDS or reference.bits % (8 * len(ids)):
                raise ValueError(f"{len(ids)} key IDs for {reference.bits} bits")  # noqa: TRY301
        except ValueError as error:
            raise SourceError(
                self._name, SourceFault.WRONG_KEY_ID, f"the far end names {error}"
            ) from None
        if len(set(ids)) < len(ids) or any(not key_id for key_id in ids):
            raise SourceError(
                self._name, SourceFault.WRONG_KEY_ID, "the far end names one key ID twice, or none"
            )
        # Each goes into the path of a request: nothing but what the specification has
        if not all(self._key_id.fullmatch(key_id) for key_id in ids):
            raise SourceError(
                self._name,
                SourceFault.WRONG_KEY_ID,
                f"the far end names a key ID that is not {self._key_id_is}: it is not asked for",
                "an error of the far end, or of its key manager",
            )
        for key_id in ids:
            if self.used.seen_id(far.peer_id, key_id):
                raise SourceError(
                    self._name,
                    SourceFault.WRONG_KEY_ID,
                    f"key {key_id} was asked for before: it is not asked for twice",
                    "nothing: the next exchange has another key",
                )

    def _fresh(self, far: Correspondent, key_ids: Sequence[str], keys: Sequence[Secret]) -> None:
        """Remember keys that were delivered. Raises SourceError if one was there before."""
        for key_id, key in zip(key_ids, keys, strict=True):
            if self.used.seen_id(far.peer_id, key_id):
                raise SourceError(
                    self._name,
                    SourceFault.WRONG_KEY_ID,
                    f"expected a new key; key {key_id} was delivered before",
                    "an error of the key manager: do not use it until that is mended",
                )
            if self.used.seen_key(key):
                raise SourceError(
                    self._name,
                    SourceFault.BAD_KEY,
                    f"expected a new key; {key_id} is one that was delivered under another ID",
                    "an error of the key manager: do not use it until that is mended",
                )
        for key_id, key in zip(key_ids, keys, strict=True):
            self.used.add_id(far.peer_id, key_id)
            self.used.add_key(key)

    async def _fetch_limited(self, far: Correspondent, room: trio.CapacityLimiter) -> ExternalKey:
        # Where nothing is asked for, nothing counts: the reason stays the one that it is
        if self._manager.addresses.candidates() and not self._bucket.take():
            raise SourceError(
                self._name,
                SourceFault.LIMITED,
                f"max_keys_per_minute ({self._config.max_keys_per_minute}) is reached; the next "
                f"key is asked for in {self._bucket.wait():.0f} s at the earliest",
                "which link uses so many? `vpnctl keysource show` counts; or raise the limit",
            )
        try:
            key = await self._fetch(far, room)
        except SourceError as error:
            if error.fault is SourceFault.EMPTY:
                self._tell_stock(far, self._stock.empty(far.peer_id))
            raise
        self._stock.used(far.peer_id, len(key.reference.key_ids))
        return key

    def _told(self, far: Correspondent) -> _Told:
        return _Told(self._health, far)

    def _too_late(self, seconds: float) -> SourceError:
        return SourceError(
            self._name,
            SourceFault.TIMEOUT,
            f"{self._manager.addresses.current.url}: no key within {seconds:g} s",
            "it is slow, or many links wait for it at once",
        )

    # ---- what is known

    def status(self) -> SourceStatus:
        address = self._manager.addresses.current
        trouble = self._health.trouble
        counters = dict(self._health.counters)
        counters["thrown_away"] = self._reserve.thrown_away
        return SourceStatus(
            name=self._name,
            source_type=self._type,
            address=address.url,
            identity=address.identity,
            available=self._health.available,
            fault=None if trouble is None else trouble.fault,
            reason="" if trouble is None else trouble.reason,
            hint="" if trouble is None else trouble.hint,
            since_wall=0.0 if trouble is None else trouble.since_wall,
            stock=self._stock.levels(),
            certificates=self._watch.certificates(),
            warnings=[*self._watch.warnings(), *self._stock.doubts()],
            prefetched=len(self._reserve),
            counters=counters,
        )

    async def refresh_status(self) -> None:
        """Ask for the stock of all far ends that were asked for. Raises the first SourceError."""
        first: SourceError | None = None
        for far in tuple(self._fars.values()):
            try:
                await self._look_told(far)
            except SourceError as error:
                first = first or error
        if first is not None:
            raise first

    async def probe(self, far: Correspondent | None) -> Sequence[ProbeStep]:
        """Each address: TCP and TLS, certificate, and on the same connection what it says of
        itself; then of one of them what else a link will do."""
        steps: list[ProbeStep] = []
        first, *others = self._questions(far)
        good: Address | None = None
        for address in self._manager.addresses.all:
            found = await probe_address(self._manager, address, first)
            if good is None and found[-1].done:
                good = address
            steps += found
        if good is not None:
            self._health.succeeded(far="" if far is None else far.peer_id)
            for question in others:
                steps.append(await ask_question(self._manager, good, question))
        return steps

    async def try_out(self, far: Correspondent) -> Sequence[ProbeStep]:
        """What a link does, and what else it might do. Keys come, and are thrown away."""
        try:
            key = await self._fetch_limited(far, self._aside)
        except SourceError as error:
            return [ProbeStep("key", False, error.reason, error.hint)]
        parts = len(key.reference.key_ids)
        made = "" if parts == 1 else f", made of {parts}"
        detail = f"one of {key.reference.bits} bits came{made}, and was thrown away"
        return [ProbeStep("key", True, detail), *await self._try_more(far, parts)]

    async def _try_more(self, far: Correspondent, parts: int) -> Sequence[ProbeStep]:
        """What is not sure from one key of a link, which has `parts`."""
        return []

    # ---- its own tasks

    async def run(self) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch.run)
                nursery.start_soon(self._keep_looking)
                if self._config.prefetch:
                    nursery.start_soon(self._fetch_ahead)
        finally:
            self._reserve.clear()

    async def _fetch_ahead(self) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                self._reserve.expire()
                for far in self._reserve.due():
                    self._reserve.tried(far)
                    nursery.start_soon(self._fetch_one_ahead, far)
                with trio.move_on_after(self._reserve.next_due()):
                    await self._stirred.wait()

    async def _fetch_one_ahead(self, far: Correspondent) -> None:
        try:
            with self._told(far):
                key = await self._fetch_limited(far, self._aside)
        except SourceError:
            return  # it is told; the renewal itself will try again
        self._health.counters["fetched_ahead"] += 1
        self._reserve.put(far, key)

    async def _keep_looking(self) -> None:
        """At the stock of each far end, one after the other."""
        while True:
            now = trio.current_time()
            self._forget_old(now)
            ages = {peer: now - self._looked_at.get(peer, -LOOK_SECONDS) for peer in self._fars}
            oldest = max(ages, key=lambda peer: ages[peer], default=None)
            if oldest is None or ages[oldest] < LOOK_SECONDS:
                wait = LOOK_SECONDS - (0.0 if oldest is None else ages[oldest])
                with trio.move_on_after(wait):
                    await self._stirred.wait()
                continue
            try:
                await self._look_told(self._fars[oldest])
            except SourceError:
                self._looked_at[oldest] = now
            await trio.sleep(1)

    def _tell_stock(self, far: Correspondent, low: bool | None) -> None:
        """Tell that the stock for a far end became low just now, or is no longer."""
        if low is None:
            return
        level = self._stock.level(far.peer_id)
        if level is None:
            reason = "; ".join(self._stock.doubts())
        else:
            verb = "is" if level.stored == 1 else "are"
            reason = f"{keys_of(level.stored)} for {far.peer_id} {verb} left"
            reason += "" if level.days_left is None else f", {level.days_left} days"
        self._health.tell(
            "source_stock_low" if low else "source_stock_back",
            level="warning" if low else "info",
            reason=reason,
            code=SourceFault.EMPTY.value if low and level and not level.stored else "",
        )

    async def _look_told(self, far: Correspondent) -> None:
        with self._told(far):
            await self._look(far, self._aside)

    def _forget_old(self, now: float) -> None:
        """Far ends that no link has any more, or that are not used."""
        for peer_id, at in tuple(self._asked_at.items()):
            if now - at > DAY:
                for each in (self._asked_at, self._fars, self._looked_at, self._answered_at):
                    each.pop(peer_id, None)
                self._health.forget(peer_id)
                self._stock.forget(peer_id)

    def _seen(self, far: Correspondent) -> None:
        self._asked_at[far.peer_id] = trio.current_time()
        if far.peer_id not in self._fars:
            self._fars[far.peer_id] = far
            self._stir()

    def _stir(self) -> None:
        stirred, self._stirred = self._stirred, trio.Event()
        stirred.set()


def _until(seconds: float) -> float:
    """When a source gives up by itself (trio's clock): before its caller does, who may have begun
    to count earlier, or have less patience."""
    return min(trio.current_time() + seconds, trio.current_effective_deadline()) - SPARE


class _Told:
    """Around a piece of work for a far end: its end goes to the health."""

    def __init__(self, health: Health, far: Correspondent) -> None:
        self._health = health
        self._far = far

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, SourceError):
            self._health.failed(error, far=self._far.peer_id, link=self._far.link)

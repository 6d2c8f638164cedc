"""Who calls this node and is not answered: a bounded table for an operator, and nothing else.

What stands in it proves nothing. Message 1 does not authenticate who sent it, and a question whose
mac1 fits none of our identities tells its source address alone. Nothing here is ever answered.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace

from kex.address import Address
from kex.identity import Fingerprint

MAX_CALLERS = 64
MAX_PER_HOST = 4
"""Identities that one host is listed with."""
KEPT_SECONDS = 600.0
"""After the last call; who keeps calling does so every three minutes at least."""
NEWCOMER_SECONDS = 2.0
"""Between two callers that take the place of others in a full table: a flood from false addresses
does not turn it over at its own pace."""
TELLINGS_BURST = 8.0
TELLINGS_SECONDS = 60.0
"""As many callers are told of in a burst, and then one in so many seconds."""

_Key = tuple[str, Fingerprint | None, Fingerprint | None]


@dataclass(frozen=True, slots=True)
class Caller:
    """Calls of one kind from one host."""

    address: Address
    """The source of the last one."""
    called: Fingerprint | None
    """The identity of this node that was asked; None where mac1 fits none of them."""
    claimed: Fingerprint | None
    """Who message 1 claims to be from; None where it was not opened."""
    calls: int
    """Exchanges that were begun; a repetition is none."""
    first_at: float
    last_at: float
    exchange_id: bytes
    """Of the last one."""

    @property
    def key(self) -> _Key:
        return self.address.host, self.called, self.claimed


@dataclass(slots=True)
class Callers:
    """At most MAX_CALLERS of them, and at most that many waiting to be told of."""

    callers: dict[_Key, Caller] = field(default_factory=dict)
    """The one that was heard least recently first."""
    unlisted: int = 0
    """Calls for which there was no room."""
    untold: deque[Caller] = field(default_factory=lambda: deque(maxlen=MAX_CALLERS))
    newcomer_at: float = float("-inf")
    tellings: float = TELLINGS_BURST
    told_at: float = float("-inf")

    def copy(self) -> Callers:
        return replace(
            self, callers=dict(self.callers), untold=deque(self.untold, maxlen=MAX_CALLERS)
        )

    def note(
        self,
        source: Address,
        exchange_id: bytes,
        now: float,
        *,
        called: Fingerprint | None = None,
        claimed: Fingerprint | None = None,
    ) -> None:
        """A question came from `source` that is not answered."""
        key = (source.host, called, claimed)
        before = self.callers.get(key)
        if before is None or now >= before.last_at + KEPT_SECONDS:
            if not self._make_room(source.host, now):
                self.unlisted += 1
                return
            self.callers.pop(key, None)
            caller = Caller(source, called, claimed, 1, now, now, exchange_id)
        elif before.exchange_id == exchange_id:
            return  # a repetition, or another datagram of the same message
        else:
            del self.callers[key]
            caller = replace(
                before,
                address=source,
                calls=before.calls + 1,
                last_at=now,
                exchange_id=exchange_id,
            )
        self.callers[key] = caller
        if _is_round(caller.calls) and self._may_tell(now):
            self.untold.append(caller)

    def answered(self, source: Address) -> None:
        """A question from there is answered: what did not fit before is over."""
        self.callers.pop((source.host, None, None), None)

    def expire(self, now: float) -> None:
        """Forget who has not called for a while."""
        while self.callers:
            key, caller = next(iter(self.callers.items()))
            if now < caller.last_at + KEPT_SECONDS:
                return
            del self.callers[key]

    def _make_room(self, host: str, now: float) -> bool:
        """Whether there is room for one more, of this host."""
        self.expire(now)
        full = len(self.callers) >= MAX_CALLERS
        if full and now < self.newcomer_at + NEWCOMER_SECONDS:
            return False  # a flood ends here, before anything is looked through
        own = [caller for caller in self.callers.values() if caller.address.host == host]
        if len(own) >= MAX_PER_HOST:
            del self.callers[_least(own).key]
        elif full:
            self.newcomer_at = now
            del self.callers[_least(list(self.callers.values())).key]
        return True

    def _may_tell(self, now: float) -> bool:
        back = (now - self.told_at) / TELLINGS_SECONDS
        self.tellings, self.told_at = min(TELLINGS_BURST, self.tellings + back), now
        if self.tellings < 1:
            return False
        self.tellings -= 1
        return True


def _least(callers: list[Caller]) -> Caller:
    """Who has called least often; of several the one that was heard least recently."""
    return min(callers, key=lambda caller: (caller.calls, caller.last_at))


def _is_round(calls: int) -> bool:
    """1, 10, 100 and so on: who calls for days is not told of each time."""
    while calls % 10 == 0:
        calls //= 10
    return calls == 1

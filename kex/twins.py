"""Whether two hosts use the identity of a peer: what changes to and fro from one to the other.

One change is none: a gateway that was restarted has another WireGuard key and never the one before
again, one that moved has another address. A copy of a gateway (a disk image, a snapshot) has a
WireGuard key of its own, and each of both takes the other's place at every renewal: a key that was
replaced comes back. Where the key was copied as well, addresses change to and fro, sooner than one
host that renews on time, and moves each time, could make them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

KEY_SECONDS = 900.0
"""After its last exchange a WireGuard key that comes back tells of two hosts; with a longer
interval between renewals twice that."""
ADDRESS_MARGIN = 30.0
"""Two intervals and this is the time within which one host renews three times at the most, so that
its address cannot have changed three times."""
NAMED_SECONDS = 900.0
"""How long it is told after it was last seen; with a longer interval twice that."""
_KEPT = 4


@dataclass(frozen=True, slots=True)
class Run:
    """Exchanges in a row with the same key, or from the same host."""

    what: bytes | str
    last_at: float


@dataclass(frozen=True, slots=True)
class Twins:
    """What is remembered of the exchanges of a link. Times are the endpoint's, in seconds."""

    keys: tuple[Run, ...] = ()
    hosts4: tuple[Run, ...] = ()
    hosts6: tuple[Run, ...] = ()
    until: float = float("-inf")
    """Until when two hosts are to be told of."""
    between: tuple[str, ...] = ()
    """The addresses that changed to and fro; empty where the key did."""
    named: bool = False
    """Whether two hosts were to be told of when the last exchange was complete: what the peer is
    told, too."""

    def named_at(self, now: float) -> bool:
        return now < self.until

    def after(self, key: bytes, host: str | None, *, interval: int, now: float) -> Twins:
        """After an exchange with the peer's WireGuard key, begun from `host` where it was the
        peer's. `interval` is the time between renewals in seconds."""
        long_enough = max(KEY_SECONDS, 2.0 * interval)
        new = replace(self, keys=_with(self.keys, key, now))
        until, between = self.until, self.between
        moved = bool(self.keys) and self.keys[-1].what != key
        if moved:
            # Another host, or a restart: how addresses change has to be seen anew
            new = replace(new, hosts4=(), hosts6=())
            if any(run.what == key and now <= run.last_at + long_enough for run in self.keys):
                until, between = now + max(NAMED_SECONDS, 2.0 * interval), ()
        if host is not None:
            is_ipv6 = ":" in host
            runs = _with(new.hosts6 if is_ipv6 else new.hosts4, host, now)
            new = replace(new, hosts6=runs) if is_ipv6 else replace(new, hosts4=runs)
            if _alternate(runs, 2.0 * interval + ADDRESS_MARGIN, now):
                until = now + max(NAMED_SECONDS, 2.0 * interval)
                between = tuple(sorted({str(run.what) for run in runs}))
        return replace(new, until=until, between=between, named=now < until)


NOBODY = Twins()
"""Of a link that has had no exchange."""


def _with(runs: tuple[Run, ...], what: bytes | str, now: float) -> tuple[Run, ...]:
    if runs and runs[-1].what == what:
        return (*runs[:-1], Run(what, now))
    return (*runs, Run(what, now))[-_KEPT:]


def _alternate(runs: tuple[Run, ...], within: float, now: float) -> bool:
    """Whether the last four are one, another, the one, the other, and did not take too long."""
    if len(runs) < _KEPT:
        return False
    first, second, third, fourth = runs[-_KEPT:]
    return first.what == third.what and second.what == fourth.what and now - first.last_at <= within

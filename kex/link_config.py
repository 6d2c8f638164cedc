"""What the key exchange has to know of a link."""

from __future__ import annotations

from dataclasses import dataclass

from kex.address import Address
from kex.external import ExternalMode
from kex.identity import Fingerprint
from kex.payload import MAX_INTERVAL, MAX_PREFIXES, Prefix
from kex.timing import INIT_CONFS, MIN_INTERVAL
from kex.token_bucket import Allowance


@dataclass(frozen=True, slots=True)
class LinkConfig:
    """One link. Raises ValueError for what cannot be.

    `remotes` is the peer's identity, or several during a rotation; exchanges of our own go to
    the first. `locals` are the identities of ours that the peer may address, one for each suite;
    the first of a suite is the one used for an own exchange.
    """

    name: str
    locals: tuple[Fingerprint, ...]
    remotes: tuple[Fingerprint, ...]
    wireguard_key: bytes
    wireguard_port: int
    address: Address | None = None
    prefixes: tuple[Prefix, ...] = ()
    """What stands behind this end."""
    allows: tuple[Prefix, ...] | None = None
    """What it takes from the peer, which is told for comparison; None: it is not told."""
    external_mode: ExternalMode = ExternalMode.OFF
    external_at_least: int = 1
    """How many external keys `require` asks for."""
    interval: int = MIN_INTERVAL
    lifetime: int = 600
    peer_wireguard_key: bytes | None = None
    """The one WireGuard key (32 bytes) that the peer may announce, where that is configured."""
    init_confs: Allowance = INIT_CONFS
    """How often exchanges of the peer's are accepted. A measurement may want more."""

    def __post_init__(self) -> None:
        if not self.locals or not self.remotes:
            raise ValueError(f"link {self.name}: an identity at each end is needed")
        if set(self.locals) & set(self.remotes):
            raise ValueError(f"link {self.name}: the peer has one of this node's own identities")
        if len(set(self.remotes)) != len(self.remotes):
            raise ValueError(f"link {self.name}: an identity of the peer stands there twice")
        if self.local_for(self.remotes[0]) is None:
            raise ValueError(
                f"link {self.name}: the peer's first identity is of suite "
                f"{self.remotes[0].suite}, and this node has none of that suite"
            )
        if len(self.wireguard_key) != 32:
            raise ValueError(f"link {self.name}: a WireGuard key has 32 bytes")
        if self.peer_wireguard_key is not None and len(self.peer_wireguard_key) != 32:
            raise ValueError(f"link {self.name}: the peer's WireGuard key has 32 bytes")
        if len(self.prefixes) > MAX_PREFIXES:
            raise ValueError(f"link {self.name}: more than {MAX_PREFIXES} prefixes announced")
        if not MIN_INTERVAL <= self.interval <= MAX_INTERVAL:
            raise ValueError(f"link {self.name}: interval of {self.interval} s")
        if self.lifetime < self.interval + 300:
            raise ValueError(f"link {self.name}: lifetime less than interval + 300 s")

    def local_for(self, remote: Fingerprint) -> Fingerprint | None:
        """The identity of ours that an exchange with `remote` uses: the first of its suite."""
        return next((local for local in self.locals if local.suite == remote.suite), None)

    @property
    def pairs(self) -> frozenset[tuple[Fingerprint, Fingerprint]]:
        """The pairs (ours, theirs) of one suite: exchanges of the link arrive under one of them."""
        return frozenset(
            (local, remote)
            for local in self.locals
            for remote in self.remotes
            if local.suite == remote.suite
        )

    @property
    def yields(self) -> bool:
        """Whether this end is the larger one in every pair (docs/protocol.md §6).

        Two ends that have a pair in common never both are, whatever else their lists hold.
        """
        return all(local > remote for local, remote in self.pairs)

    @property
    def own_pair(self) -> tuple[Fingerprint | None, Fingerprint]:
        """The identities (ours, theirs) that an exchange of our own uses."""
        return self.local_for(self.remotes[0]), self.remotes[0]

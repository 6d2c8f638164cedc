"""Where the prefixes that the two ends of a link were given do not fit together, in words.

Each end says in an exchange what stands behind it and what it takes from the other. Nothing
follows from that but a warning: what is routed goes by `allowed_ips` alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv4Network, IPv6Network, collapse_addresses

from kex.payload import Announcement
from tun import Prefix


def differences(
    peer: Announcement, *, announced: Sequence[Prefix], allowed: Sequence[Prefix], routed: bool
) -> Iterator[str]:
    """What differs between this end, which announces and allows these prefixes, and the peer.

    Default routes and link-local prefixes are announced by nobody as what stands behind him;
    where a routing daemon decides (`routed` is False) more is allowed than is there.
    """
    for prefix in _outside(peer.prefixes, allowed):
        yield f"the peer announces {prefix}, which is not in allowed_ips here"
    if routed:
        for prefix in filter(_stands_somewhere, _outside(allowed, peer.prefixes)):
            partly = _holds_one(prefix, peer.prefixes)
            yield (
                f"allowed_ips has {prefix}, of which the peer announces only a part"
                if partly
                else f"allowed_ips has {prefix}, which the peer does not announce"
            )
    if peer.allows is None:
        return
    for prefix in _outside(announced, peer.allows):
        yield f"this end announces {prefix}, which the peer does not allow"
    if routed:
        for prefix in filter(_stands_somewhere, _outside(peer.allows, announced)):
            partly = _holds_one(prefix, announced)
            yield (
                f"the peer allows {prefix}, of which this end announces only a part"
                if partly
                else f"the peer allows {prefix}, which this end does not announce"
            )


def _outside(prefixes: Iterable[Prefix], wider: Sequence[Prefix]) -> Iterator[Prefix]:
    """Those that do not lie within what the others are together."""
    whole = [*_together(wider, IPv4Network), *_together(wider, IPv6Network)]
    for prefix in prefixes:
        if not any(_within(prefix, other) for other in whole):
            yield prefix


def _together(prefixes: Sequence[Prefix], family: type[Prefix]) -> Iterator[Prefix]:
    return collapse_addresses(each for each in prefixes if isinstance(each, family))  # type: ignore[type-var]


def _within(prefix: Prefix, other: Prefix) -> bool:
    return prefix.version == other.version and prefix.subnet_of(other)  # type: ignore[arg-type]  # the same version


def _holds_one(prefix: Prefix, announced: Sequence[Prefix]) -> bool:
    return any(_within(each, prefix) for each in announced)


def _stands_somewhere(prefix: Prefix) -> bool:
    return prefix.prefixlen > 0 and not prefix.is_link_local

"""Which of this node's identities a link uses.

Most nodes have one, and all links use it. Two links between the same two gateways need a pair of
identities each: `local_identity` in a peer's file names this end's. A link that names none takes
those that no other link names, so that an identity for one link stays with it; the one in use
is always among them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from kex.identity import Fingerprint
from vpnd.config_errors import ConfigProblem, Location, shown
from vpnd.config_fields import did_you_mean
from vpnd.config_model import PeerConfig
from vpnd.config_source import Source

Sources = Mapping[str, Source]


def link_identities(
    peer: PeerConfig, own: Mapping[str, Fingerprint], peers: Mapping[str, PeerConfig]
) -> tuple[Fingerprint, ...]:
    """This node's identities on a link, the one for own exchanges first.

    Only those of the suites that the peer has an identity of. `own` is in order, the one in use
    first; names that are not in it are left out.
    """
    if peer.local_identity:
        names = [name for name in peer.local_identity if name in own]
    else:
        kept = {name for other in peers.values() for name in other.local_identity}
        names = [name for index, name in enumerate(own) if index == 0 or name not in kept]
    suites = {fingerprint.suite for fingerprint in peer.identity}
    return tuple(own[name] for name in names if own[name].suite in suites)


def check_identities(
    peers: Mapping[str, PeerConfig], sources: Sources, own: Mapping[str, Fingerprint]
) -> Iterator[ConfigProblem]:
    """Identities that contradict each other; `own` is empty where they are not known."""
    owners: dict[tuple[object, Fingerprint], str] = {}
    for peer in peers.values():
        source = sources[peer.name]
        yield from _check_names(peer, source, own)
        locals_: tuple[object, ...] = link_identities(peer, own, peers)
        if not own:
            locals_ = peer.local_identity or ("",)
        seen: set[Fingerprint] = set()
        for index, fingerprint in enumerate(peer.identity):
            at = _identity_at(peer, index)
            pairs = [
                (local, fingerprint)
                for local in locals_
                if not isinstance(local, Fingerprint) or local.suite == fingerprint.suite
            ]
            taken = next((owners[pair] for pair in pairs if pair in owners), None)
            if fingerprint in own.values():
                yield source.problem(
                    at,
                    "is this node's own fingerprint",
                    "run `vpnctl id` on the other node, and take what it prints",
                )
            elif fingerprint in seen:
                yield source.problem(at, "stands in the list twice", "remove one of them")
            elif taken is not None:
                yield source.problem(
                    at,
                    f"is also the identity of peer {taken}: one pair of identities on two links",
                    "each link to the same gateway needs a pair of identities of its own: "
                    "vpnctl id new NAME at both ends, and local_identity in the peers' files",
                )
            seen.add(fingerprint)
            for pair in pairs:
                owners.setdefault(pair, peer.name)
        known = all(name in own for name in peer.local_identity)
        if (
            own
            and known
            and not any(
                isinstance(local, Fingerprint) and local.suite == peer.fingerprint.suite
                for local in locals_
            )
        ):
            yield _no_common_suite(peer, source, own)


def _no_common_suite(
    peer: PeerConfig, source: Source, own: Mapping[str, Fingerprint]
) -> ConfigProblem:
    known = {own[name].suite for name in peer.local_identity or own if name in own}
    suites = ", ".join(str(suite) for suite in sorted(known)) or "none"
    suite = peer.fingerprint.suite
    hint = "both ends of a link have identities of the same suite"
    if suite in {one.suite for one in own.values()}:
        hint = "name one of that suite with local_identity; `vpnctl id` shows them"
    return source.problem(
        _identity_at(peer, 0),
        f"is of suite {suite}, and this node's own is of suite {suites}",
        hint,
    )


def _check_names(
    peer: PeerConfig, source: Source, own: Mapping[str, Fingerprint]
) -> Iterator[ConfigProblem]:
    for index, name in enumerate(peer.local_identity):
        at: Location = ("local_identity",)
        if len(peer.local_identity) > 1:
            at = ("local_identity", index)
        if name in peer.local_identity[:index]:
            yield source.problem(at, f"{shown(name)} stands in the list twice", value=name)
        elif own and name not in own:
            yield source.problem(
                at,
                f"this node has no identity {shown(name)}",
                f"{did_you_mean(name, list(own))}`vpnctl id new {name}` makes it; "
                f"there are: {', '.join(own)}",
                value=name,
            )


def _identity_at(peer: PeerConfig, index: int) -> Location:
    return ("identity",) if len(peer.identity) == 1 else ("identity", index)

"""External keys as an initiator lists them, and whose they are here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from kex.external import ExternalKey, ExternalKeyReference
from kex.payload import ExternalListing
from vpnd import external_policy as policy
from vpnd.config_model import ExternalKeys
from vpnd.keysource.base import (
    Correspondent,
    KeySource,
    SourceError,
    SourceFault,
    SourceType,
)
from vpnd.mixed_key import MixedKey
from vpnd.source_use import SourceUse

SourceFinder = Callable[[str], KeySource | None]
"""The source of a name in [key_sources]; None where there is none (any more)."""


class StaticKeysDiffer(SourceError):
    """The initiator has another file than this end; the hashes may be told."""

    def __init__(self, source: str, theirs: str, ours: str) -> None:
        reason = f"static keys differ: hash {theirs} at the initiator, {ours} at the responder"
        super().__init__(
            source, SourceFault.MISMATCH, reason, "the same file has to be at both ends"
        )


class NoOwner(SourceError):
    """No source of this end's link is the one that the initiator means; that may be told."""


def owner(
    external: ExternalKeys, find: SourceFinder, link: str, reference: ExternalKeyReference
) -> SourceUse:
    """The source of a link that a key of the initiator's listing is from. Raises SourceError."""
    files = []
    for use in external.uses:
        source = find(use.source)
        if source is None:
            continue
        if source.serves(Correspondent(link, use.peer_sae or ""), reference):
            return use
        if source.source_type is SourceType.FILE and source.status().available:
            files.append(source)
    if reference.source_type == SourceType.FILE.value and files:
        ours = ", ".join(source.status().identity for source in files)
        raise StaticKeysDiffer(files[0].name, ", ".join(reference.key_ids), ours)
    raise NoOwner(
        reference.source or reference.source_type,
        SourceFault.UNKNOWN_KEY,
        f'no {reference.source_type} source of this link knows the initiator as "{reference.sae}"',
        "peer_sae has to be the far end's own name at both ends",
    )


def manager_of(source: KeySource | None, name: str) -> str:
    """What the other end may know a key manager of this one by: what it calls itself, else its
    name in the configuration."""
    return name if source is None else source.status().identity or name


def holders(
    listing: Sequence[ExternalListing], owners: Mapping[int, SourceUse], find: SourceFinder
) -> str:
    """Who gave the keys, at either end."""
    named = []
    for at, use in owners.items():
        source = find(use.source)
        status = None if source is None else source.status()
        # A key manager that has not told its name yet is known by where it is asked
        own = "" if status is None else status.identity or status.address
        reference = listing[at].reference
        if reference.source_type == SourceType.FILE.value:
            named.append(("a static key", "its own"))
        else:
            named.append((reference.source, own or use.source))
    return policy.bounded(policy.pairs(named))


def absent_entry(use: SourceUse, source: KeySource | None) -> ExternalKey:
    """The entry of a source that had no key, for the peer to know that there is one."""
    kind = "" if source is None else source.source_type.value
    name = "" if kind in ("", SourceType.FILE.value) else use.source
    return ExternalKey(ExternalKeyReference(kind or "none", name, "", (), 0), None)


def means(mixed: MixedKey, reference: ExternalKeyReference) -> bool:
    """Whether it is this key."""
    same = (mixed.source_type, mixed.manager) == (reference.source_type, reference.source)
    return same and mixed.key_ids == reference.key_ids

"""What must hold between a peer's `[external_keys]`, the key sources, and the room in an exchange.

Everything is told before anything is touched: a link that could never have an exchange is an error
of the configuration.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Final

from kex import payload
from kex.exchange import initiator_payload_length
from kex.external import (
    MAX_EXTERNAL_KEYS,
    MAX_KEY_IDS,
    MAX_KEY_LENGTH,
    MAX_NAME_LENGTH,
    ExternalKeyReference,
    ExternalMode,
)
from kex.payload import Announcement, ExternalListing, InitiatorPayload
from kex.suites import SUITE_NUMBERS
from kex.suites import suite as make_suite
from vpnd.config_errors import ConfigProblem, shown
from vpnd.config_fields import did_you_mean
from vpnd.config_key_sources import FileSourceConfig, KeySourceConfig, SkipSourceConfig
from vpnd.config_model import ExternalKeys, PeerConfig, TunnelConfig
from vpnd.config_source import Source

_UUID_LENGTH: Final = 36
_KEY_ID_LENGTH: Final = 64
"""What a key ID may have that is no UUID. Longer ones are possible, and rare: where such a one does
not fit, the exchange that it is for says so."""
_AT: Final = "external_keys"
_ROOM: Final = {
    number: initiator_payload_length(make_suite(number, random=os.urandom))
    for number in SUITE_NUMBERS
}


def check_external(
    peer: PeerConfig,
    tunnel: TunnelConfig | None,
    key_sources: Mapping[str, KeySourceConfig | None],
    source: Source,
) -> Iterator[ConfigProblem]:
    """All that contradicts itself in a peer's table."""
    external = peer.external_keys
    if external.mode == "off":
        return
    problems = [*_written_twice(external), *_check_uses(external, key_sources)]
    problems += _check_needed(external)
    if external.min_interval > peer.rekey_interval:
        problems.append(
            (
                "min_interval",
                f"{external.min_interval} s is longer than the rekey_interval of "
                f"{peer.rekey_interval} s: renewals would find no key",
                f"at most {peer.rekey_interval} s",
            )
        )
    for key, reason, hint in problems:
        yield source.problem((_AT, key), reason, hint)
    if not problems and tunnel is not None:
        yield from _check_room(peer, tunnel, key_sources, source)


_Found = tuple[str, str, str]
"""Key, reason, hint."""


def _written_twice(external: ExternalKeys) -> Iterator[_Found]:
    if external.sources and external.source is not None:
        yield "source", "stands beside sources", "name them all in sources, or one in source"
    if external.sources and external.peer_sae is not None:
        hint = 'write it behind its source: { source = "…", peer_sae = "…" }'
        yield "peer_sae", "stands beside sources", hint
    if external.require and external.at_least is not None:
        hint = "name the sources that are needed, or say how many"
        yield "at_least", "stands beside require", hint


def _check_uses(
    external: ExternalKeys, key_sources: Mapping[str, KeySourceConfig | None]
) -> Iterator[_Found]:
    at = "sources" if external.sources else "source"
    uses = external.uses
    if not uses:
        hint = f'a source of [key_sources] is needed with mode = "{external.mode}"'
        yield "source", "is missing", hint
    if len(uses) > MAX_EXTERNAL_KEYS:
        yield at, f"has {len(uses)} entries", f"at most {MAX_EXTERNAL_KEYS} keys can be mixed"
    seen: dict[tuple[str, str], str] = {}
    named: set[str] = set()
    for use in uses:
        if use.source in named:
            yield at, f"{shown(use.source)} stands there twice", "each source gives one key"
            continue
        named.add(use.source)
        table = key_sources.get(use.source)
        if table is None and use.source in key_sources:
            continue
        if table is None:
            known = ", ".join(map(shown, key_sources)) or "none"
            hint = f"{did_you_mean(use.source, list(key_sources))}sources here: {known}"
            yield at, f"there is no key source {shown(use.source)}", hint
            continue
        where = at if external.sources else "peer_sae"
        if table.type == "file":
            if use.peer_sae is not None:
                reason = f"{shown(use.source)} is a file, which knows the far end by no name"
                yield where, reason, "leave peer_sae out"
            continue
        if use.peer_sae is None:
            what = "SAE ID" if table.type == "qkd" else "system ID"
            hint = f"peer_sae = the far end's {what}, as the key manager knows it"
            yield where, f"peer_sae is missing for {shown(use.source)}", hint
            continue
        other = seen.setdefault((table.type, use.peer_sae), use.source)
        if other != use.source:
            reason = f"{shown(use.source)} and {shown(other)} know the far end by the same name"
            hint = "give it another SAE ID or system ID at one of them: keys are told apart by it"
            yield where, reason, hint


def _check_needed(external: ExternalKeys) -> Iterator[_Found]:
    names = [use.source for use in external.uses]
    for name in external.require:
        if name not in names:
            hint = f"sources of this link: {', '.join(map(shown, names)) or 'none'}"
            yield "require", f"{shown(name)} is no source of this link", hint
    if len(set(external.require)) < len(external.require):
        yield "require", "names a source twice", "each once"
    if names and (external.at_least or 0) > len(names):
        yield (
            "at_least",
            f"{external.at_least} of {len(names)} cannot be had",
            "fewer, or more sources",
        )


def _check_room(
    peer: PeerConfig,
    tunnel: TunnelConfig,
    key_sources: Mapping[str, KeySourceConfig | None],
    source: Source,
) -> Iterator[ConfigProblem]:
    """Whether the longest message that this can lead to fits (docs/protocol.md, section 5.5)."""
    listing = tuple(
        ExternalListing(_longest_reference(table), present=True)
        for use in peer.external_keys.uses
        if (table := key_sources[use.source]) is not None
    )
    announcement = Announcement(
        wireguard_key=bytes(payload.WIREGUARD_KEY_LENGTH),
        wireguard_port=0xFFFF,
        prefixes=tunnel.announced[: payload.MAX_PREFIXES],
        mode=ExternalMode.REQUIRE,
        interval=payload.MAX_INTERVAL,
        can_start=True,
        twins=True,
    )
    room = min(_ROOM[fingerprint.suite] for fingerprint in peer.identity)
    try:
        payload.encode_initiator(InitiatorPayload(announcement, listing), room)
    except ValueError:
        yield source.problem(
            (_AT, "sources" if peer.external_keys.sources else "source"),
            f"{len(listing)} sources with their names, and the {len(announcement.prefixes)} "
            f"prefixes that tunnel {tunnel.name} announces, do not fit into an exchange",
            "announce fewer prefixes, use fewer sources, or set kme_id for a QKD source: its "
            "length is counted then, else 64 bytes",
        )


def _longest_reference(table: KeySourceConfig) -> ExternalKeyReference:
    """What a source may put on the wire, at its longest."""
    longest, key_id = "x" * MAX_NAME_LENGTH, "x" * _KEY_ID_LENGTH
    if isinstance(table, FileSourceConfig):
        return ExternalKeyReference("file", "", "", (key_id,), 8 * MAX_KEY_LENGTH)
    if isinstance(table, SkipSourceConfig):
        return ExternalKeyReference("skip", longest, longest, (key_id,), table.key_size)
    name = max(table.kme_id or (longest,), key=lambda each: len(each.encode()))
    ids = min(MAX_KEY_IDS, -(-table.key_size // 256))
    return ExternalKeyReference("qkd", name, table.sae, ("x" * _UUID_LENGTH,) * ids, table.key_size)

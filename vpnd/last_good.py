"""The last good set: what ran last, kept in STATE_DIR/last-good.json over restarts and boots.

It holds the text of the vpnd.toml that ran, and of each peer the prefixes that were guarded and a
digest of its file. So a start that finds files that are wrong or gone guards what was guarded
before, and runs the main configuration that ran before. It is written whenever a configuration was
applied, and only then: an entry goes with a change that was applied, never with a mistake.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from vpnd.atomic_file import write_atomically
from vpnd.config_fields import Prefix, fits_name
from vpnd.file_trust import FileFault, FileMissing, read_public

VERSION: Final = 1
NAME: Final = "last-good.json"
_MODE: Final = 0o600
_MAX_BYTES: Final = 256 * 1024 * 1024  # 1,000 peers of 4,096 prefixes each, twice over


@dataclass(frozen=True, slots=True)
class GuardPlace:
    """Where guard routes are: the table (None is the VRF's, or the main one) and the namespace
    (None is the daemon's)."""

    table: int | None = None
    vrf: str | None = None
    netns: str | None = None


@dataclass(frozen=True, slots=True)
class Guarded:
    """Prefixes that are guarded for a peer in one place."""

    place: GuardPlace
    prefixes: tuple[Prefix, ...]


@dataclass(frozen=True, slots=True)
class GoodPeer:
    """A peer that ran."""

    digest: str
    """Of its file: `digest_of`."""
    guards: tuple[Guarded, ...]


@dataclass(frozen=True, slots=True)
class LastGood:
    """What ran last."""

    config: str
    """The path of vpnd.toml."""
    main: str | None
    """Its text; None where it cannot be believed, or nothing has run yet."""
    peers: Mapping[str, GoodPeer] = field(default_factory=lambda: MappingProxyType({}))
    folder: int = 0
    """Inode of the peers' folder; 0 where it is not known."""


def digest_of(text: str) -> str:
    """By which a file is known to be the same as before."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def last_good_path(state_dir: Path) -> Path:
    """Where it is kept."""
    return state_dir / NAME


def read_last_good(state_dir: Path, config: Path) -> tuple[LastGood, tuple[FileFault, ...]]:
    """What ran last with this vpnd.toml, and why not all of it can be used. Raises nothing.

    Prefixes are taken from a file that others could have written, and from one of another version
    as far as they can be read: to guard too much is the smaller harm. Its vpnd.toml is not.
    """
    path = last_good_path(state_dir)
    nothing = LastGood(str(config), None)
    try:
        checked = read_public(path, limit=_MAX_BYTES)
    except FileMissing:
        return nothing, ()
    except FileFault as fault:
        return nothing, (fault,)
    faults = [] if checked.fault is None else [checked.fault]
    content: object = None
    with suppress(ValueError, RecursionError):
        content = json.loads(checked.data)
    if not isinstance(content, dict):
        reason = "is damaged: what ran last is not known"
        hint = "nothing needs to be done: it is written again once a configuration is applied"
        return nothing, (*faults, FileFault(path, reason, hint))
    if content.get("config") != str(config):
        return nothing, tuple(faults)  # another configuration's, whose state_dir this one has now
    if content.get("version") != VERSION:
        reason = "was written by another version of vpnd: its vpnd.toml is not used"
        hint = "nothing needs to be done: it is written again once a configuration is applied"
        faults.append(FileFault(path, reason, hint))
    main, folder = content.get("main"), content.get("folder")
    return LastGood(
        config=str(config),
        main=main if isinstance(main, str) and not faults else None,
        peers=MappingProxyType(dict(_peers(content.get("peers")))),
        folder=folder if isinstance(folder, int) else 0,
    ), tuple(faults)


def write_last_good(state_dir: Path, good: LastGood) -> None:
    """Keep what runs now; FileFault where it cannot be written."""
    content = {
        "version": VERSION,
        "config": good.config,
        "main": good.main,
        "folder": good.folder,
        "peers": {
            name: {
                "digest": peer.digest,
                "guards": [
                    {
                        "table": each.place.table,
                        "vrf": each.place.vrf,
                        "netns": each.place.netns,
                        "prefixes": [str(prefix) for prefix in each.prefixes],
                    }
                    for each in peer.guards
                ],
            }
            for name, peer in good.peers.items()
        },
    }
    data = (json.dumps(content) + "\n").encode()
    path = last_good_path(state_dir)
    with suppress(FileFault):
        if read_public(path, limit=_MAX_BYTES).data == data:
            return  # a full disk has no say in what is there already
    write_atomically(path, data, mode=_MODE, replace=True)


def _peers(values: object) -> Iterable[tuple[str, GoodPeer]]:
    for name, entry in values.items() if isinstance(values, dict) else ():
        if not (fits_name(name) and isinstance(entry, dict)):
            continue
        guards = entry.get("guards")
        digest = entry.get("digest")
        yield (
            name,
            GoodPeer(
                digest=digest if isinstance(digest, str) else "",
                guards=tuple(
                    _guarded(each)
                    for each in (guards if isinstance(guards, list) else ())
                    if isinstance(each, dict)
                ),
            ),
        )


def _guarded(entry: Mapping[str, Any]) -> Guarded:
    table, vrf, netns = entry.get("table"), entry.get("vrf"), entry.get("netns")
    prefixes: list[Prefix] = []
    texts = entry.get("prefixes")
    for text in texts if isinstance(texts, list) else ():
        if isinstance(text, str):
            with suppress(ValueError):
                prefixes.append(ip_network(text))
    return Guarded(
        GuardPlace(
            table=table if isinstance(table, int) and 0 < table < 2**32 else None,
            vrf=vrf if isinstance(vrf, str) and vrf else None,
            netns=netns if isinstance(netns, str) and fits_name(netns) else None,
        ),
        tuple(prefixes),
    )

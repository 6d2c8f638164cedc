"""What differs between two configurations: for `reload`, and for people before they do it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from kex.identity import Fingerprint
from vpnd.api import ConfigChange, KeyChange
from vpnd.config import Config
from vpnd.config_model import Table

_LIVE_NODE_KEYS: Final = frozenset({"name", "peers_dir", "on_stop"})
_LIVE_TUNNEL_KEYS: Final = frozenset({"announce"})


@dataclass(frozen=True, slots=True)
class Changes:
    """Names that came, went, or stand for something else now."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: Mapping[str, tuple[str, ...]]
    """For each name the keys whose values differ."""

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)


@dataclass(frozen=True, slots=True)
class ConfigDiff:
    """False if the two configurations mean the same."""

    node: tuple[str, ...]
    """Keys of `[node]` whose values differ."""
    tunnels: Changes
    peers: Changes
    key_sources: Changes
    identities: Changes
    """This node's own, by name."""
    first_identity: bool
    """Whether another one comes first now."""

    def __bool__(self) -> bool:
        return bool(
            self.node
            or self.tunnels
            or self.peers
            or self.key_sources
            or self.identities
            or self.first_identity
        )


def diff(old: Config, new: Config) -> ConfigDiff:
    """What a step from `old` to `new` changes, after all defaults have been filled in."""
    return ConfigDiff(
        node=_differing_keys(old.node, new.node),
        tunnels=_changes(old.tunnels, new.tunnels),
        peers=_changes(old.peers, new.peers),
        key_sources=_changes(old.key_sources, new.key_sources),
        identities=_identity_changes(old.identities, new.identities),
        first_identity=old.own[:1] != new.own[:1],
    )


def needs_restart(old: Config, new: Config) -> tuple[str, ...]:
    """What of a step from `old` to `new` a running daemon cannot take, as dotted keys."""
    found = diff(old, new)
    keys = [f"node.{key}" for key in found.node if key not in _LIVE_NODE_KEYS]
    keys += [f"crypto.{key}" for key in _differing_keys(old.crypto, new.crypto)]
    for name, changed in found.tunnels.changed.items():
        keys += [f"tunnels.{name}.{key}" for key in changed if key not in _LIVE_TUNNEL_KEYS]
    if _mark(old) != _mark(new) and not any(key.endswith(".fwmark") for key in keys):
        # The socket of the key exchange carries it, and is opened once
        names = (*found.tunnels.added, *found.tunnels.removed)
        keys += [f"tunnels.{name}.fwmark" for name in names if _has_mark(name, old, new)]
    return tuple(keys)


def described(old: Config, new: Config) -> list[ConfigChange]:
    """Every change with its values before and after, for people and programs."""
    found = diff(old, new)
    changes = []
    if found.node:
        changes.append(_change("node", new.node.name, "changed", old.node, new.node, found.node))
    for what, names, olds, news in (
        ("tunnel", found.tunnels, old.tunnels, new.tunnels),
        ("peer", found.peers, old.peers, new.peers),
        ("key source", found.key_sources, old.key_sources, new.key_sources),
    ):
        changes += _named(what, names, olds, news)
    changes += _identities(found, old, new)
    return changes


def _named(
    what: str, names: Changes, old: Mapping[str, Table], new: Mapping[str, Table]
) -> Iterator[ConfigChange]:
    for name in names.removed:
        yield _change(what, name, "removed")
    for name in names.added:
        yield _change(what, name, "added")
    for name, keys in names.changed.items():
        yield _change(what, name, "changed", old[name], new[name], keys)


def _identities(found: ConfigDiff, old: Config, new: Config) -> Iterator[ConfigChange]:
    for name in found.identities.removed:
        yield _change("identity", name, "removed")
    for name in found.identities.added:
        yield _change("identity", name, "added")
    for name in found.identities.changed:
        before, after = old.identities[name].text(), new.identities[name].text()
        keys = [KeyChange(key="fingerprint", before=before, after=after)]
        yield ConfigChange(what="identity", name=name, change="changed", keys=keys)
    if found.first_identity and old.identities and new.identities:
        before, after = next(iter(old.identities)), next(iter(new.identities))
        if before != after:
            keys = [KeyChange(key="in use", before=before, after=after)]
            yield ConfigChange(what="identity", name=after, change="changed", keys=keys)


def _change(
    what: str,
    name: str,
    change: str,
    old: Table | None = None,
    new: Table | None = None,
    keys: tuple[str, ...] = (),
) -> ConfigChange:
    return ConfigChange(
        what=what,
        name=name,
        change=change,
        keys=[
            KeyChange(
                key=key,
                before=_text(getattr(old, key, None)),
                after=_text(getattr(new, key, None)),
            )
            for key in keys
        ],
    )


def _text(value: object) -> str | None:
    """A value as a person reads it; None where nothing is set."""
    if isinstance(value, Fingerprint):
        return value.text()
    if isinstance(value, tuple):
        return ", ".join(_text(item) or "" for item in value)
    if isinstance(value, Table):
        return ", ".join(
            f"{key} = {_text(found)}"
            for key in type(value).model_fields
            if (found := getattr(value, key)) is not None
        )
    return None if value is None else str(value)


def _mark(config: Config) -> int | None:
    return next((tunnel.fwmark for tunnel in config.tunnels.values() if tunnel.fwmark), None)


def _has_mark(name: str, old: Config, new: Config) -> bool:
    return any(
        config.tunnels[name].fwmark is not None for config in (old, new) if name in config.tunnels
    )


def _identity_changes(old: Mapping[str, Fingerprint], new: Mapping[str, Fingerprint]) -> Changes:
    return Changes(
        added=tuple(name for name in new if name not in old),
        removed=tuple(name for name in old if name not in new),
        changed={name: ("fingerprint",) for name in old if name in new and old[name] != new[name]},
    )


def _changes(old: Mapping[str, Table], new: Mapping[str, Table]) -> Changes:
    differing = {name: _differing_keys(old[name], new[name]) for name in old if name in new}
    return Changes(
        added=tuple(name for name in new if name not in old),
        removed=tuple(name for name in old if name not in new),
        changed={name: keys for name, keys in differing.items() if keys},
    )


def _differing_keys(old: Table, new: Table) -> tuple[str, ...]:
    # A key source may have become one of another type, with other keys
    keys = dict.fromkeys([*type(old).model_fields, *type(new).model_fields])
    return tuple(key for key in keys if getattr(old, key, None) != getattr(new, key, None))

"""What differs between two configurations: for `reload`, and for people before they do it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vpnd.config import Config
from vpnd.config_model import Table


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

    def __bool__(self) -> bool:
        return bool(self.node or self.tunnels or self.peers)


def diff(old: Config, new: Config) -> ConfigDiff:
    """What a step from `old` to `new` changes, after all defaults have been filled in."""
    return ConfigDiff(
        node=_differing_keys(old.node, new.node),
        tunnels=_changes(old.tunnels, new.tunnels),
        peers=_changes(old.peers, new.peers),
    )


def _changes(old: Mapping[str, Table], new: Mapping[str, Table]) -> Changes:
    differing = {name: _differing_keys(old[name], new[name]) for name in old if name in new}
    return Changes(
        added=tuple(name for name in new if name not in old),
        removed=tuple(name for name in old if name not in new),
        changed={name: keys for name, keys in differing.items() if keys},
    )


def _differing_keys(old: Table, new: Table) -> tuple[str, ...]:
    return tuple(key for key in type(old).model_fields if getattr(old, key) != getattr(new, key))

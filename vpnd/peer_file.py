"""Peer files, `peers.d/NAME.toml`: as text, written and removed. A person writes them just so."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from vpnd.atomic_file import make_folder, remove_durably, write_atomically
from vpnd.config_model import ExternalKeys, PeerSettings, validate
from vpnd.config_source import Source
from vpnd.source_use import SourceUse

SUFFIX: Final = ".toml"
_MODE: Final = 0o644  # nothing in it is secret
_FOLDER_MODE: Final = 0o755

TomlValue = str | int | list[str] | list[dict[str, str]]


def peer_path(peers_dir: Path, name: str) -> Path:
    """Where a peer's file is."""
    return peers_dir / f"{name}{SUFFIX}"


def render_peer(settings: PeerSettings) -> str:
    """A peer's file: what was set, and nothing that has a default anyway."""
    lines = [f"{key} = {_literal(value)}" for key, value in _peer_values(settings).items()]
    external = _external_values(settings.external_keys)
    if external:
        lines += ["", "[external_keys]"]
        lines += [f"{key} = {_literal(value)}" for key, value in external.items()]
    text = "\n".join(lines) + "\n"
    _check_reads_back(text, settings)
    return text


def write_peer_file(
    peers_dir: Path, name: str, settings: PeerSettings, *, replace: bool = False
) -> Path:
    """Write a peer's file, whole and durably; FileExists, FileFault where it cannot be done.

    `name` has to be one that `config_fields.name` takes.
    """
    path = peer_path(peers_dir, name)
    make_folder(peers_dir, mode=_FOLDER_MODE)
    write_atomically(path, render_peer(settings).encode(), mode=_MODE, replace=replace)
    return path


def restore_peer_file(path: Path, content: bytes) -> None:
    """Give a peer's file the content that it had; FileFault where it cannot be done."""
    write_atomically(path, content, mode=_MODE, replace=True)


def remove_peer_file(peers_dir: Path, name: str) -> None:
    """Remove a peer's file; it is fine if there is none. FileFault where it cannot be done."""
    remove_durably(peer_path(peers_dir, name))


def _peer_values(settings: PeerSettings) -> dict[str, TomlValue]:
    identities = [fingerprint.text() for fingerprint in settings.identity]
    values: dict[str, TomlValue | None] = {
        "identity": _one_or_list(identities),
        "endpoint": None if settings.endpoint is None else str(settings.endpoint),
        "wireguard_endpoint": None
        if settings.wireguard_endpoint is None
        else str(settings.wireguard_endpoint),
        "wireguard_key": settings.wireguard_key,
        "local_identity": _one_or_list(settings.local_identity),
        "tunnel": settings.tunnel,
        "allowed_ips": [str(prefix) for prefix in settings.allowed_ips],
        "keepalive": settings.keepalive,
        "rekey_interval": settings.rekey_interval,
        "key_lifetime": settings.key_lifetime,
        "protect": None
        if settings.protect is None
        else [str(prefix) for prefix in settings.protect],
        "on_stop": settings.on_stop,
    }
    return {
        key: value
        for key, value in values.items()
        if key in settings.model_fields_set and value is not None
    }


def _one_or_list(texts: Sequence[str]) -> TomlValue | None:
    if not texts:
        return None
    return texts[0] if len(texts) == 1 else list(texts)


def _external_values(external: ExternalKeys) -> dict[str, TomlValue]:
    values: dict[str, TomlValue | None] = {
        "mode": external.mode,
        "source": external.source,
        "peer_sae": external.peer_sae,
        "sources": [_use_values(use) for use in external.sources],
        "require": list(external.require),
        "at_least": external.at_least,
        "fallback_limit": external.fallback_limit,
        "on_mismatch": external.on_mismatch,
        "min_interval": external.min_interval,
    }
    return {
        key: value
        for key, value in values.items()
        if key in external.model_fields_set and value is not None
    }


def _use_values(use: SourceUse) -> dict[str, str]:
    values = {"source": use.source}
    return values if use.peer_sae is None else values | {"peer_sae": use.peer_sae}


def _literal(value: TomlValue | dict[str, str]) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_literal(item) for item in value) + "]"
    if isinstance(value, dict):
        inner = (f"{key} = {_literal(item)}" for key, item in value.items())
        return "{ " + ", ".join(inner) + " }"
    if isinstance(value, int):
        return str(value)
    # TOML 1.0, basic strings: these must be escaped, and nothing else needs to be
    return '"' + "".join(_escaped(character) for character in value) + '"'


def _escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    return character if character.isprintable() else f"\\U{ord(character):08X}"


def _check_reads_back(text: str, settings: PeerSettings) -> None:
    """A file that does not say what was meant must not be written: RuntimeError, a bug of ours."""
    read = validate(PeerSettings, tomllib.loads(text), Source(None))
    if any(getattr(read, key) != getattr(settings, key) for key in PeerSettings.model_fields):
        raise RuntimeError("a peer's file does not read back as it was meant")

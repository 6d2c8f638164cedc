"""The files that key sources name, looked at before anything runs: `vpnctl check`, reload."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from vpnd.clock import wall
from vpnd.config_key_sources import FileSourceConfig, KeySourceConfig, files_of
from vpnd.file_trust import FileFault
from vpnd.keysource.credentials import load_credentials
from vpnd.keysource.static_key import read_static_key
from vpnd.keysource.unit_credentials import NoCredentials


class FileNoted(FileFault):
    """A file that is as it must be, and will not serve now: an expired certificate. The daemon
    starts with it, for its other links must not wait for a certificate."""


def file_faults(config: KeySourceConfig) -> Iterator[tuple[str, FileFault]]:
    """All that is wrong with a source's files, each with the key that names the file."""
    keys = {path: key for key, path in files_of(config).items()}
    try:
        if isinstance(config, FileSourceConfig):
            read_static_key(config.file)
            return
        found = load_credentials(config)
    except NoCredentials as fault:
        yield keys[fault.path], FileNoted(fault.path, fault.reason, fault.hint)
        return
    except FileFault as fault:
        yield keys.get(fault.path, next(iter(keys.values()))), fault
        return
    own = found.own
    if own is None or config.certificate is None:
        return
    if own.not_after <= wall():
        reason = f"expired on {day(own.not_after)}"
        yield (
            "certificate",
            FileNoted(config.certificate, reason, "replace it; no restart is needed"),
        )
    elif found.not_before > wall():
        reason = f"is not valid before {day(found.not_before)}"
        yield "certificate", FileNoted(config.certificate, reason, "is this host's clock right?")


def day(at_wall: float) -> str:
    """A day for people: 2026-01-31."""
    return datetime.fromtimestamp(at_wall, tz=UTC).strftime("%Y-%m-%d")

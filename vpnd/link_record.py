"""What a restart has to know of each link: /run/vpnd/links/NAME.json, written before each PSK.

No secret stands in it. It is believed only within the same boot, and only for a peer that is on
the interface.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from vpnd.atomic_file import remove_durably, write_atomically
from vpnd.file_trust import FileFault, FileMissing, read_public

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_MAX_BYTES: Final = 4096
_MODE: Final = 0o600
_KEY: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class LinkRecord:
    """Times are on the boot clock, in seconds; the WireGuard key is the peer's public one, hex."""

    tunnel: str
    wireguard_key: str
    key_id: str
    installed_at: float
    expires_at: float
    in_force_key_id: str
    in_force_since: float
    """0 while the key has not been seen in force."""
    in_force_installed_at: float
    pending_key_id: str = ""
    """A key that is about to be set: after a crash nobody knows whether it was."""


def boot_id() -> str:
    """Which boot this is."""
    return _BOOT_ID.read_text(encoding="ascii").strip()


class LinkRecords:
    """The records of all links, a file each."""

    def __init__(self, runtime_dir: Path) -> None:
        self._folder = runtime_dir / "links"
        self._boot_id = boot_id()

    def store(self, peer: str, record: LinkRecord) -> None:
        """Keep a record; FileFault where it cannot be written."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        content = json.dumps({"boot_id": self._boot_id, **asdict(record)}) + "\n"
        write_atomically(self._path(peer), content.encode(), mode=_MODE, replace=True)

    def load(self, peer: str) -> LinkRecord | None:
        """The record of a link from this boot; None where there is none that can be believed."""
        try:
            content = json.loads(read_public(self._path(peer), limit=_MAX_BYTES).data)
            if content.pop("boot_id") != self._boot_id:
                return None
            record = LinkRecord(**content)
        except (FileMissing, FileFault, ValueError, KeyError, TypeError, AttributeError):
            return None
        return record if _well_typed(record) else None

    def forget(self, peer: str) -> None:
        remove_durably(self._path(peer))

    def _path(self, peer: str) -> Path:
        return self._folder / f"{peer}.json"


def _well_typed(record: LinkRecord) -> bool:
    texts = (
        record.tunnel,
        record.wireguard_key,
        record.key_id,
        record.in_force_key_id,
        record.pending_key_id,
    )
    times = (
        record.installed_at,
        record.expires_at,
        record.in_force_since,
        record.in_force_installed_at,
    )
    return (
        all(isinstance(text, str) for text in texts)
        and all(isinstance(time, int | float) for time in times)
        and _KEY.fullmatch(record.wireguard_key) is not None
    )

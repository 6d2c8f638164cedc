"""What a restart has to know of each link: /run/vpnd/links/NAME.json, written before each PSK.

No secret stands in it. It is believed only within the same boot, only for a peer that is on the
interface, and only while that peer's identity is still the one configured.
"""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vpnd.atomic_file import discard_leftovers, make_folder, remove_durably, write_atomically
from vpnd.file_trust import FileFault, FileMissing, folder_files, read_public
from vpnd.open_folder import is_trusted, open_file, opened_folder

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
BOOT_ID_VARIABLE: Final = "VPND_BOOT_ID"
_MAX_BYTES: Final = 4096
_MODE: Final = 0o600
_KEY: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class LinkRecord:
    """Times are on the boot clock, in seconds; the WireGuard key is the peer's public one, hex."""

    tunnel: str
    identity: str
    """The peer's fingerprint, as text."""
    wireguard_key: str
    key_id: str
    installed_at: float
    expires_at: float
    stamp_before: str
    """Of the last handshake that was or may have been made with the key before,
    "seconds.nanoseconds"; empty for none."""
    replaces: bool
    """Whether another PSK stood there before."""
    in_force_key_id: str
    in_force_installed_at: float
    in_force_since: float
    """0 while no key was seen in force."""
    pending_key_id: str = ""
    """A key that is about to be set: after a crash nobody knows whether it was."""
    either_key_ids: str = ""
    """Keys, with blanks between, of which nobody knows which one the session was made with."""
    either_until: float = 0.0
    """Until when that session lives at the most."""


_TYPES: Final = {
    "str": (str,),
    "float": (int, float),
    "bool": (bool,),
}


def boot_id() -> str:
    """Which boot this is, as 32 hexadecimal digits; OSError where nobody says."""
    # Told by the unit, in whose view of /proc the file is not (ProcSubset=pid)
    text = os.environ.get(BOOT_ID_VARIABLE) or _BOOT_ID.read_text(encoding="ascii")
    return text.strip().replace("-", "")


class LinkRecords:
    """The records of all links, a file each."""

    def __init__(self, runtime_dir: Path) -> None:
        self._folder = runtime_dir / "links"
        self._boot_id = boot_id()

    def store(self, peer: str, record: LinkRecord) -> None:
        """Keep a record; FileFault where it cannot be written."""
        make_folder(self._folder, mode=0o700, hint="look at node.runtime_dir")
        path = self._path(peer)
        values = {"boot_id": self._boot_id, **_values(record)}
        content = (json.dumps(values) + "\n").encode()
        try:
            write_atomically(path, content, mode=_MODE, replace=True)
        except FileFault:
            # On a full disk there is still the room that the record has; a torn one is not believed
            if not _written_over(path, content):
                raise

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

    def names(self) -> list[str]:
        """The peers that there are records of, believed or not."""
        with suppress(FileFault):
            return sorted(path.stem for path in folder_files(self._folder, ".json"))
        return []

    def discard_leftovers(self) -> None:
        """Remove what a writer that was killed has left: for the daemon alone, before it writes."""
        discard_leftovers(self._folder)

    def forget(self, peer: str) -> None:
        """Remove a record; FileFault where that fails."""
        remove_durably(self._path(peer))

    def _path(self, peer: str) -> Path:
        return self._folder / f"{peer}.json"


def _written_over(path: Path, content: bytes) -> bool:
    try:
        with opened_folder(path.parent) as folder:
            if not is_trusted(os.fstat(folder)):
                return False  # whose file it is may change until it is written
        handle = open_file(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW)
        with open(handle, "r+b", buffering=0) as file:
            # Blanks over the rest of a longer one: JSON may end with them
            before = os.fstat(file.fileno()).st_size
            return (file.write(content.ljust(before)) or 0) >= len(content)
    except OSError:
        return False


def stamp_text(stamp: tuple[int, int] | None) -> str:
    return "" if stamp is None else f"{stamp[0]}.{stamp[1]:09d}"


def stamp_of(text: str) -> tuple[int, int] | None:
    """Raises ValueError."""
    if not text:
        return None
    seconds, _, nanoseconds = text.partition(".")
    return int(seconds), int(nanoseconds)


def _values(record: LinkRecord) -> dict[str, object]:
    # dataclasses.asdict would copy each value, which takes longer than writing the file
    return {name: getattr(record, name) for name in LinkRecord.__dataclass_fields__}


def _well_typed(record: LinkRecord) -> bool:
    values = _values(record)
    typed = all(
        isinstance(values[name], _TYPES[str(field.type)])
        for name, field in LinkRecord.__dataclass_fields__.items()
    )
    if not typed or _KEY.fullmatch(record.wireguard_key) is None:
        return False
    try:
        stamp_of(record.stamp_before)
    except ValueError:
        return False
    return True

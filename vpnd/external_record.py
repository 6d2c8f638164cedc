"""What a restart has to know of a link's external keys: /run/vpnd/external/NAME.json.

A fallback goes on where it was, so that restarting the daemon is no way around its limit, and the
sources of a key that is adopted stay known. Names, IDs and times, no key. It is believed within
the same boot only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from vpnd.atomic_file import discard_leftovers, make_folder, remove_durably, write_atomically
from vpnd.clock import boottime
from vpnd.fallback import Fallback
from vpnd.file_trust import FileFault, FileMissing, read_public
from vpnd.link_record import boot_id
from vpnd.mixed_key import MixedKey

_MAX_BYTES: Final = 32 * 1024
_MODE: Final = 0o600
_FALLBACK_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "started_at": (int, float),
    "reason": (str,),
    "limit": (int,),
    "extended_by": (int,),
    "extended_at": (int, float),
    "extension_reason": (str,),
    "extension_uid": (int,),
}


@dataclass(frozen=True, slots=True)
class ExternalRecord:
    fallback: Fallback | None = None
    keys: Mapping[str, tuple[MixedKey, ...]] = field(default_factory=dict)
    """By key id: what is mixed into the keys of the link that may be in use."""


class ExternalRecords:
    """The records of all links that have external keys, a file each."""

    def __init__(self, runtime_dir: Path) -> None:
        self._folder = runtime_dir / "external"
        self._boot_id = boot_id()
        discard_leftovers(self._folder)

    def store(self, peer: str, record: ExternalRecord) -> None:
        """Keep a record; FileFault where it cannot be written."""
        make_folder(self._folder, mode=0o700, hint="look at node.runtime_dir")
        content = {
            "boot_id": self._boot_id,
            "fallback": None if record.fallback is None else asdict(record.fallback),
            "keys": {
                key_id: [mixed.as_json() for mixed in keys] for key_id, keys in record.keys.items()
            },
        }
        text = (json.dumps(content) + "\n").encode()
        write_atomically(self._path(peer), text, mode=_MODE, replace=True)

    def load(self, peer: str) -> ExternalRecord:
        """The record of a link from this boot; an empty one where none can be believed."""
        try:
            content = json.loads(read_public(self._path(peer), limit=_MAX_BYTES).data)
            if content["boot_id"] != self._boot_id:
                return ExternalRecord()
            keys = {
                str(key_id): tuple(map(MixedKey.from_json, mixed))
                for key_id, mixed in content["keys"].items()
            }
            return ExternalRecord(_fallback(content["fallback"]), keys)
        except (FileMissing, FileFault, ValueError, KeyError, TypeError, AttributeError):
            return ExternalRecord()

    def forget(self, peer: str) -> None:
        """Remove a record; FileFault where that fails."""
        remove_durably(self._path(peer))

    def _path(self, peer: str) -> Path:
        return self._folder / f"{peer}.json"


def _fallback(values: Any) -> Fallback | None:
    if values is None:
        return None
    for name, types in _FALLBACK_TYPES.items():
        if not isinstance(values[name], types) or isinstance(values[name], bool):
            raise TypeError(name)
    found = Fallback(**values)
    times = (found.started_at, found.extended_at)
    if not all(0 <= at <= boottime() for at in times) or found.limit < 0 or found.extended_by < 0:
        raise ValueError("a time that has not come, or is none")
    return found

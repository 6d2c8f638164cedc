"""Which interfaces this daemon has made: /run/vpnd/tunnels/NAME.json, one for each tunnel.

A daemon that comes back with another configuration knows by it what an earlier run has left: an
interface that nobody configures any more would carry traffic with its last keys for good.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Final

from tun import TunnelSpec
from vpnd.atomic_file import discard_leftovers, make_folder, remove_durably, write_atomically
from vpnd.config_fields import FieldError
from vpnd.config_fields import name as parse_name
from vpnd.file_trust import FileFault, folder_files, read_public

_MAX_BYTES: Final = 4096
_MODE: Final = 0o600
_FOLDER_MODE: Final = 0o700
_SUFFIX: Final = ".json"
_KEYS: Final = frozenset({"interface", "listen_port", "netns"})


class TunnelRecords:
    """The records of all tunnels. They need no boot's mark: an interface is told by its alias."""

    def __init__(self, runtime_dir: Path) -> None:
        self._folder = runtime_dir / "tunnels"

    def store(self, spec: TunnelSpec) -> None:
        """Keep what an interface is to be found by. Raises FileFault."""
        if self._load(spec.tunnel_name) == _identifying(spec):
            return  # a full disk has no say in what is there already
        content = {key: getattr(spec, key) for key in sorted(_KEYS)}
        make_folder(self._folder, mode=_FOLDER_MODE)
        write_atomically(
            self._path(spec.tunnel_name),
            (json.dumps(content) + "\n").encode(),
            mode=_MODE,
            replace=True,
        )

    def forget(self, tunnel: str) -> None:
        """The interface is gone. Raises FileFault."""
        remove_durably(self._path(tunnel))

    def left_over(self, wanted: dict[str, TunnelSpec]) -> list[TunnelSpec]:
        """What earlier runs made, by whatever name, that is not the interface of a wanted tunnel.
        What cannot be read is no record."""
        discard_leftovers(self._folder)
        found = []
        for path in self._files():
            spec = self._load(path.stem)
            now = wanted.get(path.stem)
            if spec is None or (
                now is not None and (now.interface, now.netns) == (spec.interface, spec.netns)
            ):
                continue
            found.append(spec)
        return found

    def _files(self) -> list[Path]:
        with suppress(FileFault):
            return folder_files(self._folder, _SUFFIX)
        return []

    def _load(self, tunnel: str) -> TunnelSpec | None:
        try:
            checked = read_public(self._path(parse_name(tunnel)), limit=_MAX_BYTES)
            content = json.loads(checked.data)
            if checked.fault is not None or set(content) != _KEYS:
                return None
            return TunnelSpec(tunnel_name=tunnel, **content)
        except (FieldError, FileFault, ValueError, TypeError):
            return None

    def _path(self, tunnel: str) -> Path:
        return self._folder / f"{tunnel}{_SUFFIX}"


def _identifying(spec: TunnelSpec) -> TunnelSpec:
    return TunnelSpec(
        tunnel_name=spec.tunnel_name,
        interface=spec.interface,
        listen_port=spec.listen_port,
        netns=spec.netns,
    )

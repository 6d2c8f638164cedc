"""The networks of this host that lie within what is guarded, kept for the next boot.

At boot the fence comes before the network does. A LAN within a peer's prefix, 10.10.0.0/16 within
10.0.0.0/8, would be cut off by it until the daemon runs, and with it whoever wants to see why the
daemon does not run.
"""

from __future__ import annotations

import json
from ipaddress import ip_network
from pathlib import Path
from typing import Final

from tun import Prefix
from vpnd.atomic_file import make_folder, write_atomically
from vpnd.file_trust import FileFault, read_public

_NAME: Final = "own-networks.json"
_MAX_BYTES: Final = 65536
_MODE: Final = 0o600
_FOLDER_MODE: Final = 0o700

Networks = frozenset[tuple[str, Prefix]]
"""Each with the name of its interface."""


class OwnNetworks:
    """The file in the state folder; what cannot be read is none."""

    def __init__(self, state_dir: Path, *, at_boot: bool = False) -> None:
        """`at_boot`: what is in the file counts; else what was found on the interfaces."""
        self._path = state_dir / _NAME
        self.known: Networks = self._load() if at_boot else frozenset()
        self._of_tunnels: dict[str, Networks] = {}
        self._stored: Networks | None = None

    def remember(self, tunnel: str, networks: Networks) -> None:
        """Keep what was found for a tunnel; written where it differs. Raises FileFault."""
        self._of_tunnels[tunnel] = networks
        everything = frozenset().union(*self._of_tunnels.values())
        if self._stored is None:
            self._stored = self._load()
        if everything == self._stored:
            return
        self._stored = everything  # not tried again until something changes
        content = sorted([interface, str(prefix)] for interface, prefix in everything)
        make_folder(self._path.parent, mode=_FOLDER_MODE)
        write_atomically(
            self._path, (json.dumps(content) + "\n").encode(), mode=_MODE, replace=True
        )

    def _load(self) -> Networks:
        try:
            checked = read_public(self._path, limit=_MAX_BYTES)
            if checked.fault is not None:
                return frozenset()
            content = json.loads(checked.data)
            return frozenset((str(name), ip_network(text)) for name, text in content)
        except (FileFault, ValueError, TypeError):
            return frozenset()

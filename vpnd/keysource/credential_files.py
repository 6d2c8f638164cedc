"""CA, certificate and key of a source as files on disk, which are replaced while the daemon runs.

The files are looked at before each connection; a pair that was written by half, or that does not
fit together, leaves the one in use as it was. Files that are gone or that others can read are not
used any more: that is how a key is withdrawn.
"""

from __future__ import annotations

import os
from contextlib import suppress

import trio

from vpnd.config_key_sources import RemoteSourceConfig, files_of
from vpnd.file_trust import FileFault
from vpnd.keysource.credentials import Credentials, load_credentials
from vpnd.keysource.psk import UnusableContent
from vpnd.keysource.unit_credentials import located

_Stamp = tuple[tuple[int, ...] | None, ...]


class CredentialFiles:
    """The files of one source, and what was last read from them."""

    def __init__(self, config: RemoteSourceConfig) -> None:
        self._config = config
        self._paths = tuple(files_of(config).values())
        self._stamp: _Stamp | None = None
        self._loaded: Credentials | None = None
        self._fault: FileFault | None = None
        self._loading = trio.Lock()

    @property
    def loaded(self) -> Credentials | None:
        """What is in use; None before the first call of `current`."""
        return self._loaded

    @property
    def fault(self) -> FileFault | None:
        """Why what is on disk now is not what is in use."""
        return self._fault

    async def current(self) -> Credentials:
        """What is on disk, or, while that cannot be used, what was there before.

        Raises FileFault where there was nothing before, and where a file is gone or unsafe.
        """
        async with self._loading:
            stamp = self._look()
            if stamp != self._stamp:
                # The stamp from before reading: what is written meanwhile is seen the next time
                await self._read()
                self._stamp = stamp
        if self._loaded is None:
            raise self._fault or FileFault(self._paths[0], "cannot be used")
        return self._loaded

    async def _read(self) -> None:
        try:
            self._loaded = await trio.to_thread.run_sync(load_credentials, self._config)
            self._fault = None
        except UnusableContent as fault:
            self._fault = fault
        except FileFault as fault:
            self._loaded = None
            self._fault = fault

    def _look(self) -> _Stamp:
        stamps: list[tuple[int, ...] | None] = []
        for path in self._paths:
            found = None
            with suppress(OSError, ValueError, FileFault):
                found = os.stat(located(path))
            stamps.append(
                None
                if found is None
                else (
                    found.st_ino,
                    found.st_mtime_ns,
                    found.st_ctime_ns,
                    found.st_size,
                    found.st_mode,
                    found.st_uid,
                )
            )
        return tuple(stamps)

"""All key sources of the daemon: made from the configuration, and each with tasks of its own."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator, Mapping
from typing import Final

import trio

from vpnd.config_key_sources import FileSourceConfig, KeySourceConfig, QkdSourceConfig
from vpnd.keysource.base import KeySource, SourceListener, SourceStatus
from vpnd.keysource.file_source import FileSource
from vpnd.keysource.qkd_source import QkdSource
from vpnd.keysource.remote_source import RemoteSource
from vpnd.keysource.skip_source import SkipSource
from vpnd.keysource.used_keys import UsedKeys

RESTART_SECONDS: Final = 30.0

_log = logging.getLogger("vpnd.keysource")


class KeySources(Mapping[str, KeySource]):
    """The sources by name. None waits for another, and none that fails stops another."""

    def __init__(self, configs: Mapping[str, KeySourceConfig], listener: SourceListener) -> None:
        self._listener = listener
        self._configs = dict(configs)
        self._sources: dict[str, KeySource] = {
            name: self._make(name, config) for name, config in configs.items()
        }
        self._scopes: dict[str, trio.CancelScope] = {}
        self._nursery: trio.Nursery | None = None

    def __getitem__(self, name: str) -> KeySource:
        return self._sources[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)

    def statuses(self) -> list[SourceStatus]:
        return [source.status() for source in self._sources.values()]

    async def run(self) -> None:
        """The sources' own tasks, also of those that come later. Until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                for name in self._sources:
                    self._start(name)
                await trio.sleep_forever()
            finally:
                self._nursery = None
                self._scopes.clear()

    def reconfigure(self, configs: Mapping[str, KeySourceConfig]) -> list[str]:
        """Go by another configuration; names of the sources that are others now.

        A source that is the same goes on untouched, but for a file, which is read anew. One that
        is another is made anew: keys that were fetched ahead are thrown away, and which were used
        is remembered. Whoever is asking the one before is answered by it.
        """
        changed = []
        for name in [name for name in self._sources if name not in configs]:
            self._stop(name)
            del self._sources[name]
            changed.append(name)
        for name, config in configs.items():
            before = self._sources.get(name)
            if before is not None and self._configs[name] == config:
                if isinstance(before, FileSource) and before.read():
                    changed.append(name)
                    self._listener.source_event(
                        "source_file_changed",
                        name,
                        level="info",
                        reason=f"the key in {before.config.file} is {before.status().identity}"
                        if before.status().available
                        else before.status().reason,
                        code="",
                    )
                continue
            self._stop(name)
            used = before.used if isinstance(before, RemoteSource) else None
            self._sources[name] = self._make(name, config, used)
            self._start(name)
            changed.append(name)
        self._configs = dict(configs)
        return changed

    def _make(self, name: str, config: KeySourceConfig, used: UsedKeys | None = None) -> KeySource:
        if isinstance(config, FileSourceConfig):
            return FileSource(name, config, self._listener)
        if isinstance(config, QkdSourceConfig):
            return QkdSource(name, config, self._listener, used=used)
        return SkipSource(name, config, self._listener, used=used)

    def _start(self, name: str) -> None:
        if self._nursery is None:
            return
        scope = self._scopes[name] = trio.CancelScope()
        self._nursery.start_soon(self._run_one, self._sources[name], scope)

    async def _run_one(self, source: KeySource, scope: trio.CancelScope) -> None:
        told = ""
        with scope:
            while True:
                try:
                    await source.run()
                except Exception:  # a bug stays with its source
                    before, told = told, traceback.format_exc()
                    if told != before:  # else it says what it said a moment ago
                        _log.exception("key source %s", source.name)
                    self._listener.source_event(
                        "source_failed",
                        source.name,
                        level="error",
                        reason="an error of vpnd's own, with its traceback in the log; please "
                        f"report it. Its tasks begin anew in {RESTART_SECONDS:g} s",
                        code="internal",
                    )
                    await trio.sleep(RESTART_SECONDS)

    def _stop(self, name: str) -> None:
        scope = self._scopes.pop(name, None)
        if scope is not None:
            scope.cancel()

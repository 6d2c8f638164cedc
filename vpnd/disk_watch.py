"""Whether what is on disk is what runs: for `vpnctl status`, the log and the events.

The files are read again only when one of them, or its folder, was changed: by size, times, owner
and mode. What would happen at a restart is not guessed: a start's own reading is made
(vpnd.start_config), and compared with what runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from vpnd.api import ConfigurationStatus
from vpnd.clock import rfc3339, wall
from vpnd.config import Config
from vpnd.config_diff import described
from vpnd.config_errors import ConfigProblem
from vpnd.file_trust import FileFault, folder_files
from vpnd.journal import Journal
from vpnd.peer_file import SUFFIX
from vpnd.start_config import Start, foreseen, read_start
from vpnd.view import held_info

LOOK_SECONDS: Final = 30.0
"""Between two looks without anybody asking."""
PATIENCE: Final = 15.0
"""Seconds for a look: a status does not wait for a file system that is away."""
MAX_TOLD: Final = 100
"""Errors in one status."""
MAX_LOGGED: Final = 20
"""… and in the log, each time that they are others."""

Signature = Mapping[Path, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class _Seen:
    """What was found on disk at one moment."""

    signature: Signature
    problems: tuple[ConfigProblem, ...]
    restart: tuple[str, ...]
    running: Config
    """What it was compared with."""
    at: str


class DiskWatch:
    """Looks at the files of a daemon's configuration."""

    def __init__(self, running: Callable[[], Config], journal: Journal) -> None:
        self._running = running
        self._journal = journal
        self._seen: _Seen | None = None
        self._told: tuple[ConfigProblem, ...] = ()
        self._looking = trio.Lock()

    async def run(self) -> None:
        """Look now and then until cancelled, so that the log tells of a mistake before a restart
        does. Not at once: a start has just read everything."""
        while True:
            await trio.sleep(LOOK_SECONDS)
            try:
                await self.look()
            except Exception as error:
                # A bug: the links go on
                self._journal.record(
                    "internal_error", level="error", reason="configuration", exc_info=error
                )

    async def look(self) -> ConfigurationStatus:
        """What is on disk now, beside what runs now."""
        running = self._running()
        seen = None
        with trio.move_on_after(PATIENCE):
            async with self._looking:
                known = self._seen
                if known is not None and known.running is not running:
                    known = None
                seen = self._seen = await trio.to_thread.run_sync(
                    _look, running, known, abandon_on_cancel=True
                )
        if seen is None:
            seen = _not_seen(running)
        self._tell(seen)
        return ConfigurationStatus(
            state="errors" if seen.problems else "differs" if seen.restart else "current",
            errors=[problem.detail() for problem in seen.problems[:MAX_TOLD]],
            error_count=len(seen.problems),
            main_is_last_good=running.main_is_last_good,
            held=[held_info(held) for held in running.held.values()],
            restart=list(seen.restart),
            at=seen.at,
        )

    def tell_start(self, problems: tuple[ConfigProblem, ...]) -> None:
        """Record what a start has found, before anything else is looked at."""
        self._record(problems)

    def own_change(self, config: Config, file: Path) -> None:
        """The daemon itself has written or removed a peer's file, and runs by that now: of what
        was seen the rest still holds, and nothing needs to be read again for it."""
        seen = self._seen
        if seen is None or seen.problems or seen.restart or config.held:
            self._seen = None
            return
        signature = {path: each for path, each in seen.signature.items() if path != file}
        now = _stat(file, times=True)
        if now is not None:
            signature[file] = now
        self._seen = _Seen(signature, (), (), config, seen.at)

    def _tell(self, seen: _Seen) -> None:
        if seen.problems != self._told:
            self._record(seen.problems)

    def _record(self, problems: tuple[ConfigProblem, ...]) -> None:
        if self._told and not problems:
            self._journal.record("configuration_good", reason="no errors on disk any more")
        for problem in problems[:MAX_LOGGED]:
            self._journal.record(
                "configuration_wrong", level="error", reason=str(problem), hint=problem.hint
            )
        if len(problems) > MAX_LOGGED:
            self._journal.record(
                "configuration_wrong",
                level="error",
                reason=f"{len(problems) - MAX_LOGGED} more errors",
                hint="`vpnctl check` names them all",
            )
        self._told = problems


def _not_seen(running: Config) -> _Seen:
    problem = ConfigProblem(
        running.path.parent,
        "",
        f"could not be read within {PATIENCE:.0f} s",
        "is a file system away that has the configuration or the state?",
    )
    return _Seen({}, (problem,), (), running, rfc3339(wall()))


def _look(running: Config, seen: _Seen | None) -> _Seen:
    signature = _signature(running)
    if seen is not None and signature == seen.signature:
        return seen
    start = read_start(running.path)
    return _Seen(
        signature=signature,
        problems=(*start.problems, *_no_identity(running, start)),
        restart=tuple(_restart(running, start)),
        running=running,
        at=rfc3339(wall()),
    )


def _no_identity(running: Config, start: Start) -> Iterable[ConfigProblem]:
    """That there was one, and is none any more: before the first one it is no mistake."""
    if running.identities and not start.problems and start.config and not start.config.identities:
        yield ConfigProblem(
            start.config.node.state_dir,
            "",
            "has no identity any more",
            "is its file system mounted? Else restore it from a backup",
        )


def _restart(running: Config, start: Start) -> Iterable[str]:
    """What a restart would do."""
    yield from foreseen(start)
    config = start.config
    if config is None:
        return
    for change in described(running, config):
        if change["what"] == "peer" and change["name"] in config.held:
            continue
        keys = ", ".join(each["key"] for each in change["keys"])
        text = f"{change['what']} {change['name']} would be {change['change']}"
        yield f"{text} ({keys})" if keys else text


def _signature(running: Config) -> Signature:
    """Everything that a start would read, as it is now."""
    node = running.node
    found: dict[Path, tuple[int, ...]] = {}
    for folder in (running.path.parent, node.peers_dir, node.state_dir):
        # Not the times: in the folders others may come and go
        each = _stat(folder, times=False)
        if each is not None:
            found[folder] = each
    files = [running.path, node.state_dir / "identity.use"]
    files += _files(node.peers_dir, SUFFIX) + _files(node.state_dir, ".key")
    for source in running.key_sources.values():
        for value in vars(source).values():
            if isinstance(value, Path):
                files.append(value)
    for file in files:
        each = _stat(file, times=True)
        if each is not None:
            found[file] = each
    return found


def _files(folder: Path, suffix: str) -> list[Path]:
    try:
        return folder_files(folder, suffix)
    except FileFault:
        return []


def _stat(path: Path, *, times: bool) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        # A link to nowhere is another thing than nothing at all
        try:
            found = os.lstat(path)
        except (OSError, ValueError):
            return None
    what = (found.st_dev, found.st_ino, found.st_mode, found.st_uid, found.st_gid)
    return (*what, found.st_size, found.st_mtime_ns, found.st_ctime_ns) if times else what

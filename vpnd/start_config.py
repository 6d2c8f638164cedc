"""What a start goes by, whatever is wrong on disk: all that is good, and guards for everything.

    no errors ──────────────────────────▶ everything runs
    errors in vpnd.toml ────────────────▶ the vpnd.toml that ran last; without one, nothing
    errors in a peer's file ────────────▶ that peer is held: guarded, and not run
    two peers contradict each other ────▶ the one whose file is as it ran last runs; where that
                                          is neither of them or both, both are held
    the peers' folder is gone or empty ─▶ all that ran last are held
    others can write to the folder ─────▶ peers whose files are as they ran last run

Guarded are the prefixes of what runs, those that can be read out of files with errors, and those
of the last good set. They leave the last good set with a configuration that has no errors at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from vpnd.config import Before, Config, HeldPeer, Loader, Parts
from vpnd.config_check import Draft, check
from vpnd.config_errors import ConfigErrors, ConfigProblem
from vpnd.config_fields import Address, Prefix
from vpnd.config_model import NodeConfig, TunnelConfig
from vpnd.config_source import read_text
from vpnd.file_trust import FileFault, folder_files
from vpnd.guarded import guarded_prefixes, place_of
from vpnd.last_good import GoodPeer, Guarded, GuardPlace, LastGood, read_last_good
from vpnd.peer_file import SUFFIX, peer_path
from vpnd.salvage import (
    read_leniently,
    salvage_endpoints,
    salvage_path,
    salvage_peer,
    salvage_tables,
)

DEFAULT_STATE_DIR: Final = NodeConfig.model_fields["state_dir"].default


@dataclass(frozen=True, slots=True)
class Start:
    """What there is to start from."""

    path: Path
    config: Config | None
    """What runs; None where there is nothing that could."""
    problems: tuple[ConfigProblem, ...]
    """All that is wrong on disk."""
    guards: Mapping[str, tuple[Guarded, ...]]
    """By peer: all that has to be guarded before anything else happens."""
    last_good: LastGood
    notes: tuple[FileFault, ...] = ()
    """Why not all of the last good set can be used."""

    @property
    def stale(self) -> Mapping[str, tuple[Guarded, ...]]:
        """Of `guards`, what ran last and is in no file any more: to be removed once the daemon
        runs. Nothing, while anything on disk is wrong."""
        if self.config is None or self.problems:
            return {}
        return {name: peer.guards for name, peer in self.last_good.peers.items()}


def read_start(path: Path, *, with_identities: bool = True) -> Start:
    """Read a configuration for a start. Raises nothing for what is in files.

    Without `with_identities` it is for guards alone, as in `load_config`.
    """
    path = path.absolute()
    last, faults = _last_good(path)
    config: Config | None
    problems: Sequence[ConfigProblem]
    try:
        config, problems = _what_is_good(path, last, with_identities)
    except ConfigErrors as errors:
        config, problems = None, errors.problems
    except Exception as error:  # what nobody foresaw costs no guard
        reason = f"could not be read, by a fault of vpnd's own: {type(error).__name__}"
        config, problems = None, [ConfigProblem(path, "", reason, "please report it")]
    guards = MappingProxyType(_all_guards(path, config, last))
    return Start(path, config, tuple(problems), guards, last, faults)


def last_good_of(config: Config, before: LastGood) -> LastGood:
    """What to keep once a configuration runs: its peers, and those of `before` that are held."""
    peers = {
        peer.name: GoodPeer(
            config.digests.get(peer.name, ""),
            (_guarded(guarded_prefixes(peer, tunnel), tunnel),),
        )
        for peer in config.peers.values()
        for tunnel in (config.tunnels[peer.tunnel],)
    }
    peers |= {name: before.peers[name] for name in config.held if name in before.peers}
    return LastGood(
        config=str(config.path),
        main=config.main_text,
        peers=MappingProxyType(peers),
        folder=config.folder,
    )


def foreseen(start: Start) -> list[str]:
    """What a start would do otherwise than the files say, in words; nothing if they are good."""
    config = start.config
    if config is None:
        return ["vpnd would not start: guard routes would be set, and no link would run"]
    if not config.identities:
        return ["vpnd would not start: no identity can be used; guard routes would be set"]
    lines = []
    if config.main_is_last_good:
        lines.append(f"{config.path} would not be used: the last good one would run")
    for name, held in config.held.items():
        lines.append(f"{name} would not run, its prefixes would be guarded: {held.reason}")
    if start.problems and not lines:
        lines.append("everything would run as it did last")
    return lines


def _last_good(path: Path) -> tuple[LastGood, tuple[FileFault, ...]]:
    """What ran last; where it is kept is read off vpnd.toml, whatever else is wrong with that."""
    state_dir = salvage_path(read_leniently(path), "state_dir", DEFAULT_STATE_DIR)
    last, faults = read_last_good(state_dir, path)
    if last.main is None and not last.peers and state_dir != DEFAULT_STATE_DIR:
        # A mistyped state_dir: what is in the usual place is for this vpnd.toml, or not taken
        usual, _ = read_last_good(DEFAULT_STATE_DIR, path)
        if usual.main is not None or usual.peers:
            return usual, faults
    return last, faults


def _what_is_good(
    path: Path, last: LastGood, with_identities: bool
) -> tuple[Config, Sequence[ConfigProblem]]:
    """All that can run of what is on disk, and what is wrong there; ConfigErrors with all of that
    where nothing can run."""
    before = Before.of(last)
    loader = Loader(path, before=before)
    parts = loader.read(with_identities)
    crossed = list(check(parts.draft))
    problems = [*loader.problems, *loader.of_folder, *(each for _, _, each in loader.of_host)]
    problems += crossed
    if not problems:
        return loader.config(parts), ()
    of_main = [one for one in (*loader.problems, *crossed) if one.file in (path, path.parent)]
    if of_main:
        if last.main is None:
            raise ConfigErrors(problems)
        loader = Loader(path, main=read_text(path, last.main), before=before)
        parts = loader.read(with_identities)
        crossed = list(check(parts.draft))
        if any(problem.file == path for problem in (*loader.problems, *crossed)):
            raise ConfigErrors(problems)
    if any(kind == "crypto" for kind, _, _ in loader.of_host):
        raise ConfigErrors(problems)  # nothing can run without ML-KEM
    # Who can write to the folder above can put another one in the place of the peers'
    above = [one for one in of_main if one.file == path.parent]
    held = _held(
        loader,
        parts,
        last,
        untrusted=[*above, *loader.of_folder]
        if all(path.parent in file.parents for file in parts.files)
        else loader.of_folder,
    )
    running = {name: peer for name, peer in parts.draft.peers.items() if name not in held}
    config = loader.config(replace(parts, draft=replace(parts.draft, peers=running)))
    endpoints = _endpoints(parts.files)
    held_peers = {
        name: HeldPeer(
            name, file, tuple(reasons), _guards_of(name, file, config.tunnels, last, endpoints)
        )
        for name, (file, reasons) in _with_gone(held, parts, last, problems).items()
    }
    return replace(
        config,
        held=MappingProxyType(held_peers),
        main_is_last_good=bool(of_main),
        folder=config.folder if parts.files else last.folder,
    ), problems


def _held(
    loader: Loader, parts: Parts, last: LastGood, *, untrusted: Sequence[ConfigProblem]
) -> dict[str, tuple[Path, list[ConfigProblem]]]:
    """The peers that cannot run, with why."""
    held: dict[str, tuple[Path, list[ConfigProblem]]] = {}

    def hold(name: str, problems: Iterable[ConfigProblem]) -> None:
        file = next((one for one in parts.files if one.stem == name), None)
        entry = held.setdefault(name, (file or peer_path(Path(), name), []))
        entry[1].extend(problem for problem in problems if problem not in entry[1])

    for file in parts.files:
        own = [problem for problem in loader.problems if problem.file == file]
        if own:
            hold(file.stem, own)
        elif untrusted and not _as_before(file.stem, loader, last):
            hold(file.stem, untrusted)
    missing = {(kind, name): problem for kind, name, problem in loader.of_host}
    for peer in parts.draft.peers.values():
        if ("tunnel", peer.tunnel) in missing:
            hold(peer.name, [missing["tunnel", peer.tunnel]])
    peers = {name: peer for name, peer in parts.draft.peers.items() if name not in held}
    while True:
        found = _contradictions(replace(parts.draft, peers=peers), loader, last)
        if not found:
            return held
        for name, problems in found.items():
            hold(name, problems)
            del peers[name]


def _contradictions(draft: Draft, loader: Loader, last: LastGood) -> dict[str, list[ConfigProblem]]:
    """The peers that something speaks against: those that are wrong by themselves; if there are
    none, those that contradict another. The one that is as it ran last stays, unless the other is
    so, too: `check` tells of the later one of two, so both orders are tried."""
    flagged = _flagged(draft)
    if not flagged:
        return {}
    alone = {
        name: problems
        for name in flagged
        if (problems := _flagged(replace(draft, peers={name: draft.peers[name]})).get(name))
    }
    if alone:
        return alone
    names = list(draft.peers)
    settled = [name for name in names if _as_before(name, loader, last)]
    others = [name for name in names if name not in settled]
    found: dict[str, list[ConfigProblem]] = {}
    for order in ([*settled, *others], [*reversed(settled), *reversed(others)]):
        ordered = replace(draft, peers={name: draft.peers[name] for name in order})
        for name, problems in _flagged(ordered).items():
            found.setdefault(name, []).extend(problems)
    return found


def _flagged(draft: Draft) -> dict[str, list[ConfigProblem]]:
    """The problems that `check` tells of each peer."""
    files = {source.path: name for name, source in draft.sources.items() if name in draft.peers}
    found: dict[str, list[ConfigProblem]] = {}
    for problem in check(draft):
        if problem.file in files:
            found.setdefault(files[problem.file], []).append(problem)
    return found


def _as_before(name: str, loader: Loader, last: LastGood) -> bool:
    """Whether a peer's file is the one that ran last."""
    before = last.peers.get(name)
    return before is not None and before.digest == loader.digests.get(name)


def _with_gone(
    held: Mapping[str, tuple[Path, list[ConfigProblem]]],
    parts: Parts,
    last: LastGood,
    problems: Sequence[ConfigProblem],
) -> dict[str, tuple[Path, list[ConfigProblem]]]:
    """With the peers that ran last and have no file any more: while anything is wrong, nobody can
    say whether they were meant to go."""
    found = dict(held)
    here = {file.stem for file in parts.files}
    folder = next((file.parent for file in parts.files), None)
    if folder is None:
        folder = Path() if parts.node is None else parts.node.peers_dir
    gone = [problem for problem in problems if problem.file == folder]
    for name in last.peers:
        if name not in here:
            file = peer_path(folder, name)
            own = ConfigProblem(
                file,
                "",
                "does not exist any more, and other errors keep its removal from being applied",
                "`vpnctl peer remove` removes it; else put it back",
            )
            found[name] = (file, gone or [own])
    return found


# ---- guards


def _all_guards(
    path: Path, config: Config | None, last: LastGood
) -> dict[str, tuple[Guarded, ...]]:
    """Of every peer that runs, that has a file, or that ran last."""
    guards = {name: list(peer.guards) for name, peer in last.peers.items()}
    if config is None:
        tables, folder = _salvaged_main(path)
        files = _files(folder)
        endpoints = _endpoints(files)
        for file in files:
            before = {each.place for each in guards.get(file.stem, ())}
            found = _salvaged(file, tables, tuple(before), endpoints)
            guards.setdefault(file.stem, []).extend(found)
        return {name: tuple(each) for name, each in guards.items()}
    for peer in config.peers.values():
        tunnel = config.tunnels[peer.tunnel]
        guards.setdefault(peer.name, []).append(_guarded(guarded_prefixes(peer, tunnel), tunnel))
    for held in config.held.values():
        guards[held.name] = list(held.guards)
    return {name: tuple(each) for name, each in guards.items()}


def _guards_of(
    name: str,
    file: Path,
    tunnels: Mapping[str, TunnelConfig],
    last: LastGood,
    endpoints: Sequence[Address],
) -> tuple[Guarded, ...]:
    """Of a peer that is held: what was guarded when it ran, and what its file says now."""
    before = last.peers.get(name)
    places = {each.place for each in before.guards} if before is not None else set()
    tables = {each: (place_of(one), one.routes) for each, one in tunnels.items()}
    now = _salvaged(file, tables, tuple(places), endpoints)
    return (*(() if before is None else before.guards), *now)


def _salvaged(
    file: Path,
    tunnels: Mapping[str, tuple[GuardPlace, str]],
    before: Sequence[GuardPlace],
    endpoints: Sequence[Address],
) -> list[Guarded]:
    """What can be read out of a peer's file, for its tunnel; for where it was guarded before, or
    for all tunnels, where it names none that there is."""
    text = read_leniently(file)
    found = salvage_peer(text)
    if found.tunnel is not None and found.tunnel in tunnels:
        places = [tunnels[found.tunnel]]
    elif before:
        places = [(place, "allowed-ips") for place in before]
    else:
        places = list(tunnels.values()) or [(GuardPlace(), "allowed-ips")]
    guards = []
    for place, routes in dict.fromkeys(places):
        prefixes = (*(found.allowed if routes != "none" else ()), *found.protect)
        kept = tuple(each for each in dict.fromkeys(prefixes) if not _holds_one(each, endpoints))
        if kept:
            guards.append(Guarded(place, kept))
    return guards


def _endpoints(files: Iterable[Path]) -> tuple[Address, ...]:
    """Of all peers, as far as their files can be read."""
    return tuple(each for file in files for each in salvage_endpoints(read_leniently(file)))


def _holds_one(prefix: Prefix, endpoints: Iterable[Address]) -> bool:
    """Whether guarding a prefix of a file with errors would cut off a link that is well."""
    return any(endpoint in prefix for endpoint in endpoints)


def _files(folder: Path) -> list[Path]:
    try:
        return folder_files(folder, SUFFIX)
    except FileFault:
        return []


def _salvaged_main(path: Path) -> tuple[Mapping[str, tuple[GuardPlace, str]], Path]:
    """The tunnels of a vpnd.toml with errors, and where its peers are."""
    text = read_leniently(path)
    tables = {
        name: (_salvaged_place(table), str(table.get("routes", "allowed-ips")))
        for name, table in salvage_tables(text).items()
    }
    return tables, salvage_path(text, "peers_dir", path.parent / "peers.d")


def _salvaged_place(table: Mapping[str, Any]) -> GuardPlace:
    number, vrf, netns = table.get("table"), table.get("vrf"), table.get("netns")
    return GuardPlace(
        table=number if isinstance(number, int) and 0 < number < 2**32 else None,
        vrf=vrf if isinstance(vrf, str) and vrf else None,
        netns=netns if isinstance(netns, str) and netns else None,
    )


def _guarded(prefixes: tuple[Prefix, ...], tunnel: TunnelConfig) -> Guarded:
    return Guarded(place_of(tunnel), prefixes)

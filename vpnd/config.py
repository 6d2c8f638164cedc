"""The configuration as a whole: vpnd.toml and peers.d/*.toml, read and checked together.

`load_config` gives a configuration that holds together, or ConfigErrors with everything that is
wrong with it. Nothing of the system is touched before that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from kex.identity import Fingerprint
from vpnd.config_check import Draft, check, notes, unknown_tunnel
from vpnd.config_errors import ConfigErrors, ConfigProblem, Location, kind_of, shown
from vpnd.config_fields import FieldError, absolute_path, fits_name
from vpnd.config_fields import name as parse_name
from vpnd.config_key_sources import MAX_KEY_SOURCES, KeySourceConfig, key_source_config
from vpnd.config_model import (
    CryptoConfig,
    Defaults,
    NodeConfig,
    PeerConfig,
    PeerRequest,
    PeerSettings,
    TableT,
    TunnelConfig,
    TunnelSettings,
    default_lifetime,
    unknown_key,
    validate,
)
from vpnd.config_source import Document, Source, fault_problem, read_document
from vpnd.file_trust import FileFault, FileUnreadable, folder_fault, folder_files
from vpnd.identity_store import load_identities
from vpnd.keysource.files import FileNoted, file_faults
from vpnd.last_good import Guarded, LastGood, digest_of, read_last_good
from vpnd.local_identity import link_identities
from vpnd.ml_kem import MlKemUnavailable, ml_kem_provider
from vpnd.namespaces import namespaces_fault
from vpnd.peer_file import SUFFIX, peer_path, render_peer

MAX_READINGS: Final = 3
"""Of a folder that is changed while it is read."""
_TOP_LEVEL: Final = ("node", "crypto", "defaults", "tunnels", "key_sources")
_KEY_SOURCES: Final = ("sources", "key_source", "external_keys", "keysources")


@dataclass(frozen=True, slots=True)
class HeldPeer:
    """A peer that does not run, since something is wrong with its file; it is guarded alone."""

    name: str
    file: Path
    problems: tuple[ConfigProblem, ...]
    guards: tuple[Guarded, ...]

    @property
    def reason(self) -> str:
        """Why, in one line."""
        more = len(self.problems) - 1
        return f"{self.problems[0]}" + (f" (and {more} more)" if more else "")


@dataclass(frozen=True, slots=True)
class Config:
    """A configuration that holds together. Immutable: a change makes a new one."""

    path: Path
    node: NodeConfig
    defaults: Defaults
    tunnels: Mapping[str, TunnelConfig]
    peers: Mapping[str, PeerConfig]
    identities: Mapping[str, Fingerprint] = field(default_factory=lambda: MappingProxyType({}))
    """This node's identities by name, the one in use first; empty before `vpnctl init`."""
    crypto: CryptoConfig = field(default_factory=CryptoConfig)
    key_sources: Mapping[str, KeySourceConfig] = field(default_factory=lambda: MappingProxyType({}))
    """Where keys from outside come from, by name."""
    notes: tuple[ConfigProblem, ...] = field(default=(), compare=False)
    """What is allowed, and worth knowing."""
    held: Mapping[str, HeldPeer] = field(default_factory=lambda: MappingProxyType({}))
    """Peers that a start found with errors, by name: none of them is in `peers`."""
    main_is_last_good: bool = False
    """Whether vpnd.toml had errors, so that this is the one that ran before."""
    main_text: str = field(default="", compare=False, repr=False)
    digests: Mapping[str, str] = field(
        default_factory=lambda: MappingProxyType({}), compare=False, repr=False
    )
    """Of the peers' files, as they were read."""
    folder: int = field(default=0, compare=False)
    """Inode of the folder of the peers; 0 where there is none."""
    unread: tuple[Path, ...] = field(default=(), compare=False)
    """Files and folders that this user may not read: nothing is known of them."""

    @property
    def own(self) -> tuple[Fingerprint, ...]:
        """This node's identities, the one in use first."""
        return tuple(self.identities.values())

    def locals_of(self, peer: PeerConfig) -> tuple[Fingerprint, ...]:
        """This node's identities on the link to a peer; the first one is for own exchanges."""
        return link_identities(peer, self.identities, self.peers)

    def with_peer(self, request: PeerRequest) -> Config:
        """The same with one more peer; ConfigErrors with all that speaks against it."""
        source = Source(None)
        if request.name in self.peers:
            hint = f"`vpnctl peer set {request.name}` changes it; another peer needs another name"
            raise ConfigErrors(
                [source.problem(("name",), f"there is a peer {request.name} already", hint)]
            )
        file = peer_path(self.node.peers_dir, request.name)
        peer = complete_peer(
            request.name, file, request, self.defaults, tuple(self.tunnels), source
        )
        return self._with_peers({**self.peers, peer.name: peer}, source, _rendered(request))

    def with_changed_peer(self, name: str, settings: PeerSettings) -> Config:
        """The same with other settings of a peer; ConfigErrors with all that speaks against them,
        KeyError if there is none of that name."""
        source = Source(None)
        file = self.peers[name].file
        peer = complete_peer(name, file, settings, self.defaults, tuple(self.tunnels), source)
        return self._with_peers({**self.peers, name: peer}, source, _rendered(settings, name))

    def with_repaired_peer(self, name: str, settings: PeerSettings) -> Config:
        """The same with a peer running that is held; ConfigErrors with all that speaks against
        it, KeyError if none of that name is held."""
        source = Source(None)
        file = self.held[name].file
        peer = complete_peer(name, file, settings, self.defaults, tuple(self.tunnels), source)
        peers = {**self.peers, name: peer}
        return self._with_peers(peers, source, _rendered(settings, name)).without_held(name)

    def without_held(self, name: str) -> Config:
        """The same without a peer that is held; KeyError if there is none of that name."""
        held = dict(self.held)
        del held[name]
        return replace(self, held=MappingProxyType(held))

    def without_peer(self, name: str) -> Config:
        """The same without a peer; KeyError if there is none of that name."""
        peers = dict(self.peers)
        del peers[name]
        return self._with_peers(peers, Source(None))

    def _with_peers(
        self,
        peers: Mapping[str, PeerConfig],
        source: Source,
        digests: Mapping[str, str] = MappingProxyType({}),
    ) -> Config:
        draft = Draft(
            main=Source(self.path),
            node=self.node,
            tunnels=self.tunnels,
            peers=peers,
            sources=dict.fromkeys(peers, source),
            identities=self.identities,
            key_sources=self.key_sources,
        )
        problems = tuple(check(draft))
        if problems:
            raise ConfigErrors(problems)
        kept = {**self.digests, **digests}
        return replace(
            self,
            peers=MappingProxyType(dict(peers)),
            notes=tuple(notes(draft)),
            digests=MappingProxyType({name: kept[name] for name in peers if name in kept}),
        )


@dataclass(frozen=True, slots=True)
class Before:
    """What ran before, so that peers that vanish all at once are noticed."""

    peers: frozenset[str]
    folder: int
    """Inode of their folder; 0 where it is not known."""

    @classmethod
    def of(cls, good: LastGood) -> Before:
        return cls(frozenset(good.peers), good.folder)


NOTHING_BEFORE: Final = Before(frozenset(), 0)
"""Nothing ran, or all peers are to be removed."""


def load_config(
    path: Path, *, with_identities: bool = True, before: Before | None = None
) -> Config:
    """Read and check a whole configuration; ConfigErrors, and no other exception, if it is bad.

    With `with_identities` this node itself is looked at as well: whether its identity files are
    kept secret, whether a peer has one of them, whether what `[crypto]` and `netns` ask for is
    installed. Then it is an error, too, if all peers of `before` are gone; None is what ran last,
    as far as this user may read it.
    """
    return Loader(path.absolute(), before=before).load(with_identities)


def _rendered(settings: PeerSettings, name: str = "") -> dict[str, str]:
    """The digest of the file that will be written for a peer, under its name."""
    name = settings.name if isinstance(settings, PeerRequest) else name
    return {name: digest_of(render_peer(settings))}


def complete_peer(
    name: str,
    file: Path,
    settings: PeerSettings,
    defaults: Defaults,
    tunnels: Sequence[str],
    source: Source,
) -> PeerConfig:
    """A peer with all that its file left out; ConfigErrors where its tunnel is not one of ours."""
    tunnel = settings.tunnel
    if tunnel is None:
        if len(tunnels) != 1:
            reason = "is missing" if tunnels else "is missing, and there is no tunnel at all"
            hint = f"one of {', '.join(map(shown, tunnels))}" if tunnels else "add a [tunnels.NAME]"
            raise ConfigErrors([source.problem(("tunnel",), reason, hint)])
        tunnel = tunnels[0]
    elif tunnel not in tunnels:
        raise ConfigErrors([source.problem(("tunnel",), *unknown_tunnel(tunnel, tunnels))])
    given = {key: getattr(settings, key) for key in settings.model_fields_set - {"name"}}
    values = defaults.model_dump(exclude_none=True) | given
    lifetime = values.pop("key_lifetime", None)
    values |= {"name": name, "file": file, "tunnel": tunnel}
    peer = PeerConfig.model_construct(**values, key_lifetime=0)
    if lifetime is None:
        lifetime = default_lifetime(peer.rekey_interval)
    return peer.model_copy(update={"key_lifetime": lifetime})


@dataclass(frozen=True, slots=True)
class Parts:
    """What could be read of a configuration."""

    node: NodeConfig | None
    defaults: Defaults
    crypto: CryptoConfig
    key_sources: Mapping[str, KeySourceConfig]
    draft: Draft
    files: tuple[Path, ...]
    """Of the peers, read or not."""


class Loader:
    """One reading of a configuration; it collects problems, and goes on behind each of them.

    `main` is a document to take for vpnd.toml in place of the file.
    """

    def __init__(
        self, path: Path, *, main: Document | None = None, before: Before | None = None
    ) -> None:
        self.path = path
        self.problems: list[ConfigProblem] = []
        self.notes: list[ConfigProblem] = []
        self.of_host: list[tuple[str, str, ConfigProblem]] = []
        """What this host lacks for the configuration: kind and name of the part, and what."""
        self.of_folder: list[ConfigProblem] = []
        """Why the peers' folder cannot be believed or read, or what is gone from it."""
        self.digests: dict[str, str] = {}
        self.unread: list[Path] = []
        self.folder = 0
        self._before = before
        if main is None:
            self._check_folder(path.parent, self.problems, sticky_allowed=True)
        document = read_document(path) if main is None else main
        self.problems += document.problems
        self.main = document.source
        self.values = document.values
        self.parsed = bool(document.values) or not document.problems

    def load(self, with_identities: bool) -> Config:
        parts = self.read(with_identities)
        problems = [*self.problems, *self.of_folder, *(problem for _, _, problem in self.of_host)]
        problems += check(parts.draft)
        if problems:
            raise ConfigErrors(_in_order(problems))
        return self.config(parts)

    def read(self, with_identities: bool) -> Parts:
        """Everything that can be read; what is wrong is in the lists of problems."""
        node = self._node() if self.parsed else None
        table = self.values.get("defaults", {})
        defaults = self._valid(Defaults, table, self.main, ("defaults",)) or Defaults()
        crypto = self._crypto(installed=with_identities)
        tunnels = dict(self._tunnels())
        if with_identities:
            self._check_namespaces(tunnels)
        key_sources = dict(self._key_sources())
        if with_identities:
            self._check_key_files(key_sources)
        self._unknown_keys()
        folder = self._peers_dir(node)
        files, peers, sources = self._read_folder(folder, defaults)
        if node is not None:
            self._check_not_gone(folder, files, node, with_identities)
        own = self._own(node) if with_identities and node is not None else {}
        named = self.values.get("key_sources")
        declared = dict.fromkeys(named) if isinstance(named, dict) else {}
        draft = Draft(self.main, node, tunnels, peers, sources, own, declared | key_sources)
        return Parts(node, defaults, crypto, key_sources, draft, files)

    def config(self, parts: Parts) -> Config:
        """The configuration of parts without errors. Raises ConfigErrors without a [node]."""
        if parts.node is None:
            raise ConfigErrors(_in_order(self.problems))
        return Config(
            path=self.path,
            node=parts.node,
            defaults=parts.defaults,
            tunnels=MappingProxyType(dict(parts.draft.tunnels)),
            peers=MappingProxyType(dict(parts.draft.peers)),
            identities=MappingProxyType(dict(parts.draft.identities)),
            crypto=parts.crypto,
            key_sources=MappingProxyType(dict(parts.key_sources)),
            notes=(*self.notes, *notes(parts.draft)),
            main_text=self.main.text,
            digests=MappingProxyType(
                {name: self.digests[name] for name in parts.draft.peers if name in self.digests}
            ),
            folder=self.folder,
            unread=tuple(dict.fromkeys(self.unread)),
        )

    def _node(self) -> NodeConfig | None:
        values = self.values.get("node", {})
        if isinstance(values, dict):
            values = dict(values)
            runtime_dir = values.get("runtime_dir", NodeConfig.model_fields["runtime_dir"].default)
            values.setdefault("peers_dir", str(self.path.parent / "peers.d"))
            # A runtime_dir of a wrong type is told once, not a second time for the socket in it
            usable = isinstance(runtime_dir, (str, Path))
            values.setdefault(
                "control_socket", f"{runtime_dir}/control.sock" if usable else "/control.sock"
            )
        return self._valid(NodeConfig, values, self.main, ("node",))

    def _crypto(self, *, installed: bool) -> CryptoConfig:
        """With `installed` what is asked for must be there, too."""
        table = self.values.get("crypto", {})
        crypto = self._valid(CryptoConfig, table, self.main, ("crypto",)) or CryptoConfig()
        if installed:
            try:
                ml_kem_provider(crypto.ml_kem)
            except MlKemUnavailable as missing:
                reason = f'"{crypto.ml_kem}" cannot be had: {missing.reason}'
                problem = self.main.problem(("crypto", "ml_kem"), reason, missing.hint)
                self._lacks("crypto", "ml_kem", problem)
        return crypto

    def _tunnels(self) -> Iterator[tuple[str, TunnelConfig]]:
        tables = self.values.get("tunnels", {})
        if not isinstance(tables, dict):
            reason = f"must be tables, is {kind_of(tables)}"
            self._tell(self.main, ("tunnels",), reason, "one [tunnels.NAME] for each tunnel")
            return
        for name, values in tables.items():
            valid_name = self._is_name(name, self.main, ("tunnels", name))
            settings = self._valid(TunnelSettings, values, self.main, ("tunnels", name))
            if settings is not None and valid_name:
                yield name, TunnelConfig.model_construct(name=name, **settings.__dict__)

    def _key_sources(self) -> Iterator[tuple[str, KeySourceConfig]]:
        tables = self.values.get("key_sources", {})
        at: Location = ("key_sources",)
        if not isinstance(tables, dict):
            reason = f"must be tables, is {kind_of(tables)}"
            self._tell(self.main, at, reason, "one [key_sources.NAME] for each source")
            return
        if len(tables) > MAX_KEY_SOURCES:
            self._tell(self.main, at, f"has {len(tables)} sources", f"at most {MAX_KEY_SOURCES}")
        for name, values in tables.items():
            valid_name = self._is_name(name, self.main, (*at, name))
            try:
                config = key_source_config(values, self.main, (*at, name))
            except ConfigErrors as errors:
                self.problems += errors.problems
                continue
            if valid_name:
                yield name, config

    def _check_key_files(self, key_sources: Mapping[str, KeySourceConfig]) -> None:
        """Whether the files of the sources can be used, and are kept from others."""
        for name, config in key_sources.items():
            for key, fault in file_faults(config):
                # `vpnctl check` by an ordinary user: he cannot know, and the daemon will look
                if isinstance(fault, FileUnreadable):
                    self.unread.append(fault.path)
                at: Location = ("key_sources", name, key)
                problem = self.main.problem(at, f"{fault.path} {fault.reason}", fault.hint)
                if isinstance(fault, (FileUnreadable, FileNoted)):
                    self.notes.append(problem)
                else:
                    self._lacks("key source", name, problem)

    def _check_namespaces(self, tunnels: Mapping[str, TunnelConfig]) -> None:
        """Whether there is a way into namespaces; whether one is there yet does not matter."""
        for tunnel in tunnels.values():
            if tunnel.netns is not None:
                fault = namespaces_fault()
                if fault is not None:
                    problem = self.main.problem(("tunnels", tunnel.name, "netns"), *fault)
                    self._lacks("tunnel", tunnel.name, problem)

    def _lacks(self, kind: str, name: str, problem: ConfigProblem) -> None:
        self.of_host.append((kind, name, problem))

    def _unknown_keys(self) -> None:
        for key in self.values:
            if key in _KEY_SOURCES:
                hint = "[key_sources.NAME] here; [external_keys] in a peer's file says who uses it"
                self._tell(self.main, (key,), "unknown key", hint)
            elif key not in _TOP_LEVEL:
                self._tell(self.main, (key,), *unknown_key(key, list(_TOP_LEVEL)))

    def _peers_dir(self, node: NodeConfig | None) -> Path:
        """Where the peers are; also when `[node]` is wrong, so that their errors are told too."""
        if node is not None:
            return node.peers_dir
        table = self.values.get("node")
        named = table.get("peers_dir") if isinstance(table, dict) else None
        try:
            return absolute_path(named)
        except FieldError:
            return self.path.parent / "peers.d"

    def _read_folder(
        self, folder: Path, defaults: Defaults
    ) -> tuple[tuple[Path, ...], dict[str, PeerConfig], dict[str, Source]]:
        """The peers' files, the peers that could be read, and their sources: all of one moment,
        also where the folder is changed, or another one put in its place, meanwhile."""
        told = len(self.problems)
        for _ in range(MAX_READINGS):
            del self.problems[told:]
            self.of_folder.clear()
            self.digests.clear()
            sources: dict[str, Source] = {}
            files = self._files(folder)
            peers = dict(self._peers(files, defaults, sources))
            if self.of_folder or (files == _listed(folder) and self.folder == _inode(folder)):
                return files, peers, sources
        reason = "was changed while it was read"
        self.of_folder.append(ConfigProblem(folder, "", reason, "try again"))
        return files, peers, sources

    def _files(self, folder: Path) -> tuple[Path, ...]:
        self._check_folder(folder, self.of_folder)
        self.folder = _inode(folder)
        try:
            return tuple(folder_files(folder, SUFFIX))
        except FileFault as fault:
            self.of_folder.append(fault_problem(fault))
            return ()

    def _peers(
        self, files: Sequence[Path], defaults: Defaults, sources: dict[str, Source]
    ) -> Iterator[tuple[str, PeerConfig]]:
        # Also those with errors of their own: a peer in one of them is not wrong
        declared = self.values.get("tunnels")
        names = tuple(filter(fits_name, declared)) if isinstance(declared, dict) else ()
        for file in files:
            document = read_document(file)
            self.problems += document.problems
            if document.problems and not document.values:
                continue
            sources[file.stem] = document.source
            self.digests[file.stem] = digest_of(document.source.text)
            peer = self._peer(file, document.values, document.source, defaults, names)
            if peer is not None:
                yield peer.name, peer

    def _check_not_gone(
        self, folder: Path, files: Sequence[Path], node: NodeConfig, with_identities: bool
    ) -> None:
        """Whether peers that ran have vanished all at once: nobody removes peers that way."""
        before = self._before
        if before is None:
            last, _ = read_last_good(node.state_dir, self.path)
            before = Before.of(last) if with_identities else NOTHING_BEFORE
        if files or self.of_folder or not before.peers:
            return
        # One file alone may have been deleted from a folder that is still the same
        if len(before.peers) == 1 and 0 != self.folder == before.folder:
            return
        named = ", ".join(sorted(before.peers)[:5]) + (", …" if len(before.peers) > 5 else "")
        missing = "holds no peer's file any more" if self.folder else "does not exist any more"
        reason = f"{missing}, and what ran last has {len(before.peers)} peer(s): {named}"
        hint = (
            "is it mounted? `vpnctl peer remove NAME` removes one peer, "
            "`vpnctl reload --remove-all-peers` all of them"
        )
        self.of_folder.append(ConfigProblem(folder, "", reason, hint))

    def _peer(
        self,
        file: Path,
        values: dict[str, Any],
        source: Source,
        defaults: Defaults,
        tunnels: Sequence[str],
    ) -> PeerConfig | None:
        self._is_name(file.stem, source, (), "the file's name is the peer's: ")
        settings = self._valid(PeerSettings, values, source, ())
        if settings is None:
            return None
        if not self.parsed:
            # Without the tunnels nothing can be said of a peer but what its own file holds
            return None
        try:
            return complete_peer(file.stem, file, settings, defaults, tunnels, source)
        except ConfigErrors as errors:
            self.problems += errors.problems
            return None

    def _own(self, node: NodeConfig) -> dict[str, Fingerprint]:
        stored = load_identities(node.state_dir)
        for fault in stored.faults:
            # `vpnctl check` by an ordinary user: he cannot know, and the daemon will look
            target = self.notes if isinstance(fault, FileUnreadable) else self.problems
            target.append(fault_problem(fault))
            if isinstance(fault, FileUnreadable):
                self.unread.append(fault.path)
        return {name: identity.fingerprint for name, identity in stored.identities.items()}

    def _valid(
        self, model: type[TableT], values: object, source: Source, at: Location
    ) -> TableT | None:
        try:
            return validate(model, values, source, at)
        except ConfigErrors as errors:
            self.problems += errors.problems
            return None

    def _is_name(self, name: str, source: Source, at: Location, what: str = "") -> bool:
        try:
            parse_name(name)
        except FieldError as error:
            self._tell(source, at, what + error.reason, error.hint)
            return False
        return True

    def _tell(self, source: Source, at: Location, reason: str, hint: str) -> None:
        self.problems.append(source.problem(at, reason, hint))

    @staticmethod
    def _check_folder(
        folder: Path, problems: list[ConfigProblem], *, sticky_allowed: bool = False
    ) -> None:
        fault = folder_fault(folder, sticky_allowed=sticky_allowed)
        if fault is not None:
            problems.append(fault_problem(fault))


def _listed(folder: Path) -> tuple[Path, ...]:
    """The peers' files; none where they cannot be told."""
    try:
        return tuple(folder_files(folder, SUFFIX))
    except FileFault:
        return ()


def _inode(folder: Path) -> int:
    """0 where it cannot be told."""
    with suppress(OSError, ValueError):
        return folder.stat().st_ino
    return 0


def _in_order(problems: list[ConfigProblem]) -> list[ConfigProblem]:
    """File by file as they were read, and from top to bottom in each."""
    files = {file: index for index, file in enumerate(dict.fromkeys(one.file for one in problems))}
    return sorted(problems, key=lambda one: (files[one.file], one.line or 0))

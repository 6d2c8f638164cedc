"""The configuration as a whole: vpnd.toml and peers.d/*.toml, read and checked together.

`load_config` gives a configuration that holds together, or ConfigErrors with everything that is
wrong with it. Nothing of the system is touched before that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
from vpnd.config_source import Source, fault_problem, read_document
from vpnd.file_trust import FileFault, FileUnreadable, folder_fault, folder_files
from vpnd.identity_store import load_identities
from vpnd.keysource.files import FileNoted, file_faults
from vpnd.local_identity import link_identities
from vpnd.ml_kem import MlKemUnavailable, ml_kem_provider
from vpnd.namespaces import namespaces_fault
from vpnd.peer_file import SUFFIX, peer_path

_TOP_LEVEL: Final = ("node", "crypto", "defaults", "tunnels", "key_sources")
_KEY_SOURCES: Final = ("sources", "key_source", "external_keys", "keysources")


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
        return self._with_peers({**self.peers, peer.name: peer}, source)

    def with_changed_peer(self, name: str, settings: PeerSettings) -> Config:
        """The same with other settings of a peer; ConfigErrors with all that speaks against them,
        KeyError if there is none of that name."""
        source = Source(None)
        file = self.peers[name].file
        peer = complete_peer(name, file, settings, self.defaults, tuple(self.tunnels), source)
        return self._with_peers({**self.peers, name: peer}, source)

    def without_peer(self, name: str) -> Config:
        """The same without a peer; KeyError if there is none of that name."""
        peers = dict(self.peers)
        del peers[name]
        return self._with_peers(peers, Source(None))

    def _with_peers(self, peers: Mapping[str, PeerConfig], source: Source) -> Config:
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
        return replace(self, peers=MappingProxyType(dict(peers)), notes=tuple(notes(draft)))


def load_config(path: Path, *, with_identities: bool = True) -> Config:
    """Read and check a whole configuration; ConfigErrors, and no other exception, if it is bad.

    With `with_identities` this node itself is looked at as well: whether its identity files are
    kept secret, whether a peer has one of them, whether what `[crypto]` and `netns` ask for is
    installed.
    """
    return _Loader(path.absolute()).load(with_identities)


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


class _Loader:
    """One reading of a configuration; it collects problems, and goes on behind each of them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problems: list[ConfigProblem] = []
        self.notes: list[ConfigProblem] = []
        self.unread: list[Path] = []
        self._check_folder(path.parent, sticky_allowed=True)
        document = read_document(path)
        self.problems += document.problems
        self.main = document.source
        self.values = document.values
        self.parsed = bool(document.values) or not document.problems

    def load(self, with_identities: bool) -> Config:
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
        sources: dict[str, Source] = {}
        peers = dict(self._peers(self._peers_dir(node), defaults, sources))
        own = self._own(node) if with_identities and node is not None else {}
        named = self.values.get("key_sources")
        declared = dict.fromkeys(named) if isinstance(named, dict) else {}
        draft = Draft(self.main, node, tunnels, peers, sources, own, declared | key_sources)
        self.problems += check(draft)
        if self.problems or node is None:
            # A folder that cannot be read is met twice
            raise ConfigErrors(_in_order(list(dict.fromkeys(self.problems))))
        return Config(
            path=self.path,
            node=node,
            defaults=defaults,
            tunnels=MappingProxyType(tunnels),
            peers=MappingProxyType(peers),
            identities=MappingProxyType(own),
            crypto=crypto,
            key_sources=MappingProxyType(key_sources),
            notes=(*self.notes, *notes(draft)),
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
                self._tell(self.main, ("crypto", "ml_kem"), reason, missing.hint)
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
                noted = isinstance(fault, (FileUnreadable, FileNoted))
                target = self.notes if noted else self.problems
                if isinstance(fault, FileUnreadable):
                    self.unread.append(fault.path)
                at: Location = ("key_sources", name, key)
                target.append(self.main.problem(at, f"{fault.path} {fault.reason}", fault.hint))

    def _check_namespaces(self, tunnels: Mapping[str, TunnelConfig]) -> None:
        """Whether there is a way into namespaces; whether one is there yet does not matter."""
        for tunnel in tunnels.values():
            if tunnel.netns is not None:
                fault = namespaces_fault()
                if fault is not None:
                    self._tell(self.main, ("tunnels", tunnel.name, "netns"), *fault)

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

    def _peers(
        self, folder: Path, defaults: Defaults, sources: dict[str, Source]
    ) -> Iterator[tuple[str, PeerConfig]]:
        self._check_folder(folder)
        try:
            files = folder_files(folder, SUFFIX)
        except FileFault as fault:
            self.problems.append(fault_problem(fault))
            return
        # Also those with errors of their own: a peer in one of them is not wrong
        declared = self.values.get("tunnels")
        names = tuple(filter(fits_name, declared)) if isinstance(declared, dict) else ()
        for file in files:
            document = read_document(file)
            self.problems += document.problems
            if document.problems and not document.values:
                continue
            sources[file.stem] = document.source
            peer = self._peer(file, document.values, document.source, defaults, names)
            if peer is not None:
                yield peer.name, peer

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

    def _check_folder(self, folder: Path, *, sticky_allowed: bool = False) -> None:
        fault = folder_fault(folder, sticky_allowed=sticky_allowed)
        if fault is not None:
            self.problems.append(fault_problem(fault))


def _in_order(problems: list[ConfigProblem]) -> list[ConfigProblem]:
    """File by file as they were read, and from top to bottom in each."""
    files = {file: index for index, file in enumerate(dict.fromkeys(one.file for one in problems))}
    return sorted(problems, key=lambda one: (files[one.file], one.line or 0))

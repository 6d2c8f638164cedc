"""`vpnctl init`: identity, configuration, and what to tell the other side."""

import os
import shlex
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cli.errors import UsageProblem, hint
from cli.node_paths import DEFAULT_STATE_DIR
from cli.options import AsJson, Settings
from cli.show import print_json
from vpnd.api import DEFAULT_CONFIG_PATH, DEFAULT_RUNTIME_DIR, SCHEMA

if TYPE_CHECKING:
    from cli.node_files import NewNode
    from kex.identity import Fingerprint
    from vpnd.config import Config
    from vpnd.config_model import TunnelConfig

Given = dict[str, str | list[str] | None]
"""The flags as typed, under the names of `NewNode`'s fields; None where not given."""

PEERS_DIR: Final = "peers.d"
DEFAULT_IDENTITY: Final = "default"


def init(
    context: typer.Context,
    name: Annotated[
        str | None, typer.Option("--name", help="This node's name; the host's unless given.")
    ] = None,
    address: Annotated[
        list[str] | None,
        typer.Option(
            "--address",
            metavar="ADDRESS/LENGTH",
            help="This node's address in the tunnel, 10.255.0.1/24; repeat it for IPv6.",
        ),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            "--endpoint",
            metavar="HOST:PORT",
            help="How the far end reaches this node; without it, this node has to call.",
        ),
    ] = None,
    behind: Annotated[
        list[str] | None,
        typer.Option(
            "--behind",
            metavar="PREFIX",
            help="A network behind this node, 10.10.0.0/16; repeat it, or put commas between. "
            "The far end's command has it.",
        ),
    ] = None,
    listen: Annotated[
        list[str] | None,
        typer.Option(
            "--listen", metavar="ADDRESS:PORT", help="Key exchange, UDP; [::]:51821 unless given."
        ),
    ] = None,
    tunnel: Annotated[
        str | None,
        typer.Option("--tunnel", metavar="NAME", help="The tunnel's name; backbone unless given."),
    ] = None,
    interface: Annotated[
        str | None,
        typer.Option(
            "--interface", metavar="NAME", help="Its interface; wg-backbone unless given."
        ),
    ] = None,
    wg_port: Annotated[
        str | None,
        typer.Option("--wg-port", metavar="PORT", help="WireGuard, UDP; 51820 unless given."),
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option("--backend", metavar="auto|kernel|userspace", help="auto unless given."),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option("--suite", metavar="1|2", help="Of the identity; 2 is CNSA 2.0's level."),
    ] = None,
    identity: Annotated[
        str | None,
        typer.Option(
            "--identity",
            metavar="NAME",
            help="A further identity: for a second link to the same gateway, or the next one.",
        ),
    ] = None,
    state_dir: Annotated[
        str | None,
        typer.Option("--state-dir", metavar="DIR", help=f"{DEFAULT_STATE_DIR} unless given."),
    ] = None,
    runtime_dir: Annotated[
        str | None,
        typer.Option("--runtime-dir", metavar="DIR", help=f"{DEFAULT_RUNTIME_DIR} unless given."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make this node's identity and its configuration.

    Prints the command that links the far end to this node. A second init changes nothing and
    prints the same line again.
    """
    given = {
        "name": name,
        "addresses": address,
        "behind": behind,
        "listen": listen,
        "tunnel": tunnel,
        "interface": interface,
        "wg_port": wg_port,
        "backend": backend,
        "suite": suite,
        "identity": identity,
        "state_dir": state_dir,
        "runtime_dir": runtime_dir,
    }
    path = Path(Settings.of(context).config or DEFAULT_CONFIG_PATH).absolute()
    ready = _make(path, given, endpoint)
    if as_json:
        print_json(ready.document())
        return
    for command in ready.commands():
        print(shlex.join(command))
    for remark in ready.remarks():
        hint(remark)


@dataclass(frozen=True)
class _Ready:
    """A node with its files in place."""

    path: Path
    name: str
    identity: str | None
    """Its name, where one was asked for."""
    fingerprint: "Fingerprint"
    tunnels: "tuple[TunnelConfig, ...]"
    endpoint: str | None
    made: tuple[Path, ...]
    ignored: tuple[str, ...]
    """Flags that ask for something else than what was there already."""
    shared: bool = False
    """Whether the tunnel is one of other identities' links, too."""

    def commands(self) -> list[list[str]]:
        """The far end's whole command, one for each tunnel that it may be meant for."""
        return [self._command(tunnel) for tunnel in self.tunnels]

    def _command(self, tunnel: "TunnelConfig") -> list[str]:
        # The far end may have this node's name already, for the link of another identity
        name = self.name if self.identity is None else f"{self.name}-{self.identity}"
        command = ["vpnctl", "peer", "add", name, "--identity", self.fingerprint.text()]
        if self.endpoint is not None:
            command += ["--endpoint", self.endpoint]
        # All that this node will announce: nobody types a prefix a second time
        if tunnel.announced:
            command += ["--allow", ",".join(map(str, tunnel.announced))]
        return command

    def document(self) -> object:
        return {
            "schema": SCHEMA,
            "node": self.name,
            "config": str(self.path),
            "identity": {"suite": self.fingerprint.suite, "text": self.fingerprint.text()},
            "endpoint": self.endpoint,
            "made": [str(each) for each in self.made],
            "far_end": [
                {"tunnel": tunnel.name, "command": self._command(tunnel)} for tunnel in self.tunnels
            ],
        }

    def remarks(self) -> list[str]:
        """What an operator does next; on stderr, so that stdout is the line and nothing else."""
        remarks = ["that line is for the far end; send it over a channel that you trust"]
        if not any(tunnel.announce for tunnel in self.tunnels):
            remarks.append(
                "it allows this node's own addresses alone; init --behind PREFIX, or `announce` in "
                f"{self.path}, adds the networks behind it"
            )
        if self.endpoint is None:
            remarks.append(
                "it has no --endpoint, so this node has to call the far end; "
                "init --endpoint HOST:PORT prints it with one"
            )
        if self.made:
            remarks.append(f"made {', '.join(map(str, self.made))}; start vpnd now")
        if self.shared:
            remarks.append(
                "its addresses are of a tunnel that other links use; a second link to the same "
                "gateway needs a tunnel of its own: add [tunnels.NAME] to vpnd.toml, "
                f"then init --identity {self.identity} --tunnel NAME"
            )
        if self.ignored:
            remarks.append(
                f"{self.path} was left as it is: {', '.join(self.ignored)} changed nothing; edit it"
            )
        return remarks


def _make(path: Path, given: Given, endpoint: str | None) -> _Ready:
    """Reads everything, then makes what is missing: first the identity, last vpnd.toml.

    So a run that was interrupted is finished by the next one.
    """
    from cli import node_files

    exists = os.path.lexists(path)
    wanted, told = _read_flags(given, endpoint, is_new=not exists)
    text = node_files.render(wanted, told)
    if exists:
        config = node_files.load(path)
        told = told or node_files.remembered_endpoint(path)
    else:
        config = node_files.try_out(text)
    # Before anything is made: a tunnel that is not there is no reason to make an identity
    tunnels = _tunnels_for(
        config, wanted.tunnel if exists and given["tunnel"] else None, wanted.identity
    )
    state_dir = config.node.state_dir
    made = node_files.make_folder(path.parent)
    made += node_files.make_folder(
        config.node.peers_dir if exists else path.parent / PEERS_DIR, for_daemon=True
    )
    fingerprint, new_files = node_files.ensure_identity(state_dir, wanted.suite, wanted.identity)
    made += new_files
    if not exists:
        made += node_files.write_config(path, text)
    return _Ready(
        path=path,
        name=config.node.name,
        identity=wanted.identity,
        fingerprint=fingerprint,
        tunnels=tunnels,
        endpoint=told,
        made=tuple(made),
        ignored=_ignored(given, wanted, config, fingerprint),
        shared=_is_shared(config, tunnels, wanted.identity),
    )


def _tunnels_for(
    config: "Config", tunnel: str | None, identity: str | None
) -> "tuple[TunnelConfig, ...]":
    """The tunnels that the far end's line may be meant for; UsageProblem for one that is not there.

    An identity besides the one in use is for links that name it: their tunnels. Before there is
    such a link, the tunnels that no link of another identity has: an interface has one WireGuard
    key, so that a second link to a gateway needs a tunnel of its own.
    """
    if tunnel is not None and (tunnel in config.tunnels or identity is not None):
        if tunnel not in config.tunnels:
            raise UsageProblem(
                f"there is no tunnel {tunnel} in {config.path}",
                f"add [tunnels.{tunnel}] to it first (interface, listen_port, addresses); "
                f"there are: {', '.join(config.tunnels)}",
            )
        return (config.tunnels[tunnel],)
    if identity is not None and identity != DEFAULT_IDENTITY:
        peers = config.peers.values()
        own = {peer.tunnel for peer in peers if identity in peer.local_identity}
        taken = {peer.tunnel for peer in peers} - own
        for names in (own, config.tunnels.keys() - taken):
            if names:
                return tuple(one for name, one in config.tunnels.items() if name in names)
    return tuple(config.tunnels.values())


def _is_shared(config: "Config", tunnels: "tuple[TunnelConfig, ...]", identity: str | None) -> bool:
    """Whether the line of a further identity has the addresses of a tunnel of other links."""
    if identity is None or identity == DEFAULT_IDENTITY:
        return False
    names = {tunnel.name for tunnel in tunnels}
    return len(config.tunnels) == 1 or any(
        peer.tunnel in names and identity not in peer.local_identity
        for peer in config.peers.values()
    )


def _read_flags(
    given: Given, endpoint: str | None, *, is_new: bool
) -> tuple["NewNode", str | None]:
    """A whole node, defaults filled in, and the endpoint; UsageProblem with all that is wrong."""
    from cli.node_files import NewNode
    from cli.values import Flags, number
    from vpnd import config_fields as fields

    single: dict[str, tuple[Callable[[str], object], str]] = {
        "name": (fields.name, socket.gethostname().partition(".")[0]),
        "tunnel": (fields.name, "backbone"),
        "interface": (fields.interface_name, "wg-backbone"),
        "wg_port": (number(1, 65_535), "51820"),
        "backend": (fields.choice("auto", "kernel", "userspace"), "auto"),
        "suite": (number(1, 2), "1"),
        "state_dir": (fields.absolute_path, DEFAULT_STATE_DIR),
        "runtime_dir": (fields.absolute_path, DEFAULT_RUNTIME_DIR),
    }
    flags = Flags("vpnctl init")
    read: dict[str, str] = {}
    for key, (parse, default) in single.items():
        text = given[key]
        if isinstance(text, str):
            read[key] = str(flags.read(_flag(key), parse, text))
        elif is_new and key == "name":
            read[key] = str(flags.read("--name, from this host's", parse, default))
        else:
            read[key] = default
    name = given["identity"]
    identity = flags.read("--identity", fields.name, name) if isinstance(name, str) else None
    several = {
        key: tuple(str(value) for value in flags.read_list(_flag(key), parse, given[key] or ()))
        for key, parse in (
            ("addresses", fields.interface_address),
            ("behind", fields.prefix),
            ("listen", fields.listen_address),
        )
    }
    if is_new and not given["addresses"]:
        flags.problem(
            "--address is missing: this node's address in the tunnel",
            "--address 10.255.0.1/24 --address fd00:255::1/64, for example",
        )
    far_end_endpoint = None
    if endpoint is not None:
        far_end_endpoint = str(flags.read("--endpoint", fields.endpoint, endpoint))
    flags.check()
    node = NewNode(
        name=read["name"],
        listen=several["listen"] or ("[::]:51821",),
        tunnel=read["tunnel"],
        interface=read["interface"],
        wg_port=int(read["wg_port"]),
        addresses=several["addresses"],
        behind=several["behind"],
        backend=read["backend"],
        suite=int(read["suite"]),
        identity=identity,
        state_dir=read["state_dir"],
        runtime_dir=read["runtime_dir"],
    )
    return node, far_end_endpoint


def _ignored(
    given: Given, wanted: "NewNode", config: "Config", fingerprint: "Fingerprint"
) -> tuple[str, ...]:
    """The flags that ask for something else than what is there."""
    there: dict[str, object] = {
        "name": config.node.name,
        "listen": tuple(map(str, config.node.listen)),
        "suite": fingerprint.suite,
        "identity": wanted.identity,
        "state_dir": str(config.node.state_dir),
        "runtime_dir": str(config.node.runtime_dir),
    }
    tunnel = config.tunnels.get(wanted.tunnel)
    if tunnel is not None:
        there |= {
            "tunnel": tunnel.name,
            "interface": tunnel.interface,
            "wg_port": tunnel.listen_port,
            "addresses": tuple(map(str, tunnel.addresses)),
            "behind": tuple(map(str, tunnel.announce)),
            "backend": tunnel.backend,
        }
    return tuple(
        _flag(key)
        for key, value in given.items()
        if value and getattr(wanted, key) != there.get(key)
    )


def _flag(key: str) -> str:
    return "--address" if key == "addresses" else "--" + key.replace("_", "-")

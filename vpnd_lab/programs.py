"""The command lines of vpnd and vpnctl, and what they print, as far as a lab needs them.

The one place that knows: a change of the programs' options is a change here.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vpnd_lab.errors import LabError
from vpnd_lab.plan import Address, Network, SitePlan, SiteTunnel

# As a daemon in a site sees them; from outside they are in the site's folder.
RUNTIME_DIR = "/run/vpnd"
CONTROL_SOCKET = f"{RUNTIME_DIR}/control.sock"
MAX_ANNOUNCED = 16
"""Prefixes that a site can tell its peers of."""


def program(name: str) -> str:
    """The installed program: the one beside this Python, else on PATH. Raises LabError."""
    beside = Path(sys.executable).parent / name
    if beside.exists():
        return str(beside)
    found = shutil.which(name)
    if found is None:
        raise LabError(
            f"the program {name} is not installed",
            hint="`make install`, or `make setup` in a checkout",
        )
    return found


def daemon_argv(config: Path, instead: Sequence[str] | None = None) -> list[str]:
    """Start a site's daemon in the foreground, or what is to be started instead of it."""
    return [*(instead or (program("vpnd"),)), "--config", str(config)]


def vpnctl_argv(config: Path, arguments: Iterable[str]) -> list[str]:
    """A vpnctl command in a site, answered in JSON."""
    options = ["--config", str(config), "--socket", CONTROL_SOCKET]
    return [program("vpnctl"), *options, *arguments, "--json"]


def init_arguments(site: SitePlan, *, state_dir: Path, suite: int = 1) -> list[str]:
    """`vpnctl init` for a site and its first tunnel."""
    tunnel = site.tunnels[0]
    return [
        "init",
        *("--name", site.name),
        *("--suite", str(suite)),
        *("--listen", f"[::]:{site.listen_port}"),
        *("--tunnel", tunnel.name),
        *("--interface", tunnel.interface),
        *(word for address in tunnel.addresses for word in ("--address", str(address))),
        *("--wg-port", str(tunnel.listen_port)),
        *("--backend", tunnel.backend),
        *(word for prefix in _behind(site, tunnel) for word in ("--behind", str(prefix))),
        *("--state-dir", str(state_dir)),
        *("--runtime-dir", RUNTIME_DIR),
    ]


def _behind(site: SitePlan, tunnel: SiteTunnel) -> tuple[Network, ...]:
    """What a site announces beside its addresses: its lan, as far as an exchange has room."""
    return site.lan[: MAX_ANNOUNCED - len(tunnel.addresses)]


def tunnel_table(site: SitePlan, tunnel: SiteTunnel) -> str:
    """A further tunnel, as vpnd.toml has it: `init` writes one."""
    addresses = ", ".join(json.dumps(str(address)) for address in tunnel.addresses)
    behind = ", ".join(json.dumps(str(prefix)) for prefix in _behind(site, tunnel))
    return (
        f"\n[tunnels.{tunnel.name}]\n"
        f"interface = {json.dumps(tunnel.interface)}\n"
        f"listen_port = {tunnel.listen_port}\n"
        f"addresses = [{addresses}]\n"
        f"backend = {json.dumps(tunnel.backend)}\n"
        f"announce = [{behind}]\n"
    )


def identity_of(answer: Any) -> str:
    """The identity in what `vpnctl init --json` prints. Raises LabError."""
    match answer:
        case {"identity": {"text": str(text)}}:
            return text
        case _:
            raise LabError(f"`vpnctl init` printed no identity: {answer!r}")


def endpoint(address: Address, port: int) -> str:
    """An address and a port, as `--endpoint` takes them."""
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def peer_add_arguments(
    name: str,
    *,
    identity: str,
    endpoint: str | None,
    prefixes: Iterable[Network],
    tunnel: str,
    keepalive: int | None,
) -> list[str]:
    """`vpnctl peer add`; without an endpoint, the peer comes to us."""
    return [
        *("peer", "add", name),
        *("--identity", identity),
        *(() if endpoint is None else ("--endpoint", endpoint)),
        *(word for prefix in prefixes for word in ("--allow", str(prefix))),
        *("--tunnel", tunnel),
        *(() if keepalive is None else ("--keepalive", str(keepalive))),
    ]


def peer_file(
    *,
    identity: str,
    endpoint: str | None,
    prefixes: Iterable[Network],
    tunnel: str,
    keepalive: int | None,
    external_keys: str,
) -> str:
    """A peer's file: for what `vpnctl peer add` has no options for. `external_keys`: its table."""
    values: dict[str, object] = {"identity": identity}
    if endpoint is not None:
        values["endpoint"] = endpoint
    values["tunnel"] = tunnel
    values["allowed_ips"] = [str(prefix) for prefix in prefixes]
    if keepalive is not None:
        values["keepalive"] = keepalive
    lines = [f"{key} = {json.dumps(value)}\n" for key, value in values.items()]
    return "".join(lines) + external_keys


def link_path(peer: str) -> str:
    """The control API's path of a link."""
    return f"/v1/links/{peer}"


STATUS_PATH = "/v1/status"


def link_state(status: Any) -> str:
    """The state in a link's status, with its reason, for comparing only the first word."""
    return str(status.get("state", "")) if isinstance(status, dict) else ""

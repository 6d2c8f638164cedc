"""Key managers, certificates and key files of a lab: made, started, and told to the sites.

    /run/vpnd-lab/NAME/.keys/ca/            the CA of all key managers and applications
    /run/vpnd-lab/NAME/.keys/NETWORK.sqlite the quantum links and the calls of a network
    /run/vpnd-lab/NAME/SITE/etc/kme/        the site's ca.pem, sae.pem, sae.key, shared.key

The certificate for another network than `kme` is NETWORK.pem, its key NETWORK.key.
"""

from __future__ import annotations

import json
import secrets
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from vpnd_lab.errors import LabError
from vpnd_lab.kme.config import KmeConfig
from vpnd_lab.kme.handle import KeyManagerHandle
from vpnd_lab.node import Node
from vpnd_lab.plan import Plan
from vpnd_lab.plan_keys import ETSI_PORT, QKD_SOURCE, SKIP_PORT, homes, sae_of
from vpnd_lab.process import ProcessId
from vpnd_lab.state import LabState

if TYPE_CHECKING:
    from vpnd_lab.kme.certificates import CertificateKind
    from vpnd_lab.spec import KeyManagers

# How many are started at once: each takes half a second of a processor.
_SIDE_BY_SIDE = 4
_FOLDER = ".keys"


class KeyManager(Node):
    """A node with a key manager; `handle` starts, kills, tells and asks it."""

    @cached_property
    def handle(self) -> KeyManagerHandle:
        """Its process. Made at the first use, which is after its file was written."""
        handle = KeyManagerHandle(
            self.folder / "etc" / "kme.json",
            log=self.folder / "kme.stderr",
            wrap=lambda argv: self.argv(argv, cwd=Path("/")),
            env=self.env(),
            on_change=self._remember,
        )
        handle.process = self._state.nodes[self.name].daemon
        return handle

    def _remember(self, process: ProcessId | None) -> None:
        self._state.nodes[self.name].daemon = process
        self._state.save()

    async def cut_off(self, site: str) -> None:
        """Take its cable to a site down: what is sent is lost."""
        await self.run(["ip", "link", "set", "dev", site, "down"])

    async def reconnect(self, site: str) -> None:
        """Take the cable up again."""
        await self.run(["ip", "link", "set", "dev", site, "up"])
        # IPv6 addresses go with the link (net.ipv6.conf.*.keep_addr_on_down)
        for cable in self._plan.cables:
            if (cable.near.node, cable.far.node) == (self.name, site):
                for address in cable.near.addresses:
                    if address.version == 6:
                        words = ["replace", str(address), "dev", site, "nodad"]
                        await self.run(["ip", "address", *words])


def certificate_folder(node_folder: Path) -> Path:
    """Where a site's certificates and keys are, from its folder."""
    return node_folder / "etc" / "kme"


def renew_certificate(
    lab_folder: Path, site: str, kind: CertificateKind, *, network: str, days: float
) -> None:
    """Put a new certificate in the place of a site's, right or wrong: vpnd_lab.kme.certificates."""
    from vpnd_lab.kme.certificates import Authority

    authority = Authority.load(lab_folder / _FOLDER / "ca")
    folder = certificate_folder(lab_folder / site)
    credentials = authority.client(sae_of(site, network), kind=kind, days=days)
    credentials.write(*_certificate_files(folder, network))


def _certificate_files(folder: Path, network: str) -> tuple[Path, Path]:
    stem = "sae" if network == QKD_SOURCE else network
    return folder / f"{stem}.pem", folder / f"{stem}.key"


def key_sources(site: str, folder: Path, plan: Plan) -> str:
    """The `[key_sources.…]` tables of a site's vpnd.toml."""
    own = certificate_folder(folder)
    tables = []
    for source in plan.sites[site].sources:
        values: dict[str, object] = {"type": source.kind}
        if source.kind == "file":
            values["file"] = str(own / "shared.key")
        else:
            port = ETSI_PORT if source.kind == "qkd" else SKIP_PORT
            values["urls"] = [f"https://{_address_of(plan, source.kme, site)}:{port}"]
            if source.kind == "qkd":
                values["sae"] = source.sae
            certificate, key = _certificate_files(own, source.network)
            values["ca"] = str(own / "ca.pem")
            values["certificate"] = str(certificate)
            values["key"] = str(key)
            if source.kind == "skip":
                values["local_system_id"] = source.kme
        lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
        tables.append("\n".join(["", f"[key_sources.{source.name}]", *lines, ""]))
    return "".join(tables)


def _address_of(plan: Plan, kme: str, site: str) -> str:
    """A key manager's IPv4 address on its cable to a site."""
    for cable in plan.cables:
        if (cable.near.node, cable.far.node) == (kme, site):
            return str(next(each.ip for each in cable.near.addresses if each.version == 4))
    raise KeyError((kme, site))


async def start_key_managers(state: LabState, plan: Plan, settings: KeyManagers) -> None:
    """Make what all sources of the lab need, and start the key managers. Raises LabError."""
    if not any(site.sources for site in plan.sites.values()):
        return
    await trio.to_thread.run_sync(_make_files, state, plan, settings)
    limit = trio.CapacityLimiter(_SIDE_BY_SIDE)
    failures: list[LabError] = []

    async def start(name: str) -> None:
        async with limit:
            try:
                await KeyManager(name, state, plan).handle.start()
            except LabError as error:
                failures.append(error)

    async with trio.open_nursery() as nursery:
        for name in plan.kmes:
            nursery.start_soon(start, name)
    if failures:
        raise LabError("\n".join(str(failure) for failure in failures)) from failures[0]


def _make_files(state: LabState, plan: Plan, settings: KeyManagers) -> None:
    # Only labs with key managers load what follows
    from vpnd_lab.kme.certificates import VALID_DAYS, Authority, write_file
    from vpnd_lab.kme.pool import LinkSettings, Network

    common = state.folder / _FOLDER
    common.mkdir(mode=0o755)
    authority = Authority.create(common / "ca")
    shared_key = secrets.token_bytes(32)
    link = settings.model_dump(exclude={"key_size"})
    for network in {kme.network for kme in plan.kmes.values()}:
        Network(common / f"{network}.sqlite", LinkSettings(**link)).close()
    for name, site in plan.sites.items():
        if site.sources:
            own = certificate_folder(state.folder / name)
            own.mkdir(mode=0o755)
            write_file(own / "ca.pem", authority.ca_file.read_bytes(), mode=0o644)
            for network in {source.network for source in site.sources} - {""}:
                renew_certificate(state.folder, name, "good", network=network, days=VALID_DAYS)
            if any(source.kind == "file" for source in site.sources):
                write_file(own / "shared.key", shared_key, mode=0o600)
    for name, kme in plan.kmes.items():
        folder = state.folder / name
        addresses = [str(address.ip) for address in plan.addresses(name)]
        KmeConfig(
            name=name,
            network=str(common / f"{kme.network}.sqlite"),
            authority=str(authority.folder),
            control=str(folder / "run" / "kme.sock"),
            names=[f"{name}.example", name, *addresses],
            homes=homes(plan.kmes.values(), kme.network),
            etsi=_listen(ETSI_PORT),
            skip=_listen(SKIP_PORT),
            key_size=settings.key_size,
        ).write(folder / "etc" / "kme.json")


def _listen(port: int) -> list[tuple[str, int]]:
    return [("0.0.0.0", port), ("::", port)]  # noqa: S104 - in the node's own namespace

"""The part of a lab's plan that has to do with keys from outside. No I/O.

        fra-kme ── fra ── internet ── ams ── ams-kme

A key manager is a node of its own, with a cable to each site that asks it. Key managers that sites
know under one name of a source are a network: each pair of them has a quantum link. A site has an
application, and a certificate, for each network: sae-SITE in `kme`, sae-SITE-NETWORK in others. In
SKIP, the key manager's name is the system ID.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from vpnd_lab.errors import Problem

if TYPE_CHECKING:
    from vpnd_lab.spec import LabSpec, Site

SourceType = Literal["qkd", "skip", "file"]
ETSI_PORT, SKIP_PORT = 8443, 8444
QKD_SOURCE, SKIP_SOURCE, FILE_SOURCE = "kme", "skip", "shared"
"""Names of sources where the lab file gives none."""
_HINT = "give each source key managers of its own"


def sae_of(site: str, network: str = QKD_SOURCE) -> str:
    """The SAE ID of a site in a network: never the same in two, for vpnd tells keys apart by it."""
    return f"sae-{site}" if network == QKD_SOURCE else f"sae-{site}-{network}"


@dataclass(frozen=True, slots=True)
class SourcePlan:
    """One source of keys of a site, by its name in vpnd.toml.

    `kme`, its network, and `sae`, the site's application there, are empty for a file.
    """

    name: str
    kind: SourceType
    kme: str = ""
    network: str = ""
    sae: str = ""


@dataclass(frozen=True, slots=True)
class KmePlan:
    """A key manager: its network's name, and the sites that ask it."""

    name: str
    network: str
    sites: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ExternalKeysPlan:
    """What a link is told about keys from outside; `further`: keys of its table, as written."""

    mode: str
    sources: tuple[str, ...]
    further: Mapping[str, Any] = field(default_factory=dict)

    def table(self, far: Mapping[str, SourcePlan]) -> str:
        """`[external_keys]` of a peer's file, towards a site that has the sources `far`."""
        uses = []
        for name in self.sources:
            use = {"source": name}
            if far[name].kind != "file":
                use["peer_sae"] = far[name].sae if far[name].kind == "qkd" else far[name].kme
            uses.append(use)
        values: dict[str, Any] = {"mode": self.mode}
        if len(uses) == 1:
            values |= uses[0]
        elif uses:
            values["sources"] = uses
        lines = [f"{key} = {_toml(value)}" for key, value in (values | dict(self.further)).items()]
        return "\n".join(["", "[external_keys]", *lines, ""])


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(each) for each in value) + "]"
    return json.dumps(value)


def sources_of(spec: LabSpec, name: str) -> tuple[SourcePlan, ...]:
    """A site's sources: QKD, then SKIP, then the file."""
    site, networks = spec.sites[name], networks_of(spec)
    asked: list[tuple[str, SourceType, str]] = [
        *((source, "qkd", kme) for source, kme in qkd_of(name, site).items()),
        *((SKIP_SOURCE, "skip", kme) for kme in skip_of(name, site)),
    ]
    return (
        *(
            SourcePlan(source, kind, kme, networks[kme], sae_of(name, networks[kme]))
            for source, kind, kme in asked
        ),
        *((SourcePlan(FILE_SOURCE, "file"),) if site.key_file else ()),
    )


def networks_of(spec: LabSpec) -> dict[str, str]:
    """The network of each key manager: the name of the source under which sites know it."""
    networks: dict[str, str] = {}
    for name, site in spec.sites.items():
        for source, kme in qkd_of(name, site).items():
            networks.setdefault(kme, source)
    for name, site in spec.sites.items():
        for kme in skip_of(name, site):
            # One of its own, with a name of its own, may be beside one for QKD
            networks.setdefault(kme, SKIP_SOURCE if isinstance(site.skip, str) else QKD_SOURCE)
    return networks


def qkd_of(name: str, site: Site) -> dict[str, str]:
    """A site's key managers by the name of the source."""
    match site.kme:
        case dict() as named:
            return dict(named)
        case str() as kme:
            return {QKD_SOURCE: kme}
        case True:
            return {QKD_SOURCE: f"{name}-kme"}
        case _:
            return {}


def skip_of(name: str, site: Site) -> tuple[str, ...]:
    """The key manager that a site asks by SKIP: its first one, unless the file names one."""
    match site.skip:
        case str() as kme:
            return (kme,)
        case True:
            return (next(iter(qkd_of(name, site).values()), f"{name}-kme"),)
        case _:
            return ()


def key_managers(spec: LabSpec) -> dict[str, KmePlan]:
    """Every key manager that a site asks, by name."""
    sites: dict[str, list[str]] = {}
    for name, site in spec.sites.items():
        for kme in (*qkd_of(name, site).values(), *skip_of(name, site)):
            if name not in sites.setdefault(kme, []):
                sites[kme].append(name)
    networks = networks_of(spec)
    return {kme: KmePlan(kme, networks[kme], tuple(at)) for kme, at in sites.items()}


def homes(kmes: Iterable[KmePlan], network: str) -> dict[str, str]:
    """The key manager of each application in a network, by SAE ID."""
    return {
        sae_of(site, network): kme.name
        for kme in kmes
        if kme.network == network
        for site in kme.sites
    }


def shared_sources(spec: LabSpec, sites: tuple[str, str]) -> tuple[str, ...]:
    """The names of the sources that both sites of a link have, in one network."""
    one, other = (sources_of(spec, name) for name in sites)
    known = {(source.name, source.kind, source.network) for source in other}
    return tuple(each.name for each in one if (each.name, each.kind, each.network) in known)


def conflicts(spec: LabSpec) -> Iterator[Problem]:
    """What is wrong in a lab file about sources."""
    networks: dict[str, str] = {}
    for name, site in spec.sites.items():
        at: dict[str, str] = {}
        for source, kme in qkd_of(name, site).items():
            if source in {SKIP_SOURCE, FILE_SOURCE}:
                reason = f"{source} is the name of another source"
                yield Problem(f"sites.{name}.kme", reason, _HINT)
            other = networks.setdefault(kme, source)
            if other != source:
                reason = f"{kme} is of the network {other} already, and cannot be of {source}"
                yield Problem(f"sites.{name}.kme", reason, _HINT)
            if at.setdefault(kme, source) != source:
                yield Problem(f"sites.{name}.kme", f"{kme} is there twice", _HINT)
    homes_of: dict[tuple[str, str], str] = {}
    for kme_plan in key_managers(spec).values():
        for site_name in kme_plan.sites:
            other = homes_of.setdefault((kme_plan.network, site_name), kme_plan.name)
            if other != kme_plan.name:
                reason = f"{other} and {kme_plan.name} are of one network: an application is at one"
                yield Problem(f"sites.{site_name}.skip", reason, _HINT)

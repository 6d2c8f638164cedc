"""The lab file: what a person writes, and its errors, all at once.

The smallest one names two sites; everything else has a default:

    [sites.fra]
    [sites.ams]

`external_keys` above all tables is for all links that say nothing of it. Key managers are those of
lab.kme (docs/lab-kme.md).

With every key (defaults shown for the first site of such a file):

    name = "two-sites"                        # default: the file's name without .toml

    [routers.internet]                        # routers between the sites; default: this one
    neighbours = []                           # other routers it has a cable to

    [sites.fra]
    uplinks = ["internet"]                    # default: the first router. The first uplink carries
                                              # the default route. Or as tables:
                                              # [sites.fra.uplinks.internet]
                                              # addresses = ["198.18.0.2/24", "2001:db8:0::2/64"]
                                              # mtu = 1500
    lan = ["10.1.0.0/16", "fd00:1::/48"]      # the prefixes behind the site
    hosts = ["fra-host"]                      # client hosts, each with a network out of the lan
    listen_port = 51821                       # key exchange
    tunnels = { backbone = ["10.255.0.1/24", "fd00:255::1/64"] }
    kme = false                               # true: a QKD key manager of its own, fra-kme, as
                                              # source "kme"; "x-kme": one that other sites name,
                                              # too; { a = "fra-a", b = "fra-b" }: by source
    skip = false                              # true: Cisco SKIP from the same, as source "skip";
                                              # or the name of another one
    key_file = false                          # true: a static key that all such sites have, as
                                              # source "shared"

    [tunnels.backbone]                        # default: this one
    interface = "wg0"
    listen_port = 51820
    networks = ["10.255.0.0/24", "fd00:255::/64"]
    backend = "auto"                          # or "kernel", "userspace"

    [[links]]                                 # default: each pair of sites, on the first tunnel
    sites = ["fra", "ams"]
    tunnel = "backbone"
    underlay = "ipv4"                         # or "ipv6": the family of the endpoints
    endpoints = ["fra", "ams"]                # the sites whose address the other one is told
    keepalive = 25                            # seconds; default: the daemon's
    external_keys = "off"                     # or "prefer", "require": with all sources that both
                                              # have. Or [external_keys] as peers' files have it,
                                              # with sources = ["kme", "shared"]

    [kme]                                     # the quantum link of each two key managers
    rate = 100000.0                           # bits a second
    pool = 1000000                            # bits at most, and at the start
    delay = 0.0                               # seconds until the far end knows a key
    error_rate = 0.0                          # share of keys that differ at the two ends
    key_size = 256                            # bits, where none are asked for
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from ipaddress import (
    IPv4Interface,
    IPv4Network,
    IPv6Interface,
    IPv6Network,
    ip_interface,
    ip_network,
)
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
)

from vpnd_lab.errors import LabFileError, Problem
from vpnd_lab.spec_checks import cross_problems, shape_problems
from vpnd_lab.state import NAME_PATTERN


def _interface(value: Any) -> Any:
    """ "10.255.0.1/24": an address with its network's prefix length, never without."""
    if not isinstance(value, str):
        return value if isinstance(value, IPv4Interface | IPv6Interface) else _refuse(value)
    if "/" not in value:
        raise ValueError(f"{value!r} has no prefix length; write it like 10.255.0.1/24")
    try:
        return ip_interface(value)
    except ValueError:
        return _refuse(value)


def _network(value: Any) -> Any:
    """ "10.1.0.0/16": a prefix."""
    if not isinstance(value, str):
        return value if isinstance(value, IPv4Network | IPv6Network) else _refuse(value)
    if "/" not in value:
        raise ValueError(f"{value!r} has no prefix length; write it like 10.1.0.0/16")
    try:
        network = ip_network(value, strict=False)
    except ValueError:
        return _refuse(value)
    if ip_interface(value).ip != network.network_address:
        raise ValueError(f"{value!r} is an address in a network; write {network}")
    return network


def _refuse(value: Any) -> Any:
    raise ValueError(f"{value!r} is not an IPv4 or IPv6 address with a prefix length")


Interface = Annotated[IPv4Interface | IPv6Interface, BeforeValidator(_interface)]
Network = Annotated[IPv4Network | IPv6Network, BeforeValidator(_network)]

# A node's name is also the name of the interfaces that lead to it, and Linux takes 15 bytes.
NODE_NAME_PATTERN = r"^[a-z][a-z0-9-]{0,14}$"
# Leaves room for the random ending that open_lab appends.
_FILE_NAME_MAX = 32

Name = Annotated[str, Field(pattern=NODE_NAME_PATTERN)]
Port = Annotated[int, Field(ge=1, le=65535, strict=True)]
# 1280 is the least that IPv6 takes (RFC 8200 §5).
Mtu = Annotated[int, Field(ge=1280, le=65535, strict=True)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class Router(_Model):
    """A node that forwards and does nothing else."""

    neighbours: tuple[Name, ...] = ()


class Uplink(_Model):
    """A cable from a site to a router; no addresses: numbered by the lab."""

    addresses: tuple[Interface, ...] = ()
    mtu: Mtu = 1500


def _key_manager(value: Any) -> Any:
    """ "x-kme": the name of a node; or whether there is to be one."""
    if not isinstance(value, bool | str):
        raise ValueError(f"{value!r} is neither true, false nor the name of a key manager")  # noqa: TRY004
    if isinstance(value, str) and not re.fullmatch(NODE_NAME_PATTERN, value):
        raise ValueError(f"{value!r} cannot be the name of a key manager")
    return value


def _key_managers(value: Any) -> Any:
    """The same, or several by the names of their sources."""
    if not isinstance(value, dict):
        return _key_manager(value)
    for source, name in value.items():
        if not isinstance(name, str) or not re.fullmatch(NODE_NAME_PATTERN, source):
            raise ValueError(f"{source} = {name!r}: write the name of a key manager for a source")
        _key_manager(name)
    return value


class KeyManagers(_Model):
    """What the key managers of a lab share: vpnd_lab.kme.pool.LinkSettings."""

    rate: Annotated[float, Field(ge=0, le=1e12)] = 100_000.0
    pool: Annotated[int, Field(ge=0, le=10**12, strict=True)] = 1_000_000
    delay: Annotated[float, Field(ge=0, le=86_400)] = 0.0
    error_rate: Annotated[float, Field(ge=0, le=1)] = 0.0
    key_size: Annotated[int, Field(ge=64, le=8192, multiple_of=8, strict=True)] = 256


class ExternalKeys(BaseModel):
    """`[external_keys]` of both peers' files; what is not known here is written as it is."""

    model_config = ConfigDict(extra="allow", frozen=True)

    mode: Literal["off", "prefer", "require"]
    sources: tuple[Name, ...] | None = None

    @property
    def further(self) -> dict[str, Any]:
        """The rest of the table."""
        return dict(self.__pydantic_extra__ or {})


def _mode_only(value: Any) -> Any:
    return {"mode": value} if isinstance(value, str) else value


ExternalKeysOrMode = Annotated[ExternalKeys, BeforeValidator(_mode_only)]


class Site(_Model):
    """A gateway with a daemon, its lan, and its client hosts. None: the lab chooses."""

    uplinks: dict[Name, Uplink] | None = None
    lan: tuple[Network, ...] | None = None
    hosts: tuple[Name, ...] | None = None
    listen_port: Port = 51821
    tunnels: dict[Name, tuple[Interface, ...]] = Field(default_factory=dict)
    kme: Annotated[bool | str | dict[str, str], BeforeValidator(_key_managers)] = False
    skip: Annotated[bool | str, BeforeValidator(_key_manager)] = False
    key_file: Annotated[bool, Field(strict=True)] = False

    @field_validator("uplinks", mode="before")
    @classmethod
    def _names_only(cls, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return {name: Uplink() for name in value}
        return value


class Tunnel(_Model):
    """A WireGuard interface, of the same name and port at every site that has it."""

    interface: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.=-]{1,15}$")] = "wg0"
    listen_port: Port = 51820
    networks: tuple[Network, ...] = (
        IPv4Network("10.255.0.0/24"),
        IPv6Network("fd00:255::/64"),
    )
    backend: Literal["auto", "kernel", "userspace"] = "auto"


class Link(_Model):
    """Two sites that are to know each other."""

    sites: tuple[Name, Name]
    tunnel: Name | None = None
    underlay: Literal["ipv4", "ipv6"] = "ipv4"
    endpoints: tuple[Name, ...] | None = None
    keepalive: Annotated[int, Field(ge=0, le=65535, strict=True)] | None = None
    external_keys: ExternalKeysOrMode | None = None

    @property
    def family(self) -> Literal[4, 6]:
        """The version of IP between the two."""
        return 4 if self.underlay == "ipv4" else 6


class LabSpec(_Model):
    """A whole lab, as written."""

    name: Annotated[str, Field(pattern=NAME_PATTERN, max_length=_FILE_NAME_MAX)] = "lab"
    routers: Annotated[dict[Name, Router], Field(min_length=1)] = Field(
        default_factory=lambda: {"internet": Router()}
    )
    sites: Annotated[dict[Name, Site], Field(min_length=1, max_length=200)]
    tunnels: Annotated[dict[Name, Tunnel], Field(min_length=1)] = Field(
        default_factory=lambda: {"backbone": Tunnel()}
    )
    links: tuple[Link, ...] | None = None
    kme: KeyManagers = KeyManagers()
    external_keys: ExternalKeysOrMode | None = None

    def uplinks_of(self, site: str) -> dict[str, Uplink]:
        """A site's uplinks by router; where the file names none, one to the first router."""
        named = self.sites[site].uplinks
        return {next(iter(self.routers)): Uplink()} if named is None else named

    def lan_of(self, site: str) -> tuple[IPv4Network | IPv6Network, ...]:
        """A site's lan; where the file names none, by its place in the file (from 1)."""
        named = self.sites[site].lan
        number = list(self.sites).index(site) + 1
        default = (IPv4Network(f"10.{number}.0.0/16"), IPv6Network(f"fd00:{number}::/48"))
        return default if named is None else named

    def hosts_of(self, site: str) -> tuple[str, ...]:
        """A site's client hosts; where the file names none, one."""
        named = self.sites[site].hosts
        return (f"{site}-host",) if named is None else named

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a lab file. Raises LabFileError with everything that is wrong in it."""
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror or str(error) if isinstance(error, OSError) else "not UTF-8"
            problem = Problem("", f"cannot be read: {reason}", "name a TOML file of a lab")
            raise LabFileError(str(path), [problem]) from error
        return cls.parse(text, source=str(path), name=_name_from(path))

    @classmethod
    def parse(cls, text: str, *, source: str = "lab file", name: str = "lab") -> Self:
        """Read a lab file's text; `name` is the lab's name where the text gives none.

        Raises LabFileError.
        """
        try:
            document = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            problem = Problem("", f"is not TOML: {error}", "correct the syntax there")
            raise LabFileError(source, [problem]) from error
        return cls.of(document, source=source, name=name)

    @classmethod
    def of(cls, document: Mapping[str, Any], *, source: str = "lab", name: str = "lab") -> Self:
        """A lab from what a lab file holds, as dicts and lists. Raises LabFileError."""
        content = {"name": name, **document}
        problems: list[Problem] = []
        while True:
            try:
                spec = cls.model_validate(content)
            except ValidationError as error:
                # Tell what is wrong in shape, leave it out, and look at the rest: so that one
                # run tells everything.
                found, content = shape_problems(error.errors(), content, KEYS)
                problems += found
                if not content.get("sites"):
                    break
            else:
                problems += cross_problems(spec, document)
                break
        if problems:
            raise LabFileError(source, problems)
        return spec


def _name_from(path: Path) -> str:
    """A lab's name from its file's: what cannot be in one becomes a hyphen."""
    name = re.sub(r"[^a-z0-9]+", "-", path.stem.lower())[:_FILE_NAME_MAX]
    return name.strip("-") or "lab"


_TABLES = (LabSpec, Router, Site, Uplink, Tunnel, Link, KeyManagers, ExternalKeys)
KEYS = tuple({key for model in _TABLES for key in model.model_fields})

"""What can be wrong in a lab file, told by key, reason and what to do."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

from vpnd_lab.errors import Problem
from vpnd_lab.plan import Network, host_prefix_length, make_plan
from vpnd_lab.plan_keys import conflicts, key_managers, shared_sources

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from vpnd_lab.spec import LabSpec

_NAME_HINT = "use at most 15 lower-case letters, digits and hyphens, a letter first"
_NAME_HINTS = {
    "name": "use lower-case letters, digits and hyphens, at most 32",
    "interface": "use at most 15 of A-Z a-z 0-9 _ = . -",
}


def shape_problems(
    errors: Iterable[ErrorDetails], content: dict[str, Any], known_keys: Sequence[str]
) -> tuple[list[Problem], dict[str, Any]]:
    """What pydantic found, in a person's words; and the content without those parts.

    What is left can be checked further. Where nothing sensible is left, it is empty.
    """
    problems = []
    places = []
    for error in errors:
        problems.append(_shape_problem(error, known_keys))
        places.append(_removable(content, error["loc"]))
    if not all(places):
        return problems, {}
    rest = copy.deepcopy(content)
    # Later list items first, so that the earlier ones keep their index.
    for place in sorted(set(places), key=_order, reverse=True):
        _remove(rest, place)
    return problems, rest


def _shape_problem(error: ErrorDetails, known_keys: Sequence[str]) -> Problem:
    location = [str(step) for step in error["loc"] if step != "[key]"]
    key = ".".join(location)
    match error["type"]:
        case "extra_forbidden":
            close = difflib.get_close_matches(location[-1], known_keys, n=1)
            hint = f"did you mean {close[0]}?" if close else "remove it"
            return Problem(key, "is not a key of a lab file here", hint)
        case "missing":
            return Problem(key, "is missing", "add it")
        case "string_pattern_mismatch":
            hint = _NAME_HINTS.get(location[-1], _NAME_HINT)
            return Problem(key, f"{_short(error['input'])} cannot be used as a name", hint)
        case "literal_error":
            expected = error.get("ctx", {}).get("expected", "")
            return Problem(key, f"{error['input']!r} is not one of its values", f"use {expected}")
        case "dict_type" | "model_type":
            return Problem(key, f"{_short(error['input'])} is not a table", f"write [{key}]")
        case "value_error":
            return Problem(key, str(error.get("ctx", {}).get("error", error["msg"])))
        case _:
            reason = error["msg"].removeprefix("Input ")
            return Problem(key, f"{_short(error['input'])}: {reason}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _removable(content: Any, location: Sequence[int | str]) -> tuple[int | str, ...]:
    """The deepest table key on the way to a fault; of a link without two sites, the link."""
    place: list[int | str] = []
    for step in location:
        if place[:1] == ["links"] and len(place) == 2 and step == "sites":
            break
        in_table = isinstance(content, Mapping) and step in content
        if not in_table and place != ["links"]:
            break
        content = content[step]
        place.append(step)
    return tuple(place)


def _order(place: Sequence[int | str]) -> list[tuple[int, str]]:
    return [(step, "") if isinstance(step, int) else (0, step) for step in place]


def _remove(content: Any, place: Sequence[int | str]) -> None:
    for step in place[:-1]:
        content = content[step]
    del content[place[-1]]


def cross_problems(spec: LabSpec, document: Mapping[str, Any]) -> list[Problem]:
    """What is wrong between the parts of a lab file whose parts are right in themselves.

    `document` is the file as written: a name counts as there even if its table is faulty.
    """
    problems = [
        *_unknown_names(spec, document),
        *_twice_named(spec),
        *_too_small(spec),
        *_wrong_links(spec),
        *_wrong_sources(spec),
    ]
    return problems or list(_overlaps(spec))


def _named(document: Mapping[str, Any], table: str, default: Iterable[str]) -> set[str]:
    content = document.get(table)
    return set(content) if isinstance(content, Mapping) and content else set(default)


def _unknown_names(spec: LabSpec, document: Mapping[str, Any]) -> Iterator[Problem]:
    sites = _named(document, "sites", spec.sites)
    routers = _named(document, "routers", spec.routers)
    tunnels = _named(document, "tunnels", spec.tunnels)

    def check(key: str, name: str, known: set[str], what: str) -> Iterator[Problem]:
        if name not in known:
            hint = f"add [{what}s.{name}], or use one of: {', '.join(sorted(known))}"
            yield Problem(key, f"there is no {what} {name}", hint)

    for name, router in spec.routers.items():
        for neighbour in router.neighbours:
            yield from check(f"routers.{name}.neighbours", neighbour, routers, "router")
            if neighbour == name:
                reason = "a router is not its own neighbour"
                yield Problem(f"routers.{name}.neighbours", reason, "name another one")
    for name, site in spec.sites.items():
        for router_name in site.uplinks or {}:
            yield from check(f"sites.{name}.uplinks", router_name, routers, "router")
        for tunnel in site.tunnels:
            yield from check(f"sites.{name}.tunnels", tunnel, tunnels, "tunnel")
    for link in spec.links or ():
        key = _link_key(link.sites)
        for site_name in link.sites:
            yield from check(f"{key}.sites", site_name, sites, "site")
        if link.tunnel is not None:
            yield from check(f"{key}.tunnel", link.tunnel, tunnels, "tunnel")
        for endpoint in link.endpoints or ():
            if endpoint not in link.sites:
                hint = f"use {' or '.join(link.sites)}"
                yield Problem(f"{key}.endpoints", f"{endpoint} is not a site of this link", hint)


def _link_key(sites: Sequence[str]) -> str:
    return f"links[{'-'.join(sites)}]"


def _twice_named(spec: LabSpec) -> Iterator[Problem]:
    """Every node, tunnel interface and `lo` has a name of its own."""
    taken: dict[str, str] = {"lo": "the loopback interface"}
    owners = [(name, f"routers.{name}") for name in spec.routers]
    owners += [(name, f"sites.{name}") for name in spec.sites]
    for name in spec.sites:
        owners += [(host, f"sites.{name}.hosts") for host in spec.hosts_of(name)]
    owners += [(kme, f"the key manager {kme}") for kme in key_managers(spec)]
    owners += [
        (tunnel.interface, f"tunnels.{name}.interface") for name, tunnel in spec.tunnels.items()
    ]
    for name, owner in owners:
        if name in taken:
            yield Problem(owner, f"the name {name} is also that of {taken[name]}", "choose another")
        elif len(name) > 15:
            hint = "shorten the site's name, or name its hosts"
            yield Problem(owner, f"the host's name {name} has more than 15 characters", hint)
        else:
            taken[name] = owner
    ports: dict[int, str] = {}
    for name, tunnel in spec.tunnels.items():
        other = ports.setdefault(tunnel.listen_port, name)
        if other != name:
            reason = f"port {tunnel.listen_port} is also that of tunnel {other}"
            yield Problem(f"tunnels.{name}.listen_port", reason, "give each tunnel its own port")


def _too_small(spec: LabSpec) -> Iterator[Problem]:
    for name, site in spec.sites.items():
        hosts = spec.hosts_of(name)
        for lan in spec.lan_of(name):
            room = 2 ** (host_prefix_length(lan) - lan.prefixlen)
            if hosts and (lan.max_prefixlen - lan.prefixlen < 2 or len(hosts) > room):
                reason = f"{lan} has no room for {len(hosts)} client hosts"
                yield Problem(f"sites.{name}.lan", reason, "use a shorter prefix or fewer hosts")
        for router, uplink in spec.uplinks_of(name).items():
            for address in uplink.addresses:
                if address.network.num_addresses < 2:
                    key = f"sites.{name}.uplinks.{router}.addresses"
                    yield Problem(key, f"{address} has no room for the router", "use a network")
        if site.uplinks is not None and not site.uplinks:
            hint = "name a router, or leave the key out"
            yield Problem(f"sites.{name}.uplinks", "a site needs an uplink", hint)
    for name, tunnel in spec.tunnels.items():
        for network in tunnel.networks:
            if network.num_addresses < len(spec.sites) + 2:
                reason = f"{network} has no room for {len(spec.sites)} sites"
                yield Problem(f"tunnels.{name}.networks", reason, "use a shorter prefix")


def _wrong_links(spec: LabSpec) -> Iterator[Problem]:
    pairs = set()
    for link in spec.links or ():
        key = _link_key(link.sites)
        if link.sites[0] == link.sites[1]:
            yield Problem(f"{key}.sites", "a link joins two different sites", "name another one")
        if frozenset(link.sites) in pairs:
            yield Problem(key, "there is already a link between the two", "remove one")
        pairs.add(frozenset(link.sites))
        for name in link.sites:
            uplinks = spec.uplinks_of(name) if name in spec.sites else {}
            # An uplink without addresses is numbered in both families.
            numbered = uplinks and all(uplink.addresses for uplink in uplinks.values())
            versions = {a.version for uplink in uplinks.values() for a in uplink.addresses}
            if numbered and link.family not in versions:
                reason = f"site {name} has no {link.underlay} address"
                hint = "give one of its uplinks an address of that family, or use the other family"
                yield Problem(f"{key}.underlay", reason, hint)


def _wrong_sources(spec: LabSpec) -> Iterator[Problem]:
    """Sources of keys that contradict each other, and links that use what their sites lack."""
    yield from conflicts(spec)
    for link in spec.links or ():
        said = link.external_keys or spec.external_keys
        if said is None or said.mode == "off" or not set(spec.sites).issuperset(link.sites):
            continue
        yield from _lacking(
            spec, link.sites, said.sources, f"{_link_key(link.sites)}.external_keys"
        )
    if spec.links is None and spec.external_keys is not None and spec.external_keys.mode != "off":
        for pair in combinations(spec.sites, 2):
            yield from _lacking(spec, pair, spec.external_keys.sources, "external_keys")


def _lacking(
    spec: LabSpec, pair: tuple[str, str], named: Sequence[str] | None, key: str
) -> Iterator[Problem]:
    shared = shared_sources(spec, pair)
    lacking = [name for name in named or () if name not in shared]
    if lacking or not shared or named == ():
        what = f"source {lacking[0]}" if lacking else "source of keys"
        hint = "give both sites `kme = true`, `skip = true` or `key_file = true`"
        yield Problem(key, f"{pair[0]} and {pair[1]} have no {what} in common", hint)


def _overlaps(spec: LabSpec) -> Iterator[Problem]:
    plan = make_plan(spec)
    networks: list[tuple[str, Network]] = []
    for cable in plan.cables:
        if plan.nodes[cable.near.node] != "host":
            key = f"the cable {cable.near.node}-{cable.far.node}"
            if cable.near.node in spec.sites:
                key = f"sites.{cable.near.node}.uplinks.{cable.near.interface}"
            networks += [(key, address.network) for address in cable.near.addresses]
    for name, site in plan.sites.items():
        networks += [(f"sites.{name}.lan", network) for network in site.lan]
    for name, tunnel in spec.tunnels.items():
        networks += [(f"tunnels.{name}.networks", network) for network in tunnel.networks]
    for (one, network), (other, another) in combinations(networks, 2):
        if network.version == another.version and network.overlaps(another):
            reason = f"{another} overlaps {network} of {one}"
            yield Problem(other, reason, "choose networks that do not overlap")
    held: dict[tuple[str, str], str] = {}
    for name, site in plan.sites.items():
        for site_tunnel in site.tunnels:
            for address in site_tunnel.addresses:
                other_site = held.setdefault((site_tunnel.name, str(address.ip)), name)
                if other_site != name:
                    key = f"sites.{name}.tunnels.{site_tunnel.name}"
                    reason = f"{address.ip} is also the address of site {other_site}"
                    yield Problem(key, reason, "give each site its own")

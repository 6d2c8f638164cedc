"""Where the way to a prefix leads, if not into its tunnel: routes and rules in, words out.

Pure. What is looked at are the prefixes that lead, or are to lead, into tunnels with one routing
table; a route belongs to the longest of them that holds it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from tun.model import Prefix
from tun.routing import OwnNetwork
from tun.rtnl import KERNEL_PROTOCOL, MAIN_TABLE, OUR_PROTOCOL
from tun.ways import Rule, Way

__all__ = ["Detour", "Detours", "Watched", "find_detours", "note_overlap"]

_PROTOCOLS: Final[Mapping[int, str]] = {
    2: "the kernel",
    3: "a program at boot",
    4: "an administrator",
    9: "a router's advertisement",
    11: "zebra",
    12: "bird",
    16: "DHCP",
    186: "BGP",
    188: "OSPF",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """A prefix, and where it has to lead."""

    prefix: Prefix
    interfaces: frozenset[int]
    """The indexes of the interfaces that it may lead into."""
    metric: int | None
    """Of our route to it; None where none of ours is wanted, and any other goes first."""


@dataclass(frozen=True, slots=True)
class Detour:
    """One way by which a prefix, or a part of it, leads elsewhere."""

    text: str
    by_route: bool
    """Of packets that leave by a route, which a fence stops: not by this host's own network."""


@dataclass(slots=True)
class Detours:
    """What was found of each prefix, in words."""

    elsewhere: dict[Prefix, list[Detour]] = field(default_factory=dict)
    """It does not lead where it has to, or not as a whole."""
    notes: dict[Prefix, list[str]] = field(default_factory=dict)
    """It does, but for what this host has the better right to."""

    def add(self, prefix: Prefix, text: str, *, by_route: bool) -> None:
        told, found = self.elsewhere.setdefault(prefix, []), Detour(text, by_route)
        if found not in told:
            told.append(found)

    def note(self, prefix: Prefix, text: str) -> None:
        told = self.notes.setdefault(prefix, [])
        if text not in told:
            told.append(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scene:
    watched: Mapping[Prefix, Watched]
    table: int
    ways: Iterable[Way]
    rules: Iterable[Rule]
    own: Mapping[Prefix, OwnNetwork]
    names: Mapping[int, str]
    mark: int | None
    behind: frozenset[Prefix]


def find_detours(
    watched: Iterable[Watched],
    *,
    table: int,
    ways: Iterable[Way],
    rules: Iterable[Rule],
    own: Iterable[OwnNetwork],
    names: Mapping[int, str],
    mark: int | None,
    behind: frozenset[Prefix] = frozenset(),
) -> Detours:
    """Everything by which a watched prefix, or a part of it, leads elsewhere.

    `own` are the networks of this host's other interfaces in the same VRF, `names` those of the
    interfaces by index, `mark` the fwmark of WireGuard's own packets, `behind` prefixes that are
    behind this host, whatever route they have. Rules are looked at for the
    main table alone: which packets another one gets is the operator's rule to say.
    """
    scene = _Scene(
        watched={each.prefix: each for each in watched},
        table=table,
        ways=tuple(ways),
        rules=tuple(rules),
        own={each.prefix: each for each in own},
        names=names,
        mark=mark,
        behind=behind,
    )
    found = Detours()
    for network in scene.own.values():
        _judge_network(scene, network, found)
    for way in scene.ways:
        if way.table == table:
            _judge_way(scene, way, found)
    if table == MAIN_TABLE:
        for each in scene.watched.values():
            _judge_rules(scene, each, found)
    return found


def note_overlap(found: Detours, interface: str, prefix: Prefix, network: OwnNetwork) -> None:
    """Note that the network of a tunnel's address and that of another interface overlap."""
    if not (_within(prefix, network.prefix) or _within(network.prefix, prefix)):
        return
    found.note(
        prefix,
        f"{prefix}, the network of {interface}, overlaps {network.prefix}, the network of "
        f"{network.interface} on this host, which goes first where they are the same: "
        "give the tunnel another one",
    )


def _judge_network(scene: _Scene, network: OwnNetwork, found: Detours) -> None:
    holder = _holder(scene, network.prefix)
    if any(_within(network.prefix, one) for one in scene.behind):
        return
    if holder is None:
        for each in scene.watched.values():
            # The other way round: the tunnel's route takes a part of the network away
            if each.prefix.prefixlen and _within(each.prefix, network.prefix):
                found.note(
                    each.prefix,
                    f"{each.prefix} lies within {network.prefix}, the network of "
                    f"{network.interface} on this host: hosts there cannot be reached any more",
                )
        return
    where = f"{network.prefix}, the network of {network.interface} on this host"
    if holder.prefix.prefixlen == 0:
        return  # a tunnel for everything else than what is connected
    if holder.prefix == network.prefix:
        found.add(
            holder.prefix,
            f"{where}, goes first: what is sent there does not go through the tunnel; "
            "renumber one of the two",
            by_route=False,
        )
    elif network.is_lasting:
        found.note(
            holder.prefix,
            f"{where}, lies within {holder.prefix}: it is reached there, not through the tunnel",
        )
    else:
        found.add(
            holder.prefix,
            f"{where} (for a time, by DHCP or a router's advertisement), lies within "
            f"{holder.prefix}: what is sent there leaves in the clear",
            by_route=False,
        )


def _judge_way(scene: _Scene, way: Way, found: Detours) -> None:
    if way.protocol == OUR_PROTOCOL or any(_within(way.prefix, one) for one in scene.behind):
        return
    holder = _holder(scene, way.prefix)
    if holder is None or _leads_home(way, holder):
        return
    if way.protocol == KERNEL_PROTOCOL and way.prefix in scene.own and not way.gateway:
        return  # judged as a network
    if way.prefix == holder.prefix:
        # With the same metric it depends on who came first, and from where it was put
        if holder.metric is not None and way.metric > holder.metric:
            return
        if holder.metric is None and not way.outs:
            return  # it holds what it has, as a guard does
    elif holder.prefix.prefixlen == 0 and way.prefix.prefixlen > 1:
        return  # more specific than the default: what that is for, nobody but the operator knows
    part = "" if way.prefix == holder.prefix else f", within {holder.prefix},"
    found.add(
        holder.prefix,
        f"{way.prefix}{part} {_leads(scene, way)}: "
        f"see `ip -{way.prefix.version} route show {way.prefix}`, and delete it",
        by_route=bool(way.outs),
    )


def _judge_rules(scene: _Scene, each: Watched, found: Detours) -> None:
    own_addresses = {network.prefix for network in scene.own.values()}
    for rule in scene.rules:
        if rule.version != each.prefix.version or rule.by_interface:
            continue
        if not (rule.is_lookup or rule.refuses):
            continue
        if rule.destination is not None and not rule.destination.overlaps(each.prefix):
            continue
        if rule.mark is not None and rule.mark == scene.mark:
            continue  # for WireGuard's own packets
        if rule.source is not None and _is_own_address(rule.source, own_addresses):
            continue  # for an uplink: not what comes from behind this gateway
        if rule.refuses:
            found.add(
                each.prefix,
                f"{each.prefix} is refused, as a whole or in part, by the ip rule {rule.priority}: "
                f"see `ip -{rule.version} rule`, and delete it",
                by_route=False,
            )
            continue
        if rule.table == scene.table:
            passes_over = rule.suppressed is not None and each.prefix.prefixlen <= rule.suppressed
            if not rule.is_selective and rule.destination is None and not passes_over:
                return  # nothing comes behind it
            continue
        for way in _ways_of(scene, rule, each):
            if way.outs and not _leads_home(way, each):
                found.add(
                    each.prefix,
                    f"{each.prefix} {_leads(scene, way)}, by the ip rule {rule.priority} and table "
                    f"{rule.table}: see `ip -{rule.version} rule`, and delete it",
                    by_route=True,
                )


def _ways_of(scene: _Scene, rule: Rule, each: Watched) -> list[Way]:
    """What a rule's table has for a prefix: its parts, and the longest that holds it."""
    here = [
        way
        for way in scene.ways
        if way.table == rule.table
        and (rule.suppressed is None or way.prefix.prefixlen > rule.suppressed)
    ]
    parts = [way for way in here if _within(way.prefix, each.prefix)]
    holding = [way for way in here if _within(each.prefix, way.prefix)]
    if not any(way.prefix == each.prefix for way in parts) and holding:
        parts.append(max(holding, key=lambda way: (way.prefix.prefixlen, -way.metric)))
    return parts


def _is_own_address(source: Prefix, networks: Iterable[Prefix]) -> bool:
    return source.num_addresses == 1 and any(_within(source, network) for network in networks)


def _holder(scene: _Scene, prefix: Prefix) -> Watched | None:
    """The longest watched prefix that holds this one."""
    for length in range(prefix.prefixlen, -1, -1):
        found = scene.watched.get(prefix.supernet(new_prefix=length))
        if found is not None:
            return found
    return None


def _leads_home(way: Way, each: Watched) -> bool:
    return bool(way.outs) and way.outs <= each.interfaces


def _leads(scene: _Scene, way: Way) -> str:
    if not way.outs:
        return f"is refused by a route of {_maker(way)}"
    names = ", ".join(sorted(scene.names.get(out, f"interface {out}") for out in way.outs))
    via = f" (via {way.gateway})" if way.gateway else ""
    return f"leads to {names}{via} by a route of {_maker(way)}"


def _maker(way: Way) -> str:
    return _PROTOCOLS.get(way.protocol, f"protocol {way.protocol}")


def _within(prefix: Prefix, other: Prefix) -> bool:
    return prefix.version == other.version and prefix.subnet_of(other)  # type: ignore[arg-type]  # the same version

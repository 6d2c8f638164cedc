"""Guard routes, under what a link must never leak in the clear (docs/operations.md)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import trio

from tun import (
    InterfaceMissing,
    NamespaceMissing,
    Prefix,
    TunError,
    remove_guard_routes,
    set_guard_routes,
)
from vpnd.config_model import PeerConfig, TunnelConfig
from vpnd.last_good import Guarded, GuardPlace
from vpnd.tunnels import ENTERING_SECONDS, ManagedTunnel


def guarded_prefixes(peer: PeerConfig, tunnel: TunnelConfig) -> tuple[Prefix, ...]:
    """The prefixes of one link that get an `unreachable` route under them.

    Everything in allowed_ips but a default route; where routes are not ours (`routes = "none"`)
    and for default routes, what `protect` names.
    """
    own: Iterable[Prefix] = peer.allowed_ips if tunnel.routes == "allowed-ips" else ()
    guarded = {prefix for prefix in own if prefix.prefixlen > 0}
    guarded.update(peer.protect or ())
    return tuple(sorted(guarded, key=lambda prefix: (prefix.version, prefix)))


def place_of(tunnel: TunnelConfig) -> GuardPlace:
    """Where a tunnel's guard routes are."""
    return GuardPlace(tunnel.table, tunnel.vrf, tunnel.netns)


@dataclass(slots=True)
class Outcome:
    """What became of guard routes that were to be set, by peer."""

    faults: dict[str, str]
    waiting: dict[str, str]
    """Those in a namespace that is not there yet: nothing leaves it."""


async def set_all_guards(
    guards: Mapping[str, Iterable[Guarded]], *, entering: bool = True
) -> Outcome:
    """Set the guard routes of many peers, before there are any tunnels. Raises nothing that the
    system may answer: what stands in the way of one peer's keeps no other's away.

    Without `entering` those in another namespace are left out: the way into it may take long.
    """
    outcome = Outcome({}, {})
    places: dict[GuardPlace, dict[str, set[Prefix]]] = {}
    for peer, parts in guards.items():
        for each in parts:
            if entering or each.place.netns is None:
                places.setdefault(each.place, {}).setdefault(peer, set()).update(each.prefixes)
    # This namespace first: the way into another one may take long
    for place, peers in sorted(places.items(), key=lambda item: item[0].netns is not None):
        at_once = {prefix for prefixes in peers.values() for prefix in prefixes}
        try:
            await set_guard_routes(at_once, table=place.table, vrf=place.vrf, netns=place.netns)
        except NamespaceMissing as missing:
            outcome.waiting.update(dict.fromkeys(peers, str(missing)))
        except (TunError, OSError):
            for peer, prefixes in peers.items():
                try:
                    await set_guard_routes(
                        prefixes, table=place.table, vrf=place.vrf, netns=place.netns
                    )
                except (TunError, OSError) as error:
                    outcome.faults[peer] = str(error)
    return outcome


async def set_guards_at(place: GuardPlace, prefixes: Iterable[Prefix]) -> None:
    """Guard routes in a place that no tunnel has. Raises TunError, OSError."""
    with suppress(NamespaceMissing), trio.move_on_after(ENTERING_SECONDS) as scope:
        await set_guard_routes(prefixes, table=place.table, vrf=place.vrf, netns=place.netns)
    _in_time(scope, place, "may be missing in it")


async def remove_guards_at(place: GuardPlace, prefixes: Iterable[Prefix]) -> None:
    """Take guard routes away from a place that no tunnel has. Raises TunError, OSError."""
    with suppress(NamespaceMissing), trio.move_on_after(ENTERING_SECONDS) as scope:
        await remove_guard_routes(prefixes, table=place.table, vrf=place.vrf, netns=place.netns)
    _in_time(scope, place, "may be left in it")


def _in_time(scope: trio.CancelScope, place: GuardPlace, otherwise: str) -> None:
    if scope.cancelled_caught:
        raise TunError(
            f"the network namespace {place.netns} was out of reach for "
            f"{ENTERING_SECONDS:.0f} s: guard routes of the peer {otherwise}"
        )


async def set_guards(
    tunnel: ManagedTunnel, prefixes: Iterable[Prefix], *, entering: bool = False
) -> frozenset[Prefix]:
    """Guard routes for these prefixes, in the tunnel's table; those that were missing.

    A namespace is entered where `entering` says so: by the tunnel's own task, before there is
    an interface, since a helper may take long to open it. Else those of a tunnel that is not
    open are left to that task. Nothing leaves a namespace that is not there. Raises TunError.
    """
    config = tunnel.config
    if config.netns is not None and not entering:
        with suppress(InterfaceMissing):  # found at the next look, and opened anew
            if tunnel.open is not None:
                return await tunnel.open.set_guards(prefixes)
        return frozenset()
    with suppress(NamespaceMissing):
        return await set_guard_routes(
            prefixes, table=config.table, vrf=config.vrf, netns=config.netns
        )
    return frozenset()


async def remove_guards(tunnel: ManagedTunnel, prefixes: Iterable[Prefix]) -> None:
    """Take guard routes away. Raises TunError, also where a namespace has to be entered for
    that and the way into it takes long: others wait meanwhile."""
    config = tunnel.config
    if config.netns is not None and tunnel.open is not None:
        with suppress(InterfaceMissing):
            await tunnel.open.remove_guards(prefixes)
        return
    await remove_guards_at(place_of(config), prefixes)

"""Guard routes by place, without a tunnel: before there are any, and of peers that are held."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import trio

from tun import NamespaceMissing, Prefix, TunError, remove_guard_routes, set_guard_routes
from vpnd.last_good import Guarded, GuardPlace
from vpnd.tunnels import ENTERING_SECONDS


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
            done = await set_guard_routes(
                at_once, table=place.table, vrf=place.vrf, netns=place.netns
            )
        except NamespaceMissing as missing:
            outcome.waiting.update(dict.fromkeys(peers, str(missing)))
            continue
        except (TunError, OSError) as error:
            outcome.faults.update(dict.fromkeys(peers, str(error)))
            continue
        for peer, prefixes in peers.items():
            failed = sorted(prefixes & done.faults.keys(), key=str)
            if failed:
                reasons = dict.fromkeys(done.faults[prefix] for prefix in failed)
                outcome.faults[peer] = "; ".join(reasons)
    return outcome


async def set_guards_at(place: GuardPlace, prefixes: Iterable[Prefix]) -> None:
    """Guard routes in a place that no tunnel has. Raises TunError, OSError."""
    with suppress(NamespaceMissing), trio.move_on_after(ENTERING_SECONDS) as scope:
        done = await set_guard_routes(prefixes, table=place.table, vrf=place.vrf, netns=place.netns)
        if done.faults:
            raise TunError("; ".join(dict.fromkeys(done.faults.values())))
    if scope.cancelled_caught:
        raise TunError(
            f"the network namespace {place.netns} was out of reach for "
            f"{ENTERING_SECONDS:.0f} s: guard routes of the peer may be missing in it"
        )


async def remove_guards_at(place: GuardPlace, prefixes: Iterable[Prefix]) -> None:
    """Take guard routes away from a place that no tunnel has. Raises TunError, OSError."""
    with suppress(NamespaceMissing), trio.move_on_after(ENTERING_SECONDS) as scope:
        await remove_guard_routes(prefixes, table=place.table, vrf=place.vrf, netns=place.netns)
    if scope.cancelled_caught:
        raise TunError(
            f"the network namespace {place.netns} was out of reach for "
            f"{ENTERING_SECONDS:.0f} s: guard routes of the peer may be left in it"
        )

"""Guard routes, under what a link must never leak in the clear (docs/operations.md)."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from tun import (
    InterfaceMissing,
    NamespaceMissing,
    Prefix,
    set_guard_routes,
)
from vpnd.guarded import place_of
from vpnd.place_guards import remove_guards_at
from vpnd.tunnels import ManagedTunnel


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

"""Guard routes: what leaves through no tunnel leaves not at all.

An ``unreachable`` route with the worst metric stands under each prefix of a link, set before
the interface and independent of interface and daemon, removed only with the link.
"""

from __future__ import annotations

from collections.abc import Iterable

from tun.model import Prefix

__all__ = ["GUARD_METRIC", "guard_routes", "remove_guard_routes", "set_guard_routes"]

GUARD_METRIC = 4294967294


async def set_guard_routes(prefixes: Iterable[Prefix], *, table: int | None = None) -> None:
    """Add the guard routes that are missing; others that stand already are left alone.

    Raises NotOurs where a route that is not ours has the same prefix and metric.
    """
    raise NotImplementedError


async def remove_guard_routes(prefixes: Iterable[Prefix], *, table: int | None = None) -> None:
    """Remove the guard routes of these prefixes; one that is not there is no error."""
    raise NotImplementedError


async def guard_routes(*, table: int | None = None) -> tuple[Prefix, ...]:
    """The prefixes whose guard routes stand, sorted."""
    raise NotImplementedError

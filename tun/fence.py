"""The fence: what is guarded leaves by the interfaces of tunnels alone, whatever routes say.

An nftables table for each tunnel, in the tunnel's network namespace, of two chains:

    forward      what this host passes on: refused, and its sender is told (ICMP)
    postrouting  whatever leaves, this host's own packets as well, behind every change of its
                 destination or its route: dropped

Guard routes hold what no other route takes. The fence holds what another route takes: a more
specific one, one with a better metric, one of a table that an `ip rule` chooses. Like guard
routes it stays when the daemon or the interface is gone.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from ipaddress import ip_network
from typing import Final, TypeVar

import trio

from tun import nftables
from tun.errors import TunError, tun_error
from tun.model import Prefix
from tun.netlink import HERE, Netlink, entered
from tun.routing import networks_of_this_host

__all__ = [
    "FENCE_PREFIX",
    "FencePut",
    "FenceSpec",
    "FenceUnavailable",
    "KeptFence",
    "delete_fence",
    "fence_fault",
]

FENCE_PREFIX: Final = "vpnd-"
"""The name of a tunnel's table is this and the name of its interface."""

_FORWARD_PRIORITY: Final = -1
_POSTROUTING_PRIORITY: Final = 90
"""Before the source is changed (100)."""
_NEVER_FENCED: Final = tuple(
    map(
        ip_network, ("169.254.0.0/16", "224.0.0.0/4", "255.255.255.255/32", "fe80::/10", "ff00::/8")
    )
)
"""Of one link each, which no route leads over: neighbour discovery, routing protocols."""
_NOT_THERE: Final = (errno.ENOENT, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT)

_T = TypeVar("_T")


class FenceUnavailable(TunError):
    """This kernel has no nftables, or not enough of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FenceSpec:
    """A fence as it is wanted."""

    interface: str
    """Of the tunnel; the table is named after it."""
    ways: frozenset[str]
    """Interfaces by which what is guarded may leave: those of this daemon's tunnels."""
    guarded: frozenset[Prefix]
    own: frozenset[tuple[str, Prefix]] = frozenset()
    """Networks of this host's own, each with its interface, by which it may be reached."""
    behind: frozenset[Prefix] = frozenset()
    """Parts of what is guarded that are behind this host, by whatever interface."""
    ports: frozenset[int] = frozenset()
    """UDP ports of WireGuard and the key exchange here: what this host sends from them is
    encrypted already."""


@dataclass(frozen=True, slots=True)
class FencePut:
    """What came of putting a fence."""

    was_altered: bool
    """Somebody had changed or deleted it."""
    own: frozenset[tuple[str, Prefix]]
    """Networks of this host, with their interfaces, that are within what is guarded or hold some
    of it: they can be reached there."""


class KeptFence:
    """The fence of one tunnel: put in place, compared, and put back."""

    def __init__(self) -> None:
        self._spec: FenceSpec | None = None
        self._seen: tuple[bytes, ...] = ()

    async def put(self, spec: FenceSpec, *, netns: str | Netlink | None = None) -> FencePut:
        """Make sure that it is there as wanted, with the networks that this host has now; it is
        replaced in one step. Nothing guarded is no table.

        Raises FenceUnavailable, NamespaceMissing, TunError.
        """
        async with entered(netns) as netlink:
            networks = await netlink.run(networks_of_this_host)
            here = {(each.interface, each.prefix) for each in networks}
            own = frozenset(one for one in spec.own | here if _touches(one[1], spec.guarded))
            wanted = replace(spec, own=own)
            altered = await _run(netlink, lambda o: self._put(o, wanted), f"setting {_of(spec)}")
        return FencePut(altered, own)

    def _put(self, opened: socket.socket, spec: FenceSpec) -> bool:
        table = _table_name(spec.interface)
        there = nftables.read_table(opened, table)
        altered = self._spec is not None and there != self._seen
        if spec == self._spec and not altered:
            return False
        self._spec = None  # until it is known to be right
        if spec.guarded:
            nftables.replace_table(opened, _table(spec))
        elif there:
            nftables.delete_table(opened, table)
        self._seen = nftables.read_table(opened, table)
        self._spec = spec
        return altered


async def fence_fault() -> str:
    """Why there can be no fence on this host, or '' also where that cannot be told: without
    CAP_NET_ADMIN nftables cannot be asked. Changes nothing."""
    try:
        await _run(HERE, nftables.table_names, "asking for nftables")
    except FenceUnavailable as unavailable:
        return str(unavailable)
    except TunError:
        return ""
    return ""


async def delete_fence(interface: str, *, netns: str | Netlink | None = None) -> None:
    """Delete the fence of a tunnel, if there is one. Raises NamespaceMissing, TunError."""

    def delete(opened: socket.socket) -> None:
        if _table_name(interface) in nftables.table_names(opened):
            nftables.delete_table(opened, _table_name(interface))

    with suppress(FenceUnavailable):
        async with entered(netns) as netlink:
            await _run(netlink, delete, f"deleting the fence of {interface}")


async def _run(netlink: Netlink, work: Callable[[socket.socket], _T], doing: str) -> _T:
    def run(opened: socket.socket) -> _T:
        with opened:
            return work(opened)

    try:
        return await trio.to_thread.run_sync(run, await netlink.netfilter_socket())
    except OSError as error:
        if error.errno in _NOT_THERE:
            raise FenceUnavailable(
                f"this kernel lacks what the fence needs of nftables ({error.strerror}): "
                'modprobe -a nf_tables nft_fib_inet nft_reject_inet, or set fence = "off"'
            ) from error
        raise tun_error(error, doing) from error


def _of(spec: FenceSpec) -> str:
    return f"the fence of {spec.interface}"


def _table_name(interface: str) -> str:
    return f"{FENCE_PREFIX}{interface}"


def _table(spec: FenceSpec) -> nftables.Table:
    passed: list[tuple[nftables.Expression, ...]] = [
        (*match, nftables.ACCEPT) for match in nftables.leaves_by_any({"lo", *spec.ways})
    ]
    passed += [(*nftables.destination_in(each), nftables.ACCEPT) for each in _NEVER_FENCED]
    passed += [
        (*nftables.leaves_by(interface), *nftables.destination_in(network), nftables.ACCEPT)
        for interface, network in sorted(spec.own, key=str)
    ]
    passed += [
        (*nftables.destination_in(prefix), nftables.ACCEPT)
        for prefix in sorted(spec.behind, key=str)
    ]
    encrypted = [
        (*nftables.from_this_host(), *nftables.udp_source_port(port), nftables.ACCEPT)
        for port in sorted(spec.ports)
    ]
    sets = tuple(
        nftables.NamedSet(
            name=f"guarded{version}",
            version=version,
            prefixes=frozenset(one for one in spec.guarded if one.version == version),
        )
        for version in (4, 6)
    )

    def held(verdict: nftables.Expression) -> list[tuple[nftables.Expression, ...]]:
        return [(*nftables.destination_in_set(s.name, s.version), verdict) for s in sets]

    return nftables.Table(
        name=_table_name(spec.interface),
        sets=sets,
        chains=(
            nftables.Chain(
                name="forward",
                hook=nftables.FORWARD,
                priority=_FORWARD_PRIORITY,
                rules=(*passed, *held(nftables.REJECT)),
            ),
            nftables.Chain(
                name="postrouting",
                hook=nftables.POSTROUTING,
                priority=_POSTROUTING_PRIORITY,
                rules=(*passed, *encrypted, *held(nftables.DROP)),
            ),
        ),
    )


def _touches(network: Prefix, guarded: frozenset[Prefix]) -> bool:
    same = (prefix for prefix in guarded if prefix.version == network.version)
    return any(prefix.overlaps(network) for prefix in same)
